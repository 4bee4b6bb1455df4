"""The DuckDB reader of large files against the plain one: the same columns, or it refuses the file."""

import numpy as np
import pandas as pd
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from recbole_flr.data import table
from recbole_flr.data.datasets import read_any, read_slowly
from recbole_flr.data.table import Lists, Unusual, read_table
from recbole_flr.errors import DataError

NAMES = ["a", "b", "c", "d"]
HEADER = "a:token\tb:token_seq\tc:float\td:token"
WANTED = {"d": str, "b": list, "c": float, "a": str}
ODD = ['"', '"x"', "'", "\\", "\\N", "NA", "nan", "NULL", "None", "#", "%", ",", ";",
       "秘密", "🚒", "\u2028", "\x85", "\x0b", "\x1c", "é",
       "-", "0x1F", "true", "{}", "[]", "x" * 300]  # fmt: skip
TEXT = st.lists(st.sampled_from([*ODD, "", " ", "i1", "i2"]) | st.text(st.characters(exclude_categories=["Cs"]), max_size=3),
                max_size=3).map(lambda parts: "".join(parts).replace("\t", "").replace("\n", ""))  # fmt: skip
PLAIN = st.text(st.sampled_from("ab\"'\\é秘 #,%"), max_size=4)  # no CR and no NUL, so that DuckDB reads the file
LIST = st.lists(PLAIN | st.sampled_from(["i1", "i2", "i3", ""]), max_size=5).map(" ".join)
NUMBER = st.sampled_from(["1", "-2.5", "+3", ".5", "4.", "1e3", "1E-3", "0", "-0.0", "", "NA", "nan", "1508889600", "0.1"]) | (
    st.floats(allow_nan=False, allow_infinity=False).map(repr))  # fmt: skip


@pytest.fixture(autouse=True)
def all_sizes(monkeypatch):
    monkeypatch.setattr(table, "SMALLEST", 0)


def write(folder, rows, header=HEADER, end="\n"):
    path = folder / "made.inter"
    path.write_bytes((end.join([header, *rows]) + end).encode("utf-8", "surrogatepass"))
    return path


def assert_same(found, expected):
    (left, left_lists), (right, right_lists) = found, expected
    pd.testing.assert_frame_equal(left, right)
    assert left_lists.keys() == right_lists.keys()
    for name, one in left_lists.items():
        other = right_lists[name]
        assert one.lengths.tolist() == other.lengths.tolist()
        for codes, others in ((one.codes, other.codes), (one.distinct(), other.distinct())):
            assert [one.texts[code] for code in codes.tolist()] == [other.texts[code] for code in others.tolist()]


@settings(max_examples=40, deadline=None)
@given(st.lists(st.tuples(PLAIN, LIST, NUMBER, PLAIN), min_size=1, max_size=30))
@example([(" ", "", "NA", ""), ("", " ", "", " "), ("x", "  i1  i2 ", "1", "\\"), ('"', '"i1 i2"', "2", '"')])
@example([("x", "i1 i2", "1", "y")])  # no empty entry anywhere: the shorter query
def test_plain_files_are_read_alike(tmp_path_factory, rows):
    path = write(tmp_path_factory.mktemp("table"), ["\t".join(row) for row in rows])
    assert_same(read_table(path, NAMES, WANTED, "\t", "utf-8"), read_slowly(path, WANTED, "\t", "utf-8"))


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(TEXT, TEXT, NUMBER | TEXT, TEXT) | st.lists(TEXT, max_size=5), max_size=8),
       st.sampled_from(["\n", "\r\n"]))  # fmt: skip
@example([("\ufeff", "i1", "1", "\ufeff")], "\n")
@example([("a", "i1", "1_000", "b")], "\n")
@example([("a", "i1", "١", "b")], "\n")  # a digit that is not ASCII
@example([("a", "i1", " 1", "b")], "\n")
@example([("a", "i1", "inf", "b")], "\n")
@example([("a", "i1", "1", "b", "")], "\n")  # DuckDB accepts an empty field too many
@example([("a", "i1", "1"), ("a", "i1", "1", "b", "c")], "\n")  # as many separators as it should have
def test_any_file_is_read_alike_or_refused_alike(tmp_path_factory, rows, end):
    path = write(tmp_path_factory.mktemp("table"), ["\t".join(row) for row in rows], end=end)
    try:
        expected = read_slowly(path, WANTED, "\t", "utf-8")
    except (DataError, ValueError) as error:
        with pytest.raises(type(error)) as caught:
            read_any(path, WANTED, "\t", "utf-8")
        assert str(caught.value) == str(error)
    else:
        assert_same(read_any(path, WANTED, "\t", "utf-8"), expected)


REFUSED = {
    "CR": (["a\ti1\t1\tb\r"], {}), "NUL": (["a\0\ti1\t1\tb"], {}), "an empty line": (["", "a\ti1\t1\tb"], {}),
    "a column too many": (["a\ti1\t1\tb\t"], {}), "a column too few": (["a\ti1\t1"], {}),
    "not UTF-8": (["a\ti1\t1\t\udc80"], {}), "not a plain number": (["a\ti1\t1_0\tb"], {}),
    "encoding": (["a\ti1\t1\tb"], {"encoding": "latin-1"}), "no encoding": (["a\ti1\t1\tb"], {"encoding": None}),
    "separator": (["a\ti1\t1\tb"], {"separator": "::"}), "a missing column": (["a\ti1\t1\tb"], {"wanted": {"e": str}}),
}  # fmt: skip


@pytest.mark.parametrize("rows, options", REFUSED.values(), ids=REFUSED.keys())
def test_what_might_be_read_in_two_ways_is_refused(tmp_path, rows, options):
    path = write(tmp_path, rows)
    with pytest.raises(Unusual):
        read_table(path, NAMES, **{"wanted": WANTED, "separator": "\t", "encoding": "utf-8", **options})


def test_a_small_file_and_a_pattern_are_refused(tmp_path, monkeypatch):
    path = write(tmp_path, ["a\ti1\t1\tb"])
    read_table(path, NAMES, WANTED, "\t", "UTF8")
    (tmp_path / "a[1]").mkdir()
    with pytest.raises(Unusual):
        read_table(write(tmp_path / "a[1]", ["a\ti1\t1\tb"]), NAMES, WANTED, "\t", "utf-8")
    monkeypatch.setattr(table, "SMALLEST", path.stat().st_size + 1)
    with pytest.raises(Unusual):
        read_table(path, NAMES, WANTED, "\t", "utf-8")


def test_pieces_of_a_file_are_looked_at_as_one(tmp_path, monkeypatch):
    """An empty line, a letter of several bytes and two blanks that lie in two pieces."""
    for block in (1, 2, 3):
        monkeypatch.setattr(table, "_BLOCK", block)
        short = write(tmp_path, ["é\ti1  i2\t1\tb"])
        assert_same(read_table(short, NAMES, WANTED, "\t", "utf-8"), read_slowly(short, WANTED, "\t", "utf-8"))
        with pytest.raises(Unusual):
            read_table(write(tmp_path, ["é\ti1\t1\tb", "", "é\ti1\t1\tb"]), NAMES, WANTED, "\t", "utf-8")


def test_many_rows_keep_their_order(tmp_path):
    """DuckDB works on pieces of some thousand rows, and loses their order behind a join."""
    for blanks in (" ", "  "):
        rows = [f"u{number % 999}é\ti{number}{blanks}i{number % 13}\t{number}\t秘密" for number in range(150_000)]
        path = write(tmp_path, rows)
        assert_same(read_table(path, NAMES, WANTED, "\t", "utf-8"), read_slowly(path, WANTED, "\t", "utf-8"))


def test_other_separators(tmp_path):
    path = write(tmp_path, ["x|i1,,i2|1|y", "x||2|z"], header="a:token|b:token_seq|c:float|d:token")
    found, lists = read_table(path, NAMES, WANTED, "|", "utf-8", ",")
    assert found["d"].tolist() == ["y", "z"] and found["c"].tolist() == [1.0, 2.0]
    assert lists["b"].lengths.tolist() == [2, 0] and [lists["b"].texts[code] for code in lists["b"].codes] == ["i1", "i2"]


def test_lists_are_filled_into_rows(monkeypatch):
    monkeypatch.setattr(table, "_ROWS", 2)
    lists = Lists.of(["b a b", "", " c ", "a", "d c b a"], " ")
    assert lists.texts == ["b", "a", "c", "d"] and lists.distinct().tolist() == [0, 1, 2, 3]
    rows = np.zeros((5, 4), dtype=np.int64)
    lists.fill(np.array([10, 20, 30, 40]), rows)
    assert rows.tolist() == [[10, 20, 10, 0], [0, 0, 0, 0], [30, 0, 0, 0], [20, 0, 0, 0], [40, 30, 10, 20]]
