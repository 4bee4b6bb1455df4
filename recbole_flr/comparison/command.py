"""The commands: a comparison (`run_recbole_flr.py` with several models or seeds) and `python -m recbole_flr report`."""

import argparse
import sys
from pathlib import Path
from time import perf_counter

from recbole_flr.comparison import studies
from recbole_flr.comparison.formats import for_terminal
from recbole_flr.comparison.output import (
    REPORT,
    STEM,
    default_folder,
    make_folder,
    write_tables,
    write_text,
)
from recbole_flr.comparison.plan import make_plan
from recbole_flr.comparison.results import Row, check_same_data, read_run, rows_of
from recbole_flr.comparison.runs import Runner
from recbole_flr.comparison.summary import sentences, summarise
from recbole_flr.comparison.table import tables
from recbole_flr.errors import DataError, FLRError
from recbole_flr.exit_status import one_line
from recbole_flr.processes import check_alone
from recbole_flr.result import duration


def compare(options):
    """Make the runs that the options ask for, print the tables and write the report.

    Args:
        options: words of the command line, name -> text, see :func:`recbole_flr.comparison.plan.make_plan`.

    Returns:
        int: exit status: 0; 1 if a run failed; 130 after Ctrl-C.

    Raises:
        FLRError: for what a user can mend.
    """
    start = perf_counter()
    plan = make_plan(options)
    check_report_packages()
    folder = Path(plan.out or default_folder(plan))
    runner = Runner(plan, folder)
    make_folder(folder)
    print(
        f"{len(plan.runs)} runs, {plan.jobs} at a time. The result goes to {folder}. If this is interrupted, the same "
        "command goes on."
    )
    try:
        done = runner.run_all()
        extras = _extras(plan, runner, done)
    except KeyboardInterrupt:
        print("\nStopped. The same command goes on with the runs that are not finished.", file=sys.stderr)
        return 130
    summaries = [_summary(plan, dataset, done) for dataset in dict.fromkeys(run.dataset for run in plan.runs)]
    failed = [each for each in done if each.error]
    if not any(summaries):
        raise DataError("no run has finished, so there is nothing to compare; the first error is: " + failed[0].error)
    show(folder, [summary for summary in summaries if summary], plan.study, extras)
    print(f"Finished in {duration(perf_counter() - start)}.")
    return 1 if failed else 0


def _summary(plan, dataset, done):
    """Summary of the finished runs on a data set; None if there is none."""
    rows, failures = {}, []
    for each in done:
        run = each.planned
        if run.dataset != dataset:
            continue
        if each.error:
            failures.append((run.name, each.error))
            continue
        rows.setdefault(run.label, Row(run.label)).runs.append(read_run(each.folder, run.stage))
    reference = plan.reference if plan.reference in rows else None
    return summarise(list(rows.values()), failures, reference) if rows else None


def _extras(plan, runner, done):
    """Tables and pictures that a study adds. A dict, data set -> list of Table."""
    if plan.study != "cost":
        return {}
    from recbole_flr.comparison.cost import cost_tables

    return cost_tables(runner, done)


def show(folder, summaries, study=None, extras=None, more=()):
    """Print the tables and write all files.

    Args:
        folder: exists.
        summaries: list of Summary.
        study: name of the study, or None.
        extras: dict, data set -> list of further tables.
        more: further pictures for the report: list of (caption, svg).
    """
    from recbole_flr.comparison.report import render

    title = studies.STUDIES[study] if study else "Comparison"
    shown = []
    for summary in summaries:
        own = [*tables(summary), *(extras or {}).get(summary.dataset, [])]
        shown.append(own)
        for table in own:
            print("\n" + for_terminal(table, sys.stdout.isatty()))
        print()
        for sentence in sentences(summary):
            print(sentence)
        for name, error in summary.failures:
            print(f"FAILED: {name}: {error}")
        for warning in summary.warnings:
            print(f"Warning: {warning}")
    write_tables(folder, title, summaries, shown)
    write_text(folder / REPORT, render(title, summaries, shown, study, more))
    print(f"\nWritten: {folder / REPORT}, {STEM}.md, {STEM}.csv and {STEM}.tex")


def check_report_packages():
    """Make sure that the packages of the report are installed, before hours of training.

    Raises:
        FLRError: naming the packages.
    """
    try:
        import jinja2  # noqa: F401
        import matplotlib  # noqa: F401
    except ImportError as error:
        raise FLRError(
            f"a comparison draws its report with matplotlib and jinja2, and {error.name} is not installed; install them with "
            "pip install matplotlib jinja2, or with the extra [report] of this package"
        ) from error


def search_pictures(folder):
    """Optuna's plots of a search: list of (caption, svg).

    Args:
        folder: of the search.
    """
    from recbole_flr.search_result import read_study, search_plots

    return [(f"{Path(folder).name}: {name}", svg) for name, svg in search_plots(read_study(folder)).items()]


def report_main(arguments=None):
    """Entry point of `python -m recbole_flr report`."""
    parser = argparse.ArgumentParser(
        "python -m recbole_flr report", description="Compare runs that exist: tables and report.html."
    )
    parser.add_argument("runs", nargs="+", metavar="RUN", help="folder of a finished run, such as saved/FLR-toys_demo-...")
    parser.add_argument("--out", default="comparisons/report", help="folder for the output")
    parser.add_argument("--reference", help="row of the table that the others are compared with; else the best baseline")
    parser.add_argument("--by-dataset", action="store_true", help="a table for each data set, if the runs are on several")
    parser.add_argument("--search", nargs="+", default=[], help="folders of searches, whose plots the report shows too")
    given = parser.parse_args(arguments)
    with one_line("report") as status:
        check_alone("a report")
        check_report_packages()
        runs = [read_run(folder) for folder in dict.fromkeys(given.runs)]
        datasets = list(dict.fromkeys(run.dataset for run in runs))
        if len(datasets) > 1 and not given.by_dataset:
            raise DataError(
                f"found runs on different data: {', '.join(f'{run.folder} is on {run.dataset}' for run in runs[:4])}; a table "
                "compares runs on the same rows; leave some out, or add --by-dataset for a table of each data set"
            )
        summaries = []
        for dataset in datasets:
            own = [run for run in runs if run.dataset == dataset]
            check_same_data(own)
            summaries.append(summarise(rows_of(own), reference=given.reference))
        more = [picture for folder in given.search for picture in search_pictures(folder)]
        show(make_folder(given.out), summaries, more=more)
    return status.code
