"""The cost of ranking (FLR, arXiv 2604.26760, Figure 9): 100 users in batches of 4 with 10 beams, three times.

Each model is timed in a process of its own, and no other run is in progress at that time.
"""

import statistics
from time import perf_counter

import numpy as np

from recbole_flr.comparison.results import read_run
from recbole_flr.comparison.table import Cell, Table, mark, text_cell
from recbole_flr.comparison.worker import COST
from recbole_flr.errors import CheckpointError

USERS, BATCH, BEAMS, TIMES = 100, 4, 10, 3


def measure(folder, data_path=None):
    """Time the ranking of a trained model.

    Args:
        folder: of the run.
        data_path: where the data sets are, if they have moved.

    Returns:
        dict: `users`, `batch`, `beams` (None for a model without beams) and `seconds`, a list of the times of TIMES passes. One
        batch is ranked before, so that what is built on first use does not count.
    """
    import torch

    from recbole_flr.factor_statistics import evenly_spaced
    from recbole_flr.quick_start import load_data_and_model

    changes = {"state": "ERROR", "show_progress": False, **({"data_path": data_path} if data_path else {})}
    options = read_run(folder).options
    has_beams = "num_beams" in options
    if has_beams:
        changes |= {"num_beams": BEAMS, "topk": [cutoff for cutoff in _as_list(options["topk"]) if cutoff <= BEAMS] or [BEAMS]}
    config, model, _, _, _, test_data = load_data_and_model(folder, changes)
    device, rows = config["device"], test_data._dataset.inter_feat
    numbers = torch.from_numpy(evenly_spaced(len(rows), USERS))
    batches = [rows[part].to(device) for part in numbers.split(BATCH)]

    def wait():
        if torch.device(device).type == "cuda":
            torch.cuda.synchronize()

    seconds = []
    with torch.no_grad():
        model.full_sort_predict(batches[0])
        for _ in range(TIMES):
            wait()
            start = perf_counter()
            for batch in batches:
                model.full_sort_predict(batch)
            wait()
            seconds.append(perf_counter() - start)
    return {"users": len(numbers), "batch": BATCH, "beams": BEAMS if has_beams else None, "seconds": seconds}


def _as_list(value):
    return value if isinstance(value, list) else [value]


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
        outcome = runner.work({"kind": COST, "folder": str(each.folder), "data_path": data_path}, f"cost-{run.label}-{run.dataset}")
        if "error" in outcome:
            runner.say(f"{run.name}: FAILED: {outcome['error']}")
            continue
        found.setdefault(run.dataset, []).append((run.label, outcome["answer"]))
    return {dataset: [cost_table(measured)] for dataset, measured in found.items()}


def cost_table(measured):
    """Table of the times.

    Args:
        measured: list of (label, what :func:`measure` returned).
    """
    if not measured:
        raise CheckpointError("found no run to time")
    fastest = min(statistics.median(answer["seconds"]) for _, answer in measured)
    rows = []
    for label, answer in measured:
        times = answer["seconds"]
        middle = statistics.median(times)
        rows.append([
            text_cell(label), Cell(f"{middle:.3g} s", middle), Cell(f"{min(times):.3g} to {max(times):.3g} s", float(np.ptp(times))),
            Cell(f"{1000 * middle / answer['users']:.3g} ms", middle / answer["users"]), Cell(f"{middle / fastest:.2f}", middle / fastest),
            Cell(str(answer["beams"] or "-"), answer["beams"]),
        ])
    mark(rows, 1, largest=False)
    columns = ["model", f"{measured[0][1]['users']} users", "fastest to slowest", "per user", "beside the fastest", "beams"]
    return Table("cost", f"Time to rank {measured[0][1]['users']} users in batches of {BATCH} (as in Figure 9)", columns, rows,
                 [f"Median of {TIMES} passes after one batch that does not count; a process for each model, the first seed."])
