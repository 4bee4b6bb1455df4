"""Transitions: which items stood before or after an item in the training rows, as one sparse table.

:class:`recbole_flr.model.sequential_rules.SequentialRules` ranks by this table alone. FLRMix has it in its memory.

Shapes: R training rows, B histories, L places of a history (right-padded with item 0).
"""

import numpy as np
from scipy.sparse import csr_matrix

from recbole_flr.model.counted import distances_from_end


def count_transitions(histories, targets, n_items, decay):
    """How often each item was followed by each other item, with a weight for their distance.

    Args:
        histories: [R, L] item ids, padded with 0 on the right.
        targets: [R] item ids.
        n_items: number of items, the padding included.
        decay: weight of a transition for each item that lies between the two.

    Returns:
        csr matrix [n_items, n_items] float64: [j, i] is the sum of decay**gap over all rows with target i and all places of
        item j in their histories; gap 0 is the last place.
    """
    row, place = np.nonzero(histories)
    gaps = distances_from_end(histories)[row, place]
    return csr_matrix((float(decay) ** gaps, (histories[row, place], targets[row])), shape=(n_items, n_items))


def normalise(counts, row_power, column_power):
    """Divide each count by (total of its row)**row_power * (total of its column)**column_power.

    Args:
        counts: csr matrix, no entry below 0.

    Returns:
        csr matrix of the same shape, float32.
    """
    def factors(axis, power):
        totals = np.asarray(counts.sum(axis)).ravel()
        return np.where(totals > 0, totals, 1.0) ** -power

    rows = np.repeat(factors(1, row_power), np.diff(counts.indptr))
    values = counts.data * rows * factors(0, column_power)[counts.indices]
    return csr_matrix((values.astype(np.float32), counts.indices, counts.indptr), shape=counts.shape)


class Transitions:
    """The items of a history vote for the items that stood near them in the training rows.

    - C[j, i] += forward_decay**gap for each history item j and the target i of a training row; gap 0 is the last item.
    - C[i, j] += backward_weight * forward_decay**gap.
    - table[j, i] = C[j, i] / (sum of row j)**row_power / (sum of column i)**column_power.
    - votes(i) = sum over history items j of recency_decay**(distance of j from the end) * table[j, i].

    An item that stands twice in a history counts twice. Only the rows of the table that belong to items of the history are read.

    Args:
        rows: :class:`recbole_flr.model.counted.TrainingRows`.
        n_items: number of items, the padding included.
        forward_decay, backward_weight, row_power, column_power, recency_decay: numbers, as above.

    Attributes:
        table: csr matrix [n_items, n_items] float32.
    """

    def __init__(self, rows, n_items, forward_decay, backward_weight, row_power, column_power, recency_decay):
        forward = count_transitions(rows.histories, rows.targets, n_items, forward_decay)
        self.table = normalise((forward + backward_weight * forward.T).tocsr(), row_power, column_power)
        self.recency_decay = recency_decay

    def weights(self, histories):
        """Weight of each place of the histories [B, L]: [B, L] float32, 0 at padding."""
        decay = np.float32(self.recency_decay) ** np.maximum(distances_from_end(histories), 0)
        return np.where(histories != 0, decay, 0).astype(np.float32)

    def votes(self, histories):
        """Votes for all items: histories [B, L] -> csr matrix [B, n_items] float32."""
        row, place = np.nonzero(histories)
        entries = self.weights(histories)[row, place], (row, histories[row, place])
        return csr_matrix(entries, shape=(len(histories), self.table.shape[0])) @ self.table

    def voters(self, history, items):
        """How much each place of one history voted for some items.

        Args:
            history: [L] item ids.
            items: [M] item ids.

        Returns:
            [L, M] float32; the sum over L is the items' votes.
        """
        return self.weights(history[None])[0][:, None] * self.table[history][:, items].toarray()
