"""Bad input: either the right output and a count, or one clear error; never half an output."""

import errno
import os
import random
import shutil
import subprocess
import sys

import pytest
import zstandard
from helpers_convert import (
    COLUMNS, COLUMNS_OPTION, FILES, ROOT, START, check_set, json_lines, meta_of, output, pack, reviews_of, shop, simple, tree,
    write,
)  # fmt: skip

from dataset_scripts import output as output_module
from dataset_scripts import writing
from dataset_scripts.convert import convert, main
from recbole_flr.errors import ConfigError, DataError

GOOD = json_lines(reviews_of())


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
    "the release of 2014": (GOOD.replace(b'"', b"'"), "no valid line with the columns of Amazon's files"),
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


# ---- broken lines ------------------------------------------------------------------------------------------------------

OK_REVIEW = {"reviewerID": "R0", "asin": "B0", "overall": 5.0, "unixReviewTime": START}
BROKEN_LINES = [
    b"{'reviewerID': 'R0'}", b'{"reviewerID": "R0"', b"[1, 2]", b"7", b'"text"', b"null", b"{}", b"[" * 100_000,
    b'{"a": ' * 5000, b"\xff\xfe", b"\0", b"\0\0\0",
    b"\x1c", "\u00a0".encode(), b"\xef\xbb\xbf", GOOD.split(b"\n")[0][:40], GOOD.split(b"\n")[0] * 2,
    GOOD.split(b"\n")[0] + b"x",
    GOOD.split(b"\n")[0].replace(b"R0", b"R\xff"), GOOD.split(b"\n")[0].replace(b"R0", b"R\t0"), b"9" * 5000,
    b'{"reviewerID": "R0", "asin": ' + b"9" * 99 + b"}",
    *(json_lines([{**OK_REVIEW, key: value}])[:-1] for key, values in {
        "reviewerID": [None, "", [], {}, ["R0"], {"a": 1}, "half \ud800", "\udc00"],
        "asin": [None, "", ["B0"], {"a": []}, "\ud83d"],
        "overall": ["good", "", None, float("nan"), float("inf"), "inf", True, [5], {}, "5,0", "0x5"],
        "unixReviewTime": [None, "", True, "today", "now", "2017-13-01", "2017-02-30", "12:00", float("inf"), "nan", [START],
                           {"a": 1}, "1,5"],
    }.items() for value in values),
    *(json_lines([{key: value for key, value in OK_REVIEW.items() if key != missing}])[:-1] for missing in OK_REVIEW),
]  # fmt: skip


def between(good, lines):
    """Puts up to five lines between good ones: one at the beginning, two side by side, two near and at the end.

    Returns all lines, and the numbers (from 1) of those that were put in.
    """
    rows, places = list(good), [0, 7, 8, len(good) - 2, len(good)]
    for added, (place, line) in enumerate(zip(places, lines)):
        rows.insert(place + added, line)
    return rows, [place + added + 1 for added, place in enumerate(places[: len(lines)])]


@pytest.mark.parametrize("suffix", ["", ".gz"])
def test_broken_lines_of_json(tmp_path, suffix):
    """Five at a time, because the report gives five numbers; then all together."""
    _, meta = simple(tmp_path)
    good = GOOD.removesuffix(b"\n").split(b"\n")
    reviews = tmp_path / f"r.json{suffix}"
    for begin in range(0, len(BROKEN_LINES), 5):
        rows, numbers = between(good, BROKEN_LINES[begin : begin + 5])
        report = counted(tmp_path, write(reviews, b"\n".join(rows)), meta=meta)
        found = report["malformed_lines"], report["malformed"], report["kept"]
        assert found == (numbers, len(numbers), 36), BROKEN_LINES[begin : begin + 5]
    write(reviews, b"\n".join([*good[:3], b"", *BROKEN_LINES, *good[3:]]))
    report = counted(tmp_path, reviews, meta=meta)
    assert (report["malformed"], report["malformed_lines"], report["kept"]) == (len(BROKEN_LINES), [5, 6, 7, 8, 9], 36)


def test_lines_that_are_read_all_the_same(tmp_path):
    """Lines that Python's json accepts but DuckDB does not; white space; keys in any order; surplus keys."""
    first = GOOD.split(b"\n")[0]
    fine = [
        first[:-1] + b', "z": NaN, "y": -Infinity}', first[:-1] + b', "z": "\\ud800"}', b"  " + first + b" \t\r",
        first[:-1] + b', "z": "\\u0000"}',
        json_lines([dict(reversed(OK_REVIEW.items()))])[:-1], first[:-1] + b', "z": ' + b"[" * 500 + b"]" * 500 + b"}",
        first.replace(b'"R0"', b'"\\u00520"'),
        json_lines([{**OK_REVIEW, "overall": " 5 ", "unixReviewTime": f"{START}"}])[:-1],
        first[:-1] + b', "z": {"reviewerID": "other"}}',
    ]  # fmt: skip
    _, meta = simple(tmp_path)
    reviews = write(tmp_path / "r.json", GOOD + b"\n".join(fine))
    report = counted(tmp_path, reviews, meta=meta)
    assert (report["malformed"], report["kept"], report["users"]) == (0, 36 + len(fine), 6)


def test_many_lines_that_need_a_second_look(tmp_path):
    """More lines than one batch holds."""
    rows = [{**row, "z": "half \ud83d"} for row in reviews_of(6, 6) * 700]
    reviews, meta = write(tmp_path / "r.json", rows), simple(tmp_path)[1]
    broken = [7, 20_000]
    lines = json_lines(rows).split(b"\n")
    for place in broken:
        lines[place] = b"{"
    reviews.write_bytes(b"\n".join(lines))
    report = counted(tmp_path, reviews, meta=meta)
    assert (report["lines"], report["malformed_lines"], report["users"]) == (25_200, [8, 20_001], 6)


CSV_LINES = {  # line -> whether it is malformed
    "x": True, "a,b,c": True, f"R0,B0,{START},Toy,more": True, ",,,": True, f",B0,{START},Toy": True,
             f"R0,,{START},Toy": True, "R0,B0,,Toy": True,
    "R0,B0,soon,Toy": True, "\0": True, '""': True, f'R0,B0,{START},"x" y,z': True, '"': True,
    f"R0,B0,{START},": False, f"R0,B0,{START},Toy,": False, f'"R0","B0","{START}","a ""b"" c"': False,
             f'R0,B0,{START},a "b" c': False,
    f"R0,B0,{START},nul\0": False, f"R\0,B0,{START},Toy": False, f"\x01,B0,{START},Toy": False,
             f'R0,B0,{START},"two\nlines"': False,
    f'R0,B0,{START},"lone\rCR"': False, f'R0,B0,{START},"half" quoted': False, f"R0,B0, {START} ,Toy": False,
             f"{'R' * 200_000},B0,{START},Toy": False,
}  # fmt: skip
CSV_GOOD = ["customer,sku,bought,product", *(",".join(map(str, row.values())) for row in shop())]


@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_broken_lines_of_csv(tmp_path, end):
    """Five malformed lines at a time, because the report gives five numbers. Valid lines one at a time."""
    lines = {line: bad for line, bad in CSV_LINES.items() if line != '"' and (end == "\n" or "\n" not in line)}
    broken = [line for line, bad in lines.items() if bad]
    groups = [(broken[begin : begin + 5], True) for begin in range(0, len(broken), 5)]
    groups += [([line], False) for line, bad in lines.items() if not bad]
    for group, bad in groups:
        rows, numbers = between(CSV_GOOD[1:], group)
        report = counted(tmp_path, write(tmp_path / "log.csv", end.join([CSV_GOOD[0], *rows]).encode()), columns=COLUMNS)
        assert report["malformed_lines"] == [number + 1 for number in numbers] * bad, group
        assert (report["lines"], report["kept"]) == (36 + len(group), 36 + len(group) * (not bad))


@pytest.mark.parametrize("suffix", ["", ".gz"])
def test_bytes_of_csv_that_are_not_utf8(tmp_path, suffix):
    lines = [line.encode() for line in CSV_GOOD]
    lines[5] = lines[5].replace(b"R", b"\xe9")
    lines[9] = lines[9].replace(b"B", b"\xc3")
    log = write(tmp_path / f"log.csv{suffix}", b"\n".join(lines))
    report = counted(tmp_path, log, columns=COLUMNS)
    assert (report["malformed_lines"], report["lines"]) == ([6, 10], 36)


def test_quotes_that_do_not_pair_up(tmp_path):
    """An open quote takes the following lines into its field. No record is lost."""
    begin, end = "\n".join(CSV_GOOD[:10]), "\n".join(CSV_GOOD[10:])
    unclosed = f'R0,B0,{START},"Toy'
    report = counted(tmp_path, write(tmp_path / "log.csv", f"{begin}\n{unclosed}\n{end}\n".encode()), columns=COLUMNS)
    assert (report["lines"], report["kept"], report["malformed"]) == (10, 10, 0)  # the last title goes on to the end of the file
    report = counted(
        tmp_path, write(tmp_path / "log.csv", f"{begin}\n{unclosed}\n{end}\n".encode()), columns=COLUMNS, quote=""
    )
    assert (report["lines"], report["kept"]) == (37, 37)
    twice = f"{begin}\n{unclosed}\n{CSV_GOOD[10]}\n{unclosed}\n" + "\n".join(CSV_GOOD[11:])
    report = counted(tmp_path, write(tmp_path / "log.csv", twice.encode()), columns=COLUMNS)
    assert (report["lines"], report["kept"]) == (9 + 1 + 26, 36)
    inches = f'R0,B0,{START},Toy 5"'
    report = counted(tmp_path, write(tmp_path / "log.csv", f"{begin}\n{inches}\n{end}\n".encode()), columns=COLUMNS)
    assert (report["lines"], report["kept"]) == (37, 37)
    big = "\n".join(f"R{n % 6},B{n % 5},{START + n},Toy" for n in range(850_000))
    log = write(tmp_path / "log.csv", f"{begin}\n{unclosed}\n{big}\n".encode())
    assert log.stat().st_size > 17e6
    refused(
        tmp_path, "log.csv: field larger than field limit .* is a quote not closed.* say --quote ''", log, columns=COLUMNS
    )


def test_lines_that_quotes_join_are_told(tmp_path, caplog):
    """The report counts records. A warning says that there are fewer records than lines."""
    lines = [*CSV_GOOD[:10], f'R0,B0,{START},"Toy', *CSV_GOOD[10:15], f'R0,B0,{START},"Toy', *CSV_GOOD[15:]]
    report = counted(tmp_path, write(tmp_path / "log.csv", "\n".join(lines).encode()), columns=COLUMNS)
    assert report["lines"] == len(lines) - 1 - 6
    assert "quotes join 7 lines into 1 records, the first from line 11 on; is a quote not closed?" in caplog.text
    caplog.clear()
    counted(tmp_path, write(tmp_path / "log.csv", "\n".join(lines).encode()), columns=COLUMNS, quote="")
    text = "\r\n".join(CSV_GOOD[:5]) + "\n" + "\n".join(CSV_GOOD[5:])
    counted(tmp_path, write(tmp_path / "log.csv", text.encode()), columns=COLUMNS)
    assert "quotes join" not in caplog.text


def test_line_ends_of_several_kinds(tmp_path):
    """DuckDB's reader stops at them. Line numbers are still those of the file."""
    for ends in (["\n", "\r\n"], ["\r\n", "\n"], ["\n", "\r"], ["\r\n", "\n", "\r"]):
        for quote in ('"', ""):
            lines = [*CSV_GOOD[:4], "\t", "short,line", *CSV_GOOD[4:8], "  ", f"R0,B0,x,{quote}Toy{quote}", *CSV_GOOD[8:]]
            text = "".join(line + ends[number % len(ends)] for number, line in enumerate(lines))
            report = counted(tmp_path, write(tmp_path / "log.csv", text.encode()), columns=COLUMNS, quote=quote)
            assert (report["lines"], report["malformed_lines"]) == (38, [6, 12])


@pytest.mark.parametrize("megabytes, place", [(12, 0), (3, 18), (12, 36)])
def test_a_line_of_many_megabytes(tmp_path, megabytes, place):
    text = b"a" * (megabytes << 20)
    _, meta = simple(tmp_path)
    good = GOOD.removesuffix(b"\n").split(b"\n")
    for line, kept in (
        (b"\xff" * len(text), 36),
        (b'{"x": "' + text + b'"}', 36),
        (good[0][:-1] + b', "x": "' + text + b'"}', 37),
    ):
        report = counted(tmp_path, write(tmp_path / "r.json", b"\n".join([*good[:place], line, *good[place:]])), meta=meta)
        assert (report["kept"], report["malformed_lines"]) == (kept, [place + 1] * (kept == 36))
    rows = [line.encode() for line in CSV_GOOD]
    for line, kept in (
        (text, 36),
        (f"R0,B0,{START},".encode() + text, 37),
        (f'R0,B0,{START},"'.encode() + text + b'\n"', 37),
    ):
        report = counted(
            tmp_path,
            write(tmp_path / "log.csv", b"\n".join([*rows[: place + 1], line, *rows[place + 1 :]])),
            columns=COLUMNS,
        )
        assert (report["kept"], report["malformed_lines"]) == (kept, [place + 2] * (kept == 36))


def test_a_line_that_is_too_long(tmp_path):
    reviews, meta = simple(tmp_path)
    reviews.write_bytes(GOOD + b'{"x": "' + b"a" * (40 << 20) + b'"}\n' + GOOD)
    refused(tmp_path, "reviews.json has a line of more than 16 MB; expected one JSON object a line", reviews, meta=meta)
    log = write(
        tmp_path / "log.csv", "\n".join([*CSV_GOOD[:9], "R0,B0," + "a" * (40 << 20) + ",Toy", *CSV_GOOD[9:], "x"]).encode()
    )
    report = counted(tmp_path, log, columns=COLUMNS)
    assert (report["malformed_lines"], report["kept"]) == ([10, 39], 36)


def test_an_id_that_is_too_long(tmp_path):
    """In memory each id takes as many bytes as the longest. One long id is fine, but not gigabytes of them."""
    rows = [{**row, "customer": row["customer"] + "x" * (1 << 20) * (row["customer"] == "R0")} for row in shop(2100, 2)]
    assert counted(tmp_path, write(tmp_path / "log.json", rows[:60]), columns=COLUMNS)["kept"] == 60
    message = "an id has 1,048,578 bytes, too many beside 2,100 others; it begins with b'R0xxx"
    refused(tmp_path, message, write(tmp_path / "log.json", rows), columns=COLUMNS)


# ---- values ------------------------------------------------------------------------------------------------------------


def test_ids_that_recbole_cannot_read(tmp_path):
    from urllib.parse import unquote

    ids = ["two words", "tab\tid", "new\nline", "cr\rid", 'quo"te', "\u3000", "\x00", "\x7f", "%41", "\u2028"]
    words = ["[PAD]", "NA", "nan", "null", "None", "#N/A", "-1.#IND", "<NA>"]
    rows = [{**OK_REVIEW, "reviewerID": text, "asin": item} for text in [*ids, *words] for item in ("B0", "B1")]
    rows += [{**OK_REVIEW, "reviewerID": user, "asin": text} for text in [*ids, *words] for user in ("R0", "R1")]
    reviews = write(tmp_path / "r.json", rows)
    meta = write(tmp_path / "m.json", [{"asin": text, "title": f"Toy {text}"} for text in ["B0", "B1", *ids, *words]])
    before = tree(tmp_path)
    report = convert(reviews, "s", tmp_path / "out", meta=meta, k=1, min_items=0)
    check_set(report, tmp_path / "out")
    assert (report["bad_ids"], report["malformed"], report["escaped_ids"], report["kept"]) == (32, 0, 20, 40)
    found = output(tmp_path / "out")
    assert [unquote(line.split("\t")[0]) for line in found["inter"][1:21:2]] == ids
    assert [unquote(line.split("\t")[0]) for line in found["item"][1:]] == ["B0", "B1", *ids]
    assert {path: content for path, content in tree(tmp_path).items() if not path.startswith("out")} == before


def test_a_core_that_leaves_nothing(tmp_path):
    reviews, meta = simple(tmp_path)
    message = "nothing remains of 36 reviews from 2017-10-01 to 2018-11-01 in the 7-core; lower --k or widen the window"
    refused(tmp_path, message, reviews, meta=meta, k=7)
    refused(tmp_path, "nothing remains of 0 reviews from 2018-10-01", reviews, meta=meta, start="2018-10-01")
    refused(tmp_path, "6 items remain even from 1996-07-01, fewer than the 7 wanted", reviews, meta=meta, min_items=7)
    refused(
        tmp_path,
        "nothing remains of 36 reviews from - to - in the 7-core",
        write(tmp_path / "log", shop()),
        columns=COLUMNS,
        k=7,
    )
    reviews, meta = simple(tmp_path, n_users=2, n_items=2)
    refused(tmp_path, "only 2 samples remain, too few for a valid part", reviews, meta=meta)
    reviews, meta = simple(tmp_path, n_users=2, n_items=1)
    refused(tmp_path, "only 0 samples remain, too few for a train part", reviews, meta=meta)


# ---- the place of the output -------------------------------------------------------------------------------------------


def test_an_input_is_not_written_over(tmp_path):
    reviews, meta = simple(tmp_path)
    (tmp_path / "out" / "s").mkdir(parents=True)
    inside = reviews.rename(tmp_path / "out" / "s" / "s.inter")
    refused(tmp_path, "overwritten", inside, ConfigError, meta=meta)
    link = tmp_path / "link"
    link.symlink_to(inside)
    refused(tmp_path, "overwritten", link, ConfigError, meta=meta)
    refused(tmp_path, "overwritten", link, ConfigError, columns=COLUMNS)
    refused(tmp_path, "overwritten", meta, ConfigError, meta=link)


def test_another_set_is_replaced_as_a_whole_and_other_files_stay(tmp_path):
    reviews, meta = simple(tmp_path)
    convert(reviews, "s", tmp_path / "out", meta=meta, min_items=0, k=1)
    convert(reviews, "s", tmp_path / "fresh", meta=meta, min_items=0, k=2, max_history=1)
    (tmp_path / "out" / "s" / "notes.txt").write_text("mine")
    convert(reviews, "s", tmp_path / "out", meta=meta, min_items=0, k=2, max_history=1)
    assert tree(tmp_path / "out") == {**tree(tmp_path / "fresh"), "s/notes.txt": b"mine"}
    refused(tmp_path, "nothing remains", reviews, meta=meta, k=9)


def test_a_file_in_the_place_of_a_folder(tmp_path):
    reviews, meta = simple(tmp_path)
    (tmp_path / "file").write_text("x")
    before = tree(tmp_path)
    for out in (tmp_path / "file", tmp_path / "file" / "deep"):
        with pytest.raises(DataError, match="file"):
            convert(reviews, "s", out, meta=meta, min_items=0)
    with pytest.raises(DataError, match="is a file, but a folder has to be written there"):
        convert(reviews, "file", tmp_path, meta=meta, min_items=0)
    with pytest.raises(DataError, match="cannot write .*File name too long"):
        convert(reviews, "x" * 300, tmp_path, meta=meta, min_items=0)
    assert tree(tmp_path) == before


@pytest.mark.parametrize("at", range(len(FILES)))
def test_a_full_disk_while_writing(tmp_path, monkeypatch, at):
    """The disk may be full at any of the files."""
    reviews, meta = simple(tmp_path)
    written, write_one = [], writing._Hashed.write

    def full(self, data):
        written.append(self._file.name)
        if len(dict.fromkeys(written)) > at:
            self._file.write(data[: len(data) // 2])
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        write_one(self, data)

    monkeypatch.setattr(writing._Hashed, "write", full)
    refused(
        tmp_path, r"cannot write .*s: No space left on device; nothing was changed. Choose another --out", reviews, meta=meta
    )
    assert len(dict.fromkeys(written)) == at + 1


def test_a_failure_of_ours_leaves_nothing_either(tmp_path, monkeypatch):
    reviews, meta = simple(tmp_path)
    monkeypatch.setattr(output_module, "write_lines", lambda *_: 1 / 0)  # the item file is the last but two of all files
    before = tree(tmp_path)
    with pytest.raises(ZeroDivisionError):
        convert(reviews, "s", tmp_path / "deep" / "out", meta=meta, min_items=0)
    assert tree(tmp_path) == before


# ---- in a process of its own -------------------------------------------------------------------------------------------


def cli(*arguments, prelude="", **options):
    """Runs `python -m dataset_scripts.convert` in a new process, after some lines of Python (`prelude`)."""
    code = f"{prelude}\nimport sys\nfrom dataset_scripts.convert import main\nsys.exit(main(sys.argv[1:]))"
    return subprocess.run(
        [sys.executable, "-c", code, *map(str, arguments)], cwd=ROOT, capture_output=True, text=True, **options
    )


def failed(done, message):
    """Checks that a process ended with status 2, and what it printed."""
    assert done.returncode == 2, done.stderr
    one_line(done.stdout, done.stderr, message)


def one_line(out, err, message):
    """Checks for one line `error: ...` at the end of stderr, and nothing else but the log and the table: no traceback."""
    assert out == ""
    *log, last = err.splitlines()
    assert last.startswith("error: ") and message in last
    assert [line for line in log if not line.startswith(("window ", "lines ", "- ", "metadata lines "))] == []


@pytest.mark.parametrize("what, message", [
    ("k", "nothing remains of 36 reviews"), ("gzip", "reviews.json is a broken gzip file"),
    ("columns", "has no column 'c' (user)"),
    ("name", "name is 'a b'"), ("out", "is a file, but a folder"), ("line", "a\\nb.json: No such file"),
])  # fmt: skip
def test_the_command_line_says_it_in_one_line(tmp_path, capsys, what, message):
    reviews, meta = simple(tmp_path)
    words = {"--reviews": reviews, "--meta": meta, "--name": "s", "--out": tmp_path / "out", "--min-items": 0}
    if what == "k":
        words["--k"] = 7
    elif what == "gzip":
        reviews.write_bytes(pack(GOOD, ".gz")[:-9])
    elif what == "columns":
        words["--columns"] = "user=c,item=asin,time=unixReviewTime,title=asin"
    elif what == "name":
        words["--name"] = "a b"
    elif what == "out":
        (tmp_path / "out").mkdir()
        (tmp_path / "out" / "s").write_text("x")
    else:
        words["--reviews"], message = tmp_path / "a\nb.json", "a b.json: No such file"
    before = tree(tmp_path)
    words = [str(word) for pair in words.items() for word in pair]
    if what == "k":  # one of them in a process of its own
        failed(cli(*words), message)
    else:
        assert main(words) == 2
        one_line(*capsys.readouterr(), message)
    assert tree(tmp_path) == before


LIMIT = "import resource, signal; resource.setrlimit(resource.RLIMIT_FSIZE, ({0}, {0}))"


def test_no_space_for_the_files(tmp_path):
    """For Python and DuckDB, a limit on the size of files is like a full disk."""
    reviews = write(tmp_path / "r.json.gz", reviews_of(300, 30))
    meta = write(tmp_path / "m.json", meta_of(30))
    before = tree(tmp_path)
    words = ("--reviews", reviews, "--meta", meta, "--name", "s", "--out", tmp_path / "deep" / "out", "--min-items", 0)
    failed(cli(*words, prelude=LIMIT.format(100_000)), "cannot write")
    assert tree(tmp_path) == before
    done = cli(*words, prelude=LIMIT.format(100_000_000))
    assert done.returncode == 0, done.stderr


def test_no_space_for_what_does_not_fit_into_memory(tmp_path):
    """Long random names make a table that has to go to disk."""
    names = [random.Random(number).randbytes(500).hex() for number in range(45_000)]
    log = write(tmp_path / "log.json", [{**row, "customer": name} for row, name in zip(shop(100, 60) * 15, names * 2)])
    before = tree(tmp_path)
    words = ("--reviews", log, "--columns", COLUMNS_OPTION, "--name", "s", "--out", tmp_path / "out", "--memory-limit", "80MB",
             "--k", 1)  # fmt: skip
    threads = "import duckdb; plain = duckdb.connect; duckdb.connect = lambda *a: plain(*a, config={'threads': '2'})"
    failed(cli(*words, prelude=f"{LIMIT.format(200_000)}\n{threads}"), "IO Error: Could not write")
    assert tree(tmp_path) == before


def test_no_space_for_a_copy(tmp_path):
    log = write(tmp_path / "log.csv", "\n".join([*CSV_GOOD[:9], CSV_GOOD[9] + "\r", *CSV_GOOD[10:] * 1000]).encode())
    before = tree(tmp_path)
    words = ("--reviews", log, "--columns", COLUMNS_OPTION, "--name", "s", "--out", tmp_path / "out")
    failed(cli(*words, prelude=LIMIT.format(50_000)), "cannot write")
    assert tree(tmp_path) == before


@pytest.mark.parametrize("deep", ["", "deep"])
def test_a_folder_that_must_not_be_written(tmp_path, deep):
    reviews, meta = simple(tmp_path)
    out = tmp_path / "out"
    out.mkdir()
    out.chmod(0o555)
    prelude = "import os"
    if os.geteuid() == 0:  # root may write everywhere, so the child process becomes another user
        prelude = "import os, dataset_scripts.convert; os.setgroups([]); os.setgid(65534); os.setuid(65534)"
        for folder in (tmp_path, *tmp_path.parents[:-2]):  # pytest's folders are private; the other user must read them
            folder.chmod(folder.stat().st_mode | 0o055)
    before = tree(tmp_path)
    words = ("--reviews", reviews, "--meta", meta, "--name", "s", "--out", out / deep, "--no-sliding", "--k", 1)
    failed(cli(*words, prelude=prelude), f"cannot write {out / deep / 's'}: Permission denied; nothing was changed")
    assert tree(tmp_path) == before
