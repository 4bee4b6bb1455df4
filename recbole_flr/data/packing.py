"""Whole user sequences, packed for plain language modelling: each training interaction once an epoch.

The rows of a training set are prefixes of one another. A model that read them all as text would see the first items of a user
again and again. So this module rebuilds each user's sequence from the training rows, and the model reads that sequence once.
It uses no row of the validation or test set. Several sequences share one row of the batch ("packing"), which saves padding.

Shapes: R rows of a batch, S tokens of a row.
"""

import numpy as np
import torch

from recbole_flr.data.prompt import IGNORE
from recbole_flr.data.sharing import own_share


def user_sequences(dataset, max_history):
    """The users' item sequences, rebuilt from the rows of a training set.

    Args:
        dataset: RecBole training dataset: rows of (user, history, target), in temporal order within each user.
        max_history: the number of items to which RecBole cuts a history.

    Returns:
        list of int64 arrays of item ids, ordered by user. If a row's history does not match the user's sequence so far (rows
        in between were dropped), the row starts a new sequence, which begins with its history.
    """
    inter = dataset.inter_feat
    users = inter[dataset.uid_field].numpy()
    targets = inter[dataset.iid_field].numpy()
    history = inter[dataset.iid_field + dataset.config["LIST_SUFFIX"]].numpy()
    lengths = inter[dataset.item_list_length_field].numpy()
    sequences, current, last_user = [], [], None
    for row in np.argsort(users, kind="stable"):
        past = history[row, :lengths[row]].tolist()
        if users[row] != last_user or current[-min(len(past), max_history):] != past[-max_history:]:
            if last_user is not None:
                sequences.append(np.array(current))
            current, last_user = past, users[row]
        current.append(int(targets[row]))
    if last_user is not None:
        sequences.append(np.array(current))
    return sequences


def pieces_that_fit(sequences, sizes, head_size, room):
    """Cut sequences between items, so that each piece with its head has at most `room` tokens.

    Args:
        sequences: list of int64 arrays of item ids.
        sizes: numpy array, tokens of each item's chunk, indexed by item id.
        head_size: tokens of the head, which stands in front of each piece.
        room: tokens in a row. A single item that does not fit is a piece of its own; :class:`PackedLoader` cuts its tokens.

    Returns:
        list of int64 arrays of item ids, the pieces of the first sequence first.
    """
    pieces = []
    for sequence in sequences:
        ends = np.cumsum(sizes[sequence])
        first, used = 0, 0
        while first < len(sequence):
            last = max(int(np.searchsorted(ends, used + room - head_size, side="right")), first + 1)
            pieces.append(sequence[first:last])
            first, used = last, ends[last - 1]
    return pieces


class Packed:
    """A batch of packed rows. RecBole's trainer takes it for an Interaction, of which it only needs :meth:`to`.

    Attributes:
        ids: int64 [R, S], token ids.
        positions: int64 [R, S], counted from 0 in each sequence.
        segment: int64 [R, S], number of the sequence within its row, -1 at padding.
        labels: int64 [R, S], id of the next token; IGNORE at the last token of a sequence and at padding.
    """

    def __init__(self, ids, positions, segment, labels):
        self.ids, self.positions, self.segment, self.labels = ids, positions, segment, labels

    def __len__(self):
        return len(self.ids)

    def __getitem__(self, rows):
        """Some rows, a slice."""
        return Packed(*(t[rows] for t in (self.ids, self.positions, self.segment, self.labels)))

    def to(self, device):
        """The same batch on another device."""
        return Packed(*(t.to(device) for t in (self.ids, self.positions, self.segment, self.labels)))

    def mask(self):
        """Which tokens each token sees: those of its sequence up to itself. bool [R, S, S], dimension 1 sees dimension 2."""
        place = torch.arange(self.ids.shape[1], device=self.ids.device)
        return (self.segment.unsqueeze(2) == self.segment.unsqueeze(1)) & (place.unsqueeze(1) >= place)


class PackedLoader:
    """Batches of packed user sequences, shuffled anew each epoch. It has the attributes that RecBole's trainer reads.

    Args:
        dataset: RecBole training dataset.
        collator: a :class:`~recbole_flr.data.prompt.Collator` whose template has no tail, such as `compact`.
        pack_length: S, tokens in a row at most.
        batch_size: average number of rows in a batch if all rows were full; batches are larger where rows stay partly empty.
        max_history: the number of items to which RecBole cuts a history.
        seed: seed of the shuffling.
    """

    shuffle = True
    sampler = None

    def __init__(self, dataset, collator, pack_length, batch_size, max_history, seed):
        self._dataset = self.dataset = dataset
        self.collator, self.pack_length, self.batch_size = collator, pack_length, batch_size
        self.generator = torch.Generator().manual_seed(seed)
        chunks = collator.chunks
        sizes = chunks.lengths().cpu().numpy()
        self.head = len(sizes) - 2
        self.pieces = pieces_that_fit(user_sequences(dataset, max_history), sizes, sizes[self.head], pack_length)
        self.sizes = np.minimum([sizes[self.head] + sizes[piece].sum() for piece in self.pieces], pack_length)

    def __len__(self):
        return -(-int(self.sizes.sum()) // (self.pack_length * self.batch_size))

    def _rows(self):
        """Fill rows with the shuffled pieces, each into the first open row that has room. Returns lists of piece numbers."""
        open_rows = []  # [tokens of room left, pieces]
        done = []
        for piece in torch.randperm(len(self.pieces), generator=self.generator).tolist():
            size = self.sizes[piece]
            for row in open_rows:
                if row[0] >= size:
                    row[0] -= size
                    row[1].append(piece)
                    break
            else:
                open_rows.append([self.pack_length - size, [piece]])
            if len(open_rows) > 16:  # bounds the search; the fullest of so many rows has hardly any room left
                fullest = min(range(len(open_rows)), key=lambda i: open_rows[i][0])
                done.append(open_rows.pop(fullest)[1])
        done += [row[1] for row in open_rows]
        order = torch.randperm(len(done), generator=self.generator).tolist()
        return [done[i] for i in order]

    def __iter__(self):
        rows = self._rows()
        batches = len(self)
        for batch in range(batches):  # the rows are spread evenly over the batches, so that len() is exact
            part = rows[batch * len(rows) // batches:(batch + 1) * len(rows) // batches]
            if part:
                yield self._collate(own_share(part, [sum(self.sizes[row]) for row in part]))

    def _collate(self, rows):
        """Lists of piece numbers, one list a row -> :class:`Packed`."""
        width = max(sum(1 + len(self.pieces[p]) for p in row) for row in rows)
        numbers = np.full((len(rows), width), -1, dtype=np.int64)
        owner = np.full((len(rows), width), -1, dtype=np.int64)
        for index, row in enumerate(rows):
            joined = np.concatenate([np.concatenate([[self.head], self.pieces[p]]) for p in row])
            numbers[index, :len(joined)] = joined
            owner[index, :len(joined)] = np.repeat(np.arange(len(row)), [1 + len(self.pieces[p]) for p in row])
        chunks = self.collator.chunks
        rows_tensor = torch.from_numpy(numbers).to(chunks.flat.device)
        ids, mask, origin = chunks.join_and_pad(rows_tensor, self.collator.pad, left=False)
        ids, mask, origin = (t[:, :self.pack_length] for t in (ids, mask, origin))
        owner = torch.from_numpy(owner).to(ids.device)
        segment = torch.where(mask, owner.gather(1, origin.clamp_min(0)), -1)
        place = torch.arange(ids.shape[1], device=ids.device).expand_as(ids)
        starts = torch.cat([torch.ones_like(mask[:, :1]), segment[:, 1:] != segment[:, :-1]], dim=1)
        positions = place - torch.where(starts, place, 0).cummax(1).values
        labels = torch.full_like(ids, IGNORE)
        same = (segment[:, 1:] == segment[:, :-1]) & mask[:, 1:]
        labels[:, :-1] = torch.where(same, ids[:, 1:], IGNORE)
        return Packed(ids, positions, segment, labels)
