"""Times the ranking of a trained model: 100 users in batches of 4 with 10 beams, three times (arXiv 2604.26760, Figure 9)."""

from time import perf_counter

import torch

from recbole_flr.comparison.results import read_run
from recbole_flr.factor_statistics import evenly_spaced
from recbole_flr.quick_start import load_data_and_model

USERS, BATCH, BEAMS, TIMES = 100, 4, 10, 3


def measure(folder, data_path=None):
    """Time the ranking of a trained model.

    Args:
        folder: of the run.
        data_path: where the data sets are, if they have moved.

    Returns:
        dict: `users`, `batch`, `beams` (None for a model that ranks without beams) and `seconds`, a list of the times of TIMES
        passes. One batch is ranked before, so that what is built on first use does not count.
    """
    changes = {"state": "ERROR", "show_progress": False, **({"data_path": data_path} if data_path else {})}
    options = read_run(folder).options
    if "num_beams" in options:
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
    return {"users": len(numbers), "batch": BATCH, "beams": BEAMS if model.most_items() else None, "seconds": seconds}


def _as_list(value):
    return value if isinstance(value, list) else [value]
