"""VSKNN against plain Python loops, and for histories with few neighbours or none."""

import math

import numpy as np
import pytest
import torch
from helpers_counted import (
    assert_batch_equals_rows, assert_no_rows_no_scores, assert_predict_equals_full_ranking, assert_runs_on_little_data,
    assert_scores_equal, assert_unseen_items_score_0, counted_rows, interaction_of, model_of,
)
from hypothesis import given
from hypothesis import strategies as st

from recbole_flr.model import neighbors
from recbole_flr.model.neighbors import expand, place_in_run, position_weights
from recbole_flr.model.vsknn import VSKNN

OPTIONS = {"num_neighbors": 3, "sample_size": 5, "similarity": "cosine", "weighting": "linear", "score_weighting": "harmonic",
           "order_decay": 0.5, "backward_weight": 0.25, "repeat_weight": 0.3}
WEIGHTINGS = {
    "linear": lambda distance, length: 1 - distance / length, "quadratic": lambda distance, length: (1 - distance / length) ** 2,
    "harmonic": lambda distance, length: 1 / (distance + 1), "log": lambda distance, length: 1 / math.log2(distance + 2),
    "same": lambda distance, length: 1.0,
}


def plain_sessions(rows):
    """Sequences of the users, the one that ended first in front."""
    ordered = sorted(enumerate(rows), key=lambda entry: (entry[1][3], entry[0]))  # by time, then as in the file
    sequences, ends = {}, {}
    for number, (past, target, user, time) in ordered:
        sequences.setdefault(user, list(past)).append(target)
        ends[user] = (time, number)
    return [sequences[user] for user in sorted(sequences, key=ends.get)]


def plain_scores(rows, n_items, history, options):
    """Scores of all items for one history: the definition, with loops."""
    length = len(history)
    distances = {item: distance for distance, item in reversed(list(enumerate(reversed(history))))}
    weights = {item: WEIGHTINGS[options["weighting"]](distance, length) for item, distance in distances.items()}
    found = []
    for number, session in enumerate(plain_sessions(rows)):
        shared = [item for item in distances if item in session]
        if shared:
            similarity = sum(weights[item] for item in shared)
            if options["similarity"] == "cosine":
                norm = math.sqrt(sum(weight**2 for weight in weights.values()))
                similarity /= norm * math.sqrt(len(set(session)))
            found.append((round(similarity, 12), number, session, min(shared, key=distances.get)))
    found = found[-options["sample_size"]:]
    found.sort(key=lambda neighbor: neighbor[:2], reverse=True)
    scores = [0.0] * n_items
    for similarity, _, session, latest in found[:options["num_neighbors"]]:
        vote = similarity * WEIGHTINGS[options["score_weighting"]](distances[latest], length)
        for item in set(session):
            gap = session.index(item) - session.index(latest)
            weight = options["order_decay"] ** max(abs(gap) - 1, 0) * (options["backward_weight"] if gap <= 0 else 1)
            scores[item] += vote * weight
    return [score * (options["repeat_weight"] if item in history else 1) for item, score in enumerate(scores)]


@given(counted_rows(), st.fixed_dictionaries({
    "num_neighbors": st.integers(1, 4), "sample_size": st.integers(1, 4), "similarity": st.sampled_from(["cosine", "dot"]),
    "weighting": st.sampled_from(list(WEIGHTINGS)), "score_weighting": st.sampled_from(list(WEIGHTINGS)),
    "order_decay": st.sampled_from([0.0, 0.5, 1.0]), "backward_weight": st.sampled_from([0.0, 0.5, 1.0]),
    "repeat_weight": st.sampled_from([0.0, 0.3, 1.0]),
}))
def test_scores_are_those_of_plain_loops(drawn, options):
    assert_scores_equal(VSKNN, drawn, options, plain_scores)


@given(counted_rows())
def test_a_batch_is_scored_as_its_rows_are(drawn):
    assert_batch_equals_rows(VSKNN, drawn, OPTIONS)


def test_many_rows_are_scored_in_parts(monkeypatch):
    rows = [([1, 2], 3, 0, 0), ([2], 4, 1, 1), ([3, 1], 2, 2, 2)]
    histories = [[1], [2, 3], [4], [3], [1, 2]]
    model = model_of(VSKNN, rows, 6, OPTIONS)
    together = model.full_sort_predict(interaction_of(histories))
    monkeypatch.setattr(neighbors, "ROWS_AT_ONCE", 2)
    assert torch.equal(model.full_sort_predict(interaction_of(histories)), together) and together.any()


@pytest.mark.parametrize("name", WEIGHTINGS)
def test_weights_fall_with_the_distance(name):
    """The last of four items weighs 1; all weights are above 0."""
    weights = position_weights(np.arange(4), np.full(4, 4), name)
    assert weights[0] == 1 and (np.diff(weights) <= 0).all() and weights[-1] > 0
    assert weights.tolist() == pytest.approx([WEIGHTINGS[name](distance, 4) for distance in range(4)])


def test_ranges_and_runs():
    assert expand(np.array([5, 0, 2]), np.array([2, 0, 3])).tolist() == [5, 6, 2, 3, 4]
    assert place_in_run(np.array([True, False, False, True, True, False])).tolist() == [0, 1, 2, 0, 0, 1]


def test_the_score_of_one_item(build):
    assert_predict_equals_full_ranking(build("VSKNN"))


@pytest.mark.parametrize("items, users, length", [(2, 3, 2), (4, 1, 3)])
def test_two_items_and_one_user(tmp_path, items, users, length):
    assert_runs_on_little_data("VSKNN", tmp_path, items, users, length)


def test_histories_of_one_item():
    model = model_of(VSKNN, [([1], 2, 0, 0), ([2], 3, 1, 1)], 4, OPTIONS)
    scores = model.full_sort_predict(interaction_of([[1], [2]]))
    assert scores.argmax(1).tolist() == [2, 3]


def test_without_rows_every_score_is_0():
    assert_no_rows_no_scores(VSKNN, OPTIONS)


def test_an_item_without_training_rows_has_the_score_0():
    assert_unseen_items_score_0(VSKNN, OPTIONS)


def test_a_popular_item_costs_no_more_than_the_sample(monkeypatch):
    """Item 1 is in 1,000 sessions, of which the 5 most recent are looked at."""
    rows = [([1], 2 + user % 3, user, user) for user in range(1000)]
    model = model_of(VSKNN, rows, 6, OPTIONS)
    asked = []
    monkeypatch.setattr(neighbors, "expand", lambda starts, counts: (asked.append(int(counts.sum())), expand(starts, counts))[1])
    model.full_sort_predict(interaction_of([[1]]))
    assert asked == [5, 6]  # sessions; then the two items of each of three neighbours
