"""What reads four keys of a big file of JSON lines fastest: the figures behind the choice of DuckDB.

    pip install polars && python -m benchmarks.readers --reviews 5000000

The file is that of `benchmarks.dataset`. Each reader gives the user's and the item's id, the rating and the time of every line,
and with them the number of lines, the sum of the times, and the sum of the lengths of the ids, which must be the same. Readers:

- json: `json.loads` line by line, tuples.
- polars: `read_ndjson` on blocks of 8 MB of whole lines, which keeps memory small.
- polars_scan: `scan_ndjson`, polars' own way through a file.
- duckdb: `read_json` into a table in memory, limited to 200 MB as in `dataset_scripts.convert`.

Each in a fresh process, in turn; time and memory as in `benchmarks.dataset`. The file has no malformed lines: polars gives up a
whole block for one of them, DuckDB gives a row of nulls.
"""

import importlib.util
import json
import statistics
import sys
import tempfile
from pathlib import Path

from tabulate import tabulate

from benchmarks.dataset import PACKAGES, measure
from benchmarks.harness import parser, spread, surroundings, write_json
from benchmarks.raw_reviews import SEED, write_raw

KEYS = {"reviewerID": "VARCHAR", "asin": "VARCHAR", "overall": "DOUBLE", "unixReviewTime": "BIGINT"}
READERS = ("json", "polars", "polars_scan", "duckdb")


def read_json(path):
    """Returns [lines, sum of times, sum of lengths of ids], as the others."""
    rows = []
    with open(path, "rb") as lines:
        for line in lines:
            row = json.loads(line)
            rows.append(tuple(row[key] for key in KEYS))
    return [len(rows), sum(row[3] for row in rows), sum(len(row[0]) + len(row[1]) for row in rows)]


def read_polars(path, block=8 << 20):
    import polars

    frames, rest = [], b""
    with open(path, "rb") as file:
        while data := file.read(block):
            cut = data.rfind(b"\n") + 1
            frames.append(polars.read_ndjson(rest + data[:cut], schema=_polars_schema()))
            rest = data[cut:]
    return _of_frame(polars.concat(frames))


def read_polars_scan(path):
    import polars

    return _of_frame(polars.scan_ndjson(path, schema=_polars_schema()).collect(engine="streaming"))


def read_duckdb(path):
    import duckdb

    with tempfile.TemporaryDirectory() as spill, duckdb.connect() as connection:
        connection.execute("SET memory_limit = '200MB'")
        connection.execute(f"SET temp_directory = '{spill}'")
        columns = ", ".join(f"{key}: '{kind}'" for key, kind in KEYS.items())
        options = f"format = 'newline_delimited', ignore_errors = true, columns = {{{columns}}}"
        connection.execute(f"CREATE TABLE reviews AS SELECT * FROM read_json('{path}', {options})")
        query = "SELECT count(*), sum(unixReviewTime), sum(length(reviewerID) + length(asin)) FROM reviews"
        return [int(value) for value in connection.execute(query).fetchone()]


def _polars_schema():
    import polars

    return {key: {"VARCHAR": polars.String, "DOUBLE": polars.Float64, "BIGINT": polars.Int64}[kind] for key, kind in KEYS.items()}


def _of_frame(frame):
    lengths = frame["reviewerID"].str.len_bytes().sum() + frame["asin"].str.len_bytes().sum()
    return [len(frame), int(frame["unixReviewTime"].sum()), int(lengths)]


def main(arguments=None):
    """Make, read, compare, print the table; returns what --json writes."""
    numbers = {"reviews": (5_000_000, 1, "lines"), "repeats": (3, 1, "runs of each reader")}
    given = parser("benchmarks.readers", __doc__, numbers).parse_args(arguments)
    readers = {name: ("benchmarks.readers", f"read_{name}") for name in READERS
               if "polars" not in name or importlib.util.find_spec("polars")}  # fmt: skip
    with tempfile.TemporaryDirectory() as folder:
        path, _ = write_raw(Path(folder), given.reviews, max(given.reviews // 17, 100), malformed=0)
        runs = {name: [] for name in readers}
        for _ in range(given.repeats):
            for name in readers:
                runs[name].append(measure(name, {"path": str(path)}, folder, readers))
        found = {tuple(run["report"]) for each in runs.values() for run in each}
        if len(found) > 1:
            raise AssertionError(f"the readers differ: {found}")
        size = path.stat().st_size
    table, base = [], statistics.median(run["seconds"] for run in runs["duckdb"])
    for name, each in runs.items():
        times = [run["seconds"] for run in each]
        peak = statistics.median(run["peak_bytes"] for run in each)
        middle = statistics.median(times)
        table.append([name, spread(times, digits=2), f"{middle / base:.1f}", f"{peak / 1e6:.0f}"])
    print(f"{given.reviews:,} lines, {size / 1e9:.3f} GB")
    print(tabulate(table, ["reader", "s (min..max)", "to duckdb", "peak MB"], disable_numparse=True))
    words = sys.argv[1:] if arguments is None else arguments
    report = {"command": " ".join(["python -m benchmarks.readers", *words]), "seed": SEED, **surroundings(PACKAGES), "runs": runs}
    write_json(given.json, report)
    return report


if __name__ == "__main__":
    main()
