"""FLR as a RecBole model: which parameters get a gradient, every option, the parts of its loss, what `explain` returns."""

import math

import pytest
import torch
from conftest import assert_learns

from recbole_flr.errors import ConfigError


def loss_of(model, loaders):
    torch.manual_seed(0)
    return model.calculate_loss(next(iter(loaders[0])))


def test_gradients_reach_every_parameter(build):
    config, model, loaders = build(embedding_dropout=0.0)
    loss_of(model, loaders).backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None and parameter.grad.abs().sum() > 0, name


@pytest.mark.parametrize("trainable", ["frozen", "lora"])
@pytest.mark.parametrize("family", ["qwen2", "gpt2"])
def test_gradients_reach_every_flr_parameter_through_a_frozen_backbone(build, saved_models, family, trainable):
    config, model, loaders = build(backbone=str(saved_models[family]), trainable=trainable)
    loss_of(model, loaders).backward()
    own = [n for n, p in model.named_parameters() if not n.startswith("backbone.")]
    assert "reasoner.initial" in own and "loss_weights.unbounded" in own
    for name, parameter in model.named_parameters():
        reached = parameter.grad is not None and parameter.grad.abs().sum() > 0
        assert reached == (name in own or "lora_B" in name) or "lora_A" in name, name


@pytest.mark.parametrize("options", [
    {"num_factors": 1}, {"num_refinements": 1}, {"num_refinements": 4}, {"attend_thought": False, "num_refinements": 1},
    {"orthogonality_loss": False}, {"diversity_loss": False, "sparsity_loss": False, "orthogonality_loss": False},
    {"loss_weighting": "fixed"}, {"prompt": "paper"}, {"torch_dtype": "bfloat16"}, {"attn_implementation": "eager"},
])
def test_every_variant_learns(build, options):
    config, model, loaders = build(embedding_dropout=0.0, train_batch_size=8, **options)
    assert_learns(model, loaders)


def test_switched_off_regularisers_do_not_count(build):
    base = dict(embedding_dropout=0.0, loss_weighting="fixed", orthogonality_weight=1.0, diversity_weight=1.0,
                sparsity_weight=1.0)
    off = dict(orthogonality_loss=False, diversity_loss=False, sparsity_loss=False)
    plain = loss_of(*build(**base, **off)[1:]).item()
    config, model, loaders = build(**base)
    batch = next(iter(loaders[0]))
    thought = model.think(model.read_context(batch))
    terms = {name: value.item() for name, value in thought.state.regularisers().items()}
    for name in terms:
        one = loss_of(*build(**base, **{**off, f"{name}_loss": True})[1:]).item()
        assert one - plain == pytest.approx(terms[name], rel=1e-4)
    assert model.calculate_loss(batch).item() - plain == pytest.approx(sum(terms.values()), rel=1e-4)


def test_the_balance_of_the_gate_counts_with_its_weight(build):
    _, model, loaders = build(embedding_dropout=0.0, gate_balance=0.3)
    batch = next(iter(loaders[0]))
    mean = model.think(model.read_context(batch)).state.alpha.mean(0).tolist()
    gain = model.calculate_loss(batch) - build(embedding_dropout=0.0)[1].calculate_loss(batch)
    assert gain.item() == pytest.approx(0.3 * sum(m * math.log(m) for m in mean), rel=1e-4)


def test_the_first_thought_is_the_embedding_of_its_token(build):
    model = build()[1]
    assert torch.equal(model.reasoner.initial, model.backbone.lm.get_input_embeddings().weight[model.backbone.thought_id])


def test_gradient_checkpointing_changes_memory_only(build):
    results = []
    for checkpointing in (False, True):
        _, model, loaders = build(embedding_dropout=0.0, gradient_checkpointing=checkpointing, torch_dtype="float64")
        model.double().train()
        loss = loss_of(model, loaders)
        loss.backward()
        results.append((loss.item(), model.reasoner.step.attention.key.weight.grad.clone()))
    assert results[0][0] == pytest.approx(results[1][0], rel=1e-7)
    torch.testing.assert_close(results[0][1], results[1][1], rtol=1e-5, atol=1e-8)


def test_fewer_beams_than_topk_are_refused(build):
    with pytest.raises(ConfigError, match="num_beams: found 7, expected at least 10"):
        build(num_beams=7)


@pytest.mark.parametrize("decode", ["beam", "exact"])
def test_a_metric_of_all_places_is_refused_where_the_best_titles_are_searched(build, decode):
    with pytest.raises(ConfigError, match="metrics: found GAUC, which needs a score of each item"):
        build(metrics=["NDCG", "GAUC"], decode=decode)
    build(metrics=["NDCG", "GAUC"], eval_args={"split": {"LS": "valid_and_test"}, "order": "TO", "mode": "uni5"})  # all are scored


def test_explanation_adds_up(build):
    config, model, loaders = build()
    model.eval()
    rows = next(iter(loaders[2]))[0]
    alpha, shares = model.explain(rows)
    torch.testing.assert_close(alpha.sum(1), torch.ones(len(rows)))
    torch.testing.assert_close(shares.sum(2), torch.ones(len(rows), 3))
    for row, length in enumerate(rows[model.ITEM_SEQ_LEN].tolist()):
        assert (shares[row, :, :length] > 0).all() and (shares[row, :, length:-1] == 0).all()
    # an item's share is the attention to exactly the tokens of its title
    prompts = model.collator.prompts(rows[model.ITEM_SEQ], rows[model.ITEM_SEQ_LEN])
    state = model.think(model.read_context(rows)).state
    own = prompts.item[0] == 0
    assert shares[0, 1, 0].item() == pytest.approx(state.attention[0, 1, :-1][own].sum().item(), rel=1e-5)
