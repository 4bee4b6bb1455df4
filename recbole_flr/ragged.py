"""Rows of different lengths, stored end to end in flat tensors.

The rows ``[5, 6]``, ``[]`` and ``[7]`` are stored as two tensors::

    flat    5 6 7      the entries of all rows, one row after the other
    start   0 2 2 3    row i is flat[start[i]:start[i + 1]]

Most work on such rows needs two numbers for each entry: its row, and its place within that row::

    row     0 0 2
    place   0 1 0

:func:`rows_and_places` computes both from the lengths of the rows. :func:`places_in_rows` computes the places from the rows.
No function here loops over rows.

Shape letters: R rows, E entries of all rows together.
"""

from dataclasses import dataclass
from itertools import chain

import numpy as np
import torch


def rows_and_places(length):
    """Row and place of every entry.

    Args:
        length: int64 [R], entries of each row.

    Returns:
        row and place, two int64 tensors [E].
    """
    row = torch.arange(len(length), device=length.device).repeat_interleave(length)
    return row, torch.arange(len(row), device=length.device) - (length.cumsum(0) - length)[row]


def places_in_rows(row, num_rows):
    """Place of every entry, from its row.

    Args:
        row: int64 [E], ascending, in 0 .. num_rows - 1.
        num_rows: R; rows without entries are allowed.

    Returns:
        int64 [E].
    """
    start = torch.searchsorted(row, torch.arange(num_rows, device=row.device))
    return torch.arange(len(row), device=row.device) - start[row]


@dataclass
class RaggedRows:
    """Rows of integers of different lengths; the module's docstring explains the layout.

    Attributes:
        flat: int64 [E].
        start: int64 [R + 1], on the same device.
    """

    flat: torch.Tensor
    start: torch.Tensor

    @classmethod
    def of(cls, rows):
        """From a list of lists of integers, on the CPU."""
        start = np.zeros(len(rows) + 1, dtype=np.int64)
        np.cumsum([len(row) for row in rows], out=start[1:])
        flat = np.fromiter(chain.from_iterable(rows), dtype=np.int64, count=int(start[-1]))
        return cls(torch.from_numpy(flat), torch.from_numpy(start))

    @classmethod
    def joined(cls, parts):
        """The rows of several RaggedRows, one after the other."""
        return cls(torch.cat([part.flat for part in parts]), _starts(torch.cat([part.lengths() for part in parts])))

    def __len__(self):
        """Rows (R)."""
        return len(self.start) - 1

    def lengths(self):
        """Entries of each row: int64 [R]."""
        return self.start.diff()

    def row(self, index):
        """One row as a list."""
        return self.flat[self.start[index]:self.start[index + 1]].tolist()

    def to(self, device):
        """The same rows on another device."""
        return RaggedRows(self.flat.to(device), self.start.to(device))

    def take(self, rows):
        """The rows with the numbers `rows` (int64), in that order, as RaggedRows."""
        lengths = self.lengths()[rows]
        row, place = rows_and_places(lengths)
        place += self.start[rows][row]
        return RaggedRows(self.flat[place], _starts(lengths))

    def join_and_pad(self, rows, pad, left=True):
        """Join several rows into one for each user, and pad the joined rows to one length.

        Args:
            rows: int64 [B, C], the row numbers that make up each joined row, in order; -1 adds nothing.
            pad: value of the padding.
            left: whether the padding stands in front.

        Returns:
            - entries, int64 [B, L], where L is the length of the longest joined row;
            - mask, bool [B, L], True where an entry is not padding;
            - origin, int64 [B, L], the column of `rows` that an entry comes from, -1 at padding.
        """
        users, columns = rows.shape
        number = rows.clamp_min(0)
        lengths = torch.where(rows >= 0, self.lengths()[number], 0)  # [B, C]
        joined = lengths.sum(1)  # [B]
        longest = int(joined.max()) if users else 0
        piece, place = rows_and_places(lengths.flatten())
        user, column = piece // columns, piece % columns
        target = (lengths.cumsum(1) - lengths).flatten()[piece] + place  # place in the joined row
        if left:
            target = target + (longest - joined)[user]
        entries = torch.full((users, longest), pad, dtype=torch.long, device=rows.device)
        origin = torch.full((users, longest), -1, dtype=torch.long, device=rows.device)
        entries[user, target] = self.flat[self.start[number.flatten()[piece]] + place]
        origin[user, target] = column
        return entries, origin >= 0, origin


def _starts(lengths):
    """Where each row begins in `flat`, and where the last one ends: lengths [R] -> [R + 1]."""
    return torch.cat([lengths.new_zeros(1), lengths.cumsum(0)])
