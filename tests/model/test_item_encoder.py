"""The encoder `items`: against a plain loop, with and without its cache, padding anywhere, several thoughts behind a history."""

import math

import pytest
import torch

from recbole_flr.model.factors import FactorStep
from recbole_flr.model.item_encoder import ItemEncoder
from recbole_flr.model.reasoner import Reasoner, read_prompt

D, LONGEST = 8, 5


@pytest.fixture
def encoder():
    torch.manual_seed(0)
    return ItemEncoder(D, 2, 2, 0.0, LONGEST).double().eval()


def histories(lengths):
    """Random histories, padded on the right as RecBole pads them: embeddings [B, L, D] and mask [B, L]."""
    torch.manual_seed(1)
    mask = torch.arange(LONGEST)[None] < torch.tensor(lengths)[:, None]
    return torch.randn(len(lengths), LONGEST, D, dtype=torch.float64), mask


def normed(x, norm):
    """Layer norm of one vector."""
    deviation = ((x - x.mean()) ** 2).mean() + 1e-5
    return (x - x.mean()) / deviation.sqrt() * norm.weight + norm.bias


@torch.no_grad()
def test_the_encoder_is_the_plain_loop(encoder):
    """One history, place by place and head by head. All weights are drawn anew, because biases start at 0 and norms at 1."""
    for parameter in encoder.parameters():
        torch.nn.init.normal_(parameter, std=0.7)
    embeddings, mask = histories([LONGEST])
    states = [normed(embeddings[0, place] + encoder.position.weight[place], encoder.norm) for place in range(LONGEST)]
    for layer in encoder.layers:
        attended = []
        for place in range(LONGEST):
            mapped = [layer.inputs.weight @ state + layer.inputs.bias for state in states[:place + 1]]
            query, seen = mapped[place][:D], []
            for head in range(2):
                own = slice(head * D // 2, (head + 1) * D // 2)
                scores = torch.stack([query[own] @ other[D:2 * D][own] / math.sqrt(D / 2) for other in mapped])
                shares = scores.exp() / scores.exp().sum()
                seen.append(sum(share * other[2 * D:][own] for share, other in zip(shares, mapped)))
            attended.append(layer.output.weight @ torch.cat(seen) + layer.output.bias)
        states = [normed(state + more, layer.attention_norm) for state, more in zip(states, attended)]
        first, _, second = layer.feed_forward
        inner = [first.weight @ state + first.bias for state in states]
        inner = [x * (1 + torch.erf(x / math.sqrt(2))) / 2 for x in inner]
        states = [normed(state + second.weight @ x + second.bias, layer.output_norm) for state, x in zip(states, inner)]
    found, _ = encoder(embeddings, mask, torch.arange(LONGEST)[None])
    torch.testing.assert_close(found[0], torch.stack(states))


def test_a_token_sees_nothing_that_comes_later(encoder):
    embeddings, mask = histories([5])
    positions = torch.arange(LONGEST)[None]
    before, _ = encoder(embeddings, mask, positions)
    changed = embeddings.clone()
    changed[:, 3:] *= -1
    after, _ = encoder(changed, mask, positions)
    torch.testing.assert_close(before[:, :3], after[:, :3])
    assert (before[:, 3:] - after[:, 3:]).abs().amax(-1).min() > 1e-3


def test_a_row_does_not_depend_on_its_padding(encoder):
    """A short history in a batch with a long one, against the short one alone and cut."""
    embeddings, mask = histories([5, 2])
    thought = torch.randn(D, dtype=torch.float64)
    together = read_prompt(encoder, embeddings, mask, True, thought)
    alone = read_prompt(encoder, embeddings[1:, :2], mask[1:, :2], True, thought)
    torch.testing.assert_close(together.hidden[1:, :2], alone.hidden)
    torch.testing.assert_close(together.thought_state[1:], alone.thought_state)


@pytest.mark.parametrize("refinements", [1, 3])
def test_refinement_on_the_cache_equals_full_passes(encoder, refinements):
    torch.manual_seed(2)
    reasoner = Reasoner(FactorStep(D, 3), D, refinements).double()
    embeddings, mask = histories([5, 1, 3])
    torch.nn.init.normal_(reasoner.initial)
    found = reasoner.think(encoder, read_prompt(encoder, embeddings, mask, True, reasoner.initial))
    full = reasoner.think(encoder, read_prompt(encoder, embeddings, mask, False, reasoner.initial))
    torch.testing.assert_close(found.embedding, full.embedding)


def test_several_thoughts_do_not_see_each_other(encoder):
    embeddings, mask = histories([4, 2])
    context = read_prompt(encoder, embeddings, mask, True)
    thoughts = torch.randn(2, 3, D, dtype=torch.float64)
    own = torch.eye(3, dtype=torch.bool).expand(2, -1, -1)
    visible = torch.cat([mask.unsqueeze(1).expand(-1, 3, -1), own], dim=2)
    together, _ = encoder(thoughts, visible, context.length.unsqueeze(1).expand(-1, 3), context.cache)
    for number in range(3):
        torch.testing.assert_close(together[:, number:number + 1], context.read_token(encoder, thoughts[:, number]))
