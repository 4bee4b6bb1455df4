"""Measures time and peak memory of a conversion to RecBole files: `dataset_scripts.convert` against the obvious converter.

    python -m benchmarks.dataset --json dataset.json
    python -m benchmarks.dataset --growth --sizes 1000000,2000000,5000000
    python -m benchmarks.dataset --small

The raw files come from `benchmarks.raw_reviews`, in Amazon's 2018 schema. The versions are

- obvious: `benchmarks.obvious_dataset`: `json.loads` line by line, tuples and dicts;
- ours: `dataset_scripts.convert`.

Each run is a fresh process. The versions run in turn.

- Time: wall clock in that process, from before the import of the version until its files are written. The raw files are read once
  before, so they are in the cache of the operating system.
- Memory: the peak of the resident memory of the process (VmHWM). It includes mapped files, such as shared libraries. The JSON
  also has the peak of the memory that the process allocated itself (RssAnon, sampled every 20 ms).
- Ratios: obvious to ours. Above 1, ours takes less.

All runs must write the same bytes into the five atomic files, and the same figures into their reports. Otherwise the benchmark
stops with the first difference.
"""

import json
import re
import statistics
import subprocess
import sys
import tempfile
import time
from contextlib import nullcontext, suppress
from itertools import zip_longest
from pathlib import Path

from tabulate import tabulate

from benchmarks.harness import ROOT, parser, spread, surroundings, write_json
from benchmarks.raw_reviews import SEED, write_raw

PACKAGES = ("duckdb", "numpy", "zstandard")
VERSIONS = {"obvious": ("benchmarks.obvious_dataset", "obvious"), "ours": ("dataset_scripts.convert", "convert")}
KINDS = ("train.inter", "valid.inter", "test.inter", "inter", "item")
FIGURES = (  # of the report
    "lines malformed malformed_lines bad_ids escaped_ids bad_times without_title low_rating outside_window repeated below_k "
    "k_core_rounds kept windows start end first last users items distinct_titles items_sharing_title density train valid test "
    "meta meta_malformed inputs"
).split()
ITEMS_WANTED = 60  # one item in 60 must remain: 5,000 of 300,000, as published. At small sizes the start moves back for them
CHILD = """
import sys
from time import perf_counter
begin = perf_counter()
import importlib, json, re, resource
module, function, arguments, result = sys.argv[1:]
report = getattr(importlib.import_module(module), function)(**json.loads(arguments))
seconds = perf_counter() - begin
usage = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
try:  # on Linux, ru_maxrss begins with the value of the parent process
    peak = int(re.search(r"VmHWM:\\s+(\\d+) kB", open("/proc/self/status").read())[1]) * 1024
except OSError:
    peak = usage[0].ru_maxrss * (1 if sys.platform == "darwin" else 1024)
cpu = sum(one.ru_utime + one.ru_stime for one in usage)
with open(result, "w") as handle:
    json.dump({"seconds": seconds, "cpu_seconds": cpu, "peak_bytes": peak, "report": report}, handle)
"""


# measures


def measure(version, arguments, folder, disk=None, versions=VERSIONS):
    """Runs one version in a fresh process.

    Args:
        version: a key of `versions`.
        arguments (dict): keyword arguments of the version, without objects that JSON cannot hold.
        folder: for a temporary file.
        disk: Path of a folder whose size is watched, or None.
        versions (dict): name -> module and function.

    Returns:
        dict: `seconds`, `cpu_seconds`, `peak_bytes`, `peak_own_bytes` (None where /proc is missing), `peak_disk_bytes` of the
        folder `disk`, and the version's `report`.

    Raises:
        RuntimeError: the process failed.
    """
    result = Path(folder) / "result.json"
    process = subprocess.Popen([sys.executable, "-c", CHILD, *versions[version], json.dumps(arguments), result], cwd=ROOT)
    own = on_disk = 0
    while process.poll() is None:
        try:
            found = re.search(r"RssAnon:\s+(\d+) kB", Path(f"/proc/{process.pid}/status").read_text())
            own = max(own, int(found[1]) * 1024 if found else 0)
            on_disk = max(on_disk, _size(disk)) if disk else 0
        except OSError:
            pass
        time.sleep(0.02)
    if process.returncode:
        raise RuntimeError(f"{version!r} ended with status {process.returncode}; its message is above")
    return {**json.loads(result.read_text()), "peak_own_bytes": own or None, "peak_disk_bytes": on_disk}


def _size(folder):
    """Bytes that the files below a folder take on disk. Files may vanish meanwhile."""
    found = 0
    for path in Path(folder).rglob("*"):
        with suppress(OSError):
            found += path.stat().st_blocks * 512
    return found


def check_equal(version, report, folder, expected, expected_folder):
    """Compares the files and figures of a run with those of the first run.

    Raises:
        AssertionError: they differ; the message names the first difference.
    """
    for kind in KINDS:
        found, wanted = (Path(one) / f"made.{kind}" for one in (folder, expected_folder))
        if found.read_bytes() != wanted.read_bytes():
            lines = zip_longest(*(path.read_bytes().split(b"\n") for path in (found, wanted)))
            number, (line, other) = next((number, pair) for number, pair in enumerate(lines, start=1) if pair[0] != pair[1])
            raise AssertionError(f"made.{kind} of {version!r}, line {number}: found {line}, expected {other}")
    for key in FIGURES:
        if report.get(key) != expected[key]:
            raise AssertionError(f"{key} of {version!r}: found {report.get(key)!r}, expected {expected[key]!r}")


def compare(given, folder, n_reviews, n_items, versions):
    """Makes the raw files of one size, runs the versions in turn, and compares what they write.

    Returns:
        dict: sizes, the figures of the report, and `runs`: version -> list of runs.
    """
    raw = Path(folder) / f"raw-{n_reviews}"
    raw.mkdir(parents=True, exist_ok=True)
    begin = time.perf_counter()
    reviews, meta = write_raw(raw, n_reviews, n_items, given.compression)
    made = time.perf_counter() - begin
    for path in (reviews, meta):
        with open(path, "rb") as handle:
            while handle.read(2**24):
                pass
    sizes = {"raw_bytes": reviews.stat().st_size, "meta_bytes": meta.stat().st_size, "making_seconds": made}
    found = {"reviews": n_reviews, "items": n_items, **sizes, "runs": {version: [] for version in versions}}
    for number in range(given.repeats):
        for version in versions:
            out = Path(folder) / f"{version}-{n_reviews}"
            arguments = {"reviews": str(reviews), "meta": str(meta), "name": "made", "out": str(out)}
            run = measure(version, {**arguments, "min_items": max(n_items // ITEMS_WANTED, 1)}, folder)
            report = run.pop("report")
            if not number and version == versions[0]:
                expected, expected_folder = report, out / "made"
                found["figures"] = {key: report[key] for key in FIGURES}
            check_equal(version, report, out / "made", expected, expected_folder)
            found["runs"][version].append(run)
    return found


def summary(found):
    """The figures of one size: version -> values of all runs, medians, and ratios to ours."""
    of = {version: {key: [run[key] for run in runs] for key in ("seconds", "cpu_seconds", "peak_bytes", "peak_own_bytes")}
          for version, runs in found["runs"].items()}  # fmt: skip
    for one in of.values():
        one.update({f"median_{key}": statistics.median(values) for key, values in list(one.items()) if None not in values})
    for one in of.values():
        one["time_ratio"] = one["median_seconds"] / of["ours"]["median_seconds"]
        one["memory_ratio"] = one["median_peak_bytes"] / of["ours"]["median_peak_bytes"]
    return of


# command line


def parse(arguments):
    """The options on the command line."""
    numbers = {  # default, least, meaning
        "reviews": (5_000_000, 1000, "lines of reviews"), "items": (300_000, 100, "items of the catalogue"),
        "repeats": (1, 1, "runs of each version"),
    }  # fmt: skip
    command = parser("benchmarks.dataset", __doc__, numbers)
    command.add_argument("--small", action="store_true", help="20,000 reviews of 2,000 items; takes seconds")
    command.add_argument("--growth", action="store_true", help="also run ours at --sizes")
    command.add_argument("--sizes", default="1000000,2000000,5000000",
                         help="numbers of reviews for --growth; the reviews per item stay the same")
    command.add_argument("--compression", choices=("none", "gz", "zst"), default="none", help="of the raw files")
    command.add_argument("--out", type=Path, help="folder that keeps all files (default: they are deleted)")
    given = command.parse_args(arguments)
    if given.small:
        given.reviews, given.items = 20_000, 2_000
    try:
        given.sizes = [int(size) for size in given.sizes.split(",")]
    except ValueError:
        command.error(f"--sizes: found {given.sizes}, expected whole numbers with commas between them")
    return given


def main(arguments=None):
    """Runs the benchmark and prints the tables. Returns what --json writes."""
    arguments = sys.argv[1:] if arguments is None else list(arguments)
    given = parse(arguments)
    with nullcontext(given.out.resolve()) if given.out else tempfile.TemporaryDirectory() as folder:
        found = compare(given, folder, given.reviews, given.items, list(VERSIONS))
        results = [{**found, "summary": summary(found)}]
        of = results[0]["summary"]
        times = lambda one: spread(one["seconds"])
        megabytes = lambda one: f"{one['median_peak_bytes'] / 1e6:.0f}"
        rows = [[f"{found['raw_bytes'] / 1e9:.3f}", f"{given.reviews:,}", f"{found['figures']['kept']:,}",
                 *(show(of[version]) for version in VERSIONS for show in (times, megabytes)),
                 f"{of['obvious']['time_ratio']:.2f}", f"{of['obvious']['memory_ratio']:.2f}"]]  # fmt: skip
        headers = ["GB", "reviews", "kept", *(head for version in VERSIONS for head in (f"{version} s (min..max)", "peak MB")),
                   "time ratio", "memory ratio"]  # fmt: skip
        print(tabulate(rows, headers, disable_numparse=True, stralign="right"))
        print("The files are the same, byte for byte, and so are the figures of the reports.")
        growth = []
        for size in given.sizes if given.growth else []:
            if size != given.reviews:
                found = compare(given, folder, size, given.items * size // given.reviews, ["ours"])
            else:
                found = results[0]
            one = summary({"runs": {"ours": found["runs"]["ours"]}})["ours"]
            growth.append({"reviews": size, "kept": found["figures"]["kept"], "raw_bytes": found["raw_bytes"], **one})
            for key in ("seconds", "peak_bytes"):  # per review, relative to the smallest size
                each = [row[f"median_{key}"] / row["reviews"] for row in growth]
                growth[-1][f"{key}_each_ratio"] = each[-1] / each[0]
        if growth:
            rows = [[f"{one['reviews']:,}", f"{one['kept']:,}", times(one), megabytes(one), f"{one['seconds_each_ratio']:.2f}",
                     f"{one['peak_bytes_each_ratio']:.2f}"] for one in growth]  # fmt: skip
            headers = ["reviews", "kept", "ours s (min..max)", "peak MB", "time each, to first", "memory each, to first"]
            print(tabulate(rows, headers, disable_numparse=True, stralign="right"))
    settings = {name: value for name, value in vars(given).items() if name not in ("json", "out")}
    command = " ".join(["python -m benchmarks.dataset", *arguments])
    report = {"command": command, "settings": settings, "seed": SEED, **surroundings(PACKAGES)}
    report.update(results=results, growth=growth)
    write_json(given.json, report)
    return report


if __name__ == "__main__":
    main()
