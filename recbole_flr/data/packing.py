"""Whole user sequences, packed for plain language modelling: each training interaction once an epoch.

Rows of a training set are prefixes of one another; read as text they would show the first items of a user again and
again. Here each user's sequence is put together once from the training rows alone, never from a row of valid or test.
"""

import numpy as np
import torch

from recbole_flr.data.collate import IGNORE, gather_rows


def user_sequences(dataset, max_history):
    """The users' item sequences that a training set implies.

    Args:
        dataset: RecBole training dataset: rows of (user, history, target) in temporal order within a user.
        max_history: histories are cut to this many items.

    Returns:
        list of int64 arrays of item ids. A row that does not continue what is known of its user (rows were dropped
        in between) starts a sequence of its own with its history.
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
    """Cut sequences between items so that each piece, with its head, has at most `room` tokens.

    Args:
        sequences: list of item id arrays.
        sizes: [n_items], tokens of each item's chunk.
        head_size: tokens in front of each piece.
        room: tokens in a row; one item longer than that stands alone and is cut by the packer.
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
    """A batch of packed rows; quacks like RecBole's Interaction as far as its trainer looks.

    Attributes:
        ids: [R, S] token ids.
        positions: [R, S], counted anew from each sequence's start.
        segment: [R, S], number of the sequence in its row, -1 at padding.
        labels: [R, S], the next token's id, IGNORE at a sequence's last token and at padding.
    """

    def __init__(self, ids, positions, segment, labels):
        self.ids, self.positions, self.segment, self.labels = ids, positions, segment, labels

    def to(self, device):
        """The same on another device."""
        return Packed(*(t.to(device) for t in (self.ids, self.positions, self.segment, self.labels)))

    def mask(self):
        """[R, S, S], True where a token may see another: earlier in the same sequence, or itself."""
        place = torch.arange(self.ids.shape[1], device=self.ids.device)
        return (self.segment.unsqueeze(2) == self.segment.unsqueeze(1)) & (place.unsqueeze(1) >= place)


class PackedLoader:
    """Batches of packed user sequences, shuffled anew each epoch; a loader as RecBole's trainer expects one.

    Args:
        dataset: RecBole training dataset.
        collator: see :class:`recbole_flr.data.collate.Collator`; the prompt template must be ``compact``-like: a head
            and chunks.
        pack_length: tokens in a row.
        batch_size: rows in a batch, on average; more where the sequences leave much of their rows empty.
        max_history: of the data set.
        seed: of the shuffling.
    """

    shuffle = True
    sampler = None

    def __init__(self, dataset, collator, pack_length, batch_size, max_history, seed):
        self._dataset = self.dataset = dataset
        self.collator, self.pack_length, self.batch_size = collator, pack_length, batch_size
        self.generator = torch.Generator().manual_seed(seed)
        chunks = collator.chunks
        sizes = chunks.start.diff().cpu().numpy()
        self.head = len(sizes) - 2
        self.pieces = pieces_that_fit(user_sequences(dataset, max_history), sizes, sizes[self.head], pack_length)
        self.sizes = np.minimum([sizes[self.head] + sizes[piece].sum() for piece in self.pieces], pack_length)

    def __len__(self):
        return -(-int(self.sizes.sum()) // (self.pack_length * self.batch_size))

    def _rows(self):
        """First fit over the shuffled pieces: lists of piece numbers whose tokens fit one row."""
        open_rows = []  # (room left, pieces)
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
            if len(open_rows) > 16:  # a row that sixteen pieces did not fill is nearly full
                fullest = min(range(len(open_rows)), key=lambda i: open_rows[i][0])
                done.append(open_rows.pop(fullest)[1])
        done += [row[1] for row in open_rows]
        order = torch.randperm(len(done), generator=self.generator).tolist()
        return [done[i] for i in order]

    def __iter__(self):
        rows = self._rows()
        batches = len(self)
        for batch in range(batches):  # spread evenly, so that len() is exact
            part = rows[batch * len(rows) // batches:(batch + 1) * len(rows) // batches]
            if part:
                yield self._collate(part)

    def _collate(self, rows):
        width = max(sum(1 + len(self.pieces[p]) for p in row) for row in rows)
        numbers = np.full((len(rows), width), -1, dtype=np.int64)
        owner = np.full((len(rows), width), -1, dtype=np.int64)
        for index, row in enumerate(rows):
            joined = np.concatenate([np.concatenate([[self.head], self.pieces[p]]) for p in row])
            numbers[index, :len(joined)] = joined
            owner[index, :len(joined)] = np.repeat(np.arange(len(row)), [1 + len(self.pieces[p]) for p in row])
        chunks = self.collator.chunks
        rows_tensor = torch.from_numpy(numbers).to(chunks.flat.device)
        ids, mask, origin = gather_rows(chunks, rows_tensor, self.collator.pad, left=False)
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
