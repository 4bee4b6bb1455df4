"""How the processes of a run share the rows of a batch, and how one process splits its rows to save memory.

Each process draws the same batches with the same generator and keeps its share. So a batch of all processes together is the batch
that one process would have, and an epoch has the same batches for any number of processes.
"""

import copy

import torch
from recbole.data.dataloader import KnowledgeBasedDataLoader

from recbole_flr import distributed


def share_bounds(costs, count):
    """Cut rows into `count` consecutive parts of about the same cost, each of at least one row.

    Args:
        costs: [n] numbers above 0, n >= count.
        count: int.

    Returns:
        list of count + 1 ints, from 0 to n.
    """
    ends = torch.as_tensor(costs, dtype=torch.float64).cumsum(0)
    bounds = [0]
    for part in range(1, count):
        wanted = ends[-1] * part / count
        nearest = int(torch.searchsorted(ends, wanted))
        if nearest < len(ends) and ends[nearest] - wanted < wanted - (ends[nearest - 1] if nearest else 0):
            nearest += 1  # the cut behind that row is nearer than the cut before it
        bounds.append(min(max(nearest, bounds[-1] + 1), len(ends) - count + part))
    return [*bounds, len(ends)]


def own_share(rows, costs=None):
    """The rows of a batch that this process takes. Neighbours stay together.

    If there are fewer rows than processes, each process takes all of them: then each row counts several times, and a mean over the
    rows is still the same.

    Args:
        rows: list of anything, or a tensor [n].
        costs: what each row costs, such as its number of tokens; None: all cost the same.
    """
    count = distributed.size()
    if count == 1 or len(rows) < count:
        return rows
    bounds = share_bounds(torch.ones(len(rows)) if costs is None else costs, count)
    return rows[bounds[distributed.rank()]:bounds[distributed.rank() + 1]]


class SharedRows:
    """Takes the place of a loader's `collate_fn`, and puts together this process's share of the rows.

    Args:
        collate: the loader's own.

    Attributes:
        costs: [rows of the data set], what each row costs; None: all cost the same.
    """

    def __init__(self, collate):
        self.collate, self.costs = collate, None

    def __call__(self, rows):
        costs = None if self.costs is None else self.costs[torch.as_tensor(rows)]
        return self.collate(own_share(rows, costs))


def share_rows(loader):
    """Let one of RecBole's training loaders give each process its share of each batch.

    Returns:
        list of :class:`SharedRows`; empty if there is one process.
    """
    if distributed.size() == 1:
        return []
    loaders = [loader.general_dataloader, loader.kg_dataloader] if isinstance(loader, KnowledgeBasedDataLoader) else [loader]
    shared = []
    for each in loaders:
        each.collate_fn = SharedRows(each.collate_fn)
        shared.append(each.collate_fn)
    return shared


class EveryNth:
    """Every n-th batch of a sampler, beginning with number `first`."""

    def __init__(self, batches, first, n):
        self.batches, self.first, self.n = batches, first, n

    def __len__(self):
        return max(1, len(range(self.first, len(self.batches), self.n)))  # RecBole does not evaluate a loader of length 0

    def __iter__(self):
        return (batch for number, batch in enumerate(self.batches) if number % self.n == self.first)


def share_batches(loader):
    """A copy of one of RecBole's evaluation loaders that gives this process every n-th batch of n processes.

    The batches are those of one process, so that each row gets the very same scores.
    """
    if distributed.size() == 1 or not loader:
        return loader
    shared = copy.copy(loader)
    vars(shared)["batch_sampler"] = EveryNth(loader.batch_sampler, distributed.rank(), distributed.size())  # torch forbids the plain way
    return shared


def split_batch(batch, parts):
    """Cut a batch into consecutive parts of about the same size.

    Args:
        batch: of rows, with `len(batch)` and `batch[slice]`.
        parts: number of parts, at most the number of rows.

    Returns:
        list of batches.
    """
    if parts == 1:
        return [batch]
    bounds = [len(batch) * part // parts for part in range(parts + 1)]
    return [batch[first:last] for first, last in zip(bounds, bounds[1:])]
