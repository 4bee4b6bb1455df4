"""The reinforcement stage: GRPO in the latent space, on any model that fulfils :class:`recbole_flr.contracts.Thinker`. The
equations are in `grpo.py`.

The encoder is frozen. So the context of a prompt (its cache and hidden states) is computed once, without gradient. It serves all
G members of the group, the old policy, the reference and the reward. The first step on a rollout also computes the probabilities
of the old policy and the rewards; with the ratio `token`, the pass of its own loss gives them.

Shapes: B prompts, G members, T steps of the target (title tokens), D width.
"""

import copy
from dataclasses import dataclass
from typing import Any

import torch

from recbole_flr.contracts import LossPart
from recbole_flr.data.batching import LengthBatches, Repeated
from recbole_flr.training import grpo
from recbole_flr.training.schedule import Scheduled

# defaults of options that are null: they depend on the option `grpo`
NOISE = {"flr": "relative", "latentr3": "absolute", "latentr3_batch": "absolute"}
SCALE = {"relative": 0.3, "absolute": 1.5}
RATIO = {"flr": "latent", "latentr3": "token", "latentr3_batch": "token"}
KL = {"flr": 0.01, "latentr3": 0.0, "latentr3_batch": 0.0}


@dataclass
class Rollout:
    """A batch of groups. All attributes but the first two are set by the first step on the rollout.

    Attributes:
        context: the prompts as the frozen encoder read them, without gradient.
        target: [B] item ids.
        noise: [B, G, D]; the first member of a group has none.
        deviation: [B], standard deviation of the noise.
        thought: [B, D], of the old policy.
        advantages: [B, G].
        old: [B, G, T], log-probabilities of the old policy.
        reference: the reference's log-probabilities [B, G, T] (ratio of tokens), or its thought [B, D] (latent ratio).
    """

    context: Any
    target: torch.Tensor
    noise: torch.Tensor | None = None
    deviation: torch.Tensor | None = None
    thought: torch.Tensor | None = None
    advantages: torch.Tensor | None = None
    old: torch.Tensor | None = None
    reference: torch.Tensor | None = None


class LatentGRPO(Scheduled):
    """Rewards thoughts that make the right item more likely. See `properties/latent.yaml` for its options.

    The stage goes on from a trained model: the weights before the stage are the reference, and the better weights are kept.
    """

    name = "grpo"
    prefix = "grpo_"
    starts_from_trained = True

    def __init__(self, model, config):
        super().__init__(model, config)
        self.eval_step = min(1, config["eval_step"])
        self.kind = config["grpo"]
        self.ratio = config["grpo_ratio"] or RATIO[self.kind]
        self.group_size, self.updates = config["group_size"], config["grpo_updates"]
        noise = config["noise"] or NOISE[self.kind]
        self.relative, self.scale = noise == "relative", config["noise_scale"] or SCALE[noise]
        self.weights = config["confidence_reward"], config["match_reward"]
        self.clip, self.eps = (config["clip_low"], config["clip_high"]), config["advantage_eps"]
        self.kl_coef = KL[self.kind] if config["kl_coef"] is None else config["kl_coef"]
        self.reference, self._rollouts = None, {}  # the rollouts by the number of their first row in the batch

    def loader(self, train_data):
        """Batches of similar prompt length, each as often in a row as there are updates on a rollout."""
        lengths = self.model.prompt_lengths(train_data._dataset.inter_feat)
        batches = LengthBatches(
            train_data, lengths, shuffle=self.config["shuffle"], batch_size=self.option("batch_size"), rows=self.option("rows")
        )
        return self.counted(Repeated(batches, self.updates))

    def enter(self):
        """Freeze the encoder and keep the present reasoner as the reference."""
        self.model.freeze_encoder()
        self.reference = copy.deepcopy(self.model.reasoner).requires_grad_(False).eval() if self.kl_coef else None

    @torch.no_grad()
    def rollout(self, interaction):
        """RecBole batch -> Rollout."""
        return Rollout(self.model.read_context(interaction, prompt_only=True), interaction[self.model.POS_ITEM_ID])

    def losses(self, batch):
        """Eq. 13 for a :class:`recbole_flr.data.batching.Repeat`: a new batch becomes a rollout, a repeated one is reused."""
        if batch.is_first:
            if batch.start == 0:
                self._rollouts.clear()  # of the batch before
            self._rollouts[batch.start] = self.rollout(batch.interaction)
        return self.rollout_losses(self._rollouts[batch.start])

    def counts(self, batch):
        """All means are over groups: the rows."""
        return {"rows": len(batch)}

    def rollout_losses(self, rollout):
        """Eq. 13: minus the clipped surrogate, the divergence from the reference, and the model's own terms."""
        thought = self.model.think(rollout.context)
        first = rollout.noise is None
        if first:
            rollout.thought = thought.embedding.detach()
            rollout.noise, rollout.deviation = grpo.perturb(rollout.thought, self.group_size, self.scale, self.relative)
        surrogate, kl = (self._token_terms if self.ratio == "token" else self._latent_terms)(rollout, thought.embedding, first)
        parts = {"surrogate": LossPart(-surrogate)}
        if kl is not None:
            parts["kl"] = LossPart(kl, self.kl_coef)
        return {**parts, **self.model.own_losses(thought, rollout.target)}

    def _token_terms(self, rollout, thought, first):
        """Ratio and divergence of the target's tokens: the members are z + noise. Returns the surrogate and the divergence."""
        scores = self._members(rollout, thought, greedy=first)
        if first:
            rollout.old = scores.log_probs.detach()
            self._judge(rollout, scores)
            if self.reference is not None:
                with torch.no_grad():
                    other = self.model.think(rollout.context, self.reference).embedding
                    rollout.reference = self._members(rollout, other).log_probs
        log_ratio = scores.log_probs - rollout.old
        objective, clipped = grpo.clipped_surrogate(log_ratio, rollout.advantages, *self.clip)
        kl = None
        if self.reference is not None:
            kl = grpo.group_mean(grpo.divergence(scores.log_probs, rollout.reference), scores.mask)
        self.means.add(
            ratio=grpo.group_mean(log_ratio.exp(), scores.mask),
            clip_fraction=grpo.group_mean(clipped.to(log_ratio.dtype), scores.mask),
        )
        return grpo.group_mean(objective, scores.mask), kl

    def _latent_terms(self, rollout, thought, first):
        """Ratio and divergence of the density from which the thoughts were drawn. The drawn thoughts stay where they are."""
        old, deviation = rollout.thought, rollout.deviation
        if first:
            with torch.no_grad():
                scores = self._members(rollout, old, greedy=True)
                rollout.old = scores.log_probs
                self._judge(rollout, scores)
                if self.reference is not None:
                    rollout.reference = self.model.think(rollout.context, self.reference).embedding
        log_ratio = grpo.latent_log_ratio(old.unsqueeze(1) + rollout.noise, thought, old, deviation).unsqueeze(-1)
        objective, clipped = grpo.clipped_surrogate(log_ratio, rollout.advantages, *self.clip)
        kl = None if self.reference is None else grpo.latent_divergence(thought, rollout.reference, deviation).mean()
        self.means.add(ratio=log_ratio.exp().mean(), clip_fraction=clipped.to(log_ratio.dtype).mean())
        return objective.mean(), kl

    def _members(self, rollout, thought, greedy=False):
        """Score the target after the thought [B, D] plus each member's noise."""
        return self.model.score_target(rollout.context, thought.unsqueeze(1) + rollout.noise, rollout.target, greedy)

    @torch.no_grad()
    def _judge(self, rollout, scores):
        """Set the advantages from the rewards of the old policy's members."""
        if self.kind != "flr":
            rewards = grpo.minus_perplexity(rollout.old, scores.mask)
            rollout.advantages = (grpo.pair_advantage if self.kind == "latentr3" else grpo.batch_advantage)(rewards)
        else:
            rewards = scores.reward
            if rewards is None:
                rewards = grpo.reward(rollout.old, scores.match, scores.mask, *self.weights)
            rollout.advantages = grpo.group_advantage(rewards, self.eps)
        logged = {"reward": rewards, "confidence": grpo.mean_log_prob(rollout.old, scores.mask)}
        if scores.match is not None:
            logged["match"] = scores.match.to(rewards.dtype)
        for name, values in logged.items():
            self.means.add(**{name: values.mean(), f"clean_{name}": values[:, 0].mean()})
        size = rollout.noise[:, 1:].norm(dim=-1) / rollout.thought.norm(dim=-1, keepdim=True)
        self.means.add(advantage_std=rollout.advantages.std(unbiased=False), noise=size.mean())
