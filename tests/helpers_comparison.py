"""For the tests of comparisons: folders of finished runs that were never trained."""

import json

import numpy as np

ITEMS, ROWS, LENGTH = 30, 60, 4
OPTIONS = {"valid_metric": "NDCG@10", "eval_args": {"mode": {"valid": "full", "test": "full"}}, "topk": [5, 10], "num_factors": 4}
FACTORS = {
    "rows": ROWS,
    "num_factors": 2,
    "correlation": [[1.0, -0.5], [-0.5, 1.0]],
    "mean_abs_correlation": 0.5,
    "max_attention": 0.4,
    "disentanglement": 0.2,
    "gate": {
        "mean": [0.7, 0.3],
        "largest": [0.9, 0.1],
        "histogram": [[0.1] * 10, [0.1] * 10],
        "entropy": 0.6,
        "entropy_of_mean": 0.61,
    },
    "maps": [{"user": "u$1$", "history": ["A $x$ title", "積み木"], "attention": [[0.5, 0.2], [0.1, 0.3]]}],
}


def draw_rows(seed=0):
    """Arrays of `ranks.npz` that are the same for all models, drawn at random."""
    rng = np.random.default_rng(seed)
    history = rng.integers(1, ITEMS + 1, (ROWS, LENGTH))
    for row, length in enumerate(rng.integers(1, LENGTH + 1, ROWS)):
        history[row, length:] = 0
    target = np.where(rng.random(ROWS) < 0.2, history[:, 0], rng.integers(1, ITEMS + 1, ROWS))
    return {
        "row": np.arange(ROWS),
        "target": target,
        "user": rng.integers(1, 20, ROWS),
        "history": history,
        "days": rng.choice([0, 0, 1, 5, np.nan], ROWS),
        "user_rows": rng.integers(0, 3, ROWS),
        "target_rows": rng.integers(0, 5, ROWS),
        "target_seen": rng.random(ROWS) < 0.8,
        "target_popular": rng.random(ROWS) < 0.3,
    }


def metrics_of(ranks):
    """Metrics of item ranks, as a run reports them."""
    found = {}
    for k in (5, 10):
        found[f"hit@{k}"] = round(float((ranks <= k).mean()), 4)
        found[f"ndcg@{k}"] = round(float(np.where(ranks <= k, 1 / np.log2(ranks + 1), 0).mean()), 4)
    return found


def write_run(folder, model="SASRec", seed=2020, ranks=None, rows=None, title="Toy", **changes):
    """Write the folder of a finished run. Returns it.

    Args:
        folder: Path.
        ranks: [ROWS] item ranks; None for random ones that depend on the seed.
        rows: arrays as from `draw_rows`.
        title: begins the titles of the examples.
        changes: `options` (of run.json), `factors`, `fingerprint`, `dataset`, `stages`, `kept`, `cpu`, `commit`.
    """
    folder.mkdir(parents=True)
    ranks = np.random.default_rng(seed).integers(1, 31, ROWS) if ranks is None else ranks
    rows = draw_rows() if rows is None else rows
    metrics = metrics_of(ranks)
    stage = {
        "name": "train",
        "seconds": 10.0 + seed % 7,
        "peak_memory_bytes": 300_000_000,
        "epochs": 2,
        "best_epoch": 1,
        "curve": [[0, 0.1], [1, 0.2]],
        "best_valid_score": metrics["ndcg@10"],
        "best_valid_result": metrics,
        "test_result": metrics,
        "test_seconds": 0.6,
    }
    dataset = changes.get("dataset", "tiny")
    result = {
        "format": 1,
        "model": model,
        "dataset": dataset,
        "command": ["run_recbole_flr.py", f"--model={model}"],
        "options": {},
        "seed": seed,
        "commit": changes.get("commit"),
        "versions": {"torch": "2"},
        "hardware": {"cpu": changes.get("cpu", "x"), "gpu": None, "threads": 1},
        "data": {
            "fingerprint": changes.get("fingerprint", "f" * 64),
            "users": 20,
            "items": ITEMS,
            "rows": {"train": 100, "valid": 10, "test": ROWS},
        },
        "parameters": 1000,
        "stages": changes.get("stages", [stage]),
        "kept": changes.get("kept", "train"),
        "best_valid_score": metrics["ndcg@10"],
        "best_valid_result": metrics,
        "test_result": metrics,
        "factors": changes.get("factors"),
        "seconds": 12.0,
    }
    (folder / "result.json").write_text(json.dumps(result))
    options = {**OPTIONS, "model": model, "dataset": dataset, "seed": seed, **changes.get("options", {})}
    (folder / "run.json").write_text(json.dumps(options))
    np.savez(folder / "ranks.npz", **{f"test_{name}": value for name, value in {**rows, "item_rank": ranks}.items()})
    history = [{"item": "i1", "title": f"{title} 1"}, {"item": "i2", "title": f"{title} 2"}]
    example = {
        "row": 3,
        "user": "u1",
        "history": history,
        "target": {"item": "i3", "title": f"{title} 3"},
        "rank": 2,
        "recommended": [{"item": "i4", "title": f"{title} 4"}, {"item": "i3", "title": f"{title} 3"}],
    }
    if changes.get("factors"):
        example["factors"] = [{"weight": 0.7, "attention": [0.5, 0.2]}, {"weight": 0.3, "attention": [0.1, 0.3]}]
    (folder / "examples.json").write_text(json.dumps([example]))
    return folder


def write_runs(folder, models=("FLR", "SASRec"), seeds=(2020, 2021, 2022), gain=0, **changes):
    """Write a run for each model and seed below `folder`. Ranks of the first model are better by `gain`. Returns the folders."""
    found = []
    for number, model in enumerate(models):
        for seed in seeds:
            ranks = np.random.default_rng([seed, number]).integers(1, 31, ROWS)
            ranks = np.maximum(ranks - gain, 1) if number == 0 else ranks
            found.append(write_run(folder / f"{model}-tiny-{seed}", model, seed, ranks, **changes))
    return found
