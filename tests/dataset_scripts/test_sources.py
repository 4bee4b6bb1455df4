import gzip
import hashlib
import io
import os
import random

import pytest
import zstandard
from helpers_convert import json_lines, reviews_of

from dataset_scripts import sources
from dataset_scripts.sources import Check, Source, csv_limit, listed, literal, recognise, unglobbed
from recbole_flr.errors import ConfigError, DataError

GOOD = json_lines(reviews_of())
SHOP = b"customer,sku,bought,product\nR0,B0,1506816000,Toy\n"


def recognised(path, data, **options):
    path.write_bytes(data)
    source = recognise(path, **options)
    assert source.path == source.readable == path.absolute()
    return source


SKIPPED = b"\x50\x2a\x4d\x18\x04\0\0\0abcd"  # a frame of zstd that is to be skipped, as pzstd writes it
PACKED = {
    "gzip": gzip.compress(GOOD), "members": gzip.compress(GOOD[:500]) + gzip.compress(b"") + gzip.compress(GOOD[500:]),
    "zstd": zstandard.compress(GOOD),
    "frames": zstandard.compress(GOOD[:500]) + zstandard.compress(b"") + zstandard.compress(GOOD[500:]),
    "skipped": SKIPPED + zstandard.compress(GOOD) + SKIPPED,
    "short first member": gzip.compress(GOOD[:3]) + gzip.compress(GOOD[3:]),
    "short first frame": zstandard.compress(GOOD[:3]) + zstandard.compress(GOOD[3:]),
    "checked": zstandard.ZstdCompressor(write_checksum=True, write_content_size=False).compress(GOOD), "none": GOOD,
}  # fmt: skip


@pytest.mark.parametrize("kind", PACKED)
def test_compression(tmp_path, kind):
    source = recognised(tmp_path / "x", PACKED[kind])
    name = "none" if kind == "none" else "gzip" if "gzip" in kind or "member" in kind else "zstd"
    assert (source.format, source.compression) == ("jsonl", name)
    assert source.fields == ["reviewerID", "asin", "overall", "unixReviewTime"]
    with source.open() as stream:
        assert stream.read() == GOOD
    check = Check(source).finish()
    assert check.sha256 == hashlib.sha256(PACKED[kind]).hexdigest()
    assert (check.line_ends, check.ends_open) == (36, False)


@pytest.mark.parametrize("kind", PACKED)
def test_a_check_of_every_cut(tmp_path, kind):
    """A cut between two members or frames cannot be seen."""
    whole = PACKED[kind]
    if kind == "none":
        return
    source = recognised(tmp_path / "x", whole)
    unseen = 0
    for cut in range(20, len(whole)):
        (tmp_path / "x").write_bytes(whole[:cut])
        try:
            Check(source).finish()
            unseen += 1
        except DataError as error:
            assert (
                f"is a broken {source.compression} file (it ends too early); fetch it again ({source.compression} -t "
                in str(error)
            )
    assert unseen <= {"members": 2, "frames": 2, "skipped": 8 + 4, "short first member": 1, "short first frame": 1}.get(
        kind, 0
    )


def test_what_a_check_counts(tmp_path):
    """Blocks of any size; line feeds, whether something stands behind the last one, and marks that quote."""
    rng = random.Random(1)
    for _ in range(60):
        data = b"".join(rng.choice([b"\n", b" ", b"\t", b"x", b'"', b"'", b"yyy"]) for _ in range(rng.randrange(20)))
        source = Source(tmp_path / "x", "csv", "none", [], ",", rng.choice(['"', "'", ""]), readable=tmp_path / "x")
        (tmp_path / "x").write_bytes(data)
        check = Check(source).finish()
        assert check.line_ends == data.count(b"\n")
        assert check.ends_open == bool(data.rsplit(b"\n", 1)[-1].strip())
        assert check.quotes == (data.count(source.quote.encode()) if source.quote else 0)
        parts, place = Check(source).finish(), 0
        parts.line_ends, parts.ends_open, parts.quotes = 0, False, 0
        while place < len(data):
            size = rng.choice([1, 2, 100_000])
            parts._count(data[place : place + size])
            place += size
        assert (parts.line_ends, parts.ends_open, parts.quotes) == (check.line_ends, check.ends_open, check.quotes)


def test_steps_of_a_check(tmp_path):
    data = b"".join(b"x" * length + b"\n" for length in [10, 3_000_000, 0, 5, 2**20 - 1, 2**20, 7])
    source = recognised(tmp_path / "x", data, format="jsonl")
    check = Check(source).finish()
    assert check.steps == [data.count(b"\n", 0, n * Check.STEP) for n in range(-(-len(data) // Check.STEP) + 1)]
    assert check.steps[-1] == check.line_ends == 7


@pytest.mark.parametrize("data, options, expected", [
    (GOOD, {}, ("jsonl", "")), (SHOP, {}, ("csv", ",")), (SHOP.replace(b",", b"\t"), {}, ("tsv", "\t")),
    (SHOP.replace(b",", b";"), {}, ("csv", ";")),
    (SHOP.replace(b",", b"|"), {}, ("csv", "|")), (b"\xef\xbb\xbf" + SHOP, {}, ("csv", ",")),
    (SHOP, {"delimiter": "u"}, ("csv", "u")), (SHOP, {"format": "tsv"}, ("tsv", "\t")),
    (SHOP, {"delimiter": "\t"}, ("tsv", "\t")), (b"noise\n[1]\n" + GOOD, {}, ("jsonl", "")),
    (b"\n\n  " + GOOD, {}, ("jsonl", "")), (b"[[[\n" + GOOD, {}, ("jsonl", "")),
    (b"x" * 3_000_000 + b"\n" + GOOD, {}, ("jsonl", "")), (SHOP, {"format": "jsonl"}, ("jsonl", "")),
    (b'{"a": 1}', {"format": "csv"}, ("csv", ",")),
    (SHOP.replace(b",", b":"), {"quote": ","}, ("csv", ";")),
])  # fmt: skip
def test_formats(tmp_path, data, options, expected):
    source = recognised(tmp_path / "x", data, **options)
    assert (source.format, source.delimiter) == expected


def test_fields(tmp_path):
    path = tmp_path / "x"
    assert recognised(path, SHOP).fields == ["customer", "sku", "bought", "product"]
    assert recognised(path, b'"a ""b""",,c,c\r\n').fields == ['a "b"', "", "c", "c"]
    assert recognised(path, b'"a",b\n', quote="").fields == ['"a"', "b"]
    assert recognised(path, b"'a,b',c\n", quote="'").fields == ["a,b", "c"]
    assert recognised(path, b'{"b": 1}\nbroken\n{"a": 1, "b": 2}\n' + b"\n" * 200 + b'{"late": 1}\n').fields == ["b", "a"]
    assert recognised(path, b"x" * 200_000 + b",b\n").fields == ["x" * 200_000, "b"]


@pytest.mark.parametrize("options", [{"format": "xml"}, {"delimiter": ""}, {"delimiter": ",,"}, {"delimiter": "\n"},
                                     {"delimiter": "é"}, {"delimiter": '"'}, {"quote": "''"},
                                     {"quote": "\0"}, {"quote": "é"}])  # fmt: skip
def test_impossible_options(tmp_path, options):
    (tmp_path / "x").write_bytes(SHOP)
    with pytest.raises(ConfigError, match=next(iter(options))):
        recognise(tmp_path / "x", **options)


def test_parquet_that_is_none(tmp_path):
    (tmp_path / "x").write_bytes(SHOP)
    with pytest.raises(DataError, match="is no Parquet file: it does not begin with PAR1"):
        recognise(tmp_path / "x", "parquet")


def test_a_file_that_vanishes(tmp_path):
    source = recognised(tmp_path / "x", GOOD)
    (tmp_path / "x").unlink()
    with pytest.raises(DataError, match="cannot read .*x: No such file"):
        Check(source).finish()


def _waiting(monkeypatch, meanwhile):
    """Does something between the two looks of a check."""
    monkeypatch.setattr(sources, "_be_nice", meanwhile)


def test_a_file_that_is_changed_between_both_looks(tmp_path, monkeypatch):
    """The hash must be of the bytes that were converted."""
    path = tmp_path / "x"
    for change in (lambda: path.write_bytes(GOOD + GOOD), lambda: path.write_bytes(GOOD[:-1]), path.unlink):
        source = recognised(path, GOOD)
        _waiting(monkeypatch, change)
        with pytest.raises(DataError, match="x was changed while it was read; run it again|cannot read .*x: No such file"):
            Check(source).sha256
    _waiting(monkeypatch, lambda: os.utime(path, ns=(0, 0)))  # as of another content of the same size
    with pytest.raises(DataError, match="x was changed while it was read"):
        Check(recognised(path, GOOD)).sha256


def test_no_failure_of_a_check_is_lost(tmp_path, monkeypatch):
    """Half a count or half a hash must not pass for a whole one."""
    source = recognised(tmp_path / "x", GOOD)

    def fail(*_):
        raise MemoryError("none left")

    _waiting(monkeypatch, fail)
    with pytest.raises(MemoryError, match="none left"):
        Check(source).sha256
    monkeypatch.setattr(Check, "_count", fail)
    with pytest.raises(MemoryError, match="none left"):
        Check(source).finish()


def test_a_priority_that_may_not_be_changed_is_no_error(tmp_path, monkeypatch):
    def refuse(*_):
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(os, "setpriority", refuse, raising=False)
    assert Check(recognised(tmp_path / "x", GOOD)).sha256 == hashlib.sha256(GOOD).hexdigest()


def test_steps_where_the_system_gives_less_than_is_asked_for(tmp_path, monkeypatch):
    """`steps` are places in the file; some file systems give part of what is asked for, of a file that is not at its end."""

    class Short(io.FileIO):
        def read(self, size=-1):
            return super().read(min(size, 1000) if size > 0 else size)

        def readinto(self, buffer):
            return super().readinto(memoryview(buffer)[:1000])

    data = b"a line\n" * 90_000
    source = recognised(tmp_path / "x", data)
    opened = lambda path, mode, buffering=-1: io.BufferedReader(Short(path)) if buffering else Short(path)  # noqa: E731
    monkeypatch.setattr(sources, "open", opened, raising=False)
    check = Check(source)
    assert check.sha256 == hashlib.sha256(data).hexdigest()
    assert check.steps == [data[: step * Check.STEP].count(b"\n") for step in range(len(check.steps))] and len(check.steps) == 4


def test_texts_for_sql_and_messages():
    assert literal("it's") == "'it''s'" and unglobbed("/a[b]/*?.c") == "/a[[]b]/[*][?].c"
    assert listed(["a", "b c"]) == "a, b c" and listed([]) == ""
    assert listed(["a\nb", "x" * 99]) == "'a\\nb', " + repr("x" * 60)
    assert listed([f"c{n}" for n in range(32)]).endswith(", c29 and 2 more")


def test_the_limit_of_csv_is_what_it_was():
    import csv

    before = csv.field_size_limit()
    with pytest.raises(ZeroDivisionError), csv_limit(5):
        assert csv.field_size_limit() == 5
        1 / 0
    assert csv.field_size_limit() == before
