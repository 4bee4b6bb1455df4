"""Ranks and title-level metrics against plain Python and against RecBole's own metrics."""

import math
from collections import Counter
from types import SimpleNamespace

import pytest
import torch
from helpers_data import make_config
from hypothesis import given, settings
from hypothesis import strategies as st
from recbole.evaluator import Collector, Evaluator

from recbole_flr.evaluation import (
    METRICS, TITLE_RANK, RankCollector, TitleEvaluator, item_ranks, metrics_table, smaller_is_better, title_ranks,
)  # fmt: skip

INF = math.inf
N_ITEMS = 30
DISTINCT = torch.arange(N_ITEMS)
SHARED = torch.tensor([0] + [1 + item % 11 for item in range(N_ITEMS - 1)])


def plain_ranks(scores, title_ids, target):
    """The best and the worst rank that equal scores leave to the target's title, from 1; None if it was not reached."""
    best = {}
    for item in range(1, len(scores)):
        best[title_ids[item]] = max(best.get(title_ids[item], -INF), scores[item])
    mine = best.pop(title_ids[target])
    if mine == -INF:
        return None, None
    return 1 + sum(score > mine for score in best.values()), 1 + sum(score >= mine for score in best.values())


def only_rank(scores, title_ids, target):
    """The rank where no scores are equal."""
    least, most = plain_ranks(scores, title_ids, target)
    assert least == most
    return len(scores) + 1 if least is None else least


@settings(deadline=None, max_examples=200)
@given(st.data())
def test_title_ranks_are_the_plain_loop(data):
    items = data.draw(st.integers(1, 8))
    title_ids = [0]
    for _ in range(items):  # dense numbers from 1, as the catalogue gives
        title_ids.append(data.draw(st.integers(1, max(title_ids) + 1)))
    few = st.sampled_from([-INF, -2.0, -1.0, 0.0, 3.0])  # few values, so that many are equal
    scores = data.draw(st.lists(st.lists(few, min_size=items, max_size=items), min_size=1, max_size=4))
    scores = [[-INF, *row] for row in scores]
    targets = data.draw(st.lists(st.integers(1, items), min_size=len(scores), max_size=len(scores)))
    count = data.draw(st.integers(1, items))
    ranks = title_ranks(torch.tensor(scores), torch.tensor(title_ids), torch.tensor(targets), count)
    for rank, row, target in zip(ranks.tolist(), scores, targets):
        least, most = plain_ranks(row, title_ids, target)
        if least is None:  # not reached
            assert rank == items + 2
        elif least > count:
            assert rank == least
        else:  # equal scores share the places from least to most; those beyond the count are no places of the top-k
            assert least <= rank <= min(most, count) or rank == count + 1 <= most


@settings(deadline=None, max_examples=60)
@given(st.data())
def test_titles_of_one_item_each_have_the_ranks_of_the_items(data):
    """Ties included: one rule serves both."""
    items, count = data.draw(st.integers(1, 40)), data.draw(st.integers(1, 10))
    few = st.sampled_from([-INF, -1.0, 0.0, 3.0])
    scores = torch.tensor([[-INF, *data.draw(st.lists(few, min_size=items, max_size=items))] for _ in range(3)])
    targets = torch.tensor(data.draw(st.lists(st.integers(1, items), min_size=3, max_size=3)))
    top = scores.topk(min(count, items + 1), dim=-1).indices
    own = scores.gather(1, targets.unsqueeze(1)).squeeze(1)
    expected = torch.where(own == -INF, items + 2, item_ranks(scores, targets, top))
    assert title_ranks(scores, torch.arange(items + 1), targets, count).tolist() == expected.tolist()


def test_the_other_item_of_the_title_counts():
    scores = torch.tensor([[-INF, 1.0, 5.0, 3.0]])
    assert title_ranks(scores, torch.tensor([0, 1, 2, 1]), torch.tensor([1]), 5).tolist() == [2]  # 3 of item 3, below 5
    assert title_ranks(scores, torch.tensor([0, 1, 1, 2]), torch.tensor([1]), 5).tolist() == [1]  # 5 of item 2


def test_the_padding_is_no_title():
    scores = torch.tensor([[9.0, 1.0, 0.0]])
    assert title_ranks(scores, torch.tensor([0, 1, 2]), torch.tensor([1]), 5).tolist() == [1]


def test_what_was_not_reached_is_no_hit_however_few_the_titles():
    scores = torch.full((1, 11), -INF)  # ten items, so RecBole takes topk 10, but one title
    assert title_ranks(scores, torch.tensor([0] + 10 * [1]), torch.tensor([4]), 5).item() > 11


def batches(seed, sizes=(7, 1, 24)):
    """Scores of three batches, all different, with the padding excluded as RecBole does, and their targets."""
    generator = torch.Generator().manual_seed(seed)
    for size in sizes:
        scores = torch.rand(size, N_ITEMS, generator=generator, dtype=torch.float64)
        scores[:, 0] = -INF
        yield scores, torch.randint(1, N_ITEMS, (size,), generator=generator)


def evaluate(config, seed, collector, evaluator):
    for scores, targets in batches(seed):
        collector.eval_batch_collect(scores, None, torch.arange(len(scores)), targets)
    return evaluator.evaluate(collector.get_data_struct())


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    root = tmp_path_factory.mktemp("evaluation")
    return make_config(root, metrics=["Hit", "NDCG", "MRR"], topk=[1, 5, 10], metric_decimal_place=9)


@pytest.mark.parametrize("seed", range(5))
def test_distinct_titles_give_the_metrics_of_recbole(config, seed):
    result = evaluate(config, seed, RankCollector(config, DISTINCT), TitleEvaluator(config))
    for k in (1, 5, 10):
        assert result[f"title_hit@{k}"] == pytest.approx(result[f"hit@{k}"], abs=2e-9)
        assert result[f"title_ndcg@{k}"] == pytest.approx(result[f"ndcg@{k}"], abs=2e-9)
    assert 0 < result["hit@10"] < 1


def test_the_metrics_of_recbole_are_untouched(config):
    plain = evaluate(config, 0, Collector(config), Evaluator(config))
    ours = evaluate(config, 0, RankCollector(config, SHARED), TitleEvaluator(config))
    assert {name: value for name, value in ours.items() if not name.startswith("title_")} == plain
    assert list(ours)[:len(plain)] == list(plain)
    added = {f"title_{metric}@{k}" for metric in ("hit", "ndcg") for k in (1, 5, 10)}
    assert set(ours) - set(plain) == added


def test_shared_titles_against_the_formula(config):
    result = evaluate(config, 1, RankCollector(config, SHARED), TitleEvaluator(config))
    ranks = [only_rank(row.tolist(), SHARED.tolist(), target)
             for scores, targets in batches(1) for row, target in zip(scores, targets.tolist())]
    for k in (1, 5, 10):
        assert result[f"title_hit@{k}"] == pytest.approx(sum(r <= k for r in ranks) / len(ranks), abs=2e-9)
        gains = [1 / math.log2(r + 1) for r in ranks if r <= k]
        assert result[f"title_ndcg@{k}"] == pytest.approx(sum(gains) / len(ranks), abs=2e-9)
    assert result["title_hit@5"] > result["hit@5"]


def test_a_second_evaluation_starts_afresh(config):
    collector, evaluator = RankCollector(config, SHARED), TitleEvaluator(config)
    first = evaluate(config, 2, collector, evaluator)
    assert TITLE_RANK not in collector.data_struct
    assert evaluate(config, 3, collector, evaluator) != first
    assert evaluate(config, 2, collector, evaluator) == first


def test_rows_with_several_targets_or_none(config):
    """RecBole names the row of each target; a row may occur twice."""
    collector = RankCollector(config, DISTINCT)
    scores, _ = next(batches(4))
    rows, targets = torch.tensor([3, 0, 3]), torch.tensor([5, 6, 7])
    collector.eval_batch_collect(scores, None, rows, targets)
    expected = [only_rank(scores[row].tolist(), DISTINCT.tolist(), t) for row, t in zip(rows, targets.tolist())]
    assert collector.get_data_struct()[TITLE_RANK].tolist() == expected


def test_places_are_rounded_as_the_option_says(tmp_path):
    config = make_config(tmp_path, metrics=["Hit"], topk=[10], valid_metric="Hit@10", metric_decimal_place=2)
    result = evaluate(config, 0, RankCollector(config, SHARED), TitleEvaluator(config))
    assert result["title_ndcg@10"] == round(result["title_ndcg@10"], 2) > 0


def test_metrics_of_the_recommended_items_by_loops(tmp_path):
    """RecBole's own collector fails for these metrics, which need the number of items or their counts in the training rows."""
    metrics = ["GiniIndex", "ItemCoverage", "AveragePopularity", "TailPercentage"]
    config = make_config(tmp_path, metrics=metrics, topk=[4], valid_metric="GiniIndex@4", tail_ratio=0.2, metric_decimal_place=9)
    collector, trained = RankCollector(config, SHARED), Counter({item: 40 - item for item in range(1, N_ITEMS)})
    rows = SimpleNamespace(num=lambda field: N_ITEMS, item_counter=trained)
    collector.data_collect(SimpleNamespace(dataset=rows))
    for seed in (6, 7):  # the second evaluation has no other call of data_collect
        result = evaluate(config, seed, collector, TitleEvaluator(config))
        listed = [sorted(range(N_ITEMS), key=lambda item: -row[item])[:4] for part, _ in batches(seed) for row in part.tolist()]
        shown = Counter(item for items in listed for item in items)
        among = [shown[item] for item in range(N_ITEMS)]  # RecBole counts the padding as an item
        difference = sum(abs(one - other) for one in among for other in among) / N_ITEMS**2
        assert result["giniindex@4"] == pytest.approx(difference / (2 * sum(among) / N_ITEMS))
        assert result["itemcoverage@4"] == pytest.approx(len(shown) / N_ITEMS)
        assert result["averagepopularity@4"] == pytest.approx(sum(40 - item for items in listed for item in items) / 4 / 32)
        rare = {25, 26, 27, 28, 29}  # a fifth of the 29 items of the training rows
        assert result["tailpercentage@4"] == pytest.approx(sum(item in rare for items in listed for item in items) / 4 / 32)


# ranks of items


@settings(deadline=None, max_examples=200)
@given(st.integers(0, 2**31), st.integers(1, 12), st.integers(2, 12), st.sampled_from([2, 5, 1000]))
def test_item_ranks_give_the_hits_of_torchs_top_k(seed, rows, items, values):
    """Few values make ties, also at -inf: whatever top-k decides, the ranks agree with it."""
    generator = torch.Generator().manual_seed(seed)
    scores = torch.randint(0, values, (rows, items), generator=generator).double()
    scores[torch.rand(rows, items, generator=generator) < 0.3] = -INF
    targets = torch.randint(0, items, (rows,), generator=generator)
    most = int(torch.randint(1, items + 1, (), generator=generator))
    top = scores.topk(most).indices
    ranks = item_ranks(scores, targets, top)
    for row, (rank, target) in enumerate(zip(ranks.tolist(), targets.tolist())):
        listed = top[row].tolist()
        if target in listed:
            assert rank == listed.index(target) + 1
        elif scores[row, target] == -INF:
            assert rank == items + 1
        else:
            better = sum(score > scores[row, target] for score in scores[row].tolist())
            assert rank == max(better + 1, most + 1)


def test_ranks_of_an_evaluation_give_its_metrics_again(config):
    collector = RankCollector(config, SHARED)
    result = evaluate(config, 5, collector, TitleEvaluator(config))
    ranks = collector.take_ranks()
    assert ranks["row"].tolist() == list(range(32)) and ranks["top_items"].shape == ranks["top_scores"].shape == (32, 10)
    assert ranks["target"].tolist() == [target for _, targets in batches(5) for target in targets.tolist()]
    for k in (1, 5, 10):
        for kind, prefix in (("item", ""), ("title", "title_")):
            rank = torch.from_numpy(ranks[f"{kind}_rank"])
            assert (rank <= k).double().mean().item() == pytest.approx(result[f"{prefix}hit@{k}"], abs=2e-9)
            assert METRICS["title_ndcg"](rank, k).mean().item() == pytest.approx(result[f"{prefix}ndcg@{k}"], abs=2e-9)
    for row, (scores, _) in enumerate((s, t) for part, targets in batches(5) for s, t in zip(part, targets)):
        assert ranks["top_items"][row].tolist() == scores.topk(10).indices.tolist()
    assert collector.take_ranks() == {}


def test_ranks_without_titles(config):
    collector = RankCollector(config)
    evaluate(config, 5, collector, Evaluator(config))
    assert collector.take_ranks().keys() == {"row", "target", "item_rank", "top_items", "top_scores"}


def test_several_targets_of_a_row_have_a_rank_each(config):
    collector = RankCollector(config, DISTINCT)
    scores, _ = next(batches(4))
    for _ in range(2):  # two batches: the rows of the second are numbered on
        collector.eval_batch_collect(scores, None, torch.tensor([3, 0, 3]), torch.tensor([5, 6, 7]))
    ranks = collector.take_ranks()
    assert ranks["row"].tolist() == [3, 0, 3, 10, 7, 10] and ranks["target"].tolist() == [5, 6, 7] * 2
    assert ranks["item_rank"].tolist() == ranks["title_rank"].tolist() and len(ranks["top_items"]) == 14


def test_a_table_has_a_line_for_each_evaluation():
    lines = metrics_table({"sft valid": {"hit@5": 0.5}, "sft test": {"hit@5": 0.25}}).splitlines()
    assert lines[0].split() == ["hit@5"] and lines[2].split() == ["sft", "valid", "0.5000"]


def test_metrics_whose_smaller_values_are_better():
    """Inequality, popularity and errors; in the capitals of an option or of a result."""
    smaller = ("GiniIndex@10", "giniindex@5", "AveragePopularity@10", "averagepopularity@10", "LogLoss", "mae", "RMSE")
    bigger = ("NDCG@10", "hit@5", "title_ndcg@10", "ItemCoverage@10", "shannonentropy@10", "TailPercentage@10", "AUC")
    assert [smaller_is_better(metric) for metric in (*smaller, *bigger)] == [True] * 7 + [False] * 7
