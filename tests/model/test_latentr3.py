"""LatentR3's attention against a loop over rows and tokens. The model's loss, gradients and ranking against full passes of the
language model. What `explain` returns."""

import math

import pytest
import torch
from conftest import assert_learns, draw_weights, think
from torch import nn

from recbole_flr.data.prompt import IGNORE
from recbole_flr.model.backbone import Backbone, load_tokenizer
from recbole_flr.model.latentr3 import LatentAttention
from recbole_flr.model.reasoner import read_prompt

FAMILIES = ["qwen2", "llama", "gpt2"]
BACKBONES = ["compact", *FAMILIES]
WIDTH = 16


# the attention alone


def attention():
    torch.manual_seed(3)
    module = LatentAttention(WIDTH).double()
    for parameter in module.parameters():  # so large that the attention is far from uniform and the biases matter
        nn.init.normal_(parameter, std=0.6)
    return module


def rotated(x, position):
    """[D] -> [D]: each pair (i, i + D/2) is rotated by the angle position * 1000^(-2i/D)."""
    half = len(x) // 2
    out = [None] * len(x)
    for i in range(half):
        angle = position * 1000.0 ** (-i / half)
        out[i] = x[i] * math.cos(angle) - x[i + half] * math.sin(angle)
        out[i + half] = x[i] * math.sin(angle) + x[i + half] * math.cos(angle)
    return torch.stack(out)


def slow_thought(module, hidden):
    """Thought [D] and attention [L] of one prompt's states [L, D], token by token."""
    query, key, value = ([layer.weight @ state + layer.bias for state in hidden]
                         for layer in (module.query, module.key, module.value))
    last = rotated(query[-1], len(hidden) - 1)
    weights = torch.stack([
        ((last * rotated(each, place)).sum() / math.sqrt(len(last))).exp() for place, each in enumerate(key)
    ])
    weights = weights / weights.sum()
    return sum(weight * each for weight, each in zip(weights, value)), weights


def padded(rows, layout):
    """Rows [L_b, D] with noise as padding -> states [B, L, D], positions [B, L] and mask [B, L]."""
    length = max(map(len, rows)) + (0 if layout == "none" else 3)
    hidden = torch.randn(len(rows), length, WIDTH, dtype=torch.float64)
    mask = torch.zeros(len(rows), length, dtype=torch.bool)
    for number, row in enumerate(rows):
        gap = length - len(row)
        place = {"left": torch.arange(gap, length), "right": torch.arange(len(row)), "none": torch.arange(length),
                 "anywhere": torch.randperm(length)[:len(row)].sort().values}[layout]
        hidden[number, place], mask[number, place] = row, True
    return hidden, (mask.long().cumsum(1) - 1).clamp_min(0), mask


@pytest.mark.parametrize("layout", ["none", "left", "right", "anywhere"])
def test_attention_equals_a_loop_over_tokens(layout):
    module = attention()
    lengths = [6, 6, 6] if layout == "none" else [6, 1, 9, 4]
    rows = [torch.randn(length, WIDTH, dtype=torch.float64) for length in lengths]
    hidden, positions, mask = padded(rows, layout)
    hidden.requires_grad_(True)
    thought, weights = module.attend(hidden, positions, mask)
    assert (weights[~mask] == 0).all()
    for number, row in enumerate(rows):
        expected, its_weights = slow_thought(module, row)
        torch.testing.assert_close(thought[number], expected, rtol=1e-10, atol=1e-10)
        torch.testing.assert_close(weights[number][mask[number]], its_weights, rtol=1e-10, atol=1e-10)
    assert weights.detach().max(1).values[0] > 2 / lengths[0]
    thought.square().sum().backward()
    assert (hidden.grad[~mask] == 0).all() and (hidden.grad[mask] != 0).any(1).all()


@pytest.mark.parametrize("layout", ["left", "right", "anywhere"])
def test_padding_changes_nothing(layout):
    module = attention()
    rows = [torch.randn(length, WIDTH, dtype=torch.float64) for length in (5, 1, 8)]
    together = module.attend(*padded(rows, layout))[0]
    for number, row in enumerate(rows):
        alone = module.attend(*padded([row], "none"))[0]
        torch.testing.assert_close(together[number], alone[0], rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("left", [True, False])
def test_thinking_over_the_cache_equals_full_passes(saved_models, family, left):
    from transformers import AutoModelForCausalLM

    lm = AutoModelForCausalLM.from_pretrained(saved_models[family], dtype=torch.float64)
    backbone, module = Backbone(lm, load_tokenizer(saved_models[family])).double().eval(), attention()
    rows = [torch.randn(length, WIDTH, dtype=torch.float64) for length in (4, 7, 1)]
    embeddings, positions, mask = padded(rows, "left" if left else "right")
    cached, full = (think(module, backbone, embeddings, mask, use_cache) for use_cache in (True, False))
    assert full.context.cache is None and torch.equal(full.context.embeddings, embeddings)
    assert len(cached.context.cache) == lm.config.num_hidden_layers
    assert cached.context.cache[0][0].shape[2] == embeddings.shape[1]
    assert cached.state is None and cached.context.thought_state is None  # there is no first thought, and there are no factors
    assert cached.context.length.tolist() == [4, 7, 1] and torch.equal(cached.context.mask, mask)
    # transformers computes its norms in float32, hence 1e-6
    torch.testing.assert_close(cached.embedding, full.embedding, rtol=1e-6, atol=1e-6)
    for number, row in enumerate(rows):
        hidden = lm.base_model(inputs_embeds=row[None], use_cache=False).last_hidden_state[0]
        torch.testing.assert_close(cached.embedding[number], slow_thought(module, hidden)[0], rtol=1e-6, atol=1e-6)
    for thought in (cached, full):  # the reinforcement stage thinks again and again on one context, which must stay as it is
        again = module.think(backbone, thought.context)
        assert again.context is thought.context and torch.equal(again.embedding, thought.embedding)
        fresh = read_prompt(backbone, embeddings, mask, thought.context.cache is not None)
        assert torch.equal(fresh.hidden, thought.context.hidden)
        for pair, own in zip(fresh.cache or (), thought.context.cache or ()):
            assert torch.equal(pair[0], own[0]) and torch.equal(pair[1], own[1])


# the model


@pytest.fixture
def latentr3(build, saved_models):
    """latentr3(backbone, **options) -> model, test rows. Float64, no dropout, weights so large that scores differ."""

    def make(backbone="compact", **options):
        options = {"prompt": "compact", "torch_dtype": "float64", "num_beams": 40, **options}
        _, model, loaders = build("LatentR3", backbone=str(saved_models.get(backbone, backbone)), **options)
        rows = next(iter(loaders[2]))[0]
        return draw_weights(model, std=0.2).double().eval(), rows[torch.arange(5)]

    return make


def prompt_of(model, rows, row):
    """Token ids of one row's prompt, as a list."""
    chunks, head = model.collator.chunks, model.n_items
    history = rows[model.ITEM_SEQ][row, :rows[model.ITEM_SEQ_LEN][row]].tolist()
    return [token for chunk in [head, *history, head + 1] for token in chunks.row(chunk)]


def log_probs(model, prompt, titles):
    """Log-probability of each title after one prompt: full passes over [prompt], then over [prompt, thought, title]."""
    lm, backbone = model.backbone.lm, model.backbone
    ends = {tuple(model.collator.titles.row(item)) for item in range(1, model.n_items)}
    embeddings = backbone.embed(torch.tensor(prompt))
    hidden = lm.base_model(inputs_embeds=embeddings[None], use_cache=False).last_hidden_state[0]
    thought = slow_thought(model.reasoner, hidden)[0]
    totals = []
    for title in titles:
        tokens = torch.cat([embeddings, thought[None], backbone.embed(torch.tensor(title))])
        logits = lm.get_output_embeddings()(lm.base_model(inputs_embeds=tokens[None], use_cache=False).last_hidden_state)[0]
        total = 0.0
        for place, token in enumerate(title):
            scores = logits[len(prompt) + place]
            if model.score == "trie":
                allowed = sorted({end[place] for end in ends if end[:place] == tuple(title[:place])})
                scores, token = scores[allowed], allowed.index(token)
            total = total + scores.log_softmax(-1)[token]
        totals.append(total)
    return torch.stack(totals)


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("backbone", BACKBONES)
def test_loss_and_gradient_are_those_of_plain_full_passes(latentr3, backbone, checkpointing):
    model, rows = latentr3(backbone, gradient_checkpointing=checkpointing)
    assert len(set(model.prompt_lengths(rows).tolist())) > 2
    titles = [model.collator.titles.row(item) for item in rows[model.ITEM_ID].tolist()]
    prompts = [prompt_of(model, rows, row) for row in range(len(rows))]
    parameters = dict(model.named_parameters())
    model.train()
    loss = model.calculate_loss(rows)
    gradients = dict(zip(parameters, torch.autograd.grad(loss, parameters.values())))
    model.eval()
    count = (model.collator.targets(rows[model.ITEM_ID])[1] != IGNORE).sum()
    expected = -sum(log_probs(model, prompt, [title])[0] for prompt, title in zip(prompts, titles)) / count
    torch.testing.assert_close(loss.double(), expected, rtol=1e-6, atol=1e-6)
    for (name, got), want in zip(gradients.items(), torch.autograd.grad(expected, parameters.values())):
        assert got.abs().max() > 1e-9, name
        torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-6, msg=name)
    if backbone == "llama":  # whose input and output embeddings are not tied: only tokens that are read get a gradient
        reached = gradients["backbone.lm.model.embed_tokens.weight"].abs().sum(1).nonzero().squeeze(1)
        assert set(reached.tolist()) == {token for row in prompts for token in row} | {t for row in titles for t in row[:-1]}
        assert model.backbone.thought_id not in reached


@pytest.mark.parametrize("trainable", ["frozen", "lora"])
@pytest.mark.parametrize("family", ["qwen2", "gpt2"])
def test_gradients_reach_the_attention_through_a_frozen_backbone(latentr3, family, trainable):
    model, rows = latentr3(family, trainable=trainable)
    model.calculate_loss(rows).backward()
    for name, parameter in model.named_parameters():
        reached = parameter.grad is not None and bool(parameter.grad.abs().sum() > 0)
        assert reached == (name.startswith("reasoner.") or "lora_" in name), name


@pytest.mark.parametrize("backbone, options", [
    *((backbone, {}) for backbone in BACKBONES), ("compact", {"score": "trie", "duplicate_titles": "share"}),
    ("llama", {"prompt": "paper", "length_penalty": 0.7}), ("compact", {"gradient_checkpointing": True}),
])
def test_ranking_equals_brute_force(latentr3, backbone, options):
    model, rows = latentr3(backbone, **options)
    rows, items = rows[torch.arange(3)], torch.arange(1, model.n_items)
    assert len(set(model.prompt_lengths(rows).tolist())) > 1
    pairs = rows[torch.arange(len(rows)).repeat_interleave(len(items))]
    pairs[model.ITEM_ID] = items.repeat(len(rows))
    titles = [model.collator.titles.row(item) for item in items.tolist()]
    with torch.no_grad():
        expected = torch.stack([log_probs(model, prompt_of(model, rows, row), titles) for row in range(len(rows))])
        expected = expected / torch.tensor([len(title) for title in titles]) ** model.length_penalty
        got, single = model.full_sort_predict(rows, model.n_items), model.predict(pairs).view(len(rows), -1)
        alone = torch.cat([model.full_sort_predict(rows[torch.tensor([row])], model.n_items) for row in range(len(rows))])
    assert got[:, 0].eq(-math.inf).all()
    torch.testing.assert_close(got[:, 1:].double(), expected, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(single.double(), expected, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(alone, got, rtol=1e-6, atol=1e-6)
    popularity = torch.from_numpy(model.catalog.popularity)[1:]
    for row in range(len(rows)):
        order = got[row, 1:].argsort(descending=True)
        above, below = order[:-1], order[1:]
        tie = torch.tensor([titles[one] == titles[two] for one, two in zip(above.tolist(), below.tolist())])
        assert (tie | (expected[row, above] >= expected[row, below] - 1e-6)).all()
        assert (popularity[above] >= popularity[below])[tie].all()
        assert tie.any() == (options.get("duplicate_titles") == "share")


@pytest.mark.parametrize("options", [{}, {"torch_dtype": "bfloat16"}, {"prompt": "paper"}, {"attn_implementation": "eager"}])
def test_every_variant_learns(build, options):
    _, model, loaders = build("LatentR3", embedding_dropout=0.0, train_batch_size=8, **options)
    assert all(p.dtype == torch.float32 for p in model.reasoner.parameters())
    assert_learns(model, loaders)


def test_explanation_is_the_attention_to_each_item(latentr3):
    """`explain` against the attention of the loop over tokens, summed by hand over the tokens of each title."""
    model, rows = latentr3()
    with torch.no_grad():
        alpha, shares = model.explain(rows)
        assert alpha.shape == (len(rows), 1) and alpha.eq(1).all()
        items = rows[model.ITEM_SEQ].shape[1]
        assert shares.shape == (len(rows), 1, items + 1)
        chunks = model.collator.chunks
        for row in range(len(rows)):
            prompt = prompt_of(model, rows, row)
            embeddings = model.backbone.embed(torch.tensor(prompt))[None]
            hidden = model.backbone.lm.base_model(inputs_embeds=embeddings, use_cache=False).last_hidden_state[0]
            weights = slow_thought(model.reasoner, hidden)[1]
            history = rows[model.ITEM_SEQ][row, :rows[model.ITEM_SEQ_LEN][row]].tolist()
            at, expected = len(chunks.row(model.n_items)), torch.zeros(items + 1, dtype=weights.dtype)
            for place, item in enumerate(history):
                end = at + len(chunks.row(item))
                expected[place], at = weights[at:end].sum(), end
            expected[-1] = 1 - expected.sum()  # the template's own tokens
            torch.testing.assert_close(shares[row, 0].to(weights.dtype), expected, rtol=1e-6, atol=1e-6)
    assert (shares.max(2).values > 2 * shares.mean(2)).any()  # the attention is not uniform
