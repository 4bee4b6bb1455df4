"""How tables look in the terminal, in Markdown, in LaTeX, and all figures as comma-separated values."""

import csv
import io
import re
import unicodedata

from tabulate import tabulate

from recbole_flr.comparison.table import BEST, SECOND

BOLD, UNDERLINE, PLAIN = "\033[1m", "\033[4m", "\033[0m"


def for_terminal(table, colours=True):
    """A table as text. With `colours` the best is bold and the second underlined (ANSI); else they end with ^1 and ^2."""

    def show(cell):
        text = printable(cell.text)
        if not cell.place:
            return text
        if colours:
            return (BOLD if cell.place == BEST else UNDERLINE) + text + PLAIN
        return f"{text} ^{cell.place}"

    body = tabulate(
        [[show(cell) for cell in row] for row in table.rows],
        headers=[printable(name) for name in table.columns],
        disable_numparse=True,
    )
    notes = [note if colours else note.replace("Best bold, second underlined", "^1 best, ^2 second") for note in table.notes]
    return "\n".join([table.title, "", body, *notes])


def for_markdown(table):
    """A table in Markdown, with the best bold and the second underlined."""

    def show(cell):
        text = _markdown(cell.text)
        return f"**{text}**" if cell.place == BEST else f"<u>{text}</u>" if cell.place == SECOND else text

    lines = [
        f"## {_markdown(table.title)}",
        "",
        "| " + " | ".join(map(_markdown, table.columns)) + " |",
        "|" + "---|" * len(table.columns),
    ]
    lines += ["| " + " | ".join(map(show, row)) + " |" for row in table.rows]
    return "\n".join([*lines, "", *map(_markdown, table.notes)]) + "\n"


def for_latex(table, prefix=""):
    """A table in LaTeX, for the package booktabs.

    Args:
        table: Table.
        prefix: of the label, which has to be unique in a paper, such as the name of the data set.
    """

    def show(cell):
        text = _latex(cell.text)
        return rf"\textbf{{{text}}}" if cell.place == BEST else rf"\underline{{{text}}}" if cell.place == SECOND else text

    lines = [
        r"\begin{table}",
        r"\centering",
        rf"\caption{{{_latex(table.title)}}}",
        rf"\label{{tab:{re.sub('[^A-Za-z0-9]', '-', prefix)}-{table.name}}}",
        r"\begin{tabular}{l" + "r" * (len(table.columns) - 1) + "}",
        r"\toprule",
        " & ".join(map(_latex, table.columns)) + r" \\",
        r"\midrule",
        *(" & ".join(map(show, row)) + r" \\" for row in table.rows),
        r"\bottomrule",
        r"\end{tabular}",
        r"\end{table}",
    ]
    return "\n".join(lines) + "\n"


def for_csv(summaries):
    """All figures in long form: a line for each data set, slice, model and measure."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["dataset", "part", "slice", "share", "model", "measure", "mean", "std", "seeds"])
    for summary in summaries:
        number = {row.label: len(row.runs) for row in summary.rows}
        for label in summary.labels:
            for metric in summary.metrics:
                mean, deviation = summary.means[label][metric]
                writer.writerow([summary.dataset, "test", "all rows", 1, label, metric, mean, _blank(deviation), number[label]])
            if summary.valid[label]:
                mean, deviation = summary.valid[label]
                writer.writerow(
                    [summary.dataset, "valid", "all rows", 1, label, summary.metric, mean, _blank(deviation), number[label]]
                )
            for name, value in summary.costs[label].items():
                writer.writerow([summary.dataset, "cost", "", "", label, name, _blank(value), "", number[label]])
        for name, share, found in summary.slices[1:]:
            for label, (mean, deviation) in found.items():
                writer.writerow(
                    [summary.dataset, "test", name, share, label, summary.metric, mean, _blank(deviation), number[label]]
                )
        for each in summary.comparisons:
            values = {
                "difference": each.difference,
                "improvement": each.improvement,
                "p_seeds": each.p_seeds,
                "p_seeds_holm": each.p_seeds_holm,
                "p_rows": each.p_rows,
                "p_rows_holm": each.p_rows_holm,
                "low": each.interval and each.interval[0],
                "high": each.interval and each.interval[1],
                "significant": each.significant and int(each.significant),
            }
            for name, value in values.items():
                writer.writerow(
                    [
                        summary.dataset,
                        f"beside {each.reference}",
                        "all rows",
                        1,
                        each.label,
                        name,
                        _blank(value),
                        "",
                        len(each.seeds),
                    ]
                )
    return text.getvalue()


def _blank(value):
    return "" if value is None else value


def printable(text):
    """A text without control characters, which could change the terminal."""
    return "".join(letter if unicodedata.category(letter)[0] != "C" else f"\\x{ord(letter):02x}" for letter in text)


def _markdown(text):
    return re.sub(r"([\\|<>`_*\[\]])", r"\\\1", printable(text))


def _latex(text):
    escapes = {
        "\\": r"\textbackslash{}",
        "±": r"$\pm$",
        "~": r"\textasciitilde{}",
        "^": r"\textasciicircum{}",
        "<": r"$<$",
        ">": r"$>$",
    }
    return "".join(escapes.get(letter, f"\\{letter}" if letter in "&%$#_{}" else letter) for letter in printable(text))
