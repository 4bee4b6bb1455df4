"""The tables of a comparison: which figures stand in them. `formats.py` says how they look."""

from dataclasses import dataclass, field

from recbole_flr.comparison.summary import (
    decimal,
    metric_name,
    milliseconds,
    percent,
    probability,
    seconds,
    size,
)  # fmt: skip
from recbole_flr.evaluation import smaller_is_better

BEST, SECOND = 1, 2


@dataclass
class Cell:
    """A figure of a table.

    Attributes:
        text: as it is shown.
        value: number to sort by; None for a text.
        place: BEST, SECOND or 0.
    """

    text: str
    value: float | None = None
    place: int = 0


@dataclass
class Table:
    """A table.

    Attributes:
        name: short, for links.
        title: a line above it.
        columns: names; the first column has the labels of the rows.
        rows: list of lists of Cell.
        notes: sentences below it.
    """

    name: str
    title: str
    columns: list
    rows: list
    notes: list = field(default_factory=list)


def text_cell(text):
    """A cell without a number."""
    return Cell(str(text))


def mark(rows, column, largest=True):
    """Mark the best and the second best value of a column. Values that are written alike have the same place, whatever their
    deviation is; if all are alike, none is marked.
    """
    def written(cell):
        return cell.text.partition(" ± ")[0]

    known = [row[column] for row in rows if row[column].value is not None]
    if len(known) < 2:
        return
    ordered = list(dict.fromkeys(written(cell) for cell in sorted(known, key=lambda cell: cell.value, reverse=largest)))
    if len(ordered) < 2:
        return
    best = [cell for cell in known if written(cell) == ordered[0]]
    for cell in best:
        cell.place = BEST
    if len(best) == 1:
        for cell in known:
            if written(cell) == ordered[1]:
                cell.place = SECOND


def mean_cell(found):
    """(mean, deviation or None) or None -> Cell."""
    if found is None:
        return Cell("-")
    mean, deviation = found
    return Cell(decimal(mean) + (f" ± {decimal(deviation)}" if deviation is not None else ""), mean)


def metrics_table(summary):
    """Mean ± standard deviation of all metrics on the test rows, the main metric on the validation rows, and the improvement."""
    name = metric_name(summary.metric)
    others = [metric for metric in summary.metrics if metric != summary.metric]
    columns = ["model", name, "improvement", *map(metric_name, others), f"valid {name}", "seeds"]
    improvement = {each.label: each for each in summary.comparisons}
    rows = []
    for row in summary.rows:
        compared = improvement.get(row.label)
        cell = (
            Cell("-")
            if compared is None or compared.improvement is None
            else Cell(percent(compared.improvement) + (" *" if compared.significant else ""), compared.improvement)
        )
        means = summary.means[row.label]
        rows.append(
            [
                text_cell(row.label),
                mean_cell(means[summary.metric]),
                cell,
                *(mean_cell(means[metric]) for metric in others),
                mean_cell(summary.valid[row.label]),
                Cell(str(len(row.runs)), len(row.runs)),
            ]
        )
    for column, metric in ((1, summary.metric), *enumerate([*others, summary.metric], 3)):
        mark(rows, column, largest=not smaller_is_better(metric))
    notes = ["Test rows unless it says valid. Mean ± standard deviation over the seeds. Best bold, second underlined."]
    if summary.reference:
        notes.append(f"Improvement: {name} relative to {summary.reference}. A star: significant, see the next table.")
    notes += smaller_notes(summary.metrics)
    return Table("metrics", f"Results on {summary.dataset}", columns, rows, notes)


def statistics_table(summary):
    """The comparisons with the reference."""
    name = metric_name(summary.metric)
    rows = []
    for each in summary.comparisons:
        low, high = each.interval or (None, None)
        said = {True: "yes", False: "no", None: "not known"}[each.significant]
        rows.append(
            [
                text_cell(each.label),
                Cell(_signed(each.difference), each.difference),
                Cell(percent(each.improvement), each.improvement),
                Cell(probability(each.p_seeds), each.p_seeds),
                Cell(probability(each.p_seeds_holm), each.p_seeds_holm),
                Cell(probability(each.p_rows), each.p_rows),
                Cell(probability(each.p_rows_holm), each.p_rows_holm),
                Cell("-" if low is None else f"{_signed(low)} to {_signed(high)}", low),
                text_cell(said),
            ]
        )
    columns = [
        "model",
        "difference",
        "improvement",
        "t-test over seeds p",
        "Holm p",
        "Wilcoxon over rows p",
        "Holm p",
        "95% interval over rows",
        "significant",
    ]
    notes = [
        "t-test: paired, over the seeds that both have. Wilcoxon and interval: over the test rows, on means over the seeds.",
        "Significant: both tests have p < .05 after Holm's correction over the rows of this table, and the interval excludes 0.",
    ]
    notes += smaller_notes([summary.metric])
    return Table("statistics", f"{name} beside {summary.reference}", columns, rows, notes)


def tests_table(summary):
    """p of the paired t-test for every metric, after Holm's correction."""
    found = {summary.metric: summary.comparisons, **summary.other_metrics}
    rows = [
        [text_cell(label), *(_test_cell(found[metric], label) for metric in summary.metrics)]
        for label in summary.labels
        if label != summary.reference
    ]
    notes = ["Relative improvement, and in brackets p of the paired t-test over seeds after Holm's correction over the models."]
    notes += smaller_notes(summary.metrics)
    return Table("tests", f"All metrics beside {summary.reference}", ["model", *map(metric_name, summary.metrics)], rows, notes)


def smaller_notes(metrics):
    """A list with the sentence that names the metrics whose smaller values are better; empty if there are none."""
    names = [metric_name(metric) for metric in metrics if smaller_is_better(metric)]
    return [f"Smaller is better for {', '.join(names)}: a decrease is an improvement above 0."] if names else []


def _test_cell(comparisons, label):
    each = next(comparison for comparison in comparisons if comparison.label == label)
    return Cell(f"{percent(each.improvement)} ({probability(each.p_seeds_holm)})", each.improvement)


def slices_table(summary):
    """The main metric in slices of the test rows."""
    labels = [label for label in summary.labels if label in summary.slices[0][2]]
    rows = []
    for name, share, found in summary.slices:
        cells = [[mean_cell(found[label])] for label in labels]
        mark(cells, 0, largest=not smaller_is_better(summary.metric))
        rows.append([text_cell(name), Cell(f"{share:.1%}", share), *(cell for (cell,) in cells)])
    notes = ['Read "new items" (the target is not in the history) and "later day" before you compare models; docs/comparison.md '
             "says why."]
    return Table(
        "slices", f"{metric_name(summary.metric)} in slices of the test rows", ["slice", "share of rows", *labels], rows, notes
    )


def costs_table(summary):
    """What the models cost, as means over the seeds."""
    rows = []
    for label in summary.labels:
        found = summary.costs[label]
        rows.append(
            [
                text_cell(label),
                *(
                    Cell(show(found[name]), found[name])
                    for name, show in (
                        ("train_seconds", seconds),
                        ("peak_memory_bytes", size),
                        ("user_seconds", milliseconds),
                        ("parameters", lambda value: f"{value:,.0f}"),
                    )
                ),
            ]
        )
    columns = ["model", "training time", "peak memory of training", "time per ranked user", "parameters"]
    notes = ["Training time includes validation. Memory is that of the process, or what torch allocated on a GPU."]
    return Table("costs", "Costs", columns, rows, notes)


def factors_table(summary):
    """Statistics of the factors (FLR, Figures 4 and 6), as means over the seeds; None if no model has factors."""
    rows = []
    for row in summary.rows:
        found = [run.result.get("factors") for run in row.runs if run.is_kept]
        if not found or not all(found):
            continue

        def mean(get):
            values = [get(each) for each in found]
            return None if None in values else sum(values) / len(values)

        values = [
            mean(lambda each: each["mean_abs_correlation"]),
            mean(lambda each: each["max_attention"]),
            mean(lambda each: each["disentanglement"]),
            mean(lambda each: each["gate"]["entropy"]),
            mean(lambda each: each["gate"]["entropy_of_mean"]),
        ]
        rows.append(
            [
                text_cell(row.label),
                Cell(str(found[0]["num_factors"]), found[0]["num_factors"]),
                *(Cell(decimal(value, 3), value) for value in values),
            ]
        )
    columns = ["model", "factors", "S_avg", "A_max", "(1 - S_avg) x A_max", "entropy of the gate", "entropy of the mean gate"]
    notes = [
        "S_avg: mean absolute correlation between factors. A_max: mean of the largest share of attention that a factor gives to "
        "one item. Entropies in nats; docs/output.md has the definitions."
    ]
    return Table("factors", "Factors", columns, rows, notes) if rows else None


def tables(summary):
    """All tables of a summary that have something to show."""
    found = [metrics_table(summary)]
    if summary.comparisons:
        found += [statistics_table(summary), tests_table(summary)]
    if summary.slices:
        found.append(slices_table(summary))
    return [table for table in (*found, costs_table(summary), factors_table(summary)) if table is not None]


def _signed(value):
    return ("+" if value >= 0 else "-") + decimal(abs(value))
