"""VSKNN: items of the training sessions that are most similar to the history.

Ludewig and Jannach, "Evaluation of session-based recommendation algorithms", User Modeling and User-Adapted Interaction 28, 2018,
section on nearest neighbours: "Vector Multiplication Session-Based kNN" (V-SKNN).
"""

from recbole_flr.model.counted import Counted
from recbole_flr.model.neighbors import Neighbors

OPTIONS = ("num_neighbors", "sample_size", "similarity", "weighting", "score_weighting", "order_decay", "backward_weight")


class VSKNN(Counted):
    """Ranks items by the nearest training sessions. The present session is the history.

    1. Each distinct item of the history has a weight by its place, 1 for the last (`weighting`).
    2. Candidates are the `sample_size` most recent training sessions that share an item with the history.
    3. `similarity: dot` is the sum of the weights of the shared items. `cosine` divides this sum by the Euclidean norm of the
       weights and by the square root of the number of the session's distinct items.
    4. The `num_neighbors` most similar sessions vote for their items. A vote is the product of three factors: the similarity;
       the weight of the latest shared item by its place in the history (`score_weighting`); and the weight of the item by its
       place in the neighbour (`order_decay`, `backward_weight`). The score of an item is the sum of its votes.
    5. An item of the history gets `repeat_weight` times its score.

    What the paper leaves open, and what was chosen:

    - Its sessions are short visits. The data sets here have one sequence for each user, so a session is a user's whole sequence.
    - It has no session of the present user among the training sessions. Here the user's own earlier sequence may be a neighbour:
      the score depends on the history alone, so that `recommend` needs no user. Most of these votes are for items of the history.
    - It says that weights decay linearly. `linear` falls from 1 to 1/n for the first of n items.
    - It does not say what happens to an item that stands twice. In a history the latest place counts, in a neighbour the first.
    - Neighbours of equal similarity: the more recent session is taken.

    The last factor of step 4 is an addition to the paper. An item that stands g places after the latest shared item in the
    neighbour gets `order_decay`**(g - 1). An item that stands g places before it gets `backward_weight` times as much. The shared
    item itself gets `backward_weight`. With both options at 1 the order in the neighbour has no effect, as in the paper.

    Args:
        config: options `num_neighbors`, `sample_size`, `similarity`, `weighting`, `score_weighting`, `order_decay`,
            `backward_weight`, `repeat_weight`.
        dataset: RecBole's training dataset.
    """

    def count(self, rows, config):
        self.neighbors = Neighbors(rows, self.n_items, *(config[name] for name in OPTIONS))

    def score(self, histories):
        return self.neighbors.votes(histories)
