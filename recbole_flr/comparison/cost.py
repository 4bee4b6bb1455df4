"""The cost of ranking (FLR, arXiv 2604.26760, Figure 9) as a table.

Each model is timed in a process of its own, and no other run is in progress at that time.
"""

import statistics

import numpy as np

from recbole_flr.comparison.ranking_time import BATCH, TIMES, USERS
from recbole_flr.comparison.table import Cell, Table, mark, text_cell
from recbole_flr.comparison.worker import COST


def cost_tables(runner, done):
    """Time every finished run, the first seed of each row.

    Args:
        runner: :class:`recbole_flr.comparison.runs.Runner`.
        done: list of :class:`recbole_flr.comparison.runs.Done`.

    Returns:
        dict, data set -> list with one Table.
    """
    found, seen = {}, set()
    for number, each in enumerate(done):
        run = each.planned
        if each.folder is None or (run.dataset, run.label) in seen:
            continue
        seen.add((run.dataset, run.label))
        runner.say(f"{run.name}: ranking {USERS} users {TIMES} times")
        data_path = runner.configs[number]["data_path"].removesuffix(run.dataset) or None
        outcome = runner.work(
            {"kind": COST, "folder": str(each.folder), "data_path": data_path}, f"cost-{run.label}-{run.dataset}"
        )
        if "error" in outcome:
            runner.say(f"{run.name}: FAILED: {outcome['error']}")
            continue
        found.setdefault(run.dataset, []).append((run.label, outcome["answer"]))
    return {dataset: [cost_table(measured)] for dataset, measured in found.items()}


def cost_table(measured):
    """Table of the times.

    Args:
        measured: list of (label, what :func:`recbole_flr.comparison.ranking_time.measure` returned).
    """
    fastest = min(statistics.median(answer["seconds"]) for _, answer in measured)
    rows = []
    for label, answer in measured:
        times = answer["seconds"]
        middle = statistics.median(times)
        rows.append(
            [
                text_cell(label),
                Cell(f"{middle:.3g} s", middle),
                Cell(f"{min(times):.3g} to {max(times):.3g} s", float(np.ptp(times))),
                Cell(f"{1000 * middle / answer['users']:.3g} ms", middle / answer["users"]),
                Cell(f"{middle / fastest:.2f}", middle / fastest),
                Cell(str(answer["beams"] or "-"), answer["beams"]),
            ]
        )
    mark(rows, 1, largest=False)
    columns = ["model", f"{measured[0][1]['users']} users", "fastest to slowest", "per user", "beside the fastest", "beams"]
    return Table(
        "cost",
        f"Time to rank {measured[0][1]['users']} users in batches of {BATCH} (as in Figure 9)",
        columns,
        rows,
        [f"Median of {TIMES} passes after one batch that does not count; a process for each model, the first seed."],
    )
