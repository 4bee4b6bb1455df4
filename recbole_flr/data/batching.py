"""Training batches of rows whose prompts are about equally long.

Prompts of ten titles and of one differ tenfold; in a random batch most of what the backbone reads would be padding (68%
on Amazon movies, 8% in these). Rows are shuffled, sorted by length within a window of batches, and the batches are shuffled.
"""

import torch


class LengthBatches:
    """A loader like the RecBole one that it wraps: the same rows once an epoch, the same generator, other batches.

    Args:
        loader: RecBole's TrainDataLoader; rows are collated by it.
        lengths: [rows] int64, tokens of each row's prompt.
        window: batches that are sorted together; 1 gives RecBole's batches, many give batches of one length.
        shuffle: RecBole's option; without it the rows come in their order, batch by batch.
        batch_size: rows in a batch, if not the wrapped loader's.
        rows: how many rows an epoch has, drawn anew for each; None for all.
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
        """Row numbers of the epoch's batches, a list of int64 tensors."""
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


class Repeat:
    """A batch that comes several times in a row.

    Attributes:
        interaction: RecBole's batch.
        is_first: whether this is the first time.
    """

    def __init__(self, interaction, is_first):
        self.interaction, self.is_first = interaction, is_first

    def to(self, device):
        """The same on another device."""
        return Repeat(self.interaction.to(device), self.is_first)


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
