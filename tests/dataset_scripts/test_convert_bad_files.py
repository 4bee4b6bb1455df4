"""Files that are no logs, that lack a column or that are damaged: one clear error, and nothing is written."""

import os
import random
import sys

import pytest
import zstandard
from helpers_convert import (
    COLUMNS, GOOD, START, counted, json_lines, meta_of, pack, refused, reviews_of, shop, simple, write,
)  # fmt: skip

from dataset_scripts.convert import convert
from recbole_flr.errors import DataError

# ---- files that are no logs --------------------------------------------------------------------------------------------

NOISE = random.Random(0).randbytes(50_000)
NO_LOGS = {  # what the file is -> content, message
    "empty": (b"", "reviews is empty; expected JSON lines, CSV, TSV or Parquet"),
    "blank lines": (b"\n \n\t\r\n", "is empty"),
    "empty gzip": (pack(b"", ".gz"), "is empty"),
    "empty zstd": (pack(b"", ".zst"), "is empty"),
    "half a magic number": (b"\x1f", "columns of Amazon's files. Expected reviewerID, asin, unixReviewTime, overall"),
    "two bytes of gzip": (b"\x1f\x8b", "is a broken gzip file"),
    "four bytes of zstd": (b"\x28\xb5\x2f\xfd", "is a broken zstd file"),
    "noise": (NOISE, "no valid line with the columns of Amazon's files"),
    "noise in gzip": (pack(NOISE, ".gz"), "no valid line with the columns of Amazon's files"),
    "noise behind gzip's magic": (b"\x1f\x8b" + NOISE, "is a broken gzip file"),
    "noise behind zstd's magic": (b"\x28\xb5\x2f\xfd" + NOISE, "is a broken zstd file"),
    "noise behind Parquet's magic": (b"PAR1" + NOISE, "is a broken Parquet file"),
    "NUL": (b"\0" * 5000, "no valid line with the columns of Amazon's files"),
    "no object": (b"1\n[2]\n\"three\"\nnull\n", "no valid line with the columns of Amazon's files.* name its columns: --columns"),
    "other keys": (json_lines(shop()),
                   "found customer, sku, bought, product. For any other log, name its columns: --columns user=..,"),
    "the release of 2014": (GOOD.replace(b'"', b"'"), "Python dictionaries, as in Amazon's release of 2014, and not JSON; rewrite them"),
    "UTF-16": (GOOD.decode().encode("utf-16"),
               "is UTF-16 text; expected UTF-8. Convert it: iconv -f UTF-16 -t UTF-8 reviews > new_file"),
    "UTF-16 without mark": (GOOD.decode().encode("utf-16-le"), "is UTF-16 text"),
    "big UTF-16 without mark": (GOOD.decode().encode("utf-16-be"), "is UTF-16 text"),
    "an array": (b"[" + GOOD.replace(b"\n", b",")[:-1] + b"]",
                 r"begins with '\[', a JSON array; expected one JSON object a line. Convert it: jq -c '.\[\]' reviews > new_f"),
    "an array over lines": (b"[\n" + GOOD.replace(b"\n", b",\n")[:-2] + b"\n]\n", r"begins with '\[', a JSON array"),
    "an array of many lines": (b"[\r\n" + GOOD.replace(b"\n", b",\n") * 9 + b"{}\n]\n", r"begins with '\[', a JSON array"),
    "one object over lines": (b'{\n"reviewerID": "R0",\n"asin": "B0"\n}\n', "no JSON object in the first lines"),
    "no valid review": (b'{"reviewerID": "R0", "asin": "B0", "overall": 5, "unixReviewTime": "x"}\nx\n\n',
                        "no valid review among 2 lines; expected lines with reviewerID, asin, overall, unixReviewTime"),
}  # fmt: skip


@pytest.mark.parametrize("what", NO_LOGS)
def test_files_that_are_no_logs(tmp_path, what):
    _, meta = simple(tmp_path)
    content, message = NO_LOGS[what]
    reviews = tmp_path / "reviews"
    reviews.write_bytes(content)
    refused(tmp_path, message, reviews, meta=meta)


@pytest.mark.parametrize("content, message", [
    (b"", "meta.json is empty"), (b"x\n",
                                  "columns of Amazon's files. Expected asin, title .amazon-2018.; found x"),
    (b'{"asin": "B0"}\n', "Expected asin, title"),
    (b'{"asin": null, "title": "Toy"}\n[]\n', "meta.json: no valid line among 2; expected lines with asin and title"),
    (json_lines([{"asin": "B0", "title": "A"}, {"asin": "other", "title": ""}]),
     "none of its 2 lines has a usable title; is this the right file"),
    (json_lines([{"asin": "other", "title": "Fine"}]),
     "none of its 36 reviews is of an item with a usable title; do the two files belong together"),
])  # fmt: skip
def test_bad_metadata(tmp_path, content, message):
    reviews, meta = simple(tmp_path)
    meta.write_bytes(content)
    refused(tmp_path, message, reviews, meta=meta)


def test_files_that_cannot_be_read(tmp_path):
    reviews, meta = simple(tmp_path)
    refused(tmp_path, "cannot read .*nowhere.json: No such file", tmp_path / "nowhere.json", meta=meta)
    refused(tmp_path, "cannot read .*nowhere.json: No such file", reviews, meta=tmp_path / "nowhere.json")
    refused(tmp_path, "cannot read .*: Is a directory", tmp_path, meta=meta)
    refused(tmp_path, "cannot read .*: Is a directory", reviews, meta=tmp_path)
    refused(tmp_path, "cannot read .*: Not a directory", reviews / "x", meta=meta)
    os.mkfifo(tmp_path / "pipe")  # reading it would wait for ever, and it can be read only once
    before = sorted(path.name for path in tmp_path.iterdir())
    with pytest.raises(DataError, match="pipe is not a regular file, but the conversion reads it several times"):
        convert(tmp_path / "pipe", "s", tmp_path / "out", meta=meta)
    assert sorted(path.name for path in tmp_path.iterdir()) == before


@pytest.mark.skipif(sys.platform == "darwin", reason="its file systems take UTF-8 only")
def test_a_name_that_is_not_utf8(tmp_path):
    _, meta = simple(tmp_path)
    path = os.path.join(os.fsencode(tmp_path), b"r\xff.json")
    with open(path, "wb") as out:
        out.write(GOOD)
    with pytest.raises(DataError, match="rename it"):
        convert(os.fsdecode(path), "s", tmp_path / "out", meta=meta, min_items=0)
    assert not (tmp_path / "out").exists()


def test_missing_and_ambiguous_columns(tmp_path):
    log = write(tmp_path / "log.csv", b"customer,sku,sku,Bought,product\nu,a,b,1506816000,Toy\n")
    message = "log.csv has no column 'bought' .time.; its columns are customer, sku, sku, Bought, product"
    refused(tmp_path, message, log, columns=COLUMNS)
    refused(tmp_path, "log.csv has 2 columns 'sku'; rename all but one", log, columns={**COLUMNS, "time": "Bought"})
    wide = write(tmp_path / "wide.csv", ",".join(f"column{number}" for number in range(5000)).encode() + b"\n1\n")
    refused(tmp_path, r"columns are column0, .*, column29 and 4970 more", wide, columns=COLUMNS)
    rows = [{"u": "a", "U": "b", "t": START, "n": "Toy"}]
    columns = {"user": "u", "item": "U", "time": "t", "title": "n"}
    log = write(tmp_path / "log.json", rows)
    refused(tmp_path, "keys 'u' and 'U' of .* differ only in upper and lower case", log, columns=columns)
    csv = write(tmp_path / "case.csv", b"u,U,t,n\n" + b"".join(b"x,y,%d,Toy\n" % (START + n) for n in range(20)))
    assert counted(tmp_path, csv, columns=columns)["kept"] == 20
    upper = write(tmp_path / "upper.json", [{key.upper(): value for key, value in row.items()} for row in shop()])
    refused(
        tmp_path,
        "no column 'customer' .user., 'sku' .item., 'bought' .time.; its columns are CUSTOMER, SKU",
        upper,
        columns=COLUMNS,
    )


# ---- broken compression ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("which", ["reviews", "meta"])
@pytest.mark.parametrize("suffix", [".gz", ".zst"])
def test_a_compressed_file_that_is_cut(tmp_path, suffix, which):
    """The error is the same wherever the file is cut. The content is random, so the file is long enough for several blocks."""
    rng = random.Random(3)
    rows = {"reviews": reviews_of(), "meta": meta_of()}
    for row in rows[which]:
        row["text"] = rng.randbytes(3000).hex()
    files = {name: write(tmp_path / f"{name}.json{suffix}", of_file) for name, of_file in rows.items()}
    whole = files[which].read_bytes()
    assert len(whole) > 15_000
    for cut in [*rng.sample(range(5, len(whole)), 12), len(whole) - 1, len(whole) - 4, len(whole) - 8, 10]:
        files[which].write_bytes(whole[:cut])
        refused(tmp_path, f"{which}.json{suffix} is a broken {'gzip' if suffix == '.gz' else 'zstd'} file", **files)


def test_a_compressed_file_with_a_wrong_byte(tmp_path):
    """The checksum finds it. DuckDB does not look at checksums."""
    checked = zstandard.ZstdCompressor(write_checksum=True).compress(GOOD)
    for name, whole, places in (("gzip", pack(GOOD, ".gz"), range(-8, 0)), ("zstd", checked, range(-4, 0))):
        reviews, meta = simple(tmp_path)
        for place in places:
            packed = bytearray(whole)
            packed[place] ^= 1
            reviews.write_bytes(packed)
            refused(
                tmp_path, f"reviews.json is a broken {name} file .*; fetch it again .{name} -t checks it", reviews, meta=meta
            )
        reviews.write_bytes(whole + b"garbage")
        refused(tmp_path, f"is a broken {name} file", reviews, meta=meta)
