"""For the tests of the dataset scripts: small logs on disk, tables read from them, and checks of outputs and refusals."""

import gzip
import hashlib
import json
import shutil
from pathlib import Path

import duckdb
import pytest
import zstandard

from dataset_scripts.convert import convert
from dataset_scripts.database import Database
from dataset_scripts.reading import load
from dataset_scripts.sources import recognise
from recbole_flr.errors import DataError

ROOT = Path(__file__).resolve().parents[1]
DAY = 86400
START = 1506816000  # 2017-10-01 UTC
PARTS = ("train.inter", "valid.inter", "test.inter")
KINDS = (*PARTS, "inter", "item")
FILES = (*KINDS, "yaml", "report.json")
DROPPED = "malformed bad_ids bad_times without_title low_rating outside_window repeated below_k".split()
COLUMNS = {"user": "customer", "item": "sku", "time": "bought", "title": "product"}  # of the logs that are not Amazon's
COLUMNS_OPTION = ",".join(f"{role}={column}" for role, column in COLUMNS.items())  # the same for the command line


def pack(data, name):
    """Compresses bytes as the name says: gzip for .gz, zstd for .zst, else not at all."""
    if name.endswith(".gz"):
        return gzip.compress(data, 1)
    return zstandard.compress(data, 1) if name.endswith(".zst") else data


def unpack(path):
    data = Path(path).read_bytes()
    return gzip.decompress(data) if data[:2] == b"\x1f\x8b" else data


def lines(path):
    return unpack(path).decode().removesuffix("\n").split("\n")


def json_lines(rows):
    return "".join(json.dumps(row) + "\n" for row in rows).encode()


def write(path, rows):
    """Writes rows (dicts) as JSON lines, or bytes as they are, compressed as the name says. Returns the path."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(pack(rows if isinstance(rows, bytes) else json_lines(rows), path.name))
    return path


def review(user, item, time, rating=5.0):
    """A review in Amazon's schema of 2018; `time` in seconds."""
    return {"reviewerID": user, "asin": item, "overall": rating, "unixReviewTime": time}


def reviews_of(n_users=6, n_items=6):
    """Reviews of every item by every user, one item a day."""
    return [
        review(f"R{user}", f"B{item}", START + DAY * item)
        for user in range(n_users)
        for item in range(n_items)
    ]


def meta_of(n_items=6):
    return [{"asin": f"B{item}", "title": f"Toy {item}"} for item in range(n_items)]


def simple(folder, n_users=6, n_items=6, suffix=""):
    """Writes files in Amazon's schema; with k <= 6 nothing is dropped, and there are 30 samples. Returns their paths."""
    files = (
        write(folder / f"reviews.json{suffix}", reviews_of(n_users, n_items)),
        write(folder / f"meta.json{suffix}", meta_of(n_items)),
    )
    return files


def shop(n_users=6, n_items=6):
    """The same reviews as rows of a log that is not Amazon's, with the columns customer, sku, bought and product."""
    return [
        {"customer": f"R{user}", "sku": f"B{item}", "bought": START + DAY * item, "product": f"Toy {item}"}
        for user in range(n_users)
        for item in range(n_items)
    ]


GOOD = json_lines(reviews_of())  # a log in Amazon's schema
CSV_GOOD = ["customer,sku,bought,product", *(",".join(map(str, row.values())) for row in shop())]  # lines


def tree(folder):
    """dict: path -> content of everything below a folder; None for folders."""
    return {str(path.relative_to(folder)): path.read_bytes() if path.is_file() else None for path in folder.rglob("*")}


def output(folder, name="s"):
    """dict: kind -> lines of the files of a data set."""
    return {kind: lines(folder / name / f"{name}.{kind}") for kind in KINDS}


def sha256(path):
    return hashlib.sha256(Path(path).read_bytes()).hexdigest()


def check_set(report, out, name="s"):
    """Checks what must be true of every output: all files are there and nothing else, and the report's counts fit them."""
    folder = out / name
    assert sorted(path.name for path in folder.iterdir()) == sorted(f"{name}.{kind}" for kind in FILES)
    assert [path.name for path in out.iterdir()] == [name]
    assert json.loads((folder / f"{name}.report.json").read_bytes()) == {**report, "folder": name}
    assert report["lines"] == report["kept"] + sum(report[key] for key in DROPPED)
    assert report["outputs"] == {f"{name}.{kind}": sha256(folder / f"{name}.{kind}") for kind in FILES[:-1]}
    found = {kind: [line.split("\t") for line in of_kind[1:]] for kind, of_kind in output(out, name).items()}
    heads = {kind: lines(folder / f"{name}.{kind}")[0].split("\t") for kind in KINDS}
    assert all(len(row) == len(heads[kind]) for kind, rows in found.items() for row in rows)
    items, users = [row[0] for row in found["item"]], {row[0] for row in found["inter"]}
    known = set(items)
    assert len(known) == len(items) == report["items"] and known == {row[1] for row in found["inter"]}
    assert (len(users), len(found["inter"])) == (report["users"], report["kept"])
    assert sum(report[part] for part in ("train", "valid", "test")) == report["kept"] - report["users"]
    for part in PARTS:
        assert len(found[part]) == report[part.removesuffix(".inter")]
        for user, history, target, _ in found[part]:
            assert user in users and {*history.split(" "), target} <= known
    times = [float(row[-1]) for part in PARTS for row in found[part]]
    assert report["options"]["split"] != "ratio" or times == sorted(times)
    assert 0 <= len(report["malformed_lines"]) == min(report["malformed"], 5)
    assert report["malformed_lines"] == sorted(set(report["malformed_lines"]))
    assert report["windows"][-1] == [report["start"], report["items"]]
    assert sum(report["k_core_rounds"]) == report["below_k"]
    assert report["density"] == report["kept"] / (report["users"] * report["items"])


# ---- recognised files --------------------------------------------------------------------------------------------------

_SKIPPED = b"\x50\x2a\x4d\x18\x04\0\0\0abcd"  # a skippable frame of zstd, as pzstd writes it
PACKED = {  # how `GOOD` is compressed -> the bytes
    "gzip": gzip.compress(GOOD), "members": gzip.compress(GOOD[:500]) + gzip.compress(b"") + gzip.compress(GOOD[500:]),
    "zstd": zstandard.compress(GOOD),
    "frames": zstandard.compress(GOOD[:500]) + zstandard.compress(b"") + zstandard.compress(GOOD[500:]),
    "skipped": _SKIPPED + zstandard.compress(GOOD) + _SKIPPED,
    "short first member": gzip.compress(GOOD[:3]) + gzip.compress(GOOD[3:]),
    "short first frame": zstandard.compress(GOOD[:3]) + zstandard.compress(GOOD[3:]),
    "checked": zstandard.ZstdCompressor(write_checksum=True, write_content_size=False).compress(GOOD), "none": GOOD,
}  # fmt: skip


def recognised(path, data, **options):
    """Writes a file and returns its Source."""
    path.write_bytes(data)
    source = recognise(path, **options)
    assert source.path == source.readable == path.absolute()
    return source


# ---- tables ------------------------------------------------------------------------------------------------------------


def every_column(rows):
    """SQL of a table with the raw rows as they are; see `dataset_scripts.reading.load`."""
    nothing = "user IS NULL AND item IS NULL AND time IS NULL"
    return f"SELECT CASE WHEN doubtful OR ({nothing}) THEN 1 ELSE 0 END AS state, * FROM {rows}"


def loaded(path, columns, data=None, suffix="", **options):
    """Reads a file into a DuckDB table.

    Args:
        path: the file. `data`, if given, is written into it first, compressed as for a name that ends in `suffix`.
        columns (dict): role -> column.
        options: of `recognise`.

    Returns:
        tuple: the rows, a list of dicts role -> text; and the Lines.
    """
    if data is not None:
        path.write_bytes(pack(data, suffix))
    source = recognise(path, **options)
    with Database(path.parent / "spill") as database:
        lines = load(database, "t", source, columns, every_column)
        n_rejects = 2 if source.format in ("csv", "tsv") else 0  # DuckDB's tables of rejected CSV lines
        assert database.rows("SELECT count(*) FROM duckdb_tables()") == [(1 + n_rejects,)]
        rows = database.rows(f"SELECT {', '.join(columns)} FROM t ORDER BY rowid")
    return [dict(zip(columns, row)) for row in rows], lines


def converted(folder, reviews, out="out", **options):
    """Converts and checks the output. Returns the report, and kind -> lines of the files."""
    report = convert(reviews, "s", folder / out, **{"k": 1, **options})
    check_set(report, folder / out)
    return report, output(folder / out)


def amazon(folder, rows, meta=None, out="out", **options):
    """Converts and checks rows in Amazon's schema of 2018, without sliding."""
    files = write(folder / "reviews.json", rows), write(folder / "meta.json", meta_of() if meta is None else meta)
    return converted(folder, files[0], out, meta=files[1], **{"min_items": 0, **options})


def files_of(folder):
    """The bytes of the files for RecBole: kind -> bytes."""
    return {kind: (folder / "s" / f"s.{kind}").read_bytes() for kind in (*KINDS, "yaml")}


def as_table(rows, separator=",", end="\n", quote='"'):
    """The bytes of a CSV file; every field of a row is quoted unless `quote` is empty."""
    q = quote
    text = [
        separator.join(f"{q}{str(value).replace(q, q + q) if q else value}{q}" for value in row.values()) for row in rows
    ]
    return (end.join([separator.join(rows[0]), *text]) + end).encode()


TABLES = {
    "csv": as_table(shop()), "crlf": as_table(shop(), end="\r\n"), "cr": as_table(shop()).replace(b"\n", b"\r\n", 9),
    "tsv": as_table(shop(), "\t"),
    "semicolon": as_table(shop(), ";"), "pipe": as_table(shop(), "|"), "bare": as_table(shop(), quote=""),
    "bare tsv": as_table(shop(), "\t", quote=""),
    "bom": b"\xef\xbb\xbf" + as_table(shop()), "no end": as_table(shop())[:-1], "jsonl": json_lines(shop()),
    "jsonl crlf": json_lines(shop()).replace(b"\n", b"\r\n"), "jsonl bom": b"\xef\xbb\xbf" + json_lines(shop()),
    "jsonl no end": json_lines(shop())[:-1],
    "pandas": as_table([{"": n, **row} for n, row in enumerate(shop())]),
    "spare names": as_table([{"x": 1, **row, "Sku": 2} for row in shop()]),
}  # fmt: skip


def parquet(path, time="bought", user="customer", item="sku", title="product", more="", where="true"):
    """Writes the shop as a Parquet file. The arguments are SQL over its columns and `n`, the number of the row."""
    rows = ", ".join(
        f"({n}, '{row['customer']}', '{row['sku']}', {row['bought']}, '{row['product']}')" for n, row in enumerate(shop())
    )
    values = f"(SELECT * FROM (VALUES {rows}) AS t(n, customer, sku, bought, product) WHERE {where} ORDER BY n)"
    query = f"SELECT {user} AS customer, {item} AS sku, {time} AS bought, {title} AS product {more} FROM {values}"
    with duckdb.connect() as connection:
        connection.execute("SET TimeZone = 'Asia/Tokyo'")
        connection.execute(f"COPY ({query}) TO '{path}' (FORMAT parquet)")
    return path


# ---- bad input ---------------------------------------------------------------------------------------------------------


def refused(folder, message, reviews, kind=DataError, **options):
    """Checks that a conversion fails with an error of one line, and that nothing is written or changed."""
    before = tree(folder)
    with pytest.raises(kind, match=message) as caught:
        convert(reviews, "s", folder / "out", **{"min_items": 0, "k": 1, **options})
    assert tree(folder) == before
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 2000


def counted(folder, reviews, **options):
    """Converts, checks the output, removes it, and returns the report."""
    before = tree(folder)
    report = convert(reviews, "s", folder / "out", **{"min_items": 0, "k": 1, **options})
    check_set(report, folder / "out")
    shutil.rmtree(folder / "out")
    assert tree(folder) == before  # the inputs are as they were
    return report
