"""Growth of a conversion with the number of reviews: seconds, memory and disk for each review, up to 100 million.

    python -m benchmarks.conversion --sizes 1000000,3000000,10000000,30000000,100000000 --json conversion.json

The raw files are made up (`benchmarks.raw_reviews.write_ratings`): a CSV of ratings, 44 bytes a line, one user for 30 reviews
and one item for 60. Each size is converted in a fresh process, with these options:

- window: 2.5 of the 9.5 years, the 5-core, `--memory-limit` 200MB;
- everything: no window, with `--everything`. Nearly all reviews are kept, which no rule of the published sets does.

Time is wall clock from before the import of the converter; the raw files are in the cache of the operating system if they fit.
Memory is the peak that the process allocated itself (RssAnon, sampled every 20 ms). Disk is the peak of all files that the
conversion makes, those of DuckDB included; beside it stand the estimates of the report.
"""

import shutil
import sys
import tempfile
import time
from pathlib import Path

from tabulate import tabulate

from benchmarks.dataset import PACKAGES, measure
from benchmarks.harness import parser, surroundings, write_json
from benchmarks.raw_reviews import SEED, write_ratings

REVIEWS_AN_ITEM = 60
ENGINES = ("duckdb", "ibis", "spark")
WINDOWS = {"window": {"start": "2015-01-01", "end": "2017-07-01"}, "everything": {"start": None, "end": None}}


def with_duckdb(**arguments):
    """A conversion without an engine."""
    from dataset_scripts.convert import convert

    return convert(**arguments)


def with_ibis(**arguments):
    """A conversion with the expressions of the engine on Ibis' DuckDB, to measure what Ibis costs."""
    import ibis

    from dataset_scripts import engine

    engine.connect = ibis.duckdb.connect
    return with_spark(**arguments)


def with_spark(**arguments):
    """A conversion with PySpark."""
    return with_duckdb(engine="spark", **arguments)


def measure_size(folder, size, window, memory_limit, engine):
    """Makes the raw files of one size in a folder, converts them, and removes all. Returns a dict of figures."""
    raw = Path(folder) / str(size)
    raw.mkdir()
    begin = time.perf_counter()
    reviews, meta = write_ratings(raw, size, max(size // REVIEWS_AN_ITEM, 1))
    made = time.perf_counter() - begin
    out = raw / "out"
    arguments = {"reviews": str(reviews), "name": "made", "out": str(out), "meta": str(meta), "min_items": 0,
                 "memory_limit": memory_limit, **WINDOWS[window]}  # fmt: skip
    found = measure(engine, arguments, raw, out, {name: ("benchmarks.conversion", f"with_{name}") for name in ENGINES})
    report = found.pop("report")
    figures = {key: report[key] for key in ("lines", "kept", "users", "items", "train", "disk_tables", "disk_output", "outputs")}
    result = {"reviews": size, "raw_bytes": reviews.stat().st_size, "seconds_to_make": made, **found, **figures}
    shutil.rmtree(raw)
    return result


def main(arguments=None):
    """Runs the benchmark and prints the table. Returns what --json writes."""
    arguments = sys.argv[1:] if arguments is None else list(arguments)
    command = parser("benchmarks.conversion", __doc__, {})
    sizes = lambda words: [int(word) for word in words.split(",")]
    command.add_argument("--sizes", type=sizes, default="1000000,3000000,10000000", help="numbers of reviews, with commas")
    command.add_argument("--everything", action="store_true", help="keep all reviews that the 5-core keeps; no window")
    command.add_argument("--memory-limit", default="200MB", help="of the conversion (default: 200MB)")
    command.add_argument("--engine", default="duckdb", choices=ENGINES, help="of the conversion; ibis: the expressions for "
                         "spark on DuckDB (default: duckdb)")
    command.add_argument("--folder", type=Path, help="where the files are made and removed again (default: a temporary folder)")
    given = command.parse_args(arguments)
    window = "everything" if given.everything else "window"
    with tempfile.TemporaryDirectory(dir=given.folder) as folder:
        results = []
        for size in given.sizes:
            results.append(measure_size(folder, size, window, given.memory_limit, given.engine))
            show(results)
    report = {"command": " ".join(["python -m benchmarks.conversion", *arguments]), "seed": SEED, **surroundings(PACKAGES),
              "settings": {"engine": given.engine, "memory_limit": given.memory_limit, "window": window},
              "results": results}  # fmt: skip
    write_json(given.json, report)
    return report


def show(results):
    """Print the table of the sizes so far."""
    rows = []
    for one in results:
        size, memory = one["reviews"], one["peak_own_bytes"] or one["peak_bytes"]
        rows.append([f"{size:,}", f"{one['kept']:,}", f"{one['seconds']:.1f}", f"{1e6 * one['seconds'] / size:.2f}",
                     f"{1e6 * one['cpu_seconds'] / size:.2f}", f"{memory / 1e6:.0f}", f"{memory / size:.0f}",
                     f"{one['peak_disk_bytes'] / 1e6:.0f}", f"{one['disk_tables'] / 1e6:.0f}", f"{one['disk_output'] / 1e6:.0f}"])
    headers = ["reviews", "kept", "s", "µs each", "processor µs each", "peak MB", "bytes each", "peak disk MB",
               "tables MB (estimate)", "files MB (estimate)"]  # fmt: skip
    print(tabulate(rows, headers, disable_numparse=True, stralign="right"), "\n", flush=True)


if __name__ == "__main__":
    main()
