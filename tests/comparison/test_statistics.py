"""Statistics against hand-worked numbers and scipy, and how often they claim a difference where there is none."""

import numpy as np
import pytest
import scipy.stats

from recbole_flr.comparison.statistics import (
    ALPHA, Comparison, bootstrap_interval, compare, corrected, holm, mean_and_deviation, paired_t, wilcoxon,
)  # fmt: skip


def test_mean_and_deviation_by_hand():
    assert mean_and_deviation([1, 2, 3, 6]) == (3, pytest.approx((14 / 3) ** 0.5))
    assert mean_and_deviation([0.5]) == (0.5, None)


def test_paired_t_by_hand():
    """Differences 1, 2, 3: mean 2, standard error 1 / sqrt(3), t = 2 sqrt(3) with 2 degrees of freedom."""
    t = 2 * 3**0.5
    p = 1 - t / (2 + t * t) ** 0.5  # the distribution function of t with 2 degrees of freedom is (1 + t / sqrt(2 + t^2)) / 2
    assert paired_t([2, 4, 6], [1, 2, 3]) == pytest.approx(p)


def test_paired_t_where_there_is_nothing_to_test():
    assert paired_t([0.5], [0.1]) is None
    assert paired_t([0.5, 0.25], [0.5, 0.25]) == 1.0
    assert paired_t([0.5, 0.6], [0.25, 0.35]) is None  # no seed changes the difference


def test_wilcoxon_by_hand():
    """Differences 1, 2, 3, 4, 5, all positive: of 32 equally likely signs, two are as extreme."""
    assert wilcoxon(np.arange(1, 6), np.zeros(5)) == pytest.approx(2 / 32)
    assert wilcoxon(np.array([1.0, 2.0]), np.array([1.0, 2.0])) == 1.0


def test_wilcoxon_leaves_out_rows_without_a_difference():
    rng = np.random.default_rng(0)
    ours, theirs = rng.random(40), rng.random(40)
    ours[:10] = theirs[:10]
    expected = scipy.stats.wilcoxon(ours[10:], theirs[10:]).pvalue
    assert wilcoxon(ours, theirs) == pytest.approx(expected)


def test_bootstrap_interval_against_a_loop():
    rng = np.random.default_rng(1)
    ours, theirs = rng.random(200), rng.random(200) * 0.8
    low, high = bootstrap_interval(ours, theirs)
    difference = ours - theirs
    means = [rng.choice(difference, 200).mean() for _ in range(4000)]
    assert (low, high) == pytest.approx(np.percentile(means, [2.5, 97.5]), abs=0.006)
    assert low < difference.mean() < high
    assert bootstrap_interval(ours, theirs) == (low, high)  # repeats
    assert bootstrap_interval(ours, ours) == (0.0, 0.0)


def test_holm_by_hand():
    assert holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert holm([0.04, None, 0.001]) == [0.04, None, 0.002]
    assert holm([0.9, 0.8]) == [1.0, 1.0]
    assert holm([]) == []


def test_corrected_by_hand():
    """Three models beside one reference: p = .01, .04, .03 become .03, .06, .06, over seeds and over rows, each by itself."""
    found = [Comparison(label, "R", "m", [1, 2], 0.1, 0.1, interval=(0.1, 0.2), p_seeds=by_seeds, p_rows=by_rows)
             for label, by_seeds, by_rows in (("A", 0.01, 0.03), ("B", 0.04, 0.01), ("C", 0.03, 0.04))]
    assert corrected(found) is found
    assert [each.p_seeds_holm for each in found] == pytest.approx([0.03, 0.06, 0.06])
    assert [each.p_rows_holm for each in found] == pytest.approx([0.06, 0.03, 0.06])
    assert [each.p_seeds for each in found] == [0.01, 0.04, 0.03]  # the raw ones stay


def test_a_difference_is_not_significant_any_more_after_the_correction():
    def beside(number):
        return [Comparison(label, "R", "m", [1, 2], 0.1, 0.1, interval=(0.1, 0.2), p_seeds=0.02, p_rows=0.001)
                for label in "ABC"[:number]]

    assert [each.significant for each in corrected(beside(1))] == [True]
    assert [each.significant for each in corrected(beside(2))] == [True, True]
    assert [each.significant for each in corrected(beside(3))] == [False, False, False]  # 3 * .02 = .06


def rows_of(values):
    """Seeds -> (mean of the rows, rows)."""
    return {2020 + number: (row.mean(), row) for number, row in enumerate(values)}


def test_compare_pairs_seeds_and_rows():
    rng = np.random.default_rng(2)
    ours, theirs = rng.random((3, 50)) + 0.3, rng.random((3, 50))
    found = compare("A", "B", "ndcg@10", rows_of(ours), {**rows_of(theirs), 1: (0.0, theirs[0])})
    assert found.seeds == [2020, 2021, 2022] and found.rows == 50
    shown = (3 * theirs.mean() + 0.0) / 4  # the table shows the mean over all seeds, also over the one that only B has
    assert found.difference == pytest.approx(ours.mean() - shown)
    assert found.improvement == pytest.approx(ours.mean() / shown - 1)
    assert found.p_seeds == pytest.approx(scipy.stats.ttest_rel(ours.mean(1), theirs.mean(1)).pvalue)
    assert found.p_rows == pytest.approx(scipy.stats.wilcoxon(ours.mean(0), theirs.mean(0)).pvalue)


def test_runs_without_ranks_are_compared_over_seeds_only():
    (found,) = corrected([compare("A", "B", "ndcg@10", {1: (0.5, None), 2: (0.7, None)}, {1: (0.4, None), 2: (0.5, None)})])
    assert found.p_rows is None and found.p_seeds is not None and found.significant is None


def test_no_seed_in_common():
    found = compare("A", "B", "m", {1: (0.5, None)}, {2: (0.4, None)})
    assert found.seeds == [] and found.difference == pytest.approx(0.1) and found.significant is None


def test_one_seed_is_never_significant():
    ours, theirs = np.ones((1, 50)), np.zeros((1, 50))
    ours[0, :3] = 0.5
    (found,) = corrected([compare("A", "B", "m", rows_of(ours), rows_of(theirs))])
    assert found.p_rows < 0.001 and found.significant is None


def test_counted_models_are_compared_over_rows():
    """No seed changes them, so the rows decide."""
    row = np.random.default_rng(3).random(100)
    (found,) = corrected([compare("A", "B", "m", rows_of(np.tile(row + 0.2, (3, 1))), rows_of(np.tile(row, (3, 1))))])
    assert found.p_seeds is None and not found.varies and found.significant is True


@pytest.mark.parametrize(
    "p_seeds, p_rows, interval, expected",
    [
        (0.01, 0.01, (0.1, 0.2), True),
        (0.06, 0.01, (0.1, 0.2), False),
        (0.01, 0.06, (0.1, 0.2), False),
        (0.01, 0.01, (-0.1, 0.2), False),
        (None, 0.01, (0.1, 0.2), None),
        (0.01, None, None, None),
        (0.01, 0.01, (-0.2, -0.1), True),
    ],
)
def test_significant_needs_both_tests(p_seeds, p_rows, interval, expected):
    comparison = Comparison("A", "B", "m", [1], 0.1, 0.1, interval=interval, p_seeds_holm=p_seeds, p_rows_holm=p_rows)
    assert comparison.significant is expected


@pytest.mark.parametrize("seeds", [2, 3, 5])
def test_a_model_against_itself_is_rarely_significant(seeds):
    """100 draws of two sets of runs of one model: rows differ in difficulty, seeds move the model as a whole and on each row."""
    claims = by_rows = 0
    rng = np.random.default_rng(seeds)
    for _ in range(100):
        easy = rng.beta(0.4, 1.5, 150)

        def runs(easy=easy):
            return np.clip(easy + rng.normal(0, 0.01, (seeds, 1)) + rng.normal(0, 0.1, (seeds, 150)), 0, 1)

        (found,) = corrected([compare("A", "A", "ndcg@10", rows_of(runs()), rows_of(runs()))])
        claims += bool(found.significant)
        by_rows += found.p_rows < ALPHA
    assert claims <= 5 < 10 < by_rows  # the rows alone claim too much


def test_a_real_difference_is_found():
    rng = np.random.default_rng(4)
    easy = rng.random(300)
    ours = [easy + 0.1 + rng.normal(0, 0.05, 300) for _ in range(5)]
    theirs = [easy + rng.normal(0, 0.05, 300) for _ in range(5)]
    (found,) = corrected([compare("A", "B", "m", rows_of(ours), rows_of(theirs))])
    assert found.significant and found.interval[0] < 0.1 < found.interval[1]
