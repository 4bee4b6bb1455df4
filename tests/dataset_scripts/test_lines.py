"""Which line of a file a row came from, and lines that Python parses again."""

import csv
import io
import random

import pytest
from helpers_convert import loaded

from dataset_scripts import lines as module
from dataset_scripts.check import Check


def jsonl(rng, n_lines, blanks):
    """Random lines, and the kind of each: good, bad, half (with half of a surrogate pair, so that Python parses it) or blank."""
    lines, kinds = [], []
    for number in range(n_lines):
        kind = rng.choice(["good"] * 6 + ["bad", "half"] + ["blank"] * blanks)
        lines.append({"good": b'{"u": "u%d", "x": "%s"}' % (number, b"x" * rng.randrange(30)),
                      "bad": rng.choice([b"{", b"[1]", b"\xff", b"{}"]),
                      "half": b'{"u": "u%d", "x": "\\ud800"}' % number,
                      "blank": rng.choice([b"", b" ", b"\t\r"])}[kind])  # fmt: skip
        kinds.append(kind)
    return lines, kinds


@pytest.mark.parametrize("seed, suffix", [(seed, ["", ".gz", ".zst"][seed % 3]) for seed in range(13)])
def test_lines_of_json(tmp_path, monkeypatch, seed, suffix):
    """Lines are found by jumps or by counting, in blocks of any size."""
    rng = random.Random(seed)
    monkeypatch.setattr(Check, "STEP", rng.choice([16, 64, 1 << 20]))
    monkeypatch.setattr(module, "_BLOCK", rng.choice([16, 100, 1 << 20]))
    monkeypatch.setattr(module, "_BATCH", rng.choice([1, 3, 10_000]))
    lines, kinds = jsonl(rng, 300, seed // 3 % 2)
    lines[0], kinds[0] = b'{"u": "u0"}', "good"
    data = b"\n".join(lines) + rng.choice([b"", b"\n", b"\n\n  ", b"\n \n"])
    rows, found = loaded(tmp_path / "x", {"user": "u"}, data, suffix)
    places = [place for place, kind in enumerate(kinds) if kind != "blank"]
    assert [row["user"] for row in rows] == [None if kinds[place] == "bad" else f"u{place}" for place in places]
    assert found.total == len(places)
    for wanted in ([], [0], [len(places) - 1], sorted(rng.sample(range(len(places)), 20)), list(range(len(places)))):
        assert [(row, number, line) for row, number, line in found.find(wanted)] == [
            (row, places[row] + 1, lines[places[row]]) for row in wanted
        ]
        assert found.first(wanted, 3) == [places[row] + 1 for row in wanted[:3]]


def test_a_mark_of_utf8_in_front(tmp_path):
    """The mark belongs to no line. Before a blank line it makes a row of nulls."""
    mark = b"\xef\xbb\xbf"
    assert loaded(tmp_path / "x", {"user": "u"}, mark + b'{"u": "a"}\n')[0] == [{"user": "a"}]
    assert loaded(tmp_path / "x", {"user": "u"}, mark + b'{"u": "\\ud800", "v": "\\ud800"}\n{"u": "[1]"}')[0] == [
        {"user": None},
        {"user": "[1]"},
    ]
    rows, lines = loaded(tmp_path / "x", {"user": "u"}, mark + b'\n\n{"u": "a"}\n')
    assert rows == [{"user": None}, {"user": "a"}] and lines.first([0, 1], 5) == [1, 3]


# ---- CSV ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("separator", [",", "\t"])
@pytest.mark.parametrize("seed", range(12))
def test_records_of_csv(tmp_path, seed, separator):
    """Fields and line numbers are those of Python's csv module."""
    rng = random.Random(seed)
    text, end = io.StringIO(), rng.choice(["\n", "\r\n"])
    quoting = rng.choice([csv.QUOTE_ALL, csv.QUOTE_MINIMAL])
    writer = csv.writer(text, delimiter=separator, lineterminator=end, quoting=quoting)
    pool = ["a", "", " b ", 'q"q', "two\nlines", "\x01", "NULL", "雪", "sep,\t;", '"', "\\", "'"] + ["cr\rcr"] * (
        quoting == csv.QUOTE_ALL
    )
    writer.writerow(["u", "i", "t"])
    expected, begins, refused = [], [], []
    for _ in range(60):
        kind = rng.choice(["good"] * 8 + ["short", "long", "blank"])
        line = text.getvalue().replace("\r\n", "\n").replace("\r", "\n").count("\n") + 1
        if kind == "blank":
            text.write(rng.choice(["", "  ", "\x0b"]) + end)
            continue
        fields = [rng.choice(pool) for _ in range({"good": 3, "short": 2, "long": 4}[kind])]
        fields = (
            ["x", *fields[1:-1], "y"] if kind != "good" else fields
        )  # so that the line is not blank, and does not end in an empty field
        writer.writerow(fields)
        (begins if kind == "good" else refused).append(line)
        if kind == "good":
            expected.append(dict(zip(("user", "item", "time"), fields)))
    data = text.getvalue().encode()
    if rng.random() < 0.5:
        data = data.removesuffix(end.encode())
    mark = rng.choice([b"", b"\xef\xbb\xbf"])
    rows, lines = loaded(
        tmp_path / "x",
        {"user": "u", "item": "i", "time": "t"},
        mark + data,
        rng.choice(["", ".gz"]),
        format="csv",
        delimiter=separator,
    )
    assert rows == expected
    assert len(lines.refused) == len(refused)
    assert lines.first([], 99) == refused
    wanted = sorted(rng.sample(range(len(rows)), 7))
    assert lines.first(wanted, 99) == sorted([*refused, *(begins[row] for row in wanted[:99])])
    assert lines.first(wanted, 4) == sorted([*refused, *(begins[row] for row in wanted[:4])])[:4]
