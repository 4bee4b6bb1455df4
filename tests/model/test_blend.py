"""The weights of the ranking: NDCG on candidates against NDCG on all items, and what the search finds."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from recbole_flr.model.blend import REPEAT, Candidates, blend, rerank, search

ITEMS = 12


def parts_of(seed, rows=6):
    torch.manual_seed(seed)
    parts = {"mixture": torch.randn(rows, ITEMS), "transitions": torch.randn(rows, ITEMS)}
    parts["mixture"][:, 0] = -torch.inf
    return {**parts, REPEAT: (torch.rand(rows, ITEMS) < 0.2).float()}, torch.randint(1, ITEMS, (rows,))


def ndcg_of_all(parts, weights, target, k):
    """Over all items, by sorting."""
    total = 0.0
    for row in range(len(target)):
        scores = {item: sum(weights.get(name, 1.0) * part[row, item].item() for name, part in parts.items())
                  for item in range(1, ITEMS)}
        rank = sum(score > scores[target[row].item()] for score in scores.values())
        total += 1 / math.log2(rank + 2) if rank < k else 0.0
    return total / len(target)


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10_000), st.floats(0.1, 3), st.floats(-3, 3), st.integers(1, 5))
def test_ndcg_on_enough_candidates_is_that_of_all_items(seed, weight, repeat, k):
    parts, target = parts_of(seed)
    weights = {"transitions": weight, REPEAT: repeat}
    candidates = Candidates.of(parts, target, ITEMS)
    assert candidates.ndcg(weights, k) == pytest.approx(ndcg_of_all(parts, weights, target, k), abs=1e-6)


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10_000), st.integers(1, 5))
def test_items_of_the_history_are_candidates(seed, k):
    """With a high weight of repeats they are in front. A search that does not see them takes the target for the best of all."""
    parts, target = parts_of(seed)
    weights = {"transitions": 1.0, REPEAT: 100.0}
    parts[REPEAT][:, :k + 2], parts[REPEAT][:, 0] = 1.0, 0.0
    assert Candidates.of(parts, target, 1).ndcg(weights, k) == pytest.approx(ndcg_of_all(parts, weights, target, k), abs=1e-6)


def test_batches_of_different_width_are_joined():
    (first, one), (second, two) = parts_of(1, rows=2), parts_of(2, rows=3)
    joined = Candidates.joined([Candidates.of(first, one, 2), Candidates.of(second, two, ITEMS)])
    weights = {"transitions": 0.5, REPEAT: -1.0}
    apart = [2 * Candidates.of(first, one, 2).ndcg(weights, 3), 3 * Candidates.of(second, two, ITEMS).ndcg(weights, 3)]
    assert joined.ndcg(weights, 3) == pytest.approx(sum(apart) / 5)


def test_equal_scores_give_the_target_the_middle_place():
    parts = {"mixture": torch.tensor([[-torch.inf, 0.0, 0.0, 0.0]]), REPEAT: torch.zeros(1, 4)}
    candidates = Candidates.of(parts, torch.tensor([2]), 3)
    assert candidates.ndcg({REPEAT: 0.0}, 3) == pytest.approx(1 / math.log2(3))


def test_the_search_finds_the_part_that_is_right():
    """The table is always right and the mixture is noise; repeats are always wrong."""
    torch.manual_seed(3)
    rows, target = 50, torch.arange(50) % (ITEMS - 2) + 1
    right = torch.zeros(rows, ITEMS).scatter(1, target[:, None], 2.0).scatter(1, target[:, None] + 1, 3.0)
    repeat = torch.zeros(rows, ITEMS).scatter(1, target[:, None] + 1, 1.0)  # the item after the target is in the history
    parts = {"mixture": torch.randn(rows, ITEMS), "transitions": right, REPEAT: repeat}
    candidates = Candidates.of(parts, target, ITEMS)
    start = {"transitions": 0.0, REPEAT: 0.0}
    weights, score = search(candidates, start, 5)
    assert score > 0.95 > candidates.ndcg(start, 5) and weights["transitions"] > 0 > weights[REPEAT]
    assert score == candidates.ndcg(weights, 5)


def test_the_search_never_ends_below_its_start():
    for seed in range(5):
        parts, target = parts_of(seed)
        candidates = Candidates.of(parts, target, ITEMS)
        start = {"transitions": 1.0, REPEAT: -1.0}
        assert search(candidates, start, 3)[1] >= candidates.ndcg(start, 3)


def test_blend():
    parts = {"mixture": torch.tensor([[1.0, 2.0]]), "transitions": torch.tensor([[3.0, -1.0]]), REPEAT: torch.tensor([[0.0, 1.0]])}
    assert blend(parts, {"transitions": 2.0, REPEAT: -0.5}).tolist() == [[7.0, -0.5]]
    endless = {**parts, "transitions": torch.tensor([[-torch.inf, 1.0]])}  # a weight of 0 leaves a part out
    assert blend(endless, {"transitions": 0.0, REPEAT: 0.0}).tolist() == [[1.0, 2.0]]


def test_repeats_may_turn_out_to_be_right():
    """Every target is in the history; the search starts where repeats are punished."""
    torch.manual_seed(4)
    target = torch.arange(40) % (ITEMS - 1) + 1
    parts = {"mixture": torch.randn(40, ITEMS), REPEAT: torch.zeros(40, ITEMS).scatter(1, target[:, None], 1.0)}
    weights, score = search(Candidates.of(parts, target, ITEMS), {REPEAT: -12.0}, 5)
    assert weights[REPEAT] > 0 and score > 0.95


def test_a_score_that_is_no_number_counts_against_the_target():
    parts = {"mixture": torch.tensor([[-torch.inf, float("nan"), 1.0, 2.0]]), REPEAT: torch.zeros(1, 4)}
    assert 0 <= Candidates.of(parts, torch.tensor([1]), 3).ndcg({REPEAT: 1.0}, 5) <= 1


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10_000), st.integers(1, ITEMS - 1))
def test_items_that_are_scored_anew_stay_in_front(seed, count):
    parts, _ = parts_of(seed)
    scores = parts["mixture"]
    best = scores.topk(count)
    values = best.values + 3 * torch.randn_like(best.values)
    found = rerank(scores, best.indices, values)
    assert (found[:, 0] == -torch.inf).all()
    for row in range(len(scores)):
        first = best.indices[row][values[row].argsort(descending=True)].tolist()
        others = [item for item in scores[row].argsort(descending=True).tolist() if item not in first]
        assert found[row].argsort(descending=True).tolist() == first + others
        assert torch.equal(found[row, best.indices[row]], values[row])
