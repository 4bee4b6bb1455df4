"""Neighbors: the training users whose sequences are most similar to a history, and the items that they vote for.

:class:`recbole_flr.model.vsknn.VSKNN` ranks by these votes alone. FLRMix has them in its memory.

Shapes: B rows, L places of a history, S sessions, N entries. Rows have different numbers of candidates. So candidates are entries
of flat arrays: entry n of one array belongs to entry n of the others.
"""

from dataclasses import dataclass

import numpy as np
from scipy.sparse import coo_matrix

from recbole_flr.model.counted import distances_from_end

ROWS_AT_ONCE = 128  # bounds the memory: ROWS_AT_ONCE * L * sample_size entries at most


def position_weights(distances, lengths, weighting):
    """Weight of an item by its place in the history.

    Args:
        distances: [N] int, how many items of the history come after it.
        lengths: [N] int, length of the history.
        weighting: `same` gives 1. With d = distance and n = length: `linear` 1 - d/n, `quadratic` its square, `harmonic` 1/(d+1),
            `log` 1/log2(d+2).

    Returns:
        [N] float64 in (0, 1], 1 for the last item.
    """
    linear = 1 - distances / lengths
    if weighting == "linear":
        return linear
    if weighting == "quadratic":
        return linear**2
    if weighting == "harmonic":
        return 1 / (distances + 1)
    return 1 / np.log2(distances + 2) if weighting == "log" else np.ones(len(distances))


def expand(starts, counts):
    """Positions start, start + 1, ..., start + count - 1 of several ranges, one range after the other: [sum of counts] int."""
    before = np.cumsum(counts) - counts
    return np.arange(counts.sum()) + np.repeat(starts - before, counts)


def first_of_runs(*keys):
    """Whether an entry differs from the entry before it in one of the sorted keys: [N] bool."""
    first = np.ones(len(keys[0]), dtype=bool)
    first[1:] = np.logical_or.reduce([key[1:] != key[:-1] for key in keys])
    return first


def place_in_run(first):
    """Number of each entry within its run, from 0. `first`: [N] bool, True where a run begins."""
    index = np.arange(len(first))
    return index - np.maximum.accumulate(np.where(first, index, 0))


@dataclass
class Sessions:
    """The training sessions. The session that ended last has the highest number.

    A session is a user's sequence: the history of the user's first training row, then the targets of all his training rows.

    Attributes:
        items: [N] int32, the distinct items of session 0 in the order in which they first occur, then those of session 1, ...
        places: [N] int32, where in its session each item first occurs.
        starts: [S + 1] int, where each session begins in `items`.
    """

    items: np.ndarray
    places: np.ndarray
    starts: np.ndarray

    @classmethod
    def of(cls, rows):
        """Sessions of :class:`recbole_flr.model.counted.TrainingRows`."""
        order = np.lexsort((rows.times, rows.users))  # stable: rows of equal time stay in the order of the file
        users, times, histories, targets = rows.users[order], rows.times[order], rows.histories[order], rows.targets[order]
        first = first_of_runs(users)
        session, count = np.cumsum(first) - 1, int(first.sum())
        lengths = (histories[first] != 0).sum(1)
        row, place = np.nonzero(histories[first])
        sessions = np.concatenate([row, session])
        items = np.concatenate([histories[first][row, place], targets])
        places = np.concatenate([place, lengths[session] + place_in_run(first)])
        last_row = np.flatnonzero(np.append(first, True))[1:] - 1
        number = np.empty(count, dtype=np.int64)
        number[np.lexsort((order[last_row], times[last_row]))] = np.arange(count)
        sessions = number[sessions]
        order = np.lexsort((places, items, sessions))
        order = order[first_of_runs(sessions[order], items[order])]  # the first time of each item
        order = order[np.lexsort((places[order], sessions[order]))]
        starts = np.concatenate([[0], np.cumsum(np.bincount(sessions[order], minlength=count))])
        return cls(items[order].astype(np.int32), places[order].astype(np.int32), starts)


class Neighbors:
    """The votes of the nearest training sessions; :class:`recbole_flr.model.vsknn.VSKNN` describes them step by step.

    Args:
        rows: :class:`recbole_flr.model.counted.TrainingRows`.
        n_items: number of items, the padding included.
        num_neighbors, sample_size, similarity, weighting, score_weighting, order_decay, backward_weight: options of VSKNN.
    """

    def __init__(self, rows, n_items, num_neighbors, sample_size, similarity, weighting, score_weighting, order_decay,
                 backward_weight):
        self.n_items, self.num_neighbors, self.sample_size = n_items, num_neighbors, sample_size
        self.similarity, self.weighting, self.score_weighting = similarity, weighting, score_weighting
        self.order_decay, self.backward_weight = order_decay, backward_weight
        self.sessions = Sessions.of(rows)
        self.sizes = np.diff(self.sessions.starts)
        self.most_places = int(self.sessions.places.max(initial=0))
        gap = np.arange(-self.most_places, self.most_places + 1)  # places from the shared item to the item that is voted for
        self.gap_weights = float(order_decay) ** np.maximum(np.abs(gap) - 1, 0) * np.where(gap > 0, 1.0, backward_weight)
        by_item = np.argsort(self.sessions.items, kind="stable")  # for each item its sessions, the most recent last
        self.sessions_of_item = np.repeat(np.arange(len(self.sizes)), self.sizes)[by_item]
        self.places_of_item = self.sessions.places[by_item]
        self.item_ends = np.cumsum(np.bincount(self.sessions.items, minlength=self.n_items))

    def votes(self, histories):
        """Votes for all items: histories [B, L] -> coo matrix [B, n_items], whose equal entries add up (sorting them takes longer)."""
        parts = []
        for first in range(0, len(histories), ROWS_AT_ONCE):
            part = self._votes(self._neighbors(histories[first:first + ROWS_AT_ONCE]))
            parts.append((part[0] + first, *part[1:]))
        row, item, vote = (np.concatenate(arrays) for arrays in zip(*parts))
        return coo_matrix((vote, (row, item)), shape=(len(histories), self.n_items))

    def voters(self, history, items):
        """How much each place of one history voted for some items. A neighbour's votes belong to the latest item that it shares.

        Args:
            history: [L] item ids.
            items: [M] item ids.

        Returns:
            [L, M] float64; the sum over L is the items' votes.
        """
        neighbors = self._neighbors(history[None])
        item, vote = self._votes(neighbors)[1:]
        last = np.count_nonzero(history) - 1
        place = np.repeat(last - neighbors[3], self.sizes[neighbors[1]])
        return coo_matrix((vote, (place, item)), shape=(len(history), self.n_items)).tocsr()[:, items].toarray()

    def _votes(self, neighbors):
        """Row, item and vote of each item of each neighbour, given what :meth:`_neighbors` returns."""
        row, session, similarity, distance, length, shared_place = neighbors
        counts = self.sizes[session]
        entry = expand(self.sessions.starts[session], counts)
        votes = np.repeat(similarity * position_weights(distance, length, self.score_weighting), counts)
        votes *= self.gap_weights[np.repeat(self.most_places - shared_place, counts) + self.sessions.places[entry]]
        return np.repeat(row.astype(np.int32), counts), self.sessions.items[entry], votes

    def _neighbors(self, histories):
        """The nearest sessions of a few histories.

        Args:
            histories: [B, L] item ids.

        Returns:
            arrays [N]: row; session; similarity; distance of the latest shared item from the end of the history; length of
            the history; place of that item in the session.
        """
        row, place = np.nonzero(histories)
        item, distance = histories[row, place], distances_from_end(histories)[row, place]
        order = np.lexsort((distance, item, row))
        order = order[first_of_runs(row[order], item[order])]  # the latest place of each item
        row, item, distance = row[order], item[order], distance[order]
        length = (histories != 0).sum(1)[row]
        weight = position_weights(distance, length, self.weighting)
        norm = np.sqrt(np.bincount(row, weights=weight**2, minlength=len(histories)))

        # of an item's sessions, those before its last `sample_size` cannot be among the last `sample_size` of all
        counts = np.minimum(np.diff(self.item_ends, prepend=0)[item], self.sample_size)
        source, entry = np.repeat(np.arange(len(item)), counts), expand(self.item_ends[item] - counts, counts)
        session, shared_place = self.sessions_of_item[entry], self.places_of_item[entry]
        order = np.argsort((row[source] * len(self.sizes) + session) * histories.shape[1] + distance[source])  # no two are equal
        source, session, shared_place = source[order], session[order], shared_place[order]
        begin = np.flatnonzero(first_of_runs(row[source], session))  # a row and a session, its latest shared item first
        if not len(begin):
            return (np.empty(0, dtype=np.int64),) * 6
        similarity = np.add.reduceat(weight[source], begin)
        source, session, shared_place = source[begin], session[begin], shared_place[begin]
        if self.similarity == "cosine":
            similarity /= norm[row[source]] * np.sqrt(self.sizes[session])
        similarity = similarity.round(12)  # similarities that differ by rounding only count as equal

        recent = place_in_run(first_of_runs(row[source][::-1]))[::-1]  # 0 for the most recent session of a row
        kept = recent < self.sample_size
        crowded = np.flatnonzero(kept & (np.bincount(row[source][kept], minlength=len(histories)) > self.num_neighbors)[row[source]])
        crowded = crowded[np.lexsort((-session[crowded], -similarity[crowded], row[source[crowded]]))]
        kept[crowded[place_in_run(first_of_runs(row[source[crowded]])) >= self.num_neighbors]] = False
        source = source[kept]
        return row[source], session[kept], similarity[kept], distance[source], length[source], shared_place[kept]
