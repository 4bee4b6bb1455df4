"""The memory of FLRMix: tables that were counted on the training rows, and what each says about the next item.

All tables are sparse. Ranking a user reads only the rows of the items in his history, or the sessions that share an item with it.

Shapes: B rows, L places of a history (right-padded with item 0), n items.
"""

import numpy as np
import torch

from recbole_flr.model.neighbors import Neighbors
from recbole_flr.model.transitions import Transitions

TABLES = ("transitions", "neighbors")
FLOOR = 3e-3  # against votes of at most 1: how little an item without a vote counts


class Memory:
    """The tables that are in use.

    Args:
        rows: :class:`recbole_flr.model.counted.TrainingRows`.
        n_items: n.
        names: which of TABLES are in use.
        transitions: keyword arguments of :class:`recbole_flr.model.transitions.Transitions`.
        neighbors: keyword arguments of :class:`recbole_flr.model.neighbors.Neighbors`.

    Attributes:
        tables: name -> object with ``votes(histories)``.
    """

    def __init__(self, rows, n_items, names, transitions, neighbors):
        kinds = {"transitions": (Transitions, transitions), "neighbors": (Neighbors, neighbors)}
        self.tables = {name: kinds[name][0](rows, n_items, **kinds[name][1]) for name in names}

    def log_votes(self, histories):
        """What each table says about the next item.

        Args:
            histories: [B, L] item ids.

        Returns:
            dict, name -> [B, n] float32: log(1 + v / FLOOR), where v is the votes of an item divided by the most votes of any
            item. It is 0 for an item without votes, so for all items if the table knows no item of a history.
        """
        ids = histories.cpu().numpy()
        found = {}
        for name, table in self.tables.items():
            dense = table.votes(ids).toarray().astype(np.float32)  # in this order: astype of a sparse matrix would sort it first
            votes = torch.from_numpy(dense).to(histories.device)
            most = votes.amax(1, keepdim=True)
            found[name] = votes.div_(torch.where(most > 0, most * FLOOR, 1.0)).log1p_()
        return found

    def voters(self, history, items, weights):
        """Which places of one history the votes for some items come from.

        Args:
            history: [L] item ids.
            items: [M] item ids.
            weights: name of a table -> its weight in the ranking.

        Returns:
            [M, L] float64: the sum over the tables of weight * v, where v has a share for each place. It is 0 where no table that
            counts in the ranking knows the item.
        """
        found = np.zeros((len(items), len(history)))
        for name, table in self.tables.items():
            most = table.votes(history[None]).toarray().max()
            if most > 0 and weights[name] > 0:
                found += weights[name] / most * table.voters(history, items).T
        return found
