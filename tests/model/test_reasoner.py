"""Refining the thought with a cache gives what full passes give. Padding and the other rows of a batch change nothing."""

import pytest
import torch
from conftest import think

from recbole_flr.model.backbone import Backbone, load_tokenizer
from recbole_flr.model.factors import FactorStep
from recbole_flr.model.reasoner import Reasoner, read_prompt

FAMILIES = ["qwen2", "llama", "gpt2"]


@pytest.fixture
def backbone(saved_models, request):
    from transformers import AutoModelForCausalLM

    folder = saved_models[request.param]
    lm = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float64, attn_implementation="sdpa")
    return Backbone(lm, load_tokenizer(folder)).double().eval()


def reasoner(backbone, steps, attend_thought=True, num_factors=3):
    torch.manual_seed(3)
    made = Reasoner(FactorStep(backbone.width, num_factors), backbone.width, steps, attend_thought).double()
    torch.nn.init.normal_(made.initial, std=0.1)
    return made


def batch(lengths, left, seed=5, width=16):
    """Embeddings of prompts of the given lengths and their mask. The padding is noise, so a test fails if anything sees it."""
    torch.manual_seed(seed)
    rows = [torch.randn(n, width, dtype=torch.float64) for n in lengths]
    longest = max(lengths) + (2 if left is not None else 0)
    embeddings = torch.randn(len(rows), longest, width, dtype=torch.float64)
    mask = torch.zeros(len(rows), longest, dtype=torch.bool)
    for number, row in enumerate(rows):
        place = slice(longest - len(row), None) if left else slice(0, len(row))
        embeddings[number, place], mask[number, place] = row, True
    return embeddings, mask


@pytest.mark.parametrize("backbone", FAMILIES, indirect=True)
@pytest.mark.parametrize("steps", [1, 2, 4])
def test_cached_refinement_equals_full_passes(backbone, steps):
    module = reasoner(backbone, steps)
    results = []
    for use_cache in (True, False):
        embeddings, mask = batch([4, 7, 1], left=True)
        embeddings.requires_grad_(True)
        backbone.zero_grad(), module.zero_grad()
        thought = think(module, backbone, embeddings, mask, use_cache)
        (thought.embedding.square().sum() + sum(thought.state.regularisers().values())).backward()
        gradients = {n: p.grad.clone() for n, p in [*module.named_parameters(), *backbone.named_parameters()]
                     if p.grad is not None}
        state = thought.state
        results.append((thought.embedding, state.attention, embeddings.grad.masked_fill(~mask.unsqueeze(-1), 0), gradients))
    (embedding, maps, grad, weights), (embedding_, maps_, grad_, weights_) = results
    # transformers computes its norms in float32, hence 1e-6 rather than 1e-12
    torch.testing.assert_close(embedding, embedding_, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(maps, maps_, rtol=1e-6, atol=1e-7)
    torch.testing.assert_close(grad, grad_, rtol=1e-5, atol=1e-6)
    assert weights.keys() == weights_.keys() and "initial" in weights
    for name in weights:
        torch.testing.assert_close(weights[name], weights_[name], rtol=1e-5, atol=1e-6, msg=name)


def slow_thought(backbone, module, row):
    """z^(N) of one prompt [L, D] as eq. 2 says it: each refinement is a full pass of the language model."""
    thought = module.initial
    for _ in range(module.num_refinements):
        tokens = torch.cat([row, thought[None]])[None]
        hidden = backbone.lm.base_model(inputs_embeds=tokens).last_hidden_state
        positions = torch.arange(tokens.shape[1])[None]
        scores, seen = module.step.scores(hidden, positions), torch.ones(1, tokens.shape[1], dtype=torch.bool)
        state = module.step(scores, hidden[:, :-1], hidden[:, -1:], seen)
        thought = state.thought[0]
    return thought


@pytest.mark.parametrize("backbone", FAMILIES, indirect=True)
@pytest.mark.parametrize("left", [True, False])
def test_left_and_right_padding_and_singles_agree(backbone, left):
    module = reasoner(backbone, 3)
    lengths = [4, 7, 1, 5]
    embeddings, mask = batch(lengths, left)
    with torch.no_grad():
        together = think(module, backbone, embeddings, mask).embedding
        for number in range(len(lengths)):
            alone = slow_thought(backbone, module, embeddings[number][mask[number]])
            torch.testing.assert_close(together[number], alone, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("backbone", ["qwen2"], indirect=True)
def test_a_thought_that_is_not_seen_is_not_refined(backbone):
    embeddings, mask = batch([4, 6], left=True)
    with torch.no_grad():
        found = {(attend, steps): think(reasoner(backbone, steps, attend), backbone, embeddings, mask).embedding
                 for attend in (True, False) for steps in (1, 2, 3)}
    assert torch.equal(found[False, 1], found[False, 2]) and torch.equal(found[False, 1], found[False, 3])
    assert (found[True, 1] - found[True, 2]).abs().max() > 1e-3
    assert (found[True, 2] - found[True, 3]).abs().max() > 1e-6


@pytest.mark.parametrize("backbone", FAMILIES, indirect=True)
def test_a_head_that_is_read_once_gives_what_it_gives_in_each_row(backbone):
    """Thought, attention and all gradients are those of reading the head in every row."""
    module, shared = reasoner(backbone, 2), 9
    results = []
    for known in (shared, 0):
        embeddings, mask = batch([4, 7, 1], left=True)
        torch.manual_seed(8)
        head = torch.randn(1, shared, embeddings.shape[2], dtype=torch.float64).requires_grad_(True)
        embeddings.requires_grad_(True)
        backbone.zero_grad(), module.zero_grad()
        read = torch.cat([head.expand(len(mask), -1, -1), embeddings], dim=1)
        seen = torch.cat([mask.new_ones(len(mask), shared), mask], dim=1)
        context = read_prompt(backbone, read, seen, True, module.initial, known)
        thought = module.think(backbone, context)
        thought.embedding.square().sum().backward()
        gradients = {n: p.grad.clone() for n, p in [*module.named_parameters(), *backbone.named_parameters()]
                     if p.grad is not None}
        hidden = context.hidden.masked_fill(~seen.unsqueeze(-1), 0)
        results.append({"z": thought.embedding, "A": thought.state.attention, "H": hidden, "head": head.grad,
                        "rest": embeddings.grad.masked_fill(~mask.unsqueeze(-1), 0), **gradients})
    once, each = results
    assert once.keys() == each.keys() and each["head"].abs().min() > 0
    for name in each:
        torch.testing.assert_close(once[name], each[name], rtol=1e-5, atol=1e-6, msg=name)


@pytest.mark.parametrize("backbone", FAMILIES, indirect=True)
@pytest.mark.parametrize("lengths", [[4, 7, 1, 3, 3, 9, 2], [5], [2, 6]])
@torch.no_grad()
def test_groups_of_similar_length_give_what_one_pass_gives(backbone, lengths):
    """Without gradient: states and cache at all real tokens, and a title's states behind them."""
    embeddings, mask = batch(lengths, left=True)
    head = torch.randn(1, 8, embeddings.shape[2], dtype=torch.float64)
    read = torch.cat([head.expand(len(mask), -1, -1), embeddings], dim=1)
    seen = torch.cat([mask.new_ones(len(mask), 8), mask], dim=1)
    groups, plain = (read_prompt(backbone, read, seen, True, None, shared) for shared in (8, 0))
    torch.testing.assert_close(groups.hidden[seen], plain.hidden[seen], rtol=1e-6, atol=1e-6)
    for pair, other in zip(groups.cache, plain.cache):
        for part, expected in zip(pair, other):
            real = seen[:, None, :, None].expand_as(part)
            torch.testing.assert_close(part[real], expected[real], rtol=1e-6, atol=1e-6)
    token = torch.randn(len(mask), embeddings.shape[2], dtype=torch.float64)
    torch.testing.assert_close(groups.read_token(backbone, token), plain.read_token(backbone, token), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("backbone", ["qwen2"], indirect=True)
def test_a_first_thought_read_with_the_prompt_or_after_it_is_the_same(backbone):
    """The supervised stage reads the first thought in the prompt's pass. The reinforcement stage reads it after the prompt."""
    module = reasoner(backbone, 3)
    embeddings, mask = batch([4, 7, 1], left=True)
    with torch.no_grad():
        together = read_prompt(backbone, embeddings, mask, first_thought=module.initial)
        apart = read_prompt(backbone, embeddings, mask)
        assert together.thought_state is not None and apart.thought_state is None
        one, two = module.think(backbone, together), module.think(backbone, apart)
    torch.testing.assert_close(one.embedding, two.embedding, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(one.state.attention, two.state.attention, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("backbone", ["qwen2"], indirect=True)
def test_thinking_leaves_the_cache_of_the_prompt_as_it_is(backbone):
    module = reasoner(backbone, 3)
    embeddings, mask = batch([4, 6], left=True)
    with torch.no_grad():
        thought = think(module, backbone, embeddings, mask)
        positions = (mask.long().cumsum(-1) - 1).clamp_min(0)
        _, plain = backbone(embeddings, mask, positions, keep_cache=True)
    for (keys, values), (keys_, values_) in zip(thought.context.cache, plain):
        assert keys.shape == keys_.shape
        seen = mask[:, None, :, None].expand_as(keys)
        torch.testing.assert_close(keys[seen], keys_[seen], rtol=1e-6, atol=1e-6)
        torch.testing.assert_close(values[seen], values_[seen], rtol=1e-6, atol=1e-6)
