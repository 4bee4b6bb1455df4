"""Which format, compression and columns a file has."""

import csv
import hashlib

import pytest
from helpers_convert import GOOD, PACKED, recognised

from dataset_scripts.check import Check
from dataset_scripts.sources import csv_limit, listed, recognise
from dataset_scripts.sql import identifier, literal, unglobbed
from recbole_flr.errors import ConfigError, DataError

SHOP = b"customer,sku,bought,product\nR0,B0,1506816000,Toy\n"


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
    with pytest.raises(DataError, match="is not a Parquet file: a Parquet file begins with PAR1"):
        recognise(tmp_path / "x", "parquet")


def test_texts_for_sql_and_messages():
    assert literal("it's") == "'it''s'" and identifier('a"b') == '"a""b"' and unglobbed("/a[b]/*?.c") == "/a[[]b]/[*][?].c"
    assert listed(["a", "b c"]) == "a, b c" and listed([]) == ""
    assert listed(["a\nb", "x" * 99]) == "'a\\nb', " + repr("x" * 60)
    assert listed([f"c{n}" for n in range(32)]).endswith(", c29 and 2 more")


def test_the_limit_of_csv_is_what_it_was():
    before = csv.field_size_limit()
    with pytest.raises(ZeroDivisionError), csv_limit(5):
        assert csv.field_size_limit() == 5
        1 / 0
    assert csv.field_size_limit() == before
