"""Pictures of a comparison as SVG text, drawn by matplotlib.

Text and lines have the colour of the page, so they fit its light and its dark mode.

Text of a catalogue is never read as a formula.
"""

import io
import re
import warnings
from functools import partial

import matplotlib
import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter

from recbole_flr.comparison.summary import metric_name

INK = "#010203"  # stands for the colour of the page's text
COLOURS = (
    "#0072b2",
    "#d55e00",
    "#009e73",
    "#cc79a7",
    "#56b4e9",
    "#e69f00",
    "#8c6bb1",
    "#7f7f7f",
)  # told apart by the colour-blind
MARKERS = "osD^vP*X"
STYLE = {
    "svg.fonttype": "none",
    "font.family": "sans-serif",
    "font.size": 9,
    "text.color": INK,
    "axes.labelcolor": INK,
    "axes.edgecolor": INK,
    "xtick.color": INK,
    "ytick.color": INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "figure.facecolor": "none",
    "axes.facecolor": "none",
    "legend.frameon": False,
    "axes.grid": True,
    "grid.color": INK,
    "grid.alpha": 0.15,
    "grid.linewidth": 0.6,
    "text.parse_math": False,
    "axes.axisbelow": True,
}
LONGEST = 28  # letters of a title in a picture


def as_svg(name, draw, width=7.0, height=3.2):
    """Draw a picture.

    Args:
        name: unique in the page; the ids in the picture begin with it.
        draw: function of a matplotlib Figure.
        width, height: in inches.

    Returns:
        str: `<svg ...>...</svg>`, without the head of an XML file and without metadata.
    """
    with matplotlib.rc_context({**STYLE, "svg.hashsalt": name}), warnings.catch_warnings():
        warnings.simplefilter(
            "ignore", UserWarning
        )  # glyphs that matplotlib's own font does not have; the browser draws the text
        figure = Figure(figsize=(width, height), layout="constrained")
        draw(figure)
        file = io.StringIO()
        figure.savefig(file, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    return embeddable(file.getvalue(), name).replace(INK, "currentColor")


def embeddable(text, name):
    """A file of matplotlib as part of a page: without head, metadata and size, and with ids that begin with a name.

    Args:
        text: of the SVG file.
        name: unique in the page.
    """
    name = re.sub(r"\W", "-", name)
    text = re.sub(r"<metadata>.*?</metadata>", "", text[text.index("<svg") :], flags=re.DOTALL)
    text = re.sub(r'(\bid="|url\(#|href="#)', rf"\g<1>{name}-", text)
    return re.sub(
        r'<svg ([^>]*?)width="[^"]*"', r"<svg \1", re.sub(r'<svg ([^>]*?)height="[^"]*"', r"<svg \1", text, count=1), count=1
    )


def _colour(summary, label):
    return COLOURS[summary.labels.index(label) % len(COLOURS)]


def _short(text):
    return text if len(text) <= LONGEST else text[: LONGEST - 1] + "…"


def metric_bars(summary):
    """The main metric and one more of each model, with the standard deviation over the seeds."""
    name, _, cutoff = summary.metric.partition("@")
    hit = f"hit@{cutoff}"
    shown = [summary.metric, *([hit] if hit in summary.metrics and hit != summary.metric else [])]
    labels = summary.ranking[::-1]

    def draw(figure):
        for axes, metric in zip(np.ravel(figure.subplots(1, len(shown), sharey=True)), shown):
            values = [summary.means[label][metric] for label in labels]
            axes.barh(
                labels,
                [mean for mean, _ in values],
                xerr=[deviation or 0 for _, deviation in values],
                color=[_colour(summary, label) for label in labels],
                error_kw={"ecolor": INK, "capsize": 3},
            )
            axes.set_xlabel(metric_name(metric))
            axes.grid(False, axis="y")

    return as_svg(f"{summary.dataset}-bars", draw, height=1.2 + 0.3 * len(labels))


def curves(row):
    """Validation scores of a row's runs: list of (epochs counted over all stages [n], scores [n])."""
    found = []
    for run in row.runs:
        epochs, scores, before = [], [], 0
        for stage in run.result["stages"]:
            for epoch, score in stage.get("curve") or []:
                epochs.append(before + epoch + 1)
                scores.append(score)
            before += stage.get("epochs") or 0
        found.append((epochs, scores))
    return found


def learning_curves(summary):
    """The validation score after each validated epoch, a line for each seed; None if no run has any."""
    known = {row.label: [curve for curve in curves(row) if curve[0]] for row in summary.rows}
    if not any(known.values()):
        return None

    def draw(figure):
        axes = figure.subplots()
        for number, (label, lines) in enumerate(known.items()):
            for place, (epochs, scores) in enumerate(lines):
                axes.plot(
                    epochs,
                    scores,
                    color=_colour(summary, label),
                    marker=MARKERS[number % len(MARKERS)],
                    markersize=3,
                    linewidth=1,
                    alpha=0.8,
                    label=None if place else label,
                )
        axes.set_xlabel("epoch, counted over all stages")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
        axes.set_ylabel(f"valid {metric_name(summary.metric)}")
        figure.legend(loc="outside right upper")

    return as_svg(f"{summary.dataset}-curves", draw)


def accuracy_and_time(summary):
    """The main metric against the time of training and against the time for a ranked user; None if no time is known."""
    shown = [
        (name, text)
        for name, text in (("train_seconds", "training time (s)"), ("user_seconds", "time per ranked user (s)"))
        if any(summary.costs[label][name] for label in summary.labels)
    ]
    if not shown:
        return None

    def draw(figure):
        for axes, (name, text) in zip(np.ravel(figure.subplots(1, len(shown), sharey=True)), shown):
            for number, label in enumerate(summary.labels):
                cost, (mean, deviation) = summary.costs[label][name], summary.means[label][summary.metric]
                if cost:
                    axes.errorbar(
                        cost,
                        mean,
                        yerr=deviation or 0,
                        color=_colour(summary, label),
                        marker=MARKERS[number % len(MARKERS)],
                        capsize=3,
                        linestyle="none",
                        label=label,
                    )
            axes.set_xscale("log")
            axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
            axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))  # matplotlib's own writes formulas
            axes.xaxis.set_minor_formatter(NullFormatter())
            axes.tick_params(axis="x", labelsize=8, rotation=30)
            axes.set_xlabel(text)
        first = figure.axes[0]
        first.set_ylabel(metric_name(summary.metric))
        figure.legend(*first.get_legend_handles_labels(), loc="outside right upper")

    return as_svg(f"{summary.dataset}-time", draw)


def slice_dots(summary):
    """The main metric in each slice; None without slices."""
    if len(summary.slices) < 2:
        return None
    names = [f"{name} ({share:.0%})" for name, share, _ in summary.slices][::-1]

    def draw(figure):
        axes = figure.subplots()
        for number, label in enumerate(summary.labels):
            values = [found.get(label) for _, _, found in summary.slices][::-1]
            if all(values):
                axes.errorbar(
                    [mean for mean, _ in values],
                    names,
                    xerr=[deviation or 0 for _, deviation in values],
                    color=_colour(summary, label),
                    marker=MARKERS[number % len(MARKERS)],
                    markersize=4,
                    linestyle="none",
                    capsize=2,
                    label=label,
                )
        axes.set_xlabel(metric_name(summary.metric))
        figure.legend(loc="outside right upper")

    return as_svg(f"{summary.dataset}-slices", draw, height=1.2 + 0.24 * len(names))


def _label_cells(axes, matrix, limit):
    """Write the numbers into the cells of a picture of a matrix."""
    for row, column in np.ndindex(*matrix.shape):
        value = matrix[row, column]
        axes.text(
            column,
            row,
            f"{value:.2f}",
            ha="center",
            va="center",
            fontsize=7,
            color="#ffffff" if abs(value) > limit else "#000000",
        )


def factor_pictures(summary):
    """For each row with factors: correlation (Figure 4) and gate, and attention maps (Figure 6). List of (caption, svg)."""
    found = []
    for number, row in enumerate(summary.rows):
        run = row.runs[0]
        factors = run.result.get("factors") if run.is_kept else None
        if not factors:
            continue
        if factors["num_factors"] > 1:
            svg = as_svg(f"{summary.dataset}-factors{number}", partial(_factors, factors=factors), width=9)
            found.append((f"Factors of {row.label}, seed {run.seed}: correlation (as in Figure 4), gate", svg))
        maps = factors.get("maps")
        if maps:
            height = sum(1.6 + 0.25 * len(each["attention"]) for each in maps)
            svg = as_svg(f"{summary.dataset}-maps{number}", partial(_maps, maps=maps), width=9, height=height)
            found.append((f"Attention of the factors of {row.label} to the histories of {len(maps)} users (as in Figure 6)", svg))
    return found


def _factors(figure, factors):
    """Correlation matrix, if the model has vectors of its factors, mean gate and distribution of the gate."""
    names, gate = [str(factor + 1) for factor in range(factors["num_factors"])], factors["gate"]
    *first, weights, shape = figure.subplots(1, 3 if factors["correlation"] else 2)
    places = np.arange(len(names))
    for axes in first:
        matrix = np.array(factors["correlation"])
        axes.imshow(matrix, vmin=-1, vmax=1, cmap="RdBu_r")
        _label_cells(axes, matrix, 0.6)
        axes.set(title="correlation of the factors", xticks=places, yticks=places, xticklabels=names, yticklabels=names)
        axes.grid(False)
    weights.bar(places - 0.2, gate["mean"], 0.4, label="mean weight", color=COLOURS[0])
    weights.bar(places + 0.2, gate["largest"], 0.4, label="largest in share of rows", color=COLOURS[1])
    weights.set(title="gate", xticks=places, xticklabels=names, xlabel="factor", ylim=(0, 1))
    weights.legend(fontsize=7)
    edges = np.linspace(0, 1, len(gate["histogram"][0]) + 1)
    for place, shares in enumerate(gate["histogram"]):
        shape.stairs(shares, edges, label=f"factor {names[place]}", color=COLOURS[place % len(COLOURS)])
    shape.set(title="distribution of the gate", xlabel="weight", ylabel="share of rows")
    if len(names) <= len(COLOURS):
        shape.legend(fontsize=7)


def _maps(figure, maps):
    """What each factor looked at in the histories of some users."""
    for axes, each in zip(np.ravel(figure.subplots(len(maps), 1)), maps):
        matrix = np.array(each["attention"])
        axes.imshow(matrix, vmin=0, vmax=max(matrix.max(), 0.01), cmap="Blues", aspect="auto")
        _label_cells(axes, matrix, 0.6 * matrix.max())
        axes.set(title=f"user {_short(each['user'])}", yticks=range(len(matrix)), xticks=range(matrix.shape[1]))
        axes.set_yticklabels([f"factor {number + 1}" for number in range(len(matrix))])
        axes.set_xticklabels([_short(title) for title in each["history"]], rotation=25, ha="right", fontsize=7)
        axes.grid(False)


def study_line(summary, option, label):
    """The main metric against a number that a study varies.

    Args:
        summary: of the study.
        option: name of the option.
        label: of the axis.
    """
    points = sorted((int(row.runs[0].options[option]), *summary.means[row.label][summary.metric]) for row in summary.rows)

    def draw(figure):
        axes = figure.subplots()
        numbers, means, deviations = zip(*points)
        axes.errorbar(numbers, means, yerr=[deviation or 0 for deviation in deviations], marker="o", capsize=3, color=COLOURS[0])
        axes.set(xlabel=label, ylabel=metric_name(summary.metric), xticks=numbers)

    return as_svg(f"{summary.dataset}-{option}", draw)


def pictures(summary, study=None):
    """All pictures of a summary: list of (caption, svg)."""
    varied = {
        "factors": ("num_factors", "number of factors K"),
        "refinements": ("num_refinements", "number of refinements N"),
    }.get(study)
    name = metric_name(summary.metric)
    found = [
        (f"{name} by {varied[1]}", study_line(summary, *varied)) if varied else None,
        ("Test metrics with standard deviation over the seeds", metric_bars(summary)),
        (f"Validation {name} while training", learning_curves(summary)),
        (f"{name} against time", accuracy_and_time(summary)),
        (f"{name} in slices of the test rows", slice_dots(summary)),
        *factor_pictures(summary),
    ]
    return [each for each in found if each and each[1]]
