"""Reading a prompt, and the refinement loop behind it (eq. 2 of FLR, arXiv 2604.26760).

The paper refines the thought N times: H^(n) = Phi(E^(n-1)), z^(n) comes from the factor attention on H^(n), and z^(n) becomes
the thought's embedding for the next pass. The title is written after z^(N).

The backbone is causal and the thought comes last, so the hidden states of the prompt never change. One pass over the prompt and
its first thought fills the key/value cache. Each later refinement is a pass over one token. The result is exactly that of N + 1
full passes. Without a cache (`use_cache=False`) the full passes are really made: the tests compare with them, and gradient
checkpointing needs them.

A :class:`Context` is a prompt that has been read. It depends on the backbone alone. Where the backbone is frozen it carries no
gradient and serves any number of thoughts.

Shapes: B batch, L prompt tokens, D width.
"""

from dataclasses import dataclass

import torch
from torch import nn

from recbole_flr.model.factors import FactorState

WORTH_SHARING = 8  # tokens: a pass of its own for fewer of them costs more than it saves
GROUPS = 4  # groups of rows of similar length


@dataclass
class Context:
    """A batch of prompts as the backbone read them.

    Attributes:
        hidden: [B, L, D], states after the last layer.
        mask: [B, L], True at real tokens.
        positions: [B, L], counted from the first real token.
        length: [B], number of real tokens, which is also the position of the thought.
        cache: keys and values, a pair [B, heads, L, d] for each layer; None without a cache.
        embeddings: [B, L, D] of the prompt's tokens.
        item: [B, L], which item of the history (0 = oldest) a token belongs to, -1 for none; None if not known.
        thought_state: [B, 1, D], state of the first thought, if it was read in the same pass.
        unread: [B, D], embedding of the prompt's last token, if the model left it for the next pass.
    """

    hidden: torch.Tensor
    mask: torch.Tensor
    positions: torch.Tensor
    length: torch.Tensor
    cache: tuple | None
    embeddings: torch.Tensor
    item: torch.Tensor | None = None
    thought_state: torch.Tensor | None = None
    unread: torch.Tensor | None = None

    def read_token(self, backbone, embedding):
        """Read one more token after the prompt: its embedding [B, D] -> its state [B, 1, D]. The context stays as it is."""
        mask = torch.cat([self.mask, self.mask.new_ones(len(self.mask), 1)], dim=1)
        position = self.length.unsqueeze(1)
        embedding = embedding.unsqueeze(1).to(self.embeddings.dtype)
        if self.cache is not None:
            return backbone(embedding, mask, position, self.cache)[0]
        positions = torch.cat([self.positions, position], dim=1)
        return backbone(torch.cat([self.embeddings, embedding], dim=1), mask, positions)[0][:, -1:]

    def prefixes(self, source, tokens):
        """Contexts of prefixes of these prompts. The prompts have a cache and no thought.

        Args:
            source: int64 [R], the prompt that each one is a prefix of.
            tokens: int64 [R], the number of its tokens.
        """
        mask = self.mask[source] & (self.positions[source] < tokens.unsqueeze(1))
        return Context(
            self.hidden[source], mask, self.positions[source], tokens,
            tuple((keys[source], values[source]) for keys, values in self.cache), self.embeddings[source],
            torch.where(mask, self.item[source], -1),
        )

    def continued(self, backbone, embeddings, first_thought=None):
        """These prompts with more tokens behind them, which are the last of the prompt. The prompts have a cache.

        Args:
            backbone: what has read the prompts.
            embeddings: [B, S, D] of the tokens.
            first_thought: [D], read behind them in the same pass.
        """
        count = embeddings.shape[1]
        new = embeddings
        if first_thought is not None:
            new = torch.cat([new, first_thought.to(new.dtype).expand(len(new), 1, -1)], dim=1)
        mask = torch.cat([self.mask, self.mask.new_ones(new.shape[:2])], dim=1)
        positions = self.length.unsqueeze(1) + torch.arange(new.shape[1], device=new.device)
        hidden, cache = backbone(new, mask, positions, self.cache, keep_cache=True)
        end = self.mask.shape[1] + count
        return Context(
            torch.cat([self.hidden, hidden[:, :count]], dim=1), mask[:, :end],
            torch.cat([self.positions, positions[:, :count]], dim=1), self.length + count, backbone.crop(cache, end),
            torch.cat([self.embeddings, embeddings], dim=1), nn.functional.pad(self.item, (0, count), value=-1),
            None if first_thought is None else hidden[:, count:],
        )


@dataclass
class Thought:
    """What stands between a prompt and the title.

    Attributes:
        context: the prompts.
        embedding: [B, D], comes right before the title, in the precision of the module that made it.
        state: the last factor step, if the model reasons with factors.
    """

    context: Context
    embedding: torch.Tensor
    state: FactorState | None = None


def read_prompt(backbone, embeddings, mask, use_cache=True, first_thought=None, shared=0):
    """Read prompts.

    Args:
        backbone: see :class:`recbole_flr.model.backbone.Backbone`.
        embeddings: [B, L, D] of the prompt's tokens.
        mask: [B, L], True at real tokens; padding may stand anywhere.
        use_cache: whether to keep keys and values; without them each further pass reads the prompt again.
        first_thought: [D], embedding that is read behind the prompt in the same pass.
        shared: how many of the first columns are the same real tokens in all rows. With a cache they are read once for all rows.

    Returns:
        Context; its `thought_state` is set if there is a first thought.
    """
    batch, prompt_length, _ = embeddings.shape
    length = mask.sum(-1)
    positions = (mask.long().cumsum(-1) - 1).clamp_min(0)  # padding gets a harmless position
    read, visible, places = embeddings, mask, positions
    if first_thought is not None:
        read = torch.cat([embeddings, first_thought.to(embeddings.dtype).expand(batch, 1, -1)], dim=1)
        visible = torch.cat([mask, mask.new_ones(batch, 1)], dim=1)
        places = torch.cat([positions, length.unsqueeze(1)], dim=1)
    if use_cache and shared >= WORTH_SHARING:
        hidden, cache = _read_shared(backbone, read, visible, places, shared)
    else:
        hidden, cache = backbone(read, visible, places, keep_cache=use_cache)
    if use_cache and first_thought is not None:
        cache = backbone.crop(cache, prompt_length)
    return Context(
        hidden[:, :prompt_length], mask, positions, length, cache if use_cache else None, embeddings,
        thought_state=None if first_thought is None else hidden[:, prompt_length:],
    )


def _read_shared(backbone, embeddings, mask, positions, shared):
    """One pass over the first columns, which are the same in all rows, then over the rest: states [B, L, D] and the cache.

    Without gradient, rows of similar length are read together, so that less padding is read.
    """
    batch, length, _ = embeddings.shape
    head, cache = backbone(embeddings[:1, :shared], mask[:1, :shared], positions[:1, :shared], keep_cache=True)

    def read(rows, first):
        """The rest of some rows, from the column `first` on."""
        own = tuple((keys.expand(len(rows), -1, -1, -1), values.expand(len(rows), -1, -1, -1)) for keys, values in cache)
        seen = torch.cat([mask[rows, :shared], mask[rows, first:]], dim=1)
        return backbone(embeddings[rows, first:], seen, positions[rows, first:], own, keep_cache=True)

    if torch.is_grad_enabled():
        rest, cache = read(torch.arange(batch, device=mask.device), shared)
        return torch.cat([head.expand(batch, -1, -1), rest], dim=1), cache
    hidden = embeddings.new_zeros(batch, length, head.shape[2])
    hidden[:, :shared] = head
    whole = [[part.new_zeros(batch, part.shape[1], length, part.shape[3]) for part in pair] for pair in cache]
    start = torch.where(mask[:, shared:].any(1), mask[:, shared:].int().argmax(1), length - shared - 1)  # first real column
    for rows in start.argsort(descending=True, stable=True).chunk(GROUPS):
        first = shared + int(start[rows].min())
        states, own = read(rows, first)
        hidden[rows, first:] = states.to(hidden.dtype)
        for pair, parts in zip(whole, own):
            for stored, part in zip(pair, parts):
                stored[rows, :, :shared] = part[:, :, :shared]
                stored[rows, :, first:] = part[:, :, shared:]
    return hidden, tuple((keys, values) for keys, values in whole)


def item_attention(attention, item, items):
    """Attention to tokens, summed over the tokens of each item.

    Args:
        attention: [B, K, L] or [B, K, L + 1], if the thought is seen too; rows sum to 1.
        item: [B, L], which item a token belongs to, -1 for none.
        items: H, items of a history.

    Returns:
        [B, K, H + 1]: the items, then all the rest; rows sum to 1.
    """
    owner = torch.where(item >= 0, item, items)
    owner = nn.functional.pad(owner, (0, attention.shape[2] - owner.shape[1]), value=items)
    shares = attention.new_zeros(*attention.shape[:2], items + 1)
    return shares.scatter_add(2, owner.unsqueeze(1).expand_as(attention), attention)


class ByFactors:
    """For models whose thought is refined by factors: what the factors looked at, and the factors.

    It stands before :class:`recbole_flr.contracts.Recommender` among the bases.
    """

    def explain(self, interaction):
        """See :meth:`recbole_flr.contracts.Recommender.explain`. The rest is the thought itself and the text around the titles."""
        context = self.read_context(interaction)
        state = self.think(context).state
        return state.alpha, item_attention(state.attention, context.item, interaction[self.ITEM_SEQ].shape[1])

    def factor_vectors(self, interaction):
        """See :meth:`recbole_flr.contracts.Recommender.factor_vectors`."""
        return self.think(self.read_context(interaction)).state.factors


class Reasoner(nn.Module):
    """Refines one thought N times.

    Args:
        step: module with ``scores(hidden, positions)`` and ``forward(scores, history, last, mask) -> FactorState``.
        width: D.
        num_refinements: N >= 1.
        attend_thought: whether the factors see the thought's own position. If not, z^(2) = z^(1) and N > 1 does nothing.

    Attributes:
        initial: [D], embedding of <|Thought|> before the first refinement.
    """

    def __init__(self, step, width, num_refinements, attend_thought=True):
        super().__init__()
        self.step = step
        self.num_refinements = num_refinements
        self.attend_thought = attend_thought
        self.initial = nn.Parameter(torch.zeros(width))

    def think(self, backbone, context):
        """Refine the thought behind a prompt. Context -> Thought, whose embedding is z^(N).

        The first thought needs a pass of its own only if it was not read with the prompt.
        """
        last = context.thought_state
        if last is None:
            last = context.read_token(backbone, self.initial.expand(len(context.mask), -1))
        dtype = self.initial.dtype  # the factors stay in their own precision when the backbone runs in bf16
        history = context.hidden.to(dtype)
        scores = self.step.scores(history, context.positions)
        visible = torch.cat([context.mask, context.mask.new_full((len(last), 1), self.attend_thought)], dim=1)
        state = None
        for _ in range(self.num_refinements):
            if state is not None:
                last = context.read_token(backbone, state.thought)
            last = last.to(dtype)
            all_scores = torch.cat([scores, self.step.scores(last, context.length.unsqueeze(1))], dim=2)
            state = self.step(all_scores, history, last, visible)
        return Thought(context, state.thought, state)
