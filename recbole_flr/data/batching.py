"""Training batches whose prompts have about the same length.

A prompt of ten titles is ten times as long as a prompt of one, so most of a random batch would be padding: 68% on Amazon
movies, against 8% in the batches made here. The rows are shuffled and cut into windows of several batches. The rows of a window
are sorted by length and cut into batches. Then the batches are shuffled.
"""

import torch


class LengthBatches:
    """Wraps one of RecBole's loaders: each epoch has the same rows and uses the same generator, but forms other batches.

    Args:
        loader: RecBole's TrainDataLoader, which also collates the rows.
        lengths: int64 [rows], tokens of each row's prompt.
        window: number of batches whose rows are sorted together. 1 gives random batches, as RecBole's; with more, the lengths
            in a batch are closer to each other.
        shuffle: RecBole's option `shuffle`; without it the rows keep their order.
        batch_size: rows in a batch; None for that of `loader`.
        rows: number of rows in an epoch, drawn at random for each epoch; None for all.
    """

    def __init__(self, loader, lengths, window=32, shuffle=True, batch_size=None, rows=None):
        self.loader, self.lengths, self.window, self.shuffle = loader, lengths, window, shuffle
        self.batch_size = batch_size or loader.batch_size
        self.rows = min(rows or len(lengths), len(lengths))
        self.generator, self.sampler = loader.generator, loader.sampler
        self._dataset = self.dataset = loader._dataset

    def __len__(self):
        return -(-self.rows // self.batch_size)

    def batches(self):
        """Draw the batches of one epoch: a list of int64 tensors of row numbers."""
        if not self.shuffle:
            rows = torch.randperm(len(self.lengths), generator=self.generator)[:self.rows].sort().values
            return list(rows.split(self.batch_size))
        order = torch.randperm(len(self.lengths), generator=self.generator)[:self.rows]
        batches = []
        for part in order.split(self.window * self.batch_size):
            by_length = part[self.lengths[part].argsort(stable=True)]
            batches += by_length.split(self.batch_size)
        return [batches[i] for i in torch.randperm(len(batches), generator=self.generator).tolist()]

    def __iter__(self):
        for rows in self.batches():
            yield self.loader.collate_fn(rows.tolist())


class PrefixBatches(LengthBatches):
    """Batches in which rows that share a prompt's prefix stand together, and groups of similar length.

    A group that stands on the border of two batches is cut, so that all batches but one are full.

    Args:
        loader, lengths, window, shuffle, batch_size: as for :class:`LengthBatches`.
        groups: int64 [rows], equal for rows of one group: see :func:`recbole_flr.data.prefixes.prefix_sources`.
    """

    def __init__(self, loader, lengths, groups, window=32, shuffle=True, batch_size=None):
        super().__init__(loader, lengths, window, shuffle, batch_size)
        _, self.groups = groups.unique(return_inverse=True)
        self.longest = torch.zeros(int(self.groups.max()) + 1, dtype=lengths.dtype).scatter_reduce(0, self.groups, lengths, "amax")

    def batches(self):
        """Draw the batches of one epoch: a list of int64 tensors of row numbers."""
        if not self.shuffle:
            return super().batches()
        place = torch.randperm(len(self.longest), generator=self.generator)  # of each group in a random order
        order = place[self.groups].argsort(stable=True)
        batches = []
        for part in order.split(self.window * self.batch_size):
            group = self.groups[part]
            by_length = part[(self.longest[group] * len(place) + place[group]).argsort(stable=True)]
            batches += by_length.split(self.batch_size)
        return [batches[i] for i in torch.randperm(len(batches), generator=self.generator).tolist()]


class Repeat:
    """A batch that comes several times in a row.

    Attributes:
        interaction: RecBole's batch.
        is_first: whether this is the first time.
        start: number of the first row, if this is a part of a batch.
    """

    def __init__(self, interaction, is_first, start=0):
        self.interaction, self.is_first, self.start = interaction, is_first, start

    def __len__(self):
        return len(self.interaction)

    def __getitem__(self, rows):
        """Some rows, a slice."""
        return Repeat(self.interaction[rows], self.is_first, self.start + rows.start)

    def to(self, device):
        """The same on another device."""
        return Repeat(self.interaction.to(device), self.is_first, self.start)


class Repeated:
    """A loader that gives each batch of another loader several times in a row, as a :class:`Repeat`.

    Args:
        loader: of RecBole batches.
        times: how often.
    """

    def __init__(self, loader, times):
        self.loader, self.times = loader, times
        self.generator, self.sampler, self.shuffle = loader.generator, loader.sampler, loader.shuffle
        self._dataset = self.dataset = loader.dataset

    def __len__(self):
        return len(self.loader) * self.times

    def __iter__(self):
        for interaction in self.loader:
            for time in range(self.times):
                yield Repeat(interaction, time == 0)
