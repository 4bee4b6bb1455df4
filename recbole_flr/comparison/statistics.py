"""Statistics over seeds and over rows. The tests are scipy's.

- Over seeds: Student's paired t-test, as in the paper. It says whether the difference survives another seed.
- Over rows: Wilcoxon's signed-rank test and a percentile bootstrap interval, on the mean over the seeds of each test row. They
  say whether the difference survives other test rows.
- Holm's correction over all models that are compared with one reference (Holm 1979).

A difference counts as significant only if both tests say so after the correction. One of them alone claims too much: two runs of
one model with different seeds are two models, which often differ on the rows at hand.

Shapes: S seeds, R test rows.
"""

from dataclasses import dataclass

import numpy as np
import scipy.stats

from recbole_flr.evaluation import smaller_is_better

ALPHA = 0.05
FEW_SEEDS = 5  # with fewer, a paired t-test finds large differences only
RESAMPLES = 2000
BATCH = 2**22  # numbers that the bootstrap draws at once


@dataclass
class Comparison:
    """A model beside a reference, for one metric.

    Attributes:
        label, reference: of the two rows of the table.
        metric: name.
        seeds: seeds that both have.
        difference: mean of the model minus mean of the reference, each over all of its seeds, as the table shows them.
        improvement: difference divided by the mean of the reference, with the other sign for a metric whose smaller values are
            better; None if that mean is 0.
        p_seeds: of the paired t-test over seeds; None with fewer than 2 seeds, or if no seed changes the difference.
        p_rows: of Wilcoxon's test over rows; None without ranks.
        interval: 95% interval of the difference by bootstrap over rows; None without ranks.
        rows: number of rows.
        p_seeds_holm, p_rows_holm: after Holm's correction.
    """

    label: str
    reference: str
    metric: str
    seeds: list
    difference: float
    improvement: float | None
    p_seeds: float | None = None
    p_rows: float | None = None
    interval: tuple | None = None
    rows: int = 0
    p_seeds_holm: float | None = None
    p_rows_holm: float | None = None
    varies: bool = True

    @property
    def significant(self):
        """Whether both tests say so after the correction. None: not enough is known to say.

        Where no seed changes the difference, as between two models that are counted, the rows alone decide. That takes two common
        seeds.
        """
        by_seeds = self.p_seeds_holm if self.varies else 0.0
        if by_seeds is None or self.p_rows_holm is None:
            return None
        excludes_zero = self.interval[0] > 0 or self.interval[1] < 0
        return by_seeds < ALPHA and self.p_rows_holm < ALPHA and excludes_zero


def mean_and_deviation(values):
    """Mean and sample standard deviation (n - 1); the deviation of one value is None."""
    values = np.asarray(values, dtype=np.float64)
    return float(values.mean()), float(values.std(ddof=1)) if len(values) > 1 else None


def paired_t(ours, theirs):
    """p of the paired t-test, two-sided.

    Args:
        ours, theirs: [S], of the same seeds in the same order.

    Returns:
        float; 1 if all differences are 0; None with fewer than 2 seeds, or if all differences are the same.
    """
    difference = np.asarray(ours, dtype=np.float64) - np.asarray(theirs, dtype=np.float64)
    if len(difference) < 2:
        return None
    if np.allclose(difference, 0, atol=1e-12):
        return 1.0
    if np.ptp(difference) <= 1e-12:
        return None
    return float(scipy.stats.ttest_rel(ours, theirs).pvalue)


def wilcoxon(ours, theirs):
    """p of Wilcoxon's signed-rank test over rows, two-sided; rows without a difference are left out. 1 if there are no others."""
    difference = np.asarray(ours) - np.asarray(theirs)
    difference = difference[np.abs(difference) > 1e-12]
    return float(scipy.stats.wilcoxon(difference).pvalue) if len(difference) else 1.0


def bootstrap_interval(ours, theirs, seed=0):
    """95% interval of the mean difference, by percentile bootstrap over rows.

    Args:
        ours, theirs: [R].
        seed: of the resampling, so that a table can be repeated.

    Returns:
        low, high.
    """
    difference = np.asarray(ours, dtype=np.float64) - np.asarray(theirs, dtype=np.float64)
    if len(difference) < 2 or not np.ptp(difference):
        return float(difference.mean()), float(difference.mean())
    found = scipy.stats.bootstrap(
        (difference,),
        np.mean,
        n_resamples=RESAMPLES,
        batch=max(1, BATCH // len(difference)),
        vectorized=True,
        method="percentile",
        random_state=np.random.default_rng(seed),
    ).confidence_interval
    return float(found.low), float(found.high)


def holm(values):
    """Holm's step-down correction.

    Args:
        values: list of p, or None for a test that could not be made, which does not count.

    Returns:
        list: corrected p in the same order, None where there was none.
    """
    known = sorted((value, place) for place, value in enumerate(values) if value is not None)
    corrected, highest = [None] * len(values), 0.0
    for number, (value, place) in enumerate(known):
        highest = max(highest, min(1.0, (len(known) - number) * value))
        corrected[place] = highest
    return corrected


def compare(label, reference, metric, ours, theirs):
    """Compare one row of a table with another.

    Args:
        label, reference: names of the two rows.
        metric: name.
        ours, theirs: dict, seed -> (metric of the run, [R] metric of each test row or None).

    Returns:
        Comparison, without Holm's correction.
    """
    seeds = [seed for seed in ours if seed in theirs]
    pairs = [(ours[seed], theirs[seed]) for seed in seeds]
    mean, base = (np.mean([value for value, _ in side.values()]) for side in (ours, theirs))
    gain = base - mean if smaller_is_better(metric) else mean - base
    found = Comparison(label, reference, metric, seeds, float(mean - base), float(gain / base) if base else None)
    if not pairs:  # no seed in common: means are all that can be compared
        return found
    own, other = (np.array([pair[side][0] for pair in pairs]) for side in (0, 1))
    found.p_seeds = paired_t(own, other)
    found.varies = len(seeds) < 2 or found.p_seeds is not None
    rows = [[pair[side][1] for pair in pairs] for side in (0, 1)]
    if all(each is not None for side in rows for each in side):
        own_rows, other_rows = (np.mean(side, axis=0) for side in rows)
        found.p_rows, found.interval = wilcoxon(own_rows, other_rows), bootstrap_interval(own_rows, other_rows)
        found.rows = len(own_rows)
    return found


def corrected(comparisons):
    """Fill in Holm's correction over a list of Comparison with one reference and one metric. Returns the list."""
    for name in ("p_seeds", "p_rows"):
        for comparison, value in zip(comparisons, holm([getattr(each, name) for each in comparisons])):
            setattr(comparison, f"{name}_holm", value)
    return comparisons
