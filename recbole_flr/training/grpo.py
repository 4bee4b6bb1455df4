"""Group relative policy optimisation in the latent space: perturbation, reward, advantage, clipped loss. Pure functions.

Papers: FLR, arXiv 2604.26760 (its equation numbers below); LatentR3, arXiv 2505.19092; the asymmetric clip is DAPO's,
arXiv 2503.14476.

A group is one prompt with G members, who differ by the noise on the thought; the first has none. What they write is given:
the next item's title y. Nothing is sampled from the language model, so a member is scored by one pass over y.

Shapes: B prompts, G members, T steps of the target (title tokens), D width.
"""

import torch

from recbole_flr.distributed import gather, rank, total


def perturb(thought, group_size, scale, relative=True, generator=None):
    """Noise of the members of each group (eq. 9).

    Args:
        thought: [B, D].
        group_size: G >= 2.
        scale: standard deviation of a channel; if relative, in units of the root mean square of the thought's own, so
            that the noise is about `scale` times as long as the thought.
        relative: see scale.
        generator: of random numbers.

    Returns:
        noise [B, G, D], without gradient and zero for the first member, and its standard deviation [B].
    """
    size = thought.detach().square().mean(-1).sqrt() if relative else torch.ones_like(thought[:, 0].detach())
    deviation = scale * size
    noise = torch.randn(
        len(thought), group_size, thought.shape[-1], dtype=thought.dtype, device=thought.device, generator=generator
    )
    noise = noise * deviation[:, None, None]
    noise[:, 0] = 0
    return noise, deviation


# rewards


def mean_log_prob(log_probs, mask):
    """Mean log-probability of each member's title: [B, G, T] and [B, T] -> [B, G]."""
    return (log_probs * mask.unsqueeze(1)).sum(-1) / mask.sum(-1, keepdim=True)


def reward(log_probs, match, mask, confidence_weight=0.1, match_weight=1.0):
    """Eq. 10: confidence_weight * mean log pi(y_t | x, y_<t) + match_weight * [greedy decoding gives y].

    Args:
        log_probs: [B, G, T].
        match: [B, G] bool.
        mask: [B, T], True at tokens of the title.

    Returns:
        [B, G].
    """
    return confidence_weight * mean_log_prob(log_probs, mask) + match_weight * match


def minus_perplexity(log_probs, mask):
    """LatentR3's reward: [B, G, T] and [B, T] -> [B, G]."""
    return -(-mean_log_prob(log_probs, mask)).exp()


# advantages


def group_advantage(rewards, eps=1e-6):
    """Eq. 11: (r_i - r_1) / (||r_{2:G} - r_1||_2 + eps) within each group; 0 where all are equal. [B, G] -> [B, G]."""
    above = rewards - rewards[:, :1]
    return above / (above.norm(dim=1, keepdim=True) + eps)


def pair_advantage(rewards, eps=1e-6):
    """LatentR3's: of each two groups, the baseline is the mean of their noise-free rewards, the scale the L2 norm over both.

    Its published code computes advantages over two processes with a group each, and then adds up the gradients of 16 such pairs. A
    last group without a second one is by itself. With several processes the groups are those of all of them, in their order.

    Args:
        rewards: [B, G], the first member without noise.

    Returns:
        [B, G].
    """
    def of_pair(pair):
        above = pair - pair[:, 0].mean()
        return above / (above.norm() + eps)

    groups = gather(rewards)
    first = sum(map(len, groups[:rank()]))
    return torch.cat([of_pair(pair) for pair in torch.cat(groups).split(2)])[first:first + len(rewards)]


def batch_advantage(rewards, eps=1e-6):
    """LatentR3's for a larger batch: baseline is the mean noise-free reward of the batch, scale the L2 norm over the batch.

    With several processes the batch is that of all of them.

    Args:
        rewards: [B, G], the first member without noise.

    Returns:
        [B, G].
    """
    clean, count = rewards[:, 0].sum(), torch.tensor(float(len(rewards)), device=rewards.device, dtype=rewards.dtype)
    above = rewards - total(clean) / total(count)
    return above / (total(above.square().sum()).sqrt() + eps)


# loss


def clipped_surrogate(log_ratio, advantages, low=0.2, high=0.28):
    """Eq. 12: min(rho A, clip(rho, 1 - low, 1 + high) A), to be maximised.

    Args:
        log_ratio: [B, G, T], log of new over old probability.
        advantages: [B, G].

    Returns:
        objective [B, G, T], and where the clip acts, [B, G, T] bool: there the gradient is 0.
    """
    ratio, advantages = log_ratio.exp(), advantages.unsqueeze(-1)
    free, clipped = ratio * advantages, ratio.clamp(1 - low, 1 + high) * advantages
    return torch.minimum(free, clipped), clipped < free


def divergence(log_probs, reference):
    """Eq. 12: e^d - d - 1, d = log pi_ref - log pi: an estimate of KL(pi || pi_ref), never negative. [...] -> [...]."""
    gap = reference - log_probs
    return gap.exp() - gap - 1


def group_mean(values, mask):
    """Mean over the tokens of each group (its members' titles are equally long), then over groups.

    values: [B, G, T], mask: [B, T] -> scalar.
    """
    return ((values * mask.unsqueeze(1)).sum((1, 2)) / (values.shape[1] * mask.sum(1))).mean()


def latent_log_ratio(drawn, thought, old_thought, deviation):
    """log N(z_i; z, s^2 I) - log N(z_i; z_old, s^2 I): the policy is the density from which a thought was drawn.

    Args:
        drawn: [B, G, D], z_i.
        thought, old_thought: [B, D].
        deviation: [B], s.

    Returns:
        [B, G].
    """
    new = (drawn - thought.unsqueeze(1)).square().sum(-1)
    old = (drawn - old_thought.unsqueeze(1)).square().sum(-1)
    return (old - new) / (2 * deviation.square().unsqueeze(1))


def latent_divergence(thought, reference, deviation):
    """KL(N(z, s^2 I) || N(z_ref, s^2 I)) = ||z - z_ref||^2 / (2 s^2). [B, D], [B, D], [B] -> [B]."""
    return (thought - reference).square().sum(-1) / (2 * deviation.square())
