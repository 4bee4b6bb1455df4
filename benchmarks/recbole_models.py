"""Which models of RecBole run: trains each of them for one epoch on a tiny made-up data set, and prints docs/recbole_models.md.

    python -m benchmarks.recbole_models > docs/recbole_models.md

A model runs if training, validation, test, the files of the run and loading it again all work. Many models need data that not
every data set has (labels, features, a knowledge graph); :data:`GIVEN` has the options that say where such data are. Each model
is also run without these options: then it runs, or is refused with one line.
"""

import argparse
import io
import signal
import sys
import tempfile
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from recbole_flr import command, registry
from recbole_flr.quick_start import load_data_and_model

SECONDS = 60  # the longest time of one model; each takes a second or two
BASE = {
    "epochs": 1, "train_batch_size": 64, "eval_batch_size": 64, "state": "ERROR", "show_progress": False, "topk": [5],
    "valid_metric": "NDCG@5", "gpu_id": "", "use_gpu": False,
}
FEATURES = {"user": ["user_id", "age"], "item": ["item_id", "genre"]}
RATED = ["user_id", "item_id", "rating", "timestamp"]
GIVEN = {  # kind of model -> options that name what it needs
    "context-aware": {
        "threshold": {"rating": 3}, "load_col": {"inter": RATED, **FEATURES}, "train_neg_sample_args": None,
        "eval_args": {"split": {"RS": [0.8, 0.1, 0.1]}, "order": "RO", "group_by": None, "mode": "labeled"},
        "metrics": ["AUC"], "valid_metric": "AUC",
    },
    "knowledge-aware": {
        "load_col": {"inter": RATED, "kg": ["head_id", "relation_id", "tail_id"], "link": ["item_id", "entity_id"]},
    },
    "features": {"load_col": {"inter": RATED, "item": FEATURES["item"]}, "selected_features": ["genre"]},
}


def write_dataset(folder, name="every", users=40, items=30, seed=0):
    """Write a data set that has all that a model of RecBole may ask for: ratings, features, a knowledge graph."""
    rng, folder = np.random.default_rng(seed), Path(folder) / name
    folder.mkdir(parents=True)

    def table(kind, header, rows):
        lines = ["\t".join(header), *("\t".join(map(str, row)) for row in rows)]
        (folder / f"{name}.{kind}").write_text("\n".join(lines) + "\n", encoding="utf-8")

    rows = [(f"u{user}", f"i{item}", rng.integers(1, 6), 100 * user + time)
            for user in range(users) for time, item in enumerate(rng.permutation(items)[:12])]
    table("inter", ["user_id:token", "item_id:token", "rating:float", "timestamp:float"], rows)
    table("user", ["user_id:token", "age:token"], [(f"u{user}", rng.integers(20, 30)) for user in range(users)])
    table("item", ["item_id:token", "title:token", "genre:token_seq"],
          [(f"i{item}", f"Title {item}", f"g{item % 4} g{item % 3}") for item in range(items)])
    table("link", ["item_id:token", "entity_id:token"], [(f"i{item}", f"e{item}") for item in range(items)])
    table("kg", ["head_id:token", "relation_id:token", "tail_id:token"],
          [(f"e{head}", f"r{head % 3}", f"e{rng.integers(0, items + 10)}") for head in range(items) for _ in range(3)])
    return folder.parent
