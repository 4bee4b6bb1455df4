"""The memory: what each table says, and who voted."""

import math

import numpy as np
import pytest
import torch
from helpers_counted import padded

from recbole_flr.model.counted import TrainingRows
from recbole_flr.model.memory import FLOOR, Memory
from recbole_flr.model.transitions import Transitions

TRANSITIONS = {"forward_decay": 0.5, "backward_weight": 0.0, "row_power": 1.0, "column_power": 0.0, "recency_decay": 0.5}
NEIGHBORS = {"num_neighbors": 5, "sample_size": 5, "similarity": "dot", "weighting": "harmonic", "score_weighting": "same",
             "order_decay": 1.0, "backward_weight": 1.0}


def rows_of(*rows):
    histories, targets, users = zip(*rows)
    return TrainingRows(padded(list(histories)), np.array(targets), np.array(users), np.arange(len(rows), dtype=float))


ROWS = rows_of(([1], 2, 0), ([1, 2], 3, 0), ([1], 4, 1))


def test_what_the_transitions_say():
    """Item 1 was followed by 2 (weight 1), by 3 with one item between (.5) and by 4 (1); item 2 by 3 (1)."""
    memory = Memory(ROWS, 6, ["transitions"], TRANSITIONS, NEIGHBORS)
    said = memory.log_votes(torch.from_numpy(padded([[1, 2], [5]])))["transitions"]
    votes = {2: 0.5 * 1 / 2.5, 3: 0.5 * 0.5 / 2.5 + 1, 4: 0.5 * 1 / 2.5}
    expected = torch.tensor([votes.get(item, 0.0) for item in range(6)]) / votes[3]
    torch.testing.assert_close(said[0], (expected + FLOOR).log() - math.log(FLOOR))
    assert said[1].tolist() == [0.0] * 6  # an unknown item


def test_who_voted():
    table = Transitions(ROWS, 6, **TRANSITIONS)
    history = padded([[1, 2]])[0]
    shares = table.voters(history, [3, 2, 5])
    assert shares.shape == (len(history), 3)
    np.testing.assert_allclose(shares[:2, 0], [0.5 * 0.5 / 2.5, 1.0])
    np.testing.assert_allclose(shares.sum(0), table.votes(history[None]).toarray()[0, [3, 2, 5]], rtol=1e-6)
    assert not shares[:, 2].any()


def test_who_voted_as_a_neighbor():
    """The user of rows 0 and 1 had 1, 2, 3; that of row 2 had 1, 4. The votes belong to the latest shared item."""
    table = Memory(ROWS, 6, ["neighbors"], TRANSITIONS, NEIGHBORS).tables["neighbors"]
    history = padded([[2, 1, 5]])[0]
    items = [4, 3, 2, 5]
    shares = table.voters(history, items)
    assert shares.shape == (len(history), 4)
    np.testing.assert_allclose(shares.sum(0), table.votes(history[None]).toarray()[0, items])
    assert shares[1, 0] > 0 and shares[1, 1] > 0 and not shares[0].any() and not shares[:, 3].any()


def test_who_voted_over_all_tables():
    memory = Memory(ROWS, 6, ["transitions", "neighbors"], TRANSITIONS, NEIGHBORS)
    history, items = padded([[1, 2]])[0], [3, 4, 5]
    parts = {name: table.voters(history, items).T / table.votes(history[None]).toarray().max() for name, table in memory.tables.items()}
    found = memory.voters(history, items, {"transitions": 3.0, "neighbors": 2.0})
    np.testing.assert_allclose(found, 3 * parts["transitions"] + 2 * parts["neighbors"], rtol=1e-6)
    one = memory.voters(history, items, {"transitions": 0.0, "neighbors": 2.0})
    np.testing.assert_allclose(one, 2 * parts["neighbors"], rtol=1e-6)
    assert not memory.voters(history, items, {"transitions": 0.0, "neighbors": 0.0}).any() and not found[2].any()


@pytest.mark.parametrize("names", [[], ["neighbors"], ["transitions", "neighbors"]])
def test_only_the_tables_in_use_are_counted(names):
    memory = Memory(ROWS, 6, names, TRANSITIONS, NEIGHBORS)
    assert list(memory.tables) == names == list(memory.log_votes(torch.from_numpy(padded([[1]]))))


def test_no_array_has_the_size_of_items_times_items():
    """Dense tables of 200,000 items would take 160 GB each."""
    memory = Memory(ROWS, 200_000, ["transitions", "neighbors"], TRANSITIONS, NEIGHBORS)
    assert memory.tables["transitions"].table.nnz == 4
    said = memory.log_votes(torch.from_numpy(padded([[1, 2]])))
    assert all(part.shape == (1, 200_000) for part in said.values())
