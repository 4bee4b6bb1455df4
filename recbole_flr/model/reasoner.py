"""The refinement loop (eq. 2 of FLR, arXiv 2604.26760) over the prompt's key/value cache.

H^(n) = Phi(E^(n-1)); z^(n) from the factor attention on H^(n); the thought's embedding becomes z^(n); n = 1..N; the
title is written after E^(N). The backbone is causal and the thought is last, so the prompt's hidden states never
change: one pass of the prompt with its first thought, then N - 1 passes of one token, and z^(N) goes in front of the
title. That is exactly N + 1 full passes, which `use_cache=False` really makes (the oracle of the tests, and the way to
go with gradient checkpointing).

:class:`Context` is a prompt that was read, without any thought: what it holds depends on the backbone alone, so where the
backbone is frozen it carries no gradient and serves any number of thoughts.

Shapes: B batch, L prompt tokens, D width.
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
        seed: [B, D], embedding that comes right before the title (a thought, or the prompt's last token), in the precision
            of what made it.
        state: the last factor step, where the model reasons with factors.
        prefix: [B, L, D], embeddings of the prompt, where there is no cache.
    """

    cache: tuple | None
    mask: torch.Tensor
    length: torch.Tensor
    seed: torch.Tensor
    state: FactorState | None = None
    prefix: torch.Tensor | None = None


@dataclass
class Context:
    """A batch of prompts as the backbone left them, before any thought.

    Attributes:
        hidden: [B, L, D], states after the last layer.
        mask: [B, L], True at real tokens.
        positions: [B, L], counted from the first real token.
        length: [B], number of real tokens, which is the thought's position.
        cache: keys and values, a pair [B, heads, L, d] for each layer; None without a cache.
        embeddings: [B, L, D] of the prompt's tokens.
    """

    hidden: torch.Tensor
    mask: torch.Tensor
    positions: torch.Tensor
    length: torch.Tensor
    cache: tuple | None
    embeddings: torch.Tensor

    def read_on(self, backbone, embedding):
        """One more token behind the prompt: its embedding [B, D] -> its state [B, 1, D]."""
        mask = torch.cat([self.mask, self.mask.new_ones(len(self.mask), 1)], dim=1)
        position = self.length.unsqueeze(1)
        embedding = embedding.unsqueeze(1).to(self.embeddings.dtype)
        if self.cache is not None:
            return backbone(embedding, mask, position, self.cache)[0]
        positions = torch.cat([self.positions, position], dim=1)
        return backbone(torch.cat([self.embeddings, embedding], dim=1), mask, positions)[0][:, -1:]

    def reading(self, thought, state=None):
        """The prompt with a thought [B, D] behind it."""
        prefix = self.embeddings if self.cache is None else None
        return Reading(self.cache, self.mask, self.length, thought, state, prefix)


def read_prompt(backbone, embeddings, mask, use_cache=True, thought=None):
    """Read prompts.

    Args:
        backbone: see :class:`recbole_flr.model.backbone.Backbone`.
        embeddings: [B, L, D] of the prompt's tokens.
        mask: [B, L], True at real tokens; padding may stand anywhere.
        use_cache: whether to keep keys and values; without, each further pass reads the prompt again.
        thought: [D], embedding of a first thought, to be read in the same pass.

    Returns:
        Context, and the state of the thought [B, 1, D] (None without one).
    """
    batch, prompt_length, _ = embeddings.shape
    length = mask.sum(-1)
    positions = (mask.long().cumsum(-1) - 1).clamp_min(0)  # padding gets a harmless one
    read, visible, places = embeddings, mask, positions
    if thought is not None:
        read = torch.cat([embeddings, thought.to(embeddings.dtype).expand(batch, 1, -1)], dim=1)
        visible = torch.cat([mask, mask.new_ones(batch, 1)], dim=1)
        places = torch.cat([positions, length.unsqueeze(1)], dim=1)
    hidden, cache = backbone(read, visible, places, keep_cache=use_cache)
    if use_cache and thought is not None:
        cache = backbone.crop(cache, prompt_length)
    context = Context(hidden[:, :prompt_length], mask, positions, length, cache if use_cache else None, embeddings)
    return context, None if thought is None else hidden[:, prompt_length:]


class Reasoner(nn.Module):
    """Refines one thought N times.

    Args:
        step: module with ``scores(hidden, positions)`` and ``forward(scores, history, last, mask) -> FactorState``.
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
        """Read prompts and think: the first thought is read with the prompt, in one pass. See :func:`read_prompt`.

        Returns:
            Reading, whose seed is z^(N).
        """
        context, last = read_prompt(backbone, embeddings, mask, use_cache, self.initial)
        return self._refine(backbone, context, last)

    def think(self, backbone, context):
        """Think about prompts that were read before: N one-token passes. Context -> Reading, whose seed is z^(N)."""
        initial = self.initial.expand(len(context.mask), -1)
        return self._refine(backbone, context, context.read_on(backbone, initial))

    def _refine(self, backbone, context, last):
        """Context and the state of its first thought, [B, 1, D] -> Reading."""
        dtype = self.initial.dtype  # the factors stay in their own precision when the backbone runs in bf16
        history = context.hidden.to(dtype)
        scores = self.step.scores(history, context.positions)
        visible = torch.cat([context.mask, context.mask.new_full((len(last), 1), self.attend_thought)], dim=1)
        state = None
        for _ in range(self.num_refinements):
            if state is not None:
                last = context.read_on(backbone, state.thought)
            last = last.to(dtype)
            all_scores = torch.cat([scores, self.step.scores(last, context.length.unsqueeze(1))], dim=2)
            state = self.step(all_scores, history, last, visible)
        return context.reading(state.thought, state)
