"""The reinforcement stage on a model: rollouts, their loss, and the figures that say how it goes. The equations are in
`grpo.py`.

The backbone is frozen, so the cache and the hidden states of a prompt are computed once, without gradient, and serve the
G members, the old policy, the reference and the reward. The members of a prompt are branches of one sequence behind that
cache: G * T tokens with a gradient instead of G * (L + T) in each of these roles. The first step on a rollout yields the
old policy's probabilities and the rewards along with its own loss.

Shapes: B prompts, G members, L prompt tokens, T title tokens, n labelled positions, D width, V vocabulary.
"""

import copy
from dataclasses import dataclass

import torch
from recbole.utils import set_color
from tqdm import tqdm

from recbole_flr.data.prompt import IGNORE
from recbole_flr.errors import ConfigError
from recbole_flr.model.reasoner import Context, read_prompt
from recbole_flr.training import grpo

# where the option is null
NOISE = {"flr": "relative", "latentr3": "absolute"}
SCALE = {"relative": 0.3, "absolute": 1.5}
RATIO = {"flr": "latent", "latentr3": "token"}
KL = {"flr": 0.01, "latentr3": 0.0}


@dataclass
class Rollout:
    """A batch of groups.

    Attributes:
        context: the prompts as the backbone read them, without gradient.
        titles: [B, T] target tokens; mask: [B, T], True at real ones.
        position, token: [E], the children that the trie allows along the targets' paths; see :func:`grpo.best_children`.
        noise: [B, G, D]; deviation: [B]; thought: [B, D], that of the old policy.
        advantages: [B, G]; old, reference: log-probabilities [B, G, T] of the old policy and the reference.

    All from `noise` on are filled by the first step on the rollout.
    """

    context: Context
    titles: torch.Tensor
    mask: torch.Tensor
    position: torch.Tensor
    token: torch.Tensor
    noise: torch.Tensor | None = None
    deviation: torch.Tensor | None = None
    thought: torch.Tensor | None = None
    advantages: torch.Tensor | None = None
    old: torch.Tensor | None = None
    reference: torch.Tensor | None = None

    def to(self, device):
        """Itself: it was made where the model is (RecBole moves every batch)."""
        return self


class LatentGRPO:
    """Loss of the reinforcement stage of a model that reasons.

    Args:
        model: a GenerativeRecommender with a `reasoner`; its present state becomes the reference.
        config: see `properties/latent.yaml`.

    Raises:
        ConfigError: if the model has no thought to perturb.
    """

    def __init__(self, model, config):
        self.check(model)
        self.model, self.kind = model, config["grpo"]
        self.ratio = config["grpo_ratio"] or RATIO[self.kind]
        self.group_size, self.updates = config["group_size"], config["grpo_updates"]
        noise = config["noise"] or NOISE[self.kind]
        self.relative, self.scale = noise == "relative", config["noise_scale"] or SCALE[noise]
        self.weights = config["confidence_reward"], config["match_reward"]
        self.clip, self.eps = (config["clip_low"], config["clip_high"]), config["advantage_eps"]
        self.kl_coef = KL[self.kind] if config["kl_coef"] is None else config["kl_coef"]
        self.reference = copy.deepcopy(model.reasoner).requires_grad_(False) if self.kl_coef else None
        self.figures = Figures()

    @staticmethod
    def check(model):
        """Refuse a model that has no thought to perturb."""
        if model.reasoner is None:
            raise ConfigError(f"stages: found grpo, but {type(model).__name__} has no thought to reinforce; expected "
                              "--stages=sft")

    @torch.no_grad()
    def rollout(self, interaction):
        """RecBole batch -> Rollout."""
        model = self.model
        prompts = model.collator.prompts(interaction[model.ITEM_SEQ], interaction[model.ITEM_SEQ_LEN])
        context, _ = read_prompt(model.backbone, model.backbone.embed(prompts.ids), prompts.mask)
        titles, labels = model.collator.targets(interaction[model.POS_ITEM_ID])
        mask = labels != IGNORE
        row, step, token = model.trie.along(titles)
        number = mask.flatten().cumsum(0).view_as(mask) - 1  # of each labelled position
        return Rollout(context, titles, mask, number[row, step], token)

    def loss(self, rollout):
        """Eq. 13: minus the clipped surrogate, plus the divergence from the reference and the model's own terms. A scalar."""
        reading = self.model.reasoner.think(self.model.backbone, rollout.context)
        thought = reading.seed
        first = rollout.noise is None
        if first:
            rollout.thought = thought.detach()
            rollout.noise, rollout.deviation = grpo.perturb(thought, self.group_size, self.scale, self.relative)
        surrogate, kl = (self._on_tokens if self.ratio == "token" else self._on_thoughts)(rollout, reading, first)
        loss = -surrogate + self.kl_coef * kl if self.kl_coef else -surrogate
        total = self.model.regularise(loss, reading)
        with torch.no_grad():
            self.figures.add(loss=total, **self.model.figures(reading))
        return total

    def _on_tokens(self, rollout, reading, first):
        """Ratio and divergence of the title's tokens: members are z + noise. Returns the surrogate and the divergence."""
        log_probs, logits = self._members(rollout, reading.seed.unsqueeze(1) + rollout.noise, reading)
        if first:
            rollout.old = log_probs.detach()
            self._judge(rollout, logits)
            if self.reference is not None:
                with torch.no_grad():
                    other = self.reference.think(self.model.backbone, rollout.context)
                    rollout.reference, _ = self._members(rollout, other.seed.unsqueeze(1) + rollout.noise, other)
        log_ratio = log_probs - rollout.old
        objective, clipped = grpo.clipped_surrogate(log_ratio, rollout.advantages, *self.clip)
        kl = None
        if self.reference is not None:
            kl = grpo.group_mean(grpo.divergence(log_probs, rollout.reference), rollout.mask)
            self.figures.add(kl=kl)
        self.figures.add(
            ratio=grpo.group_mean(log_ratio.exp(), rollout.mask),
            clip_fraction=grpo.group_mean(clipped.to(log_ratio.dtype), rollout.mask),
        )
        return grpo.group_mean(objective, rollout.mask), kl

    def _on_thoughts(self, rollout, reading, first):
        """Ratio and divergence of the density of the drawn thoughts, which stay where they were drawn."""
        if first:
            with torch.no_grad():
                rollout.old, logits = self._members(rollout, rollout.thought.unsqueeze(1) + rollout.noise, reading)
                self._judge(rollout, logits)
                if self.reference is not None:
                    rollout.reference = self.reference.think(self.model.backbone, rollout.context).seed
        thought, old, deviation = reading.seed, rollout.thought, rollout.deviation
        log_ratio = grpo.latent_log_ratio(old.unsqueeze(1) + rollout.noise, thought, old, deviation).unsqueeze(-1)
        objective, clipped = grpo.clipped_surrogate(log_ratio, rollout.advantages, *self.clip)
        kl = None
        if self.reference is not None:
            kl = grpo.latent_divergence(thought, rollout.reference, deviation).mean()
            self.figures.add(kl=kl)
        self.figures.add(ratio=log_ratio.exp().mean(), clip_fraction=clipped.to(log_ratio.dtype).mean())
        return objective.mean(), kl

    def _members(self, rollout, seeds, reading):
        """Seeds [B, G, D] -> log-probabilities of the title [B, G, T], 0 at padding, and detached logits [n, G, V]."""
        hidden = self.model.member_hidden(reading, seeds, rollout.titles)
        logits = self.model.backbone.logits(hidden.transpose(1, 2)[rollout.mask])
        logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
        target = rollout.titles[rollout.mask][:, None, None].expand(-1, logits.shape[1], 1)
        own = (logits.gather(-1, target) - logits.logsumexp(-1, keepdim=True)).squeeze(-1)
        log_probs = own.new_zeros(*rollout.mask.shape, logits.shape[1])
        log_probs[rollout.mask] = own
        return log_probs.transpose(1, 2), logits.detach()

    @torch.no_grad()
    def _judge(self, rollout, logits):
        """Rewards and advantages of the old policy's members."""
        best = grpo.best_children(logits, rollout.titles[rollout.mask], rollout.position, rollout.token)
        right = torch.ones(*rollout.mask.shape, best.shape[1], dtype=torch.bool, device=best.device)
        right[rollout.mask] = best
        match = right.all(1)
        if self.kind == "flr":
            rewards = grpo.reward(rollout.old, match, rollout.mask, *self.weights)
            rollout.advantages = grpo.group_advantage(rewards, self.eps)
        else:
            rewards = grpo.minus_perplexity(rollout.old, rollout.mask)
            rollout.advantages = grpo.batch_advantage(rewards)
        confidence, match = grpo.mean_log_prob(rollout.old, rollout.mask), match.to(rewards.dtype)
        size = rollout.noise[:, 1:].norm(dim=-1) / rollout.thought.norm(dim=-1, keepdim=True)
        self.figures.add(
            reward=rewards.mean(), confidence=confidence.mean(), match=match.mean(), clean_reward=rewards[:, 0].mean(),
            clean_confidence=confidence[:, 0].mean(), clean_match=match[:, 0].mean(),
            advantage_std=rollout.advantages.std(unbiased=False), noise=size.mean(),
        )


class Figures:
    """Means of figures over the steps of an epoch; they stay on the device until they are read."""

    def __init__(self):
        self._sums, self._counts = {}, {}

    def add(self, **values):
        """Scalars, tensors or numbers."""
        for name, value in values.items():
            value = value.detach() if isinstance(value, torch.Tensor) else value
            self._sums[name] = self._sums.get(name, 0) + value
            self._counts[name] = self._counts.get(name, 0) + 1

    def means(self):
        """name -> float."""
        return {name: float(total) / self._counts[name] for name, total in self._sums.items()}

    def flush(self):
        """The means, and start anew."""
        means = self.means()
        self.__init__()
        return means


class RolloutLoader:
    """A loader of rollouts: each batch of the loader that it wraps becomes one, and comes `updates` times in a row.

    Args:
        loader: of RecBole batches.
        policy: LatentGRPO.

    Attributes:
        title: of the progress bar, which shows the running means every tenth step; None for no bar (RecBole's own has no
            place for them).
    """

    def __init__(self, loader, policy):
        self.loader, self.policy, self.title = loader, policy, None
        self.generator, self.sampler, self.dataset, self._dataset = (
            loader.generator, loader.sampler, loader.dataset, loader._dataset
        )

    def __len__(self):
        return len(self.loader) * self.policy.updates

    def __iter__(self):
        shown = tqdm(total=len(self), dynamic_ncols=True, desc=set_color(self.title or "", "pink"),
                     disable=self.title is None)
        with shown:
            for interaction in self.loader:
                rollout = self.policy.rollout(interaction.to(self.policy.model.device))
                for _ in range(self.policy.updates):
                    yield rollout
                    shown.update()
                    if not shown.disable and (shown.n % 10 == 0 or shown.n == len(self)):  # reading waits for the device
                        shown.set_postfix({name: f"{mean:.3g}" for name, mean in self.policy.figures.means().items()})
