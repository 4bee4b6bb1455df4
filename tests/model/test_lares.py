"""LARES: the core block, the alignments and the reward are what plain loops give; its stages train what they should."""

import pytest
import torch
from helpers_data import batch_of_histories

from recbole_flr.errors import ConfigError
from recbole_flr.model import lares
from recbole_flr.model.lares import alignment
from recbole_flr.training.reinforcement import LatentGRPO


@pytest.mark.parametrize("depth", [1, 2, 5])
@torch.no_grad()
def test_scores_are_those_of_the_plain_loop(build, depth):
    """Each history alone and without padding: pre-block, then `depth` times the core block on thought plus states."""
    _, model, _ = build("LARES", depth=depth, core_layers=2)
    for parameter in model.parameters():
        if parameter.dim() > 1:
            torch.nn.init.normal_(parameter, std=0.3)
    histories = [[3, 5, 1], [2], [7, 7, 4, 9, 6, 1, 2]]
    together = model.eval().full_sort_predict(batch_of_histories(model, histories))
    for number, history in enumerate(histories):
        size = len(history)
        causal = torch.full((size, size), -10_000.0).triu(1)[None, None]
        start = model.norm(model.items(torch.tensor([history])) + model.positions.weight[:size])
        hidden = start
        for layer in model.pre_block.layer:
            hidden = layer(hidden, causal)
        thought = torch.zeros_like(hidden)
        for _ in range(depth):
            thought = model.reasoner.norm(thought + hidden)
            for layer in model.reasoner.block.layer:
                thought = layer(thought, causal)
        expected = thought[0, -1] @ model.items.weight.T
        torch.testing.assert_close(together[number, 1:], expected[1:], rtol=1e-4, atol=1e-4)
    assert (together[:, 0] == -torch.inf).all()


def plain_alignment(one, two, target, temperature):
    """InfoNCE in both directions, one row after the other."""
    total = 0.0
    for left, right in ((one, two), (two, one)):
        for row in range(len(target)):
            values = {other: torch.cosine_similarity(left[row], right[other], dim=0) / temperature for other in range(len(target))
                      if other == row or target[other] != target[row]}
            total = total + torch.stack(list(values.values())).exp().sum().log() - values[row]
    return total / (2 * len(target))


@pytest.mark.parametrize("seed", range(4))
def test_the_alignment_is_the_plain_loop(seed):
    torch.manual_seed(seed)
    one, two, target = torch.randn(6, 5), torch.randn(6, 5), torch.tensor([3, 1, 3, 2, 1, 4])
    torch.testing.assert_close(alignment(one, two, target, 0.3), plain_alignment(one, two, target, 0.3))


def test_the_depth_of_training_is_uniform_around_the_depth_of_ranking(build):
    _, model, _ = build("LARES", depth=3)
    torch.manual_seed(0)
    drawn = torch.bincount(torch.tensor([model._draw_depth() for _ in range(5000)]), minlength=6)
    assert drawn[0] == 0 and len(drawn) == 6 and (drawn[1:] / 5000 - 0.2).abs().max() < 0.03


def test_the_parts_of_the_loss(build, monkeypatch):
    """With equal noise and no dropout both trajectories are one, so the trajectory loss is that of a thought with itself."""
    still = {"initial_noise": 0.0, "hidden_dropout_prob": 0.0, "attn_dropout_prob": 0.0}
    _, model, (train, *_) = build("LARES", **still)
    batch = next(iter(train))
    monkeypatch.setattr(model, "_draw_depth", lambda: model.depth)
    parts, target = model.losses(batch), batch[model.POS_ITEM_ID]
    thought = model.think(model.read_context(batch))
    torch.testing.assert_close(parts["item"].value, torch.nn.functional.cross_entropy(model.scores(thought.embedding), target))
    own = alignment(thought.embedding, thought.embedding, target, model.temperature)
    torch.testing.assert_close(parts["trajectory"].value, own)
    possible = [alignment(step, thought.embedding, target, model.temperature).item() for step in thought.steps[:-1]]
    means = [(a + b) / 2 for a in possible for b in possible]
    assert min(abs(parts["step"].value.item() - mean) for mean in means) < 1e-5
    for name in ("trajectory", "step"):
        _, other, _ = build("LARES", **{f"{name}_weight": 0.0})
        assert name not in other.losses(batch)
    model.depth = 1
    assert model.losses(batch)["step"].value == 0


def test_the_two_trajectories_of_the_first_stage(build, monkeypatch):
    """They differ in noise and length, and both get gradients. A thought on the way moves towards the last one, not the reverse."""
    still = {"initial_noise": 0.3, "hidden_dropout_prob": 0.0, "attn_dropout_prob": 0.0, "alignment_temperature": 0.4}
    _, model, (train, *_) = build("LARES", depth=4, train_batch_size=8, **still)
    model.double()
    batch, depths, asked, found, drawn = next(iter(train)), iter([3, 5]), [], [], []
    monkeypatch.setattr(model, "_draw_depth", lambda: next(depths))
    monkeypatch.setattr(lares, "from_first", lambda value: (drawn.append(value), value)[1])
    think = model.reasoner.think

    def watched(context, depth, noise=0.0):
        asked.append((depth, noise))
        found.append(think(context, depth, noise))
        return found[-1]

    monkeypatch.setattr(model.reasoner, "think", watched)
    parts, target = model.losses(batch), batch[model.POS_ITEM_ID]
    assert asked == [(3, 0.3), (5, 0.3)]
    assert [len(each.steps) for each in found] == [3, 5] and drawn[0] < 2 and drawn[1] < 4
    assert (found[0].steps[0] - found[1].steps[0]).abs().amax(1).min() > 1e-3  # after one step only the noise differs
    ends = [each.steps[-1] for each in found]
    log_probs = [(end @ model.items.weight[1:].T).log_softmax(1) for end in ends]
    item = -sum(each[row, target[row] - 1] for each in log_probs for row in range(8)) / 16
    trajectory = plain_alignment(*ends, target, 0.4)
    step = sum(plain_alignment(each.steps[place], end.detach(), target, 0.4) for each, end, place in zip(found, ends, drawn)) / 2
    weights = list(model.parameters())
    for name, expected in (("item", item), ("trajectory", trajectory), ("step", step)):
        torch.testing.assert_close(parts[name].value, expected)
        one, other = (torch.autograd.grad(value, weights, retain_graph=True) for value in (parts[name].value, expected))
        assert sum(gradient.abs().sum() for gradient in other) > 1e-3
        torch.testing.assert_close(one, other)


@torch.no_grad()
def test_the_first_thought_is_noise(build):
    _, model, _ = build("LARES")
    context = model.eval().read_context(batch_of_histories(model, [[3, 5, 1], [2, 4]]))
    torch.manual_seed(0)
    first = 0.7 * torch.randn_like(context.hidden)
    state = model.reasoner.block(model.reasoner.norm(first + context.hidden), context.mask)[-1]
    torch.manual_seed(0)
    torch.testing.assert_close(model.reasoner.think(context, 1, 0.7).embedding, torch.stack([state[0, 2], state[1, 1]]))


@torch.no_grad()
def test_the_reward_is_recall_at_k(build):
    _, model, _ = build("LARES", topk=[1, 3], valid_metric="NDCG@3")
    torch.manual_seed(1)
    thoughts, target = torch.randn(4, 6, 16), torch.tensor([1, 5, 9, 2])
    found = model.eval().score_target(None, thoughts, target, greedy=True)
    rewards = []
    for row in range(4):
        for member in range(6):
            order = (thoughts[row, member] @ model.items.weight[1:].T).argsort(descending=True) + 1
            place = order.tolist().index(target[row].item())
            rewards.append(float(place < 3))
            assert found.match[row, member].item() == (place == 0)
    assert found.reward.flatten().tolist() == rewards and 0 < sum(rewards) < 24
    log_probs = model.scores(thoughts).log_softmax(-1)
    expected = torch.stack([log_probs[row, :, target[row]] for row in range(4)])
    torch.testing.assert_close(found.log_probs.squeeze(2), expected)


def test_the_reinforcement_trains_the_core_block_only(build):
    config, model, (train, *_) = build("LARES", stages="spt,grpo")
    stage = LatentGRPO(model, config)
    stage.enter()
    model.train()
    assert not any(module.training for module in [*model.modules(), *stage.reference.modules()])
    before = {name: parameter.clone() for name, parameter in model.named_parameters()}
    optimizer = torch.optim.Adam([p for p in model.parameters() if p.requires_grad], lr=0.01)
    for number, batch in enumerate(stage.loader(train)):
        loss = stage.loss(batch)
        if number == 0:  # no step was taken yet
            assert stage.means.read()["kl"] == pytest.approx(0.0, abs=1e-7)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    moved = {name for name, parameter in model.named_parameters() if not torch.equal(parameter, before[name])}
    assert moved and all(name.startswith("reasoner.") for name in moved)
    assert stage.means.read()["kl"] > 1e-6


def test_both_stages_run_and_the_better_one_is_kept(trained):
    _, result = trained("LARES", stages="spt,grpo")
    assert set(result["stages"]) == {"spt", "grpo"} and result["kept"] in result["stages"]


def test_a_width_that_the_heads_do_not_divide(build):
    with pytest.raises(ConfigError, match="hidden_size: found 15, expected a multiple of n_heads = 2"):
        build("LARES", hidden_size=15)
