"""How long a loaded model takes to recommend to one user, and how many users it ranks per second in bulk.

    python -m benchmarks.recommend
    python -m benchmarks.recommend --checkpoint saved/FLRMix-movies-... saved/FLR-movies-...

Without --checkpoint the models have their default sizes and random weights, and the shop is made up. A user is answered by
`recbole_flr.recommend` on the loaded model, with its explanation: from item ids to titles, scores and attention. In bulk the users
are read from a file and their recommendations are written to one.
"""

import json
import tempfile
from pathlib import Path
from time import perf_counter, process_time

import numpy as np
import torch
from tabulate import tabulate

from benchmarks.harness import parser, surroundings, write_json
from benchmarks.made_up import histories, shop_titles
from recbole_flr.bulk_recommendation import recommend_many
from recbole_flr.quick_start import load_data_and_model, run_recbole_flr
from recbole_flr.recommendation import recommend

QUIET = {"state": "ERROR", "show_progress": False}
LIMITS = {"items": 50, "compact": 150}  # most milliseconds for a user
NUMBERS = {  # option: default, least, meaning
    "items": (6000, 30, "items of the made-up shop"), "shoppers": (4000, 10, "users of the made-up shop"),
    "users": (100, 2, "users that are answered one by one"), "bulk": (2000, 1, "users that are answered in bulk"),
    "k": (10, 1, "items for each user"), "threads": (None, 1, "threads of torch (default: torch's own choice)"),
}
MODELS = {  # in the made-up shop: model, encoder -> options
    ("FLRMix", "items"): {}, ("FLR", "compact"): {"warmup_epochs": 0},
    ("FLRMix", "compact"): {"backbone": "compact", "warmup_epochs": 0},
}


def write_shop(folder, items, shoppers):
    """Write the data set `shop` with made-up titles. Each shopper buys eleven items, mostly of one brand."""
    titles = shop_titles(items)
    data = Path(folder) / "shop"
    data.mkdir(parents=True)
    lines = [f"i{item}\t{title}" for item, title in enumerate(titles, 1)]
    (data / "shop.item").write_text("\n".join(["item_id:token\ttitle:token", *lines]) + "\n", encoding="utf-8")
    rows = histories(titles, shoppers, 0).tolist()
    lines = [f"u{user}\ti{item}\t{step}" for user, row in enumerate(rows) for step, item in enumerate(row)]
    (data / "shop.inter").write_text("\n".join(["user_id:token\titem_id:token\ttimestamp:float", *lines]) + "\n")


def build_run(model, encoder, folder):
    """A run of one of MODELS with random weights in the made-up shop. Returns its folder."""
    saved = Path(folder) / f"saved-{model}-{encoder}"
    run_recbole_flr(model, "shop", config_dict={
        **QUIET, "data_path": str(folder), "checkpoint_dir": str(saved), "epochs": 0, "stages": "sft", "checkpoint_every": 0,
        **MODELS[model, encoder],
        "eval_args": {"split": {"RS": [0.998, 0.001, 0.001]}, "order": "TO", "group_by": "none", "mode": "full"},
    })  # fmt: skip
    return next(saved.iterdir())


def measure(run, given):
    """Answer users of a run one by one and in bulk.

    Returns:
        dict: model, encoder, items, milliseconds (of each user), processor_milliseconds (summed over threads; other programs do not
        count), first_ms (of the first answer, which is not among them), and users_per_second in bulk.
    """
    loaded = load_data_and_model(run, QUIET)
    config, model, dataset = loaded[:3]
    rng = np.random.default_rng(0)
    names = dataset.field2id_token[dataset.iid_field]
    most = config["MAX_ITEM_LIST_LENGTH"]
    drawn = [[str(names[item]) for item in rng.integers(1, len(names), rng.integers(1, most + 1))]
             for _ in range(max(given.bulk, given.users) + 1)]
    milliseconds, of_processor = [], []
    for history in drawn[:given.users + 1]:
        start, begin = perf_counter(), process_time()
        recommend(loaded, history, given.k)
        milliseconds.append(1000 * (perf_counter() - start))
        of_processor.append(1000 * (process_time() - begin))
    with tempfile.TemporaryDirectory() as folder:
        users = Path(folder) / "users.jsonl"
        lines = [json.dumps({"user_id": user, "history": row}) for user, row in enumerate(drawn[:given.bulk])]
        users.write_text("\n".join(lines))
        summary = recommend_many(run, str(users), f"{folder}/out.parquet", given.k, config_dict=QUIET, show_progress=False)
    encoder = config["backbone"] or next((encoder for name, encoder in MODELS if name == config["model"]), "")
    return {
        "model": config["model"], "encoder": encoder, "items": len(names) - 1, "first_ms": milliseconds[0],
        "milliseconds": milliseconds[1:], "processor_milliseconds": of_processor[1:], "users_per_second": given.bulk / max(summary["ranking_seconds"], 1e-3),
    }


def main(arguments=None):
    """Print a table with a line for each model. Returns the results."""
    command = parser("benchmarks.recommend", __doc__, NUMBERS)
    command.add_argument("--checkpoint", nargs="+", help="folders of runs (default: models with random weights)")
    given = command.parse_args(arguments)
    if given.threads:
        torch.set_num_threads(given.threads)
    with tempfile.TemporaryDirectory() as folder:
        if not given.checkpoint:
            write_shop(folder, given.items, given.shoppers)
        results = [measure(run, given) for run in given.checkpoint or [build_run(*each, folder) for each in MODELS]]
    rows = []
    for found in results:
        low, middle, high = np.percentile(found["milliseconds"], [5, 50, 95])
        limit = LIMITS.get(found["encoder"])
        rows.append([found["model"], found["encoder"], found["items"], f"{middle:.1f} ({low:.1f}..{high:.1f})",
                     f"{np.median(found['processor_milliseconds']):.1f}", f"{found['first_ms']:.0f}", limit or "-", f"{found['users_per_second']:.0f}"])
    head = ["model", "encoder", "items", "ms per user: median (5%..95%)", "processor, ms", "first, ms", "limit, ms", "users per second in bulk"]
    print(tabulate(rows, headers=head))
    write_json(given.json, {**surroundings(), "options": {name: vars(given)[name] for name in NUMBERS}, "results": results})
    return results


if __name__ == "__main__":
    main()
