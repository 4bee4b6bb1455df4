"""SequentialRules: which items follow an item, counted on the training rows.

Ludewig and Jannach, "Evaluation of session-based recommendation algorithms", User Modeling and User-Adapted Interaction 28, 2018,
section "Sequential Rules".

How this model departs from the paper:

- The weight of a rule falls geometrically with the distance of the two items. The paper divides by the distance.
- A rule also counts backwards, with a weight of its own.
- The counts are divided by powers of the totals of both items. The paper divides by the total of the first item alone.
- All items of the history vote, the latest with the most weight. In the paper only the last item votes.
- Items that are in the history keep only a share of their score.
"""

import numpy as np
from scipy.sparse import csr_matrix

from recbole_flr.model.counted import Counted, distances_from_end


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


class SequentialRules(Counted):
    """Scores an item by the rules that lead to it from the items of the history.

    - C[j, i] += forward_decay**gap for each history item j and the target i of a training row; gap 0 is the last item.
    - C[i, j] += backward_weight * forward_decay**gap.
    - T[j, i] = C[j, i] / (sum of row j)**row_power / (sum of column i)**column_power.
    - score(i) = sum over history items j of recency_decay**(distance of j from the end) * T[j, i].
    - An item of the history gets `repeat_weight` times its score.

    An item that stands twice in a history counts twice. Only the rows of T that belong to items of the history are read.

    Args:
        config: options `forward_decay`, `backward_weight`, `row_power`, `column_power`, `recency_decay`, `repeat_weight`.
        dataset: RecBole's training dataset.
    """

    def count(self, rows, config):
        forward = count_transitions(rows.histories, rows.targets, self.n_items, config["forward_decay"])
        counts = (forward + config["backward_weight"] * forward.T).tocsr()
        self.recency_decay = config["recency_decay"]
        self.table = normalise(counts, config["row_power"], config["column_power"])

    def score(self, histories):
        row, place = np.nonzero(histories)
        weights = np.float32(self.recency_decay) ** distances_from_end(histories)[row, place]
        votes = csr_matrix((weights.astype(np.float32), (row, histories[row, place])), shape=(len(histories), self.n_items))
        return votes @ self.table
