"""Time and peak memory of loading a converted data set: histories as integers, against RecBole's arrays of strings.

    python -m benchmarks.loading --rows 10000000 --items 1000000 --versions ours --json loading.json
    python -m benchmarks.loading --rows 1000000 --items 100000 --repeats 3

The data set is made up and has the files that `dataset_scripts.convert` writes. Histories have 1 to 10 items, each length equally
often; there is one user for four rows. The versions are

- ours: `recbole_flr.data.loading.load_dataset`;
- plain: RecBole's own classes, with the verbatim reader that makes a string of every field, as up to commit 4514a56.

Each run is a fresh process. It loads the data set and makes the data loaders of a sequential model (SASRec, full ranking).

- Time: wall clock of loading and of making the loaders, without imports. The files are read once before, so they are in the
  cache of the operating system.
- Memory: the peak of the resident memory of the process (VmHWM), with Python, torch and RecBole.

All runs must load the same tokens and tensors (SHA-256).
"""

import argparse
import hashlib
import json
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from time import perf_counter, process_time

import numpy as np
from tabulate import tabulate

from benchmarks.harness import ROOT, parser, peak, spread, surroundings, write_json
from benchmarks.raw_reviews import codes

VERSIONS = ("ours", "plain")
PARTS = {"train": 0.8, "valid": 0.1, "test": 0.1}
LONGEST = 10  # items of a history
HEADER = b"user_id:token\titem_id_list:token_seq\titem_id:token\ttimestamp:float\n"  # as dataset_scripts.output writes it


def write_set(folder, rows, items, seed=0, chunk=100_000):
    """Writes the data set `made` into a folder. Popular items are drawn by a power law; all items are in the `.item` file.

    Args:
        folder: Path of a folder; `folder/made` is made.
        rows, items: numbers of rows of all parts together, and of items.
    """
    rng = np.random.default_rng(seed)
    (folder / "made").mkdir(parents=True)
    users, names = codes(np.arange(max(rows // 4, 1)), "A", 12).astype(bytes), codes(np.arange(items), "B0", 8).astype(bytes)
    popularity = np.cumsum((np.arange(items) + 30.0) ** -0.95)
    for part, share in PARTS.items():
        with open(folder / "made" / f"made.{part}.inter", "wb") as file:
            file.write(HEADER)
            for first in range(0, int(rows * share), chunk):
                size = min(chunk, int(rows * share) - first)
                drawn = np.searchsorted(popularity, rng.random((size, LONGEST + 1)) * popularity[-1])
                columns = (users[rng.integers(len(users), size=size)], names[drawn], rng.integers(1, LONGEST + 1, size),
                           86400 * rng.integers(17000, 17900, size))  # fmt: skip
                file.write(b"".join(
                    b"%s\t%s\t%s\t%d\n" % (user, b" ".join(row[:length]), row[-1], time)
                    for user, row, length, time in zip(*(column.tolist() for column in columns))
                ))  # fmt: skip
    lines = (b"%s\tTitle of item %d\n" % (name, number) for number, name in enumerate(names.tolist()))
    (folder / "made" / "made.item").write_bytes(b"item_id:token\ttitle:token\n" + b"".join(lines))


def load(version, folder):
    """Loads the data set in this process. Returns a dict of figures, with the SHA-256 of what was loaded."""
    import torch

    from recbole_flr.config import Config
    from recbole_flr.data import datasets, loading

    def plainly(path, delimiter, usecols, dtype, encoding, **_):
        wanted = {field.split(":")[0]: str if dtype[field] is str else float for field in usecols}
        return datasets.read_slowly(path, wanted, delimiter, encoding)[0].set_axis(usecols, axis=1)

    torch.set_num_threads(1)
    config = Config("SASRec", "made", config_dict={"data_path": str(folder), "state": "ERROR", "use_gpu": False})
    if version == "plain":
        loading.verbatim_reader = lambda: datasets.reader(plainly)
    start, before = perf_counter(), process_time()
    dataset = loading.load_dataset(config)
    loaded = perf_counter()
    loaders = loading.split(config, dataset)
    figures = {"seconds": perf_counter() - start, "load_seconds": loaded - start, "cpu_seconds": process_time() - before,
               "peak_bytes": peak(), "users": dataset.user_num - 1, "items": dataset.item_num - 1}  # fmt: skip
    digest = hashlib.sha256(config["data_fingerprint"].encode())
    for loader in loaders:
        for name, values in loader._dataset.inter_feat.interaction.items():
            digest.update(f"{name} {values.dtype} {tuple(values.shape)}".encode())
            digest.update(values.contiguous().numpy().data)
    return {**figures, "sha256": digest.hexdigest()}


# command line


def parse(arguments):
    """Words -> options."""
    command = parser("benchmarks.loading", __doc__, {
        "rows": (1_000_000, 10, "of all parts together"), "items": (100_000, 1, "of the catalogue"),
        "repeats": (1, 1, "of each version"),
    })  # fmt: skip
    command.add_argument("--versions", type=lambda words: words.split(","), default="ours,plain",
                         help=f"of {VERSIONS}, with commas")
    command.add_argument("--folder", type=Path, help="where the files are made and removed again (default: a temporary folder)")
    command.add_argument("--load", nargs=2, help=argparse.SUPPRESS)  # version, folder: runs in its own process
    given = command.parse_args(arguments)
    if unknown := set(given.versions) - set(VERSIONS):
        command.error(f"argument --versions: found {', '.join(unknown)}, expected some of {', '.join(VERSIONS)}")
    return given


def main(arguments=None):
    """Measure, print the table; returns what --json writes."""
    arguments = sys.argv[1:] if arguments is None else list(arguments)
    given = parse(arguments)
    if given.load:
        print(json.dumps(load(given.load[0], Path(given.load[1]))))
        return None
    runs = {version: [] for version in given.versions}
    with tempfile.TemporaryDirectory(dir=given.folder) as folder:
        write_set(Path(folder), given.rows, given.items)
        files = sorted((Path(folder) / "made").iterdir())
        sizes = {path.name: len(path.read_bytes()) for path in files}
        for _ in range(given.repeats):
            for version, found in runs.items():
                command = [sys.executable, "-W", "ignore", "-m", "benchmarks.loading", "--load", version, folder]
                done = subprocess.run(command, cwd=ROOT, check=True, stdout=subprocess.PIPE, text=True)
                found.append(json.loads(done.stdout.splitlines()[-1]))
    if len({run["sha256"] for found in runs.values() for run in found}) != 1:
        raise AssertionError("the versions loaded different tokens or tensors")
    show(given, sizes, runs)
    report = {
        "command": " ".join(["python -m benchmarks.loading", *arguments]), "rows": given.rows, "items": given.items,
        **surroundings(("torch", "numpy", "pandas", "duckdb")), "bytes": sizes, "runs": runs,
    }  # fmt: skip
    write_json(given.json, report)
    return report


def show(given, sizes, runs):
    """Print the table."""
    print(f"{given.rows:,} rows, {given.items:,} items, {sum(sizes.values()) / 1e9:.2f} GB of files; all load the same\n")
    slowest = {key: statistics.median(run[key] for run in runs[given.versions[-1]]) for key in ("seconds", "peak_bytes")}
    rows = []
    for version, found in runs.items():
        of = {key: [run[key] for run in found] for key in ("seconds", "load_seconds", "cpu_seconds", "peak_bytes")}
        ratios = [f"{slowest[key] / statistics.median(of[key]):.2f}" for key in slowest]
        rows.append([version, spread(of["seconds"]), spread(of["load_seconds"]), spread(of["cpu_seconds"]),
                     spread(of["peak_bytes"], 1e-9, 2), *ratios])  # fmt: skip
    last = given.versions[-1]
    print(tabulate(rows, ["version", "s (min..max)", "of it load_dataset", "processor s", "peak GB", f"time {last} to it",
                          f"memory {last} to it"], disable_numparse=True))  # fmt: skip


if __name__ == "__main__":
    main()
