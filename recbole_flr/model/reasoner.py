"""The refinement loop (eq. 2 of FLR, arXiv 2604.26760) over the prompt's key/value cache.

H^(n) = Phi(E^(n-1)); z^(n) from the factor attention on H^(n); the thought's embedding becomes z^(n); n = 1..N; the
title is written after E^(N). The backbone is causal and the thought is last, so the prompt's hidden states never
change: one pass of the prompt with its first thought, then N - 1 passes of one token, and z^(N) goes in front of the
title. That is exactly N + 1 full passes, which `use_cache=False` really makes (the oracle of the tests, and the way to
go with gradient checkpointing).
"""

from dataclasses import dataclass

import torch
from torch import nn

from recbole_flr.model.factors import FactorState


@dataclass
class Reading:
    """A batch of prompts that the backbone has read, ready to be continued by titles.

    Attributes:
        cache: keys and values of the prompt, a pair [B, heads, L, d] for each layer; None without a cache.
        mask: [B, L], True at real tokens.
        length: [B], number of real tokens.
        seed: [B, D], embedding that comes right before the title (a thought, or the prompt's last token).
        state: the last factor step, where the model reasons.
        prefix: [B, L, D], embeddings of the prompt, where there is no cache.
    """

    cache: tuple | None
    mask: torch.Tensor
    length: torch.Tensor
    seed: torch.Tensor
    state: FactorState | None = None
    prefix: torch.Tensor | None = None


def positions_of(mask):
    """[B, L] mask -> [B, L] positions counted from the first real token; padding gets a harmless one."""
    return (mask.long().cumsum(-1) - 1).clamp_min(0)


class Reasoner(nn.Module):
    """Refines one thought N times.

    Args:
        step: module with ``keys(hidden, positions)`` and ``forward(keys, hidden, mask) -> FactorState``.
        width: D.
        num_refinements: N >= 1.
        attend_thought: whether the factors see the thought's own position. If not, z^(2) = z^(1) and N > 1 does nothing.
    """

    def __init__(self, step, width, num_refinements, attend_thought=True):
        super().__init__()
        self.step = step
        self.num_refinements = num_refinements
        self.attend_thought = attend_thought
        self.initial = nn.Parameter(torch.zeros(width))  # embedding of <|Thought|> before the first refinement

    def forward(self, backbone, embeddings, mask, use_cache=True):
        """Read prompts and think.

        Args:
            backbone: see :class:`recbole_flr.model.backbone.Backbone`.
            embeddings: [B, L, D] of the prompt's tokens.
            mask: [B, L], True at real tokens; padding may stand anywhere.
            use_cache: False makes the full passes.

        Returns:
            Reading, whose seed is z^(N).
        """
        batch, prompt_length, _ = embeddings.shape
        length = mask.sum(-1)
        with_thought = torch.cat([mask, mask.new_ones(batch, 1)], dim=1)
        positions = torch.cat([positions_of(mask), length.unsqueeze(1)], dim=1)
        visible = torch.cat([mask, mask.new_full((batch, 1), self.attend_thought)], dim=1)

        thought = self.initial.to(embeddings.dtype).expand(batch, 1, -1)
        hidden, cache = backbone(
            torch.cat([embeddings, thought], dim=1), with_thought, positions, keep_cache=use_cache
        )
        dtype = self.initial.dtype  # the factors stay in their own precision when the backbone runs in bf16
        history = hidden[:, :-1].to(dtype)
        history_keys = self.step.keys(history, positions[:, :-1])
        if use_cache:
            cache = backbone.crop(cache, prompt_length)
        state = None
        for _ in range(self.num_refinements):
            if state is not None:
                thought = state.thought.unsqueeze(1).to(embeddings.dtype)
                if use_cache:
                    hidden, _ = backbone(thought, with_thought, positions[:, -1:], cache)
                else:
                    hidden, _ = backbone(torch.cat([embeddings, thought], dim=1), with_thought, positions)
            last = hidden[:, -1:].to(dtype)
            state = self.step(
                torch.cat([history_keys, self.step.keys(last, positions[:, -1:])], dim=1),
                torch.cat([history, last], dim=1),
                visible,
            )
        return Reading(
            cache if use_cache else None, mask, length, state.thought.to(embeddings.dtype), state,
            None if use_cache else embeddings,
        )
