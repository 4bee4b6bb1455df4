"""From RecBole's item ids to token ids, masks, positions and labels: gathers on flat tensors, no loop over rows.

Shapes: B batch, H history items, L prompt tokens, T title tokens (with the end of title).
"""

from dataclasses import dataclass

import torch

IGNORE = -100  # label that the cross entropy skips


def gather_rows(tokens, rows, pad, left=True):
    """Join ragged rows and pad the result.

    Args:
        tokens: Tokens.
        rows: [B, R] int64 row numbers, to be joined from left to right; -1 adds nothing.
        pad: token id of the padding.
        left: whether the padding stands in front.

    Returns:
        ids [B, L], mask [B, L] (True at real tokens) and origin [B, L] (column of `rows` a token comes from, -1 at
        padding); L is the longest joined row.
    """
    batch, columns = rows.shape
    safe = rows.clamp_min(0)
    sizes = torch.where(rows >= 0, tokens.start[safe + 1] - tokens.start[safe], 0)  # [B, R]
    lengths = sizes.sum(1)
    longest = int(lengths.max()) if batch else 0
    flat_sizes = sizes.flatten()
    total = int(flat_sizes.sum())
    piece = torch.repeat_interleave(torch.arange(batch * columns, device=rows.device), flat_sizes, output_size=total)
    within = torch.arange(total, device=rows.device) - (flat_sizes.cumsum(0) - flat_sizes)[piece]
    user, column = piece // columns, piece % columns
    offset = (sizes.cumsum(1) - sizes).flatten()[piece] + within  # place in the joined row
    if left:
        offset = offset + (longest - lengths)[user]
    ids = torch.full((batch, longest), pad, dtype=torch.long, device=rows.device)
    origin = torch.full((batch, longest), -1, dtype=torch.long, device=rows.device)
    ids[user, offset] = tokens.flat[tokens.start[safe.flatten()[piece]] + within]
    origin[user, offset] = column
    return ids, origin >= 0, origin


@dataclass
class Prompts:
    """A batch of prompts.

    Attributes:
        ids: [B, L] token ids.
        mask: [B, L], True at real tokens.
        item: [B, L], which item of the history (0 = oldest) a token belongs to, -1 for none.
    """

    ids: torch.Tensor
    mask: torch.Tensor
    item: torch.Tensor


class Collator:
    """Turns histories into prompts and items into title tokens.

    Args:
        titles: Tokens of the items' titles, ended by the end of title; row 0 is empty.
        chunks: Tokens from :meth:`Template.chunks`.
        pad: token id of padding.
    """

    def __init__(self, titles, chunks, pad):
        self.titles, self.chunks, self.pad = titles, chunks, pad

    def to(self, device):
        """Move the catalogue's tokens."""
        self.titles, self.chunks = self.titles.to(device), self.chunks.to(device)
        return self

    def _rows(self, history, length):
        """Rows of `chunks` that make up each prompt: [B, 1 + H + 1], -1 for none."""
        head = len(self.chunks.start) - 3
        real = torch.arange(history.shape[1], device=history.device) < length.unsqueeze(1)
        ends = history.new_tensor([head, head + 1]).expand(len(history), 2)
        return torch.cat([ends[:, :1], torch.where(real, history, -1), ends[:, 1:]], dim=1)

    def prompt_lengths(self, history, length):
        """history [B, H], length [B] -> tokens of each prompt, [B]."""
        rows = self._rows(history, length)
        sizes = self.chunks.start.to(rows.device).diff()
        return torch.where(rows >= 0, sizes[rows.clamp_min(0)], 0).sum(1)

    def prompts(self, history, length, left=True):
        """history [B, H] item ids, oldest first, then zeros; length [B] -> Prompts."""
        ids, mask, origin = gather_rows(self.chunks, self._rows(history, length), self.pad, left)
        item = torch.where((origin >= 1) & (origin <= history.shape[1]), origin - 1, -1)
        return Prompts(ids, mask, item)

    def targets(self, items):
        """items [B] -> title ids [B, T] padded on the right, and labels [B, T] with IGNORE at padding."""
        ids, mask, _ = gather_rows(self.titles, items.unsqueeze(1), self.pad, left=False)
        return ids, torch.where(mask, ids, IGNORE)
