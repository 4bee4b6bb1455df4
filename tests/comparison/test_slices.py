"""Slices and metrics of rows against plain loops."""

import numpy as np
import pytest
from helpers_comparison import draw_rows

from recbole_flr.comparison.slices import LENGTHS, metric_of_rows, slices


def with_prefix(rows, **more):
    return {f"test_{name}": value for name, value in {**rows, **more}.items()}


def slices_by_loop(rows):
    """Name -> list of row numbers."""
    found = {}

    def add(name, row):
        found.setdefault(name, []).append(row)

    for row in range(len(rows["target"])):
        history = [item for item in rows["history"][row] if item]
        add("all rows", row)
        add("repeated items" if rows["target"][row] in history else "new items", row)
        days = rows["days"][row]
        add("time not known" if days != days else "same day" if days == 0 else "later day", row)
        add("popular items (top 20%)" if rows["target_popular"][row] else "other items", row)
        add("users seen in training" if rows["user_rows"][row] else "users not seen", row)
        add("targets seen in training" if rows["target_seen"][row] else "targets not seen", row)
        for first, last in LENGTHS:
            if first <= len(history) <= (last or 1000):
                add(f"history of {first} to {last} items" if last else f"history of {first} items or more", row)
    return found


@pytest.mark.parametrize("seed", range(5))
def test_slices_against_a_loop(seed):
    rows = draw_rows(seed)
    found = {name: np.flatnonzero(mask).tolist() for name, mask in slices(with_prefix(rows)).items()}
    assert found == slices_by_loop(rows)


def test_a_history_that_is_longer_than_all_bounds():
    rows = draw_rows()
    rows["history"] = np.ones((len(rows["target"]), 12), dtype=int)
    assert slices(with_prefix(rows))["history of 10 items or more"].all()


def test_runs_of_earlier_versions_have_one_slice():
    assert list(slices({"test_target": np.array([1, 2])})) == ["all rows"]


def test_metrics_of_rows_by_hand():
    ranks = {"test_row": np.arange(4), "test_item_rank": np.array([1, 3, 10, 11]), "test_title_rank": np.array([1, 1, 6, 2])}
    assert metric_of_rows(ranks, "hit@10").tolist() == [1, 1, 1, 0]
    assert metric_of_rows(ranks, "ndcg@10") == pytest.approx([1, 0.5, np.log(2) / np.log(11), 0])
    assert metric_of_rows(ranks, "mrr@5") == pytest.approx([1, 1 / 3, 0, 0])
    assert metric_of_rows(ranks, "title_hit@5").tolist() == [1, 1, 0, 1]
    assert metric_of_rows(ranks, "itemcoverage@10") is None and metric_of_rows(ranks, "auc") is None
    assert metric_of_rows({**ranks, "test_row": np.array([0, 0, 1, 2])}, "hit@10") is None  # a row with two targets
    assert metric_of_rows({name: ranks[name] for name in ("test_row", "test_item_rank")}, "title_hit@5") is None
