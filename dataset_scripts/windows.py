"""Which reviews are kept: window, sliding start, repeated reviews, k-core (rules 4 to 6 of `dataset_scripts.convert`).

:func:`slide` holds the rules. It asks an object for the reviews of a window: :class:`Arrays` has them in memory,
`dataset_scripts.expressions` has them on an engine.
"""

import logging

import numpy as np

from dataset_scripts.rules import OLDEST_START, iso, months_back, to_microseconds
from recbole_flr.errors import DataError

_log = logging.getLogger(__name__)


class TooLittle(DataError):
    """Too few reviews remain.

    Attributes:
        counts (dict): what the rules dropped in the last window, as :func:`slide` returns it.
    """

    def __init__(self, message, counts):
        super().__init__(message)
        self.counts = counts


def slide(reviews, start, end, k, min_items, step_months, drop_repeats):
    """Moves the start back until `min_items` items remain in the k-core.

    Args:
        reviews: object with a method `since(begin, ahead)`, which returns the reviews of the window from `begin` on
            (microseconds, or None). `ahead` is an earlier begin, up to which it pays to load reviews for later calls. What it
            returns has the methods of :class:`ArrayRows`.
        start, end: datetimes, or None for no bound. `reviews` applies the end.
        k, min_items, step_months, drop_repeats: as for `dataset_scripts.convert.convert`.

    Returns:
        tuple: the kept reviews, and a dict of counts: `inside`, `repeated` and `below_k` (reviews), `k_core_rounds` (reviews
        dropped in each round), `windows` ([start, items] of each window that was tried) and `start` (of the last window).

    Raises:
        TooLittle: nothing remains, or fewer than `min_items` items.
    """
    first_start, windows = start, []
    while True:
        begin = ahead = None if start is None else to_microseconds(start)
        if windows:  # load half as far again each time: few reviews are loaded in vain, and none many times
            ahead = to_microseconds(months_back(first_start, (len(windows) + len(windows) // 2 + 1) * step_months))
        rows = reviews.since(begin, ahead)
        n_inside = rows.count()
        if drop_repeats:
            rows = rows.without_repeats()
        counts = {"inside": n_inside, "repeated": n_inside - rows.count()}
        rows, rounds = rows.core(k)
        n_items = rows.count_items()
        windows.append([iso(start), n_items])
        _log.info("window %s to %s: %d reviews, %d items in the %d-core", iso(start), iso(end), rows.count(), n_items, k)
        counts.update(below_k=sum(rounds), k_core_rounds=rounds, windows=windows, start=start)
        if n_items >= max(min_items, 1):
            return rows, counts
        if not min_items:
            found = f"nothing remains of {counts['inside']} reviews from {iso(start)} to {iso(end)} in the {k}-core"
            raise TooLittle(f"{found}; lower --k or widen the window", counts)
        start = None if start is None else months_back(first_start, len(windows) * step_months)
        if start is None or start < OLDEST_START:
            found = f"{n_items} items remain even from {windows[-1][0]}, fewer than the {min_items} wanted"
            raise TooLittle(f"{found}; lower --min-items, or keep the start with --no-sliding", counts)


class Arrays:
    """Reviews that are loaded into memory.

    Args:
        load (callable): (start, end) in microseconds -> dict of arrays over the reviews of that window, in file order: `user` and
            `item` (small codes), `time`, and any others.
        end: a datetime, or None.
    """

    def __init__(self, load, end):
        self._load, self._end = load, None if end is None else to_microseconds(end)
        self._columns = self._loaded = None

    def since(self, begin, ahead):
        """The :class:`ArrayRows` from `begin` on."""
        if self._columns is None or begin < self._loaded:
            self._loaded, self._columns = ahead, None  # free the old arrays before the new ones are made
            self._columns = self._load(ahead, self._end)
        everything = begin is None or begin == self._loaded
        time = self._columns["time"]
        return ArrayRows(self._columns, np.arange(len(time)) if everything else np.flatnonzero(time >= begin))


class ArrayRows:
    """Some of the reviews in memory.

    Attributes:
        columns: dict of arrays, see :class:`Arrays`.
        places: [R] places of the reviews in these arrays, ascending.
    """

    def __init__(self, columns, places):
        self.columns, self.places = columns, places

    def count(self):
        """Number of reviews."""
        return len(self.places)

    def count_items(self):
        """Number of different items."""
        return len(np.unique(self.columns["item"][self.places]))

    def without_repeats(self):
        """The first of several reviews of an item by the same user."""
        return ArrayRows(self.columns, first_of_each_pair(self.columns, self.places))

    def core(self, k):
        """The k-core, and a list: how many reviews each round dropped."""
        places, rounds = k_core(self.columns["user"], self.columns["item"], self.places, k)
        return ArrayRows(self.columns, places), rounds


def codes(values):
    """The rank of each value among the distinct values: [R] -> [R] uint32. As np.unique's inverse, in less memory."""
    order = np.argsort(values)
    values = values[order]
    steps = np.zeros(len(values), np.uint32)
    np.cumsum(values[1:] != values[:-1], out=steps[1:])
    found = np.empty(len(values), np.uint32)
    found[order] = steps
    return found


def first_of_each_pair(columns, places):
    """Of several reviews of an item by the same user, the earliest; at the same time the first in the file.

    `places`: [R] places in the arrays of `columns`, ascending. Returns those that stay, ascending.
    """
    user, item, time = (columns[name][places] for name in ("user", "item", "time"))
    order = np.lexsort((time, item, user))
    first = np.ones(len(order), bool)
    first[1:] = (np.diff(user[order].astype(np.int64)) != 0) | (np.diff(item[order].astype(np.int64)) != 0)
    return places[np.sort(order[first])]


def k_core(user, item, rows, k):
    """The largest set of rows in which every user and every item has at least k rows.

    Args:
        user, item: [R] codes.
        rows: row numbers to begin with.

    Returns:
        tuple: the row numbers that remain, and a list: how many rows each round dropped.
    """
    rounds = []
    while len(rows):
        keep = (np.bincount(user[rows])[user[rows]] >= k) & (np.bincount(item[rows])[item[rows]] >= k)
        if keep.all():
            break
        rounds.append(int(len(rows) - keep.sum()))
        rows = rows[keep]
    return rows, rounds
