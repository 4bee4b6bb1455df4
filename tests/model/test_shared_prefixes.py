"""One pass over shared prefixes of prompts gives the loss and the gradients of reading each row by itself."""

import pytest
import torch
from conftest import TINY_LATENT, TINY_OPTIONS, draw_weights, exact_norms

from recbole_flr.data.batching import LengthBatches, PrefixBatches
from recbole_flr.training.supervised import Supervised

MIX = {**TINY_LATENT, **TINY_OPTIONS["FLRMix"], "backbone": "compact"}
OPTIONS = {"torch_dtype": "float64", "embedding_dropout": 0.0, "share_prefixes": "auto"}


@pytest.fixture
def prepared(build):
    """prepared(name, **options) -> config, model in training mode without dropout, loaders."""

    def make(name, **options):
        base = MIX if name == "FLRMix" else {}
        config, model, loaders = build(name, **{**base, **OPTIONS, **options})
        return config, exact_norms(draw_weights(model, std=0.2).double()).train(), loaders

    return make


def titles_of(model):
    return model.reader if type(model).__name__ == "FLRMix" else model


def gradients(model, batch):
    model.zero_grad(set_to_none=True)
    loss = model.calculate_loss(batch)
    loss.backward()
    return {"loss": loss.detach(), **{name: p.grad for name, p in model.named_parameters() if p.grad is not None}}


@pytest.mark.parametrize("name", ["FLR", "LatentR3", "BIGRec", "FLRMix"])
@pytest.mark.parametrize("options", [{}, {"prompt": "paper"}, {"backbone": "gpt2"}, {"backbone": "qwen2", "trainable": "lora"}], ids=str)
def test_loss_and_gradients_are_those_of_row_by_row_training(prepared, saved_models, name, options):
    if "backbone" in options:
        options = {**options, "backbone": str(saved_models[options["backbone"]])}
    config, model, loaders = prepared(name, **options)
    batch = next(iter(Supervised(model, config).loader(loaders[0])))
    titles, read = titles_of(model), []
    forward = titles.backbone.lm.base_model.register_forward_hook(
        lambda module, args, kwargs, out: read.append(kwargs["inputs_embeds"].shape[0] * kwargs["inputs_embeds"].shape[1]), with_kwargs=True)
    titles.sharing = False
    expected, apart = gradients(model, batch), sum(read)
    read.clear()
    titles.sharing = True
    found, together = gradients(model, batch), sum(read)
    forward.remove()
    assert together < 0.9 * apart  # tokens, with the thoughts and titles, which are not shared
    assert found.keys() == expected.keys() and len(found) > 3
    for part in expected:
        torch.testing.assert_close(found[part], expected[part], rtol=1e-8, atol=1e-10, msg=part)


def test_a_batch_without_shared_prefixes(prepared):
    config, model, loaders = prepared("FLR")
    batch = next(iter(loaders[0]))
    one = batch[torch.tensor([0])]
    model.sharing = True
    found = gradients(model, one)
    model.sharing = False
    for part, expected in gradients(model, one).items():
        assert torch.equal(found[part], expected)


def test_evaluation_does_not_share(prepared):
    _, model, loaders = prepared("FLR")
    rows = next(iter(loaders[2]))[0]
    with torch.no_grad():
        model.eval()
        model.sharing = True
        found = model.full_sort_predict(rows)
        model.sharing = False
        assert torch.equal(found, model.full_sort_predict(rows))


@pytest.mark.parametrize("option, shared", [("auto", True), (True, True), (False, False)])
def test_the_option(prepared, option, shared):
    config, model, loaders = prepared("FLR", share_prefixes=option)
    loader = Supervised(model, config).loader(loaders[0])
    assert type(loader) is (PrefixBatches if shared else LengthBatches) and model.sharing == shared


def test_auto_shares_only_where_it_saves_a_third(prepared):
    config, model, loaders = prepared("FLR", prompt="paper")
    rows = loaders[0]._dataset.inter_feat
    history, length = rows[model.ITEM_SEQ], rows[model.ITEM_SEQ_LEN]
    assert model.prefix_groups(history, length) is not None
    _, first = history[:, 0].unique(return_inverse=True)
    alone = torch.stack([(first == group).nonzero()[0, 0] for group in range(int(first.max()) + 1)])
    assert model.prefix_groups(history[alone], length[alone]) is None and not model.sharing


def test_gradient_checkpointing_reads_row_by_row(prepared, caplog):
    config, model, loaders = prepared("FLR", gradient_checkpointing=True, share_prefixes=True)
    assert type(Supervised(model, config).loader(loaders[0])) is LengthBatches
    assert "share_prefixes has no effect with gradient_checkpointing" in caplog.text
