"""ReaRec: its states are what a plain loop gives, and each part of its losses is that of a loop over rows and steps."""

import math

import pytest
import torch
from helpers_data import batch_of_histories

from recbole_flr.errors import ConfigError
from recbole_flr.model.rearec import progressive_loss, step_contrast, step_divergence

STILL = {"hidden_dropout_prob": 0.0, "attn_dropout_prob": 0.0}


def spread(model):
    torch.manual_seed(0)
    for parameter in model.parameters():
        if parameter.dim() > 1:
            torch.nn.init.normal_(parameter, std=0.3)
    return model.eval()


@pytest.mark.parametrize("num_steps", [0, 1, 3])
@pytest.mark.parametrize("learning", ["erl", "prl"])
@torch.no_grad()
def test_scores_are_those_of_the_plain_loop(build, learning, num_steps):
    """Each history alone and without padding, with one more place for each step."""
    _, model, _ = build("ReaRec", learning=learning, num_steps=num_steps, temperature=0.7)
    spread(model)
    histories = [[3, 5, 1], [2], [7, 7, 4, 9, 6, 1, 2]]
    together = model.full_sort_predict(batch_of_histories(model, histories))
    for number, history in enumerate(histories):
        inputs = [model.item_embedding.weight[item] + model.position_embedding.weight[place] for place, item in enumerate(history)]
        states = []
        for step in range(num_steps + 1):
            hidden = model.LayerNorm(torch.stack(inputs))[None]
            causal = torch.full((len(inputs), len(inputs)), -10_000.0).triu(1)[None, None]
            for layer in model.trm_encoder.layer:
                hidden = layer(hidden, causal)
            states.append(hidden[0, -1])
            if step < num_steps:
                inputs.append(states[-1] + model.step_embedding.weight[step])
        user = torch.stack(states).mean(0) if learning == "erl" else states[-1]
        expected = model.item_embedding.weight @ user / 0.7
        torch.testing.assert_close(together[number], expected, rtol=1e-4, atol=1e-4)


def test_without_steps_it_is_sasrec(build):
    _, sasrec, (train, *_) = build("SASRec", hidden_size=16, inner_size=32, train_neg_sample_args=None, **STILL)
    _, rearec, _ = build("ReaRec", num_steps=0, **STILL)
    rearec.load_state_dict(sasrec.state_dict(), strict=False)
    batch = next(iter(train))
    torch.testing.assert_close(rearec.calculate_loss(batch), sasrec.calculate_loss(batch))


@pytest.mark.parametrize("seed", range(3))
def test_the_divergence_is_the_plain_loop_and_holds_the_second_step_still(seed):
    torch.manual_seed(seed)
    logits = torch.randn(4, 3, 6, requires_grad=True)
    held = logits.detach()
    total = 0.0
    for row in range(4):
        for one in range(3):
            for two in range(3):
                if one != two:
                    p, q = logits[row, one].softmax(0), held[row, two].softmax(0)
                    total = total + (p * (p / q).log()).sum() / 6
    found = step_divergence(logits)
    torch.testing.assert_close(found, total / 4)
    expected, = torch.autograd.grad(total / 4, logits)
    got, = torch.autograd.grad(found, logits)
    torch.testing.assert_close(got, expected)


def test_the_progressive_loss_is_the_plain_loop():
    torch.manual_seed(0)
    logits, target = torch.randn(4, 3, 6), torch.tensor([5, 0, 2, 2])
    total = 0.0
    for row in range(4):
        for step in range(3):
            values = [float(value) / (0.5 * 2.0 ** (3 - step)) for value in logits[row, step]]
            total += math.log(sum(math.exp(value) for value in values)) - values[target[row]]
    assert progressive_loss(logits, target, 0.5, 2.0).item() == pytest.approx(total / 12, rel=1e-5)


def test_the_contrast_is_the_plain_loop():
    torch.manual_seed(0)
    noisy, clean, target = torch.randn(5, 2, 3), torch.randn(5, 2, 3), torch.tensor([1, 2, 1, 3, 4])
    total = 0.0
    for row in range(5):
        for step in range(2):
            values = {other: float(noisy[row, step] @ clean[other, step]) / 0.4 for other in range(5)
                      if other == row or target[other] != target[row]}
            total += math.log(sum(math.exp(value) for value in values.values())) - values[row]
    assert step_contrast(noisy, clean, target, 0.4).item() == pytest.approx(total / 10, rel=1e-5)


@pytest.mark.parametrize("learning, weights", [
    ("erl", {"kl_weight": 0.3}), ("prl", {"progressive_weight": 0.3, "contrast_weight": 0.0}),
    ("prl", {"progressive_weight": 0.0, "contrast_weight": 0.2}),
])  # fmt: skip
def test_the_loss_is_the_sum_of_its_parts(build, learning, weights):
    _, model, (train, *_) = build("ReaRec", learning=learning, num_steps=2, temperature=0.7, **STILL, **weights)
    spread(model)  # so that the steps differ
    batch = next(iter(train))
    history, length, target = (batch[name] for name in (model.ITEM_SEQ, model.ITEM_SEQ_LEN, model.POS_ITEM_ID))
    states = model.reason(history, length)
    items = model.item_embedding.weight
    last = states.mean(1) if learning == "erl" else states[:, -1]
    expected = torch.nn.functional.cross_entropy(last @ items.T / 0.7, target)
    if "kl_weight" in weights:
        expected = expected - 0.3 * step_divergence(states @ items.T / 0.7)
    elif weights["progressive_weight"]:
        expected = expected + 0.3 * progressive_loss(states[:, :-1] @ items.T, target, 0.7, model.temperature_base)
    else:
        torch.manual_seed(1)
        noisy = model.reason(history, length, model.noise)
        expected = expected + 0.2 * step_contrast(noisy[:, 1:], states[:, 1:], target, 0.7)
        assert not torch.equal(noisy, states)
    torch.manual_seed(1)
    torch.testing.assert_close(model.calculate_loss(batch), expected)


def test_a_width_that_heads_cannot_share_is_refused(build):
    with pytest.raises(ConfigError, match="hidden_size: found 15, expected a multiple of n_heads = 2"):
        build("ReaRec", hidden_size=15)


def test_another_loss_is_refused(build):
    with pytest.raises(ConfigError, match="loss_type: found 'BPR', expected CE"):
        build("ReaRec", loss_type="BPR")
