"""Time and memory of a model that needs no training, on made-up rows of a large catalogue.

    python -m benchmarks.counted --model=VSKNN --items=100000 --rows=1000000

The rows have histories of ten items, item ids drawn by Zipf's law, and five rows for each user. The benchmark measures:

- build: seconds in which the model is counted from the rows, and the peak of the process's memory minus its memory before.
- rank: milliseconds for each of 1,024 histories, in batches (scores of all items).
"""

import sys
from time import perf_counter
from types import SimpleNamespace

import numpy as np
import torch
from recbole.data.interaction import Interaction
from tabulate import tabulate

from benchmarks.harness import parser, peak, start_peak, surroundings, write_json
from recbole_flr.config import Config
from recbole_flr.registry import get_model

MODELS = ("SequentialRules", "VSKNN")
HISTORY, ROWS_OF_USER, RANKED = 10, 5, 1024


def made_up_rows(items, rows, seed=0):
    """Rows of users whose items are drawn by Zipf's law.

    Args:
        items: size of the catalogue.
        rows: R, how many rows.
        seed: of the draw.

    Returns:
        histories [R, HISTORY] and targets [R], int64 item ids from 1.
    """
    rng = np.random.default_rng(seed)
    weights = np.cumsum(1 / np.arange(1, items + 1))
    drawn = np.searchsorted(weights / weights[-1], rng.random((rows, HISTORY + 1)))
    drawn = rng.permutation(items)[drawn.clip(max=items - 1)] + 1
    return drawn[:, :HISTORY], drawn[:, HISTORY]


def measure(name, items, rows, batch):
    """Build one model and rank with it -> dict of figures."""
    histories, targets = made_up_rows(items, rows)
    feat = Interaction({
        "item_id_list": torch.from_numpy(histories), "item_id": torch.from_numpy(targets),
        "user_id": torch.arange(rows) // ROWS_OF_USER, "timestamp": torch.arange(rows).float(),
    })
    fields = {"iid_field": "item_id", "uid_field": "user_id", "time_field": "timestamp"}
    dataset = SimpleNamespace(inter_feat=feat, num=lambda _: items + 1, **fields)
    config = Config(name, "toys_demo", config_dict={"use_gpu": False})
    before, start = start_peak("cpu"), perf_counter()
    model = get_model(name)(config, dataset)
    seconds, memory = perf_counter() - start, peak("cpu") - before
    asked = [Interaction({"item_id_list": part}) for part in feat["item_id_list"][:RANKED].split(batch)]
    start = perf_counter()
    reached = sum(int((model.full_sort_predict(part) > 0).sum()) for part in asked)
    ranking, ranked = perf_counter() - start, sum(map(len, asked))
    return {"model": name, "items": items, "rows": rows, "build_seconds": round(seconds, 2), "build_mb": round(memory / 1e6),
            "rank_ms": float(f"{1000 * ranking / ranked:.3g}"), "items_reached": round(reached / ranked)}


def main(arguments):
    """Print the figures of one model. Returns them."""
    command = parser("benchmarks.counted", __doc__, {
        "items": (100_000, 1, "of the catalogue"), "rows": (1_000_000, 1, "training rows"),
        "batch": (128, 1, "histories at once"),
    })  # fmt: skip
    command.add_argument("--model", choices=MODELS, default=MODELS[0], help=f"(default: {MODELS[0]})")
    given = command.parse_args(arguments)
    found = measure(given.model, given.items, given.rows, given.batch)
    print(tabulate([found], headers="keys"))
    write_json(given.json, {**found, "surroundings": surroundings(("torch", "scipy", "numpy"))})
    return found


if __name__ == "__main__":
    main(sys.argv[1:])
