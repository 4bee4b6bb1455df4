"""The equations of the reinforcement stage on plain tensors: numbers worked out by hand, loops, and bandits whose best direction
is known."""

import math
import sys

import numpy as np
import pytest
import torch
import torch.distributed
import torch.multiprocessing
from hypothesis import given, settings, strategies as st

from recbole_flr.training import grpo

D = torch.float64


# noise


@pytest.mark.parametrize("relative", [True, False])
def test_noise_has_the_length_that_was_asked_for(relative):
    torch.manual_seed(0)
    thought = torch.randn(3, 64, dtype=D) * torch.tensor([[0.1], [1.0], [30.0]], dtype=D)
    noise, deviation = grpo.perturb(thought, 2000, 0.4, relative)
    assert noise.shape == (3, 2000, 64) and noise[:, 0].eq(0).all() and not noise.requires_grad
    size = noise[:, 1:].norm(dim=-1).square().mean(1).sqrt()
    expected = 0.4 * thought.norm(dim=-1) if relative else torch.full((3,), 0.4 * 8, dtype=D)
    torch.testing.assert_close(size, expected, rtol=0.01, atol=0)
    torch.testing.assert_close(deviation * 8, expected, rtol=1e-12, atol=0)
    assert noise[:, 1:].mean().abs() < 0.02


def test_the_generator_determines_the_noise():
    thought = torch.ones(2, 4)
    draw = lambda seed: grpo.perturb(thought, 3, 1.0, generator=torch.Generator().manual_seed(seed))[0]
    assert torch.equal(draw(1), draw(1)) and not torch.equal(draw(1), draw(2))


# rewards


def test_reward_by_hand():
    log_probs = torch.tensor([[[-1.0, -3.0, 0.0], [-2.0, -2.5, 0.0]], [[-0.5, -1.0, -1.5], [0.0, 0.0, -0.3]]])
    mask = torch.tensor([[True, True, False], [True, True, True]])
    match = torch.tensor([[True, False], [False, True]])
    assert grpo.mean_log_prob(log_probs, mask).tolist() == [[-2.0, -2.25], [-1.0, pytest.approx(-0.1)]]
    got = grpo.reward(log_probs, match, mask, 0.1, 1.0)
    torch.testing.assert_close(got, torch.tensor([[0.8, -0.225], [-0.1, 0.99]]))
    torch.testing.assert_close(
        grpo.minus_perplexity(log_probs, mask), -torch.tensor([[math.e**2, math.e**2.25], [math.e, math.e**0.1]])
    )


# advantages


def test_group_advantage_by_hand():
    rewards = torch.tensor([[1.0, 4.0, 5.0, 1.0], [2.0, 2.0, 2.0, 2.0], [0.5, 0.0, 0.5, 0.5]], dtype=D)
    got = grpo.group_advantage(rewards, eps=1e-12)
    torch.testing.assert_close(got[0], torch.tensor([0.0, 0.6, 0.8, 0.0], dtype=D))
    assert got[1].tolist() == [0.0] * 4  # all equal: zeros, no NaN
    torch.testing.assert_close(got[2], torch.tensor([0.0, -1.0, 0.0, 0.0], dtype=D))


@settings(max_examples=50, deadline=None)
@given(st.integers(1, 5), st.integers(2, 9), st.integers(0, 1000))
def test_group_advantage_depends_on_its_group_alone(groups, members, seed):
    rewards = torch.randn(groups, members, dtype=D, generator=torch.Generator().manual_seed(seed))
    got = grpo.group_advantage(rewards)
    for row in range(groups):
        torch.testing.assert_close(got[row:row + 1], grpo.group_advantage(rewards[row:row + 1]))
        torch.testing.assert_close(got[row:row + 1], grpo.group_advantage(rewards[row:row + 1] + 7), rtol=1e-5, atol=1e-7)
    assert got[:, 0].eq(0).all() and (got.norm(dim=1) <= 1).all()


def test_batch_advantage_by_hand():
    rewards = torch.tensor([[-2.0, -5.0], [-4.0, -3.0]], dtype=D)  # the baseline is -3, the differences to it are 1, -2, -1, 0
    expected = torch.tensor([[1.0, -2.0], [-1.0, 0.0]], dtype=D) / math.sqrt(6)
    torch.testing.assert_close(grpo.batch_advantage(rewards, eps=1e-12), expected)
    assert grpo.batch_advantage(torch.full((3, 4), -2.0)).eq(0).all()


def test_pair_advantage_by_hand():
    """The first two groups are those of the test above. The third has no second one: its own noise-free reward is the baseline."""
    rewards = torch.tensor([[-2.0, -5.0], [-4.0, -3.0], [-1.0, -3.0]], dtype=D)
    expected = torch.tensor([[1 / math.sqrt(6), -2 / math.sqrt(6)], [-1 / math.sqrt(6), 0], [0, -1]], dtype=D)
    torch.testing.assert_close(grpo.pair_advantage(rewards, eps=1e-12), expected)
    assert grpo.pair_advantage(torch.full((3, 4), -2.0)).eq(0).all()


def _one_of_two_processes(rank, folder, rewards):
    torch.distributed.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
    part = rewards[:1] if rank == 0 else rewards[1:]
    np.savez(f"{folder}/{rank}.npz", batch=grpo.batch_advantage(part), group=grpo.group_advantage(part))
    torch.distributed.destroy_process_group()


def test_two_processes_give_the_advantages_of_one(tmp_path):
    """The processes have batches of unequal size. A mean of the two means would be wrong."""
    rewards = torch.randn(4, 3, dtype=D, generator=torch.Generator().manual_seed(5))
    start = "fork" if sys.platform == "linux" else "spawn"  # a forked process need not import torch again
    torch.multiprocessing.start_processes(_one_of_two_processes, (str(tmp_path), rewards), nprocs=2, start_method=start)
    parts = [np.load(tmp_path / f"{rank}.npz") for rank in range(2)]
    over_batch, over_group = (torch.cat([torch.from_numpy(part[name]) for part in parts]) for name in ("batch", "group"))
    torch.testing.assert_close(over_batch, grpo.batch_advantage(rewards))
    torch.testing.assert_close(over_group, grpo.group_advantage(rewards))
    alone = torch.cat([grpo.batch_advantage(rewards[:1]), grpo.batch_advantage(rewards[1:])])
    assert not torch.allclose(over_batch, alone)  # the processes did share their rewards


# loss


@pytest.mark.parametrize("ratio, advantage, objective, clipped", [
    (1.0, 2.0, 2.0, False), (1.2, 1.0, 1.2, False), (1.5, 1.0, 1.28, True), (1.5, -1.0, -1.5, False),
    (0.7, 1.0, 0.7, False), (0.7, -1.0, -0.8, True), (0.9, -1.0, -0.9, False), (3.0, 0.0, 0.0, False),
])
def test_clip_by_hand_and_a_clipped_token_has_no_gradient(ratio, advantage, objective, clipped):
    log_ratio = torch.tensor([[[math.log(ratio)]]], dtype=D, requires_grad=True)
    got, cut = grpo.clipped_surrogate(log_ratio, torch.tensor([[advantage]], dtype=D), low=0.2, high=0.28)
    assert got.item() == pytest.approx(objective, abs=1e-12) and cut.item() == clipped
    got.sum().backward()
    assert log_ratio.grad.item() == pytest.approx(0.0 if clipped else ratio * advantage, abs=1e-12)


def test_divergence_by_hand():
    here = torch.tensor([-1.0, -1.0, -2.0], dtype=D, requires_grad=True)
    reference = torch.tensor([-1.0, -2.0, -1.0], dtype=D)
    got = grpo.divergence(here, reference)
    torch.testing.assert_close(got, torch.tensor([0.0, math.exp(-1), math.e - 2], dtype=D))
    got.sum().backward()
    torch.testing.assert_close(here.grad, torch.tensor([0.0, 1 - math.exp(-1), 1 - math.e], dtype=D))


def test_divergence_estimates_kl():
    """The mean of the estimates, over tokens drawn from pi, is KL(pi || pi_ref)."""
    torch.manual_seed(0)
    pi, ref = torch.randn(2, 5, dtype=D).log_softmax(-1)
    estimate = (pi.exp() * grpo.divergence(pi, ref)).sum()
    torch.testing.assert_close(estimate, (pi.exp() * (pi - ref)).sum())


def test_group_mean_by_a_loop():
    torch.manual_seed(0)
    values, mask = torch.randn(3, 2, 4, dtype=D), torch.tensor([[1, 1, 1, 1], [1, 0, 0, 0], [1, 1, 0, 0]]).bool()
    groups = [[values[b, g, t].item() for g in range(2) for t in range(4) if mask[b, t]] for b in range(3)]
    expected = sum(sum(group) / len(group) for group in groups) / 3
    assert grpo.group_mean(values, mask).item() == pytest.approx(expected)


def test_latent_ratio_and_divergence_against_torch_distributions():
    torch.manual_seed(0)
    old, new, ref = torch.randn(3, 2, 5, dtype=D)
    deviation = torch.tensor([0.3, 2.0], dtype=D)
    drawn = old.unsqueeze(1) + deviation[:, None, None] * torch.randn(2, 4, 5, dtype=D)
    normal = lambda mean: torch.distributions.Independent(
        torch.distributions.Normal(mean, deviation.unsqueeze(-1).expand_as(mean)), 1
    )
    expected = torch.stack([normal(new).log_prob(drawn[:, i]) - normal(old).log_prob(drawn[:, i]) for i in range(4)], 1)
    torch.testing.assert_close(grpo.latent_log_ratio(drawn, new, old, deviation), expected)
    expected = torch.distributions.kl_divergence(normal(new), normal(ref))
    torch.testing.assert_close(grpo.latent_divergence(new, ref, deviation), expected)


# bandits


def bandit(ratio, steps=150, group_size=64, seed=0):
    """Reinforce a thought z on a task without a language model.

    The title is one token, which is right with probability sigmoid(u z). So u is the best direction. The reward is the
    log-probability.

    Returns:
        the expected reward under noise before and after, and the cosine between u and the way that z went.
    """
    torch.manual_seed(seed)
    best = torch.nn.functional.normalize(torch.randn(8, dtype=D), dim=0)
    start = torch.zeros(1, 8, dtype=D)
    thought = start.clone().requires_grad_()
    optimizer = torch.optim.SGD([thought], lr=0.05)
    log_prob = lambda z: torch.nn.functional.logsigmoid(z @ best)
    probe = 0.5 * torch.randn(4000, 8, dtype=D)
    expected_reward = lambda: log_prob(thought.detach() + probe).mean().item()
    before = expected_reward()
    for _ in range(steps):
        noise, deviation = grpo.perturb(thought, group_size, 0.5, relative=False)
        members = log_prob(thought.unsqueeze(1) + noise)
        advantages = grpo.group_advantage(members.detach())
        if ratio == "token":
            log_ratio = members.unsqueeze(-1) - members.detach().unsqueeze(-1)
        else:
            drawn = thought.detach().unsqueeze(1) + noise
            log_ratio = grpo.latent_log_ratio(drawn, thought, thought.detach(), deviation).unsqueeze(-1)
        objective, _ = grpo.clipped_surrogate(log_ratio, advantages)
        optimizer.zero_grad()
        (-objective.mean()).backward()
        optimizer.step()
    way = (thought.detach() - start)[0]
    return before, expected_reward(), (way @ best / way.norm()).item()


def test_latent_ratio_climbs_towards_the_known_best_direction():
    """E[A_i eps_i] / s^2 is the gradient of the expected reward times a positive number. So the mean reward must rise."""
    before, after, cosine = bandit("latent")
    assert after > before + 0.2 and cosine > 0.9


def test_token_ratio_falls_where_the_log_probability_is_concave():
    """The reason why the token ratio is not FLR's default.

    To second order its expected step is s^2 (H g + tr(H) g / 2), where g and H are gradient and Hessian of log pi(y | z). The
    log-probability of a softmax is concave in its logits. Where it is concave, the step points away from a higher reward.
    """
    before, after, cosine = bandit("token")
    assert after < before and cosine < -0.9
