"""A Check of a file: damage, counts, SHA-256."""

import csv
import hashlib
import io
import os
import random

import numpy as np
import pytest
from helpers_convert import GOOD, PACKED, recognised

from dataset_scripts import check as module
from dataset_scripts.check import Check
from dataset_scripts.sources import Source
from recbole_flr.errors import DataError


@pytest.mark.parametrize("kind", PACKED)
def test_a_check_of_every_cut(tmp_path, kind):
    """Every cut is found, except between two members or frames."""
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
    """Line feeds, text after the last one, and quotes, in blocks of any size."""
    rng = random.Random(1)
    for _ in range(60):
        data = b"".join(rng.choice([b"\n", b" ", b"\t", b"x", b'"', b"'", b"yyy"]) for _ in range(rng.randrange(20)))
        source = Source(tmp_path / "x", "csv", "none", [], ",", rng.choice(['"', "'", ""]), readable=tmp_path / "x")
        (tmp_path / "x").write_bytes(data)
        check = Check(source).finish()
        assert check.line_ends == data.count(b"\n")
        assert check.ends_open == bool(data.rsplit(b"\n", 1)[-1].strip())
        assert check.quotes == (data.count(source.quote.encode()) if source.quote else 0)
        assert check.ends_quoted == (bool(source.quote) and ends_quoted(data.decode(), source.quote))
        parts, place = Check(source).finish(), 0
        parts.line_ends, parts.ends_open, parts._quotes = 0, False, module._Quotes(source) if source.quote else None
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


def ends_quoted(text, quote='"'):
    """Whether a CSV text ends inside a quoted field. Then Python's csv module takes a line after it for a part of that field."""
    return list(csv.reader(io.StringIO(text + "\nnext\n", newline=""), quotechar=quote))[-1] != ["next"]


@pytest.mark.parametrize("mark", ["", "\ufeff"])
def test_a_csv_file_that_ends_inside_quotes(tmp_path, mark):
    """Random texts, in pieces of any size."""
    rng, source = random.Random(2), recognised(tmp_path / "x", b"a,b\n")
    found = []
    for _ in range(2500):
        text = "".join(rng.choices('",\n\rab', [4, 2, 1, 1, 1, 1], k=rng.randrange(14)))
        quotes, data, place = module._Quotes(source), np.frombuffer((mark + text).encode(), np.uint8), 0
        while place < len(data):
            size = rng.choice([1, 2, 3, 4, 50])
            quotes.add(data[place : place + size])
            place += size
        found.append(quotes.inside())
        assert (found[-1], quotes.total) == (ends_quoted(text), text.count('"')), repr(text)
    assert 500 < sum(found) < 2000


def test_a_file_that_vanishes(tmp_path):
    source = recognised(tmp_path / "x", GOOD)
    (tmp_path / "x").unlink()
    with pytest.raises(DataError, match="cannot read .*x: No such file"):
        Check(source).finish()


def _waiting(monkeypatch, meanwhile):
    """Calls a function between the two passes of a check."""
    monkeypatch.setattr(module, "_be_nice", meanwhile)


def test_a_file_that_is_changed_between_both_passes(tmp_path, monkeypatch):
    """The hash must be the one of the bytes that were converted."""
    path = tmp_path / "x"
    for change in (lambda: path.write_bytes(GOOD + GOOD), lambda: path.write_bytes(GOOD[:-1]), path.unlink):
        source = recognised(path, GOOD)
        _waiting(monkeypatch, change)
        with pytest.raises(DataError, match="x was changed while it was read; run the|cannot read .*x: No such file"):
            Check(source).sha256
    _waiting(monkeypatch, lambda: os.utime(path, ns=(0, 0)))  # as if the content was another one of the same size
    with pytest.raises(DataError, match="x was changed while it was read"):
        Check(recognised(path, GOOD)).sha256


def test_no_failure_of_a_check_is_lost(tmp_path, monkeypatch):
    """No check must pass with half a count or half a hash."""
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
    """`steps` belong to places in the file, even if a file system returns less than was asked for."""

    class Short(io.FileIO):
        def read(self, size=-1):
            return super().read(min(size, 1000) if size > 0 else size)

        def readinto(self, buffer):
            return super().readinto(memoryview(buffer)[:1000])

    data = b"a line\n" * 90_000
    source = recognised(tmp_path / "x", data)
    opened = lambda path, mode, buffering=-1: io.BufferedReader(Short(path)) if buffering else Short(path)  # noqa: E731
    monkeypatch.setattr(module, "open", opened, raising=False)
    check = Check(source)
    assert check.sha256 == hashlib.sha256(data).hexdigest()
    assert check.steps == [data[: step * Check.STEP].count(b"\n") for step in range(len(check.steps))] and len(check.steps) == 4
