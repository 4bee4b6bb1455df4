"""Writes what a comparison leaves: comparison.md, .csv, .tex and report.html. Each file is replaced in one step."""

import hashlib
import json
from pathlib import Path

from recbole_flr.comparison.formats import for_csv, for_latex, for_markdown
from recbole_flr.comparison.summary import sentences
from recbole_flr.files import new_file, writing

FOLDER, STEM, REPORT = "comparisons", "comparison", "report.html"
LONGEST = 60  # letters of the names of models in a folder's name


def default_folder(plan):
    """`comparisons/MODELS-DATASETS-DIGEST`: the same for the same plan, so that the same command goes on there."""
    models = "+".join(dict.fromkeys(run.model for run in plan.runs))
    datasets = "+".join(dict.fromkeys(run.dataset for run in plan.runs))
    described = [[run.label, run.model, run.dataset, run.seed, run.options, run.files, run.stage] for run in plan.runs]
    digest = hashlib.sha256(json.dumps([plan.study, plan.reference, described], sort_keys=True).encode()).hexdigest()[:8]
    return Path(FOLDER) / f"{f'{plan.study}-' if plan.study else ''}{models[:LONGEST]}-{datasets[:LONGEST]}-{digest}"


def make_folder(folder):
    """Create a folder.

    Raises:
        DiskError: if it cannot be created.
    """
    with writing(folder):
        Path(folder).mkdir(parents=True, exist_ok=True)
    return Path(folder)


def write_text(path, text):
    """Write a file; see :func:`recbole_flr.files.new_file`.

    Raises:
        DiskError: naming the file and the free space; the old file stays.
    """
    with new_file(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_tables(folder, title, summaries, shown):
    """Write comparison.md, .tex and .csv.

    Args:
        folder: exists.
        title: of the comparison.
        summaries: list of :class:`recbole_flr.comparison.summary.Summary`, one for each data set.
        shown: for each of them a list of :class:`recbole_flr.comparison.table.Table`.
    """
    text, latex = [f"# {title}", ""], ["% \\usepackage{booktabs}"]
    for summary, tables in zip(summaries, shown):
        text += [*sentences(summary), ""]
        text += [f"- Failed: {name}: {error}" for name, error in summary.failures]
        text += [f"- Warning: {warning}" for warning in summary.warnings]
        text += ["", *map(for_markdown, tables)]
        latex += [for_latex(table, summary.dataset) for table in tables]
    write_text(folder / f"{STEM}.md", "\n".join(text))
    write_text(folder / f"{STEM}.tex", "\n".join(latex))
    write_text(folder / f"{STEM}.csv", for_csv(summaries))
