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

from recbole_flr.model.counted import Counted
from recbole_flr.model.transitions import Transitions


class SequentialRules(Counted):
    """Scores an item by the rules that lead to it from the items of the history: :class:`recbole_flr.model.transitions.Transitions`.

    An item of the history gets `repeat_weight` times its score.

    Args:
        config: options `forward_decay`, `backward_weight`, `row_power`, `column_power`, `recency_decay`, `repeat_weight`.
        dataset: RecBole's training dataset.
    """

    def count(self, rows, config):
        names = ("forward_decay", "backward_weight", "row_power", "column_power", "recency_decay")
        self.transitions = Transitions(rows, self.n_items, *(config[name] for name in names))

    def score(self, histories):
        return self.transitions.votes(histories)
