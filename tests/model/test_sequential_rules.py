"""SequentialRules against plain Python loops, and on data with few rows or none."""

import numpy as np
import pytest
from helpers_counted import (
    assert_batch_equals_rows, assert_no_rows_no_scores, assert_predict_equals_full_ranking, assert_runs_on_little_data,
    assert_scores_equal, assert_unseen_items_score_0, counted_rows, interaction_of, model_of,
)
from hypothesis import given
from hypothesis import strategies as st

import recbole_flr
from recbole_flr.errors import CheckpointError
from recbole_flr.model.sequential_rules import SequentialRules
from recbole_flr.model.transitions import count_transitions, normalise

OPTIONS = {"forward_decay": 0.7, "backward_weight": 0.5, "row_power": 0.75, "column_power": 0.25, "recency_decay": 0.8,
           "repeat_weight": 0.3}


def plain_scores(rows, n_items, history, options):
    """Scores of all items for one history: the definition, with loops and dense lists."""
    counts = [[0.0] * n_items for _ in range(n_items)]
    for past, target, *_ in rows:
        for gap, item in enumerate(reversed(past)):
            counts[item][target] += options["forward_decay"] ** gap
            counts[target][item] += options["backward_weight"] * options["forward_decay"] ** gap
    row_totals = [sum(row) for row in counts]
    column_totals = [sum(row[item] for row in counts) for item in range(n_items)]
    scores = [0.0] * n_items
    for distance, item in enumerate(reversed(history)):
        for other in range(n_items):
            if counts[item][other]:
                rule = counts[item][other] / row_totals[item] ** options["row_power"]
                scores[other] += options["recency_decay"] ** distance * rule / column_totals[other] ** options["column_power"]
    return [score * (options["repeat_weight"] if item in history else 1) for item, score in enumerate(scores)]


@given(counted_rows(), st.fixed_dictionaries({
    "forward_decay": st.sampled_from([0.0, 0.7, 1.0]), "backward_weight": st.sampled_from([0.0, 0.5, 2.0]),
    "row_power": st.sampled_from([0.0, 0.75, 1.0]), "column_power": st.sampled_from([0.0, 0.25, 1.0]),
    "recency_decay": st.sampled_from([0.0, 0.8, 1.0]), "repeat_weight": st.sampled_from([0.0, 0.3, 1.0]),
}))
def test_scores_are_those_of_plain_loops(drawn, options):
    assert_scores_equal(SequentialRules, drawn, options, plain_scores)


@given(counted_rows())
def test_a_batch_is_scored_as_its_rows_are(drawn):
    assert_batch_equals_rows(SequentialRules, drawn, OPTIONS)


def test_a_table_by_hand():
    """One row: 1, 2 -> 3. The last item weighs 1, the one before it 0.5."""
    counts = count_transitions(np.array([[1, 2, 0]]), np.array([3]), 4, 0.5)
    assert counts.toarray().tolist() == [[0, 0, 0, 0], [0, 0, 0, 0.5], [0, 0, 0, 1], [0, 0, 0, 0]]
    table = normalise(counts, 1, 0).toarray()
    assert table[1, 3] == 1 and table[2, 3] == 1 and table.sum() == 2
    assert normalise(counts, 0, 1).toarray()[1, 3] == pytest.approx(0.5 / 1.5)


def test_the_score_of_one_item(build):
    assert_predict_equals_full_ranking(build("SequentialRules"))


def test_the_table_is_sparse():
    """A dense table of 100,000 items would take 40 GB."""
    n_items = 100_000
    rows = [([item], item + 1, item, item) for item in range(1, n_items - 1, 100)]
    model = model_of(SequentialRules, rows, n_items, OPTIONS)
    assert model.transitions.table.nnz == 2 * len(rows)
    assert model.full_sort_predict(interaction_of([[1]]))[0].argmax() == 2


@pytest.mark.parametrize("items, users, length", [(4, 1, 3), (4, 5, 1)])
def test_one_user_and_histories_of_one_item(tmp_path, items, users, length):
    assert_runs_on_little_data("SequentialRules", tmp_path, items, users, length)


def test_without_rows_every_score_is_0():
    model = assert_no_rows_no_scores(SequentialRules, OPTIONS)
    assert model.transitions.table.nnz == 0


def test_an_item_without_training_rows_has_the_score_0():
    assert_unseen_items_score_0(SequentialRules, OPTIONS)


def test_other_training_rows_are_refused(trained, tiny_data):
    folder, _ = trained("SequentialRules")
    path = tiny_data / "tiny" / "tiny.train.inter"
    head, first, *rows = path.read_text(encoding="utf-8").splitlines()
    path.write_text("\n".join([head, first, first, *rows]) + "\n", encoding="utf-8")  # the same items and users
    with pytest.raises(CheckpointError, match="training rows .* are not those that the run was counted on"):
        recbole_flr.load_data_and_model(folder, {"data_path": str(tiny_data)})


def test_an_option_that_is_changed_beside_a_checkpoint_has_an_effect(trained):
    folder, result = trained("SequentialRules")
    again = recbole_flr.load_data_and_model(folder, {"repeat_weight": 0.0})[1]
    assert again.repeat_weight == 0 and (again.transitions.table != recbole_flr.load_data_and_model(folder)[1].transitions.table).nnz == 0
    assert recbole_flr.load_data_and_model(folder, {"row_power": 1.0})[1].transitions.table.sum() != again.transitions.table.sum()
