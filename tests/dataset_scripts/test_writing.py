"""Ids, times and numbers as bytes, and tables that are written from them."""

import hashlib
import random
from urllib.parse import unquote

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from benchmarks.obvious_lines import written_id
from dataset_scripts import writing
from dataset_scripts.writing import as_bytes, fit_id, numbers, seconds, write_lines, write_rows
from recbole_flr.errors import DataError

TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=12)
TRICKY = st.text(st.sampled_from('%4aA2 "\t\x00\x85\u3000é雪%%fF+&'), max_size=8)


@settings(deadline=None, max_examples=500)
@given(st.one_of(TEXT, TRICKY))
def test_an_id_comes_back(raw):
    """So two ids are never written alike. The written id has nothing that RecBole's readers stumble over."""
    written = fit_id(raw)
    assert unquote(written) == raw
    assert not set(written) & set(' "\t\n\r\x0b\x0c\x1c\x85\xa0\u2028\u3000') and len(written.split()) == bool(raw)
    assert all(letter.isprintable() or ord(letter) > 0x9F for letter in written)
    assert fit_id(raw) == raw or "%" in written


@pytest.mark.parametrize("raw, written", [
    ("B000123", "B000123"), ("", ""), ("a b", "a%20b"), ("50%", "50%"), ("50%z", "50%z"), ("%4a%", "%254a%25"),
    ("5% \t", "5%25%20%09"), ('"', "%22"),
    ("\x00\x7f\x85", "%00%7F%C2%85"), ("é\u3000雪", "é%E3%80%80雪"), ("a+b&<>[]|", "a+b&<>[]|"), ("%E9", "%25E9"),
    ("%2", "%2"),
])  # fmt: skip
def test_ids(raw, written):
    assert fit_id(raw) == written_id(raw) == written and unquote(written) == raw


def shown(microseconds):
    """`seconds` with Python's integers and strings."""
    whole, fraction = divmod(microseconds, 10**6)
    return f"{whole}.{fraction:06d}".rstrip("0") if fraction else str(whole)


def unpadded(array):
    """The texts of an array; a NUL is padding anywhere."""
    width = array.dtype.itemsize
    return [bytes(row[row != 0]).decode() for row in array.view(np.uint8).reshape(-1, width)]


@settings(deadline=None, max_examples=300)
@given(st.lists(st.one_of(st.integers(0, 2**62), st.integers(0, 10**4), st.integers(0, 2**40).map(lambda n: n * 10**6),
                          st.integers(0, 10**9).map(lambda n: n * 1000)), min_size=1, max_size=8))  # fmt: skip
def test_seconds(values):
    assert unpadded(seconds(np.array(values, np.int64))) == [shown(value) for value in values]


@settings(deadline=None, max_examples=300)
@given(st.lists(st.floats(allow_nan=False, allow_infinity=False), min_size=1, max_size=8))
def test_numbers(values):
    assert unpadded(numbers(np.array(values, np.float64))) == list(map(repr, values))


def test_zeros_of_both_signs():
    assert unpadded(numbers(np.array([0.0, -0.0, 0.0, 5.0]))) == ["0.0", "-0.0", "0.0", "5.0"]


def test_as_bytes():
    assert as_bytes(["a", "雪", ""]).tolist() == [b"a", "雪".encode(), b""]
    assert as_bytes(iter(["x"])).dtype == np.dtype("S1")
    assert as_bytes([]).tolist() == [b""]


def test_texts_that_would_fill_the_memory(monkeypatch):
    monkeypatch.setattr(writing, "_LARGEST", 100)
    assert len(as_bytes(["x" * 10] * 10)) == 10
    with pytest.raises(DataError, match="an id has 11 bytes, too many beside 10 others; it begins with b'xxx"):
        as_bytes(["y"] * 9 + ["x" * 11])


@pytest.mark.parametrize("chunk", [1, 64, 1000, 1 << 20])
def test_write_rows(tmp_path, monkeypatch, chunk):
    """Columns of several kinds, written in pieces of any size."""
    monkeypatch.setattr(writing, "_CHUNK", chunk)
    rng = random.Random(chunk)
    ids = [rng.choice(["u", "雪", "a%20b", "longer-name"]) for _ in range(53)]
    times = [rng.choice([5, 10**6, 1_506_816_000_000_000, 1_506_816_000_250_000]) for _ in ids]
    ratings = [rng.choice([5.0, 0.1, -0.0, 1e-7]) for _ in ids]
    lists = [[rng.choice("abc") for _ in range(rng.randrange(4))] for _ in ids]
    table, ids_array, codes = as_bytes(["u", "雪", "a%20b", "longer-name"]), ["u", "雪", "a%20b", "longer-name"], None
    codes = np.array([ids_array.index(name) for name in ids])
    wide = np.array([["".join(row[place : place + 1]) for place in range(4)] for row in lists], "S1")
    fields = [
        lambda rows: table[codes[rows]],
        lambda rows: wide[rows],
        lambda rows: numbers(np.array(ratings)[rows]),
        lambda rows: seconds(np.array(times)[rows]),
    ]
    digest = write_rows(tmp_path / "x", "head:token\tß", fields, len(ids))
    expected = [
        "head:token\tß",
        *(
            "\t".join([name, "".join(row), repr(rating), shown(time)])
            for name, row, rating, time in zip(ids, lists, ratings, times)
        ),
    ]
    content = (tmp_path / "x").read_bytes()
    assert content.decode() == "\n".join(expected) + "\n"
    assert digest == hashlib.sha256(content).hexdigest()


def test_a_table_without_rows(tmp_path):
    digest = write_rows(tmp_path / "x", "head", [lambda rows: 1 / 0], 0)
    assert (tmp_path / "x").read_bytes() == b"head\n" and digest == hashlib.sha256(b"head\n").hexdigest()


def test_write_lines(tmp_path):
    digest = write_lines(tmp_path / "x", ["a", "", "雪\t\0"])
    assert (tmp_path / "x").read_bytes() == "a\n\n雪\t\0\n".encode()
    assert digest == hashlib.sha256((tmp_path / "x").read_bytes()).hexdigest()
    for bad in ("a\nb", "a\r"):
        with pytest.raises(ValueError, match="x: a line end inside the line"):
            write_lines(tmp_path / "x", [bad])
