"""All figures of a comparison on one data set, computed from finished runs."""

from dataclasses import dataclass, field

import numpy as np

from recbole_flr.comparison.results import check_same_data
from recbole_flr.comparison.slices import metric_of_rows, slices
from recbole_flr.comparison.statistics import (
    ALPHA,
    FEW_SEEDS,
    compare,
    corrected,
    mean_and_deviation,
)
from recbole_flr.errors import ConfigError
from recbole_flr.evaluation import smaller_is_better

PROPOSED = ("FLR", "FLRMix")  # models of this package; every other model is a baseline


@dataclass
class Summary:
    """The figures of a comparison on one data set.

    Attributes:
        dataset: name.
        rows: list of :class:`recbole_flr.comparison.results.Row`.
        metric: the main metric, by which validation chose.
        metrics: names of all metrics that every run has.
        means: label -> metric -> (mean, standard deviation or None) over the seeds, on the test rows.
        valid: label -> (mean, standard deviation) of the main metric on the validation rows, or None.
        reference: label of the row that the others are compared with; None if there is one row.
        comparisons: list of Comparison for the main metric, with Holm's correction.
        other_metrics: metric -> list of Comparison; tests over seeds only are of use there.
        slices: list of (name, share of rows, label -> (mean, deviation)) for the main metric.
        costs: label -> name -> mean over the seeds, or None.
        warnings: list of sentences.
        failures: list of (name of the run, error).
    """

    dataset: str
    rows: list
    metric: str
    metrics: list
    means: dict
    valid: dict
    reference: str | None
    comparisons: list
    other_metrics: dict
    slices: list
    costs: dict
    warnings: list
    failures: list = field(default_factory=list)

    @property
    def labels(self):
        return [row.label for row in self.rows]

    @property
    def ranking(self):
        """Labels by the main metric, best first."""
        return best_first(self.labels, self.means, self.metric)


def best_first(labels, means, metric):
    """Labels by the mean of a metric, the best first; of equals in their order."""
    return sorted(labels, key=lambda label: means[label][metric][0], reverse=not smaller_is_better(metric))


def summarise(rows, failures=(), reference=None):
    """Compute all figures.

    Args:
        rows: list of Row on one data set, at least one.
        failures: list of (name of a run, error).
        reference: label of the row to compare with; None for the best baseline.

    Raises:
        DataError: the runs are on different data.
        ConfigError: `reference` is no label.
    """
    runs = [run for row in rows for run in row.runs]
    check_same_data(runs)
    metric = runs[0].main_metric
    metrics = [name for name in runs[0].test if all(name in run.test for run in runs)]
    test = {run.folder: {name: _value(run, name) for name in metrics} for run in runs}
    means = {row.label: {name: mean_and_deviation([test[run.folder][name] for run in row.runs]) for name in metrics} for row in rows}
    valid = {
        row.label: mean_and_deviation([run.valid[metric] for run in row.runs])
        if all(run.valid and metric in run.valid for run in row.runs)
        else None
        for row in rows
    }
    per_row = {run.folder: metric_of_rows(run.ranks, metric) if run.has_ranks else None for run in runs}
    chosen = _reference(rows, means, metric, reference)
    comparisons, others = [], {}
    if chosen is not None:

        def values(row, name):
            return {run.seed: (test[run.folder][name], per_row[run.folder] if name == metric else None) for run in row.runs}

        other = next(row for row in rows if row.label == chosen)
        for name in metrics:
            found = corrected(
                [compare(row.label, chosen, name, values(row, name), values(other, name)) for row in rows if row is not other]
            )
            if name == metric:
                comparisons = found
            else:
                others[name] = found
    return Summary(
        runs[0].dataset,
        rows,
        metric,
        metrics,
        means,
        valid,
        chosen,
        comparisons,
        others,
        _slices(rows, per_row),
        {row.label: _costs(row) for row in rows},
        _warnings(rows, comparisons),
        list(failures),
    )


def _value(run, metric):
    """A test metric of a run: the mean over its rows, as in the slices, or what the run printed, which RecBole has rounded."""
    found = metric_of_rows(run.ranks, metric) if run.has_ranks else None
    return run.test[metric] if found is None else float(found.mean())


def _reference(rows, means, metric, given):
    """Label of the row that the others are compared with."""
    labels = [row.label for row in rows]
    if given is not None and given not in labels:
        raise ConfigError(f"reference: found {given!r}, expected one of {', '.join(labels)}")
    if len(rows) < 2 or given is not None:
        return given if len(rows) > 1 else None
    baselines = [row.label for row in rows if row.model not in PROPOSED]
    if not baselines:  # a study of one model: its first row is the model as it is
        return rows[0].label
    return best_first(baselines, means, metric)[0]


def _slices(rows, per_row):
    """See `slices` of :class:`Summary`. Rows without ranks, as those of a stage that was not kept, are left out."""
    with_ranks = [row for row in rows if all(per_row[run.folder] is not None for run in row.runs)]
    described = next((run.ranks for row in with_ranks for run in row.runs if "test_history" in run.ranks), None)
    if described is None:
        return []
    return [
        (
            name,
            float(chosen.mean()),
            {row.label: mean_and_deviation([per_row[run.folder][chosen].mean() for run in row.runs]) for row in with_ranks},
        )
        for name, chosen in slices(described).items()
    ]


def _costs(row):
    """Mean costs over the seeds: name -> value, None if a run does not tell."""
    found = [run.costs() for run in row.runs]
    return {
        name: float(np.mean([each[name] for each in found])) if all(each[name] is not None for each in found) else None
        for name in found[0]
    }


def _warnings(rows, comparisons):
    """Sentences about what the figures cannot say."""
    found = []
    seeds = {row.label: len(row.runs) for row in rows}
    fewest = min(seeds.values())
    if len(rows) > 1 and fewest < 2:
        single = [label for label, number in seeds.items() if number < 2]
        who = "All rows have" if len(single) == len(rows) else f"{', '.join(single)}:"
        found.append(f"{who} one seed only, so there is no test over seeds and no claim of significance. Use --seeds=5.")
    elif len(rows) > 1 and fewest < FEW_SEEDS:
        found.append(
            f"Only {fewest} seeds: a paired t-test over so few finds large differences only. Use --seeds={FEW_SEEDS} or more."
        )
    if len(set(map(tuple, (row.seeds for row in rows)))) > 1:
        found.append("Not all rows have the same seeds; a test over seeds uses those that both rows have.")
    if any(comparison.p_rows is None for comparison in comparisons):
        without = ", ".join(comparison.label for comparison in comparisons if comparison.p_rows is None)
        found.append(
            f"{without}: no test over rows, because there are no ranks of this stage or metric for both rows of the table."
        )
    for text, of in (
        (
            "hardware",
            lambda run: (run.result["hardware"]["cpu"], run.result["hardware"]["gpu"], run.result["hardware"]["threads"]),
        ),
        ("versions of the packages", lambda run: sorted(run.result["versions"].items(), key=str)),
        ("the commit of the code", lambda run: run.result["commit"]),
    ):
        if len({str(of(run)) for row in rows for run in row.runs}) > 1:
            found.append(f"The runs differ in {text}" + ("; do not compare their times." if text == "hardware" else "."))
    return found


# sentences


def sentences(summary):
    """Three sentences: which model is ahead, by how much and whether that is significant, and what it costs."""
    best = summary.ranking[0]
    mean, _ = summary.means[best][summary.metric]
    number = len(next(row for row in summary.rows if row.label == best).runs)
    seeds = f"mean of {number} seeds" if number > 1 else "one seed"
    seeds += ", smaller is better" if smaller_is_better(summary.metric) else ""
    first = f"{best} is ahead on {summary.dataset}, with a test {metric_name(summary.metric)} of {decimal(mean)} ({seeds})."
    return [first, _margin(summary, best), _cost(summary, best)]


def _margin(summary, best):
    if summary.reference is None:
        return "There is no other model to compare it with."
    if best == summary.reference:
        second = summary.ranking[1]
        comparison = next(each for each in summary.comparisons if each.label == second)
        text = f"{second} is next"
        if comparison.improvement is not None:
            text += f", {apart(comparison)} it"
    else:
        comparison = next(each for each in summary.comparisons if each.label == best)
        baseline = next(row for row in summary.rows if row.label == summary.reference).model not in PROPOSED
        which = summary.reference + (", the best baseline" if baseline else "")
        if comparison.improvement is None:
            text = f"No percentage tells how far that is from {which}, whose mean is 0"
        else:
            text = f"That is {apart(comparison)} {which}"
    return f"{text}; {verdict(comparison)}."


def verdict(comparison):
    """Whether a difference is significant, and why, as a clause."""
    if comparison.significant is None:
        if comparison.p_seeds_holm is None and comparison.varies:
            return "whether this is significant is not known, because that needs several seeds (--seeds=5)"
        return "whether this is significant is not known, because there are no ranks of the rows"
    seeds = (
        f"paired t-test over {len(comparison.seeds)} seeds: {p_is(comparison.p_seeds_holm)}"
        if comparison.varies
        else "no seed changes it"
    )
    rows = f"Wilcoxon test over {comparison.rows:,} rows: {p_is(comparison.p_rows_holm)}"
    said = "significant" if comparison.significant else "not significant"
    return f"the difference is {said} ({seeds}; {rows}; level {decimal(ALPHA, 2)}, with Holm's correction)"


def _cost(summary, best):
    def told(label):
        costs = summary.costs[label]
        return (
            f"{seconds(costs['train_seconds'])} of training, {size(costs['peak_memory_bytes'])} of memory and "
            f"{milliseconds(costs['user_seconds'])} for each ranked user"
        )

    text = f"It costs {told(best)}"
    other = summary.reference if best != summary.reference else (summary.ranking[1] if len(summary.rows) > 1 else None)
    return text + (f"; {other} costs {told(other)}." if other else ".")


# figures as text


def metric_name(metric):
    """`title_ndcg@10` -> `title NDCG@10`."""
    name, at, cutoff = metric.partition("@")
    words = [{"ndcg": "NDCG", "mrr": "MRR", "map": "MAP", "hit": "Hit"}.get(word, word) for word in name.split("_")]
    return " ".join(words) + at + cutoff


def decimal(value, places=4):
    """.1412: without the zero in front; `-` for None."""
    if value is None or not np.isfinite(value):
        return "-"
    text = f"{value:.{places}f}"
    return text.replace("0.", ".", 1) if text.startswith(("0.", "-0.")) else text


def percent(value):
    """+3.2%; `-` for None."""
    return "-" if value is None else f"{value:+.1%}"


def probability(value):
    """.012, < .001 or `-`."""
    return "-" if value is None else "< .001" if value < 0.001 else decimal(value, 3)


def p_is(value):
    """`p = .012` or `p < .001`."""
    text = probability(value)
    return f"p {text}" if text.startswith("<") else f"p = {text}"


def apart(comparison):
    """How far a model is from its reference, before the name of the reference: `3.2% above`."""
    return f"{abs(comparison.improvement):.1%} {'above' if comparison.difference >= 0 else 'below'}"


def seconds(value):
    """Seconds as people read them; `-` for None."""
    from recbole_flr.result import duration

    return "-" if value is None else duration(value)


def milliseconds(value):
    """Seconds as milliseconds: `2.1 ms`."""
    return "-" if value is None else f"{value * 1000:.3g} ms"


def size(value):
    """Bytes as MB or GB of 10^6 or 10^9 bytes."""
    if value is None:
        return "-"
    return f"{value / 1e9:.2f} GB" if value >= 1e9 else f"{value / 1e6:.0f} MB"
