"""Ids and lines against plain Python."""

import hashlib
from decimal import Decimal
from urllib.parse import unquote

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dataset_scripts import writing

IDS = st.text(st.sampled_from("ab%2041CF \t\n\r\"\x00\x1f\x85\u2028\u3000é雪🚒") | st.characters(exclude_categories=["Cs"]), min_size=1, max_size=8)


@given(IDS)
def test_an_id_is_fit_and_comes_back(raw):
    written = writing.fit_id(raw)
    assert unquote(written) == raw
    assert written.split() == [written] and '"' not in written and written.isprintable() >= raw.isprintable()


@given(IDS, IDS)
def test_ids_stay_apart(one, other):
    assert (writing.fit_id(one) == writing.fit_id(other)) == (one == other)


@pytest.mark.parametrize("raw, written", [
    ("B001", "B001"), ("a b", "a%20b"), ("a%20b", "a%2520b"), ("50%", "50%"), ("50% off", "50%25%20off"), ("é\u3000", "é%E3%80%80"),
])  # fmt: skip
def test_what_is_written_of_an_id(raw, written):
    assert writing.fit_id(raw) == written


@given(st.lists(st.integers(0, 4 * 10**15) | st.integers(0, 10**9).map(lambda s: s * 10**6), min_size=1, max_size=20))
def test_seconds(times):
    expected = []
    for time in times:
        text = str(Decimal(time) / 10**6) if time % 10**6 else str(time // 10**6)
        expected.append(format(Decimal(text), "f"))
    found = [text.replace(b"\0", b"").decode() for text in writing.seconds(np.array(times))]
    assert found == expected


@given(st.lists(st.floats(allow_nan=False, allow_infinity=False), min_size=1, max_size=20))
def test_numbers(values):
    assert [text.decode() for text in writing.numbers(np.array(values))] == [repr(value) for value in values]


@pytest.mark.parametrize("chunk", [1, 40, 4 << 20])
def test_rows(tmp_path, monkeypatch, chunk):
    monkeypatch.setattr(writing, "_CHUNK", chunk)
    words, times = ["a", "bcd", "é雪"], [1, 1_500_000, 2_000_000, 10_250_000]
    pick = np.array([2, 0, 1, 1])
    table = writing.as_bytes(words)
    fields = [lambda rows: table[pick[rows]], lambda rows: writing.seconds(np.array(times)[rows])]
    digest = writing.write_rows(tmp_path / "x", "w:token\tt:float", fields, 4)
    content = (tmp_path / "x").read_bytes()
    assert content.decode() == "w:token\tt:float\né雪\t0.000001\na\t1.5\nbcd\t2\nbcd\t10.25\n"
    assert digest == hashlib.sha256(content).hexdigest()
    writing.write_rows(tmp_path / "none", "w:token", fields, 0)
    assert (tmp_path / "none").read_bytes() == b"w:token\n"


def test_lines(tmp_path):
    digest = writing.write_lines(tmp_path / "x", iter(["é", ""]))
    assert (tmp_path / "x").read_bytes() == "é\n\n".encode() and digest == hashlib.sha256("é\n\n".encode()).hexdigest()
    for text in ("a\nb", "a\rb"):
        with pytest.raises(ValueError, match="a line end inside the line"):
            writing.write_lines(tmp_path / "y", [text])
