"""A language model as the beam search sees it: one prompt cache per user, and a tree of title tokens behind it.

The beams of a user are branches of one tree. Each new token sees the prompt and its own ancestors. So the keys and values of
the prompt exist once per user, whatever the number of beams, and no cache is ever reordered. This is the tree attention that
SpecInfer (arXiv 2305.09781) uses for verification.

Shapes: U users, L prompt tokens, S new tokens, C tokens of the tree so far, D width.
"""

from itertools import count

import torch

from recbole_flr.model.backbone import growing

GROUPS = 4  # groups of users in a pass whose tokens are not kept
TURNS = 8  # turns between two questions to the device whether there are more


class TreeDecoder:
    """Implements :class:`recbole_flr.decoding.scorer.PrefixScorer` for a backbone and a batch of thoughts.

    Attributes:
        hidden: [U, D], predicts the first title token.
    """

    @torch.no_grad()
    def __init__(self, backbone, thought):
        self.backbone = backbone
        context = thought.context
        users = len(context.mask)
        if context.cache is None:
            raise ValueError("decoding needs a context with a cache")
        self.prompt_mask = torch.cat([context.mask, context.mask.new_ones(users, 1)], dim=1)
        self.cache = growing(context.cache)
        hidden, _ = backbone(thought.embedding.unsqueeze(1), self.prompt_mask, context.length.unsqueeze(1), self.cache)
        self.hidden = hidden[:, 0]
        self.first_position = context.length + 1
        empty = torch.zeros(users, 0, dtype=torch.long, device=hidden.device)
        self.parents, self.generations = empty, 0  # generations: of tokens in the deepest tree

    def logits(self, hidden, tokens=None):
        """[..., D] -> [..., V], or [..., n] of `tokens` [n]."""
        return self.backbone.logits(hidden, tokens)

    @torch.no_grad()
    def extend(self, tokens, parents, valid, last=False):
        """Append tokens to the trees.

        Args:
            tokens: [U, S] int64.
            parents: [U, S] slot of each token's predecessor (slots count from 0 in order of appending), -1 for the
                prompt; may be a slot of this call that comes earlier.
            valid: [U, S]; False is padding, which takes up a slot and is seen by nothing.
            last: nothing will be appended behind these tokens, so they take up no slots. Users are then read in groups with
                a similar number of tokens; the padding is on the right.

        Returns:
            [U, S, D].
        """
        users, new = tokens.shape
        old = self.parents.shape[1]
        known = torch.cat([self.parents, torch.where(valid, parents, -1)], dim=1)
        slot = torch.arange(old, old + new, device=tokens.device).expand(users, new)
        sees = torch.zeros(users, new, old + new, dtype=torch.bool, device=tokens.device)
        depth = torch.full_like(slot, -1)
        current = slot
        for turn in count():  # up the tree, one generation a turn
            alive = current >= 0
            beyond = turn - self.generations - 1
            if beyond >= 0 and beyond % TURNS == 0 and not alive.any():  # asking waits for the device; more turns change nothing
                break
            here = current.clamp_min(0)
            sees.scatter_(2, here.unsqueeze(2), sees.gather(2, here.unsqueeze(2)) | alive.unsqueeze(2))
            depth += alive
            current = torch.where(alive, known.gather(1, here), -1)
        mask = torch.cat([self.prompt_mask.unsqueeze(1).expand(-1, new, -1), sees], dim=2)
        positions = self.first_position.unsqueeze(1) + depth
        if not last:
            self.parents = known
            if new:
                self.generations = max(self.generations, int(depth.max()) + 1)
            return self.backbone(self.backbone.embed(tokens), mask, positions, self.cache)[0]
        hidden = self.hidden.new_zeros(users, new, self.hidden.shape[-1])
        lengths, order = valid.sum(1).sort(stable=True)
        lengths, done = lengths.tolist(), 0
        for rows in order.chunk(GROUPS):
            done += len(rows)
            width = lengths[done - 1]  # of the longest one here
            if width:
                keys = self.prompt_mask.shape[1] + old + width
                cache = growing(((layer.keys[rows], layer.values[rows]) for layer in self.cache.layers), width)
                hidden[rows, :width] = self.backbone(
                    self.backbone.embed(tokens[rows, :width]), mask[rows, :width, :keys], positions[rows, :width], cache
                )[0]
        return hidden
