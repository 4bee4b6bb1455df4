"""Atomic files: escaping, reading columns as they are, and folders that are written as a whole."""

import os
import stat

import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from recbole_flr.data.atomic import escape, header, read_columns, staged, unescape
from recbole_flr.errors import DataError

NASTY = [
    "plain",
    "",
    " blanks at both ends ",
    'quotes "in" the middle',
    '"quotes around"',
    '"an open quote',
    "NA",
    "nan",
    "tab\there",
    "two\nlines",
    "CR\rand CRLF\r\n",
    "a backslash \\ and \\n that is no newline",
    "ends in a backslash\\",
    "\\\\t",
    "雪の基地 🚒 \u2028 \x85 \x0b \x1c",
    "<|endoftext|><|Thought|>",
    "comma, colon: and 'apostrophe'",
]


def write_staged(folder, files):
    """Writes files (dict name -> lines) by `staged`."""
    with staged(folder) as temporary:
        for name, lines in files.items():
            with open(temporary / name, "w", encoding="utf-8", newline="\n") as handle:
                handle.writelines(line + "\n" for line in lines)


TEXT = st.text(st.characters(exclude_categories=["Cs"]))
# Texts of characters that matter here; st.text alone would seldom draw them.
KNOTTY = st.text(st.sampled_from("\\\t\n\rtnr q"))


@given(TEXT | KNOTTY)
def test_escape_round_trip(text):
    field = escape(text)
    assert not set(field) & set("\t\n\r")
    assert unescape(field) == text


def test_escape_writes_the_documented_sequences():
    assert escape("a\\b\tc\nd\re") == r"a\\b\tc\nd\re"
    assert unescape(r"a\\nb") == r"a\nb"  # an escaped backslash, then an n: no newline


def test_unescape_leaves_other_sequences_alone():
    assert unescape("Earth A.D.\\Die Die \\") == "Earth A.D.\\Die Die \\"


@given(st.lists(TEXT | KNOTTY, max_size=6))
def test_columns_round_trip(tmp_path_factory, texts):
    folder = tmp_path_factory.mktemp("atomic") / "set"
    lines = ["item_id:token\ttitle:token", *(f"{number}\t{escape(text)}" for number, text in enumerate(texts))]
    write_staged(folder, {"set.item": lines})
    columns = read_columns(folder / "set.item", ["title", "item_id"])
    assert list(columns) == ["title", "item_id"]
    assert [unescape(field) for field in columns["title"]] == texts
    assert columns["item_id"] == [str(number) for number in range(len(texts))]


def test_nasty_titles_survive_where_pandas_loses_them(tmp_path):
    write_staged(tmp_path / "set", {"set.item": ["item_id:token\ttitle:token", *(f"i\t{escape(text)}" for text in NASTY)]})
    path = tmp_path / "set" / "set.item"
    assert [unescape(field) for field in read_columns(path, ["title"])["title"]] == NASTY
    # The reason for read_columns: RecBole's way of reading the same file fails at the open quote.
    with pytest.raises(pd.errors.ParserError):
        pd.read_csv(path, sep="\t", dtype=str)


def test_lines_end_at_lf_alone(tmp_path):
    path = tmp_path / "a.item"
    path.write_bytes("\ufeffa:token\tb:float\r\nx\ry\u2028z\t1\r\n\n\t\n".encode())
    assert header(path) == {"a": "token", "b": "float"}
    assert read_columns(path, ["a", "b"]) == {"a": ["x\ry\u2028z", ""], "b": ["1", ""]}  # the empty line is no row


def test_other_separator_and_encoding(tmp_path):
    path = tmp_path / "a.item"
    path.write_bytes("a:token,b:token\nä,b\tc\n".encode("latin-1"))
    assert read_columns(path, ["b", "a"], separator=",", encoding="latin-1") == {"b": ["b\tc"], "a": ["ä"]}
    with pytest.raises(DataError, match="not utf-8 text"):
        read_columns(path, ["a"], separator=",")


@pytest.mark.parametrize(
    "content, message",
    [
        ("a:token\tb:float\nx\t1\n", r"no column 'c'; its columns are a, b"),
        ("a:token\tb:float\tc:token\nx\t1\tz\nx\t1\n", r"line 3: 2 columns, but the header has 3"),
        ("a:token\tc:token\nx\t1\tz\n", r"line 2: 3 columns, but the header has 2"),
        ("a\tc:token\nx\ty\n", r"'a' is not of the form name:type"),
        ("", r"'' is not of the form name:type"),
        ("c:token\tc:float\nx\ty\n", r"'c' twice"),
    ],
)
def test_bad_files_are_named(tmp_path, content, message):
    path = tmp_path / "a.item"
    path.write_text(content)
    with pytest.raises(DataError, match=message) as caught:
        read_columns(path, ["c"])
    assert str(path) in str(caught.value)


def test_missing_file(tmp_path):
    with pytest.raises(DataError, match="cannot read .*nowhere"):
        header(tmp_path / "nowhere.item")


def tree(folder):
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_files_of_a_new_and_an_old_folder(tmp_path):
    folder = tmp_path / "deep" / "set"
    write_staged(folder, {"a": ["1"], "b": iter(["2", "ü"])})
    assert tree(tmp_path) == {"deep/set/a": b"1\n", "deep/set/b": "2\nü\n".encode()}
    write_staged(folder, {"b": ["3"], "c": []})
    assert tree(tmp_path) == {"deep/set/a": b"1\n", "deep/set/b": b"3\n", "deep/set/c": b""}
    assert os.listdir(folder.parent) == ["set"]


@pytest.mark.skipif(os.name != "posix", reason="modes are POSIX")
def test_staged_files_have_the_usual_modes(tmp_path):
    write_staged(tmp_path / "set", {"a": ["1"]})
    (tmp_path / "usual").mkdir()
    assert stat.S_IMODE((tmp_path / "set").stat().st_mode) == stat.S_IMODE((tmp_path / "usual").stat().st_mode)


def failing():
    yield "1"
    raise KeyboardInterrupt


def test_a_failure_leaves_nothing_behind(tmp_path):
    with pytest.raises(KeyboardInterrupt):
        write_staged(tmp_path / "new" / "set", {"a": ["1"], "b": failing()})
    assert os.listdir(tmp_path) == []


def test_failure_while_moving_puts_the_old_files_back(tmp_path, monkeypatch):
    folder = tmp_path / "set"
    write_staged(folder, {"a": ["old a"], "c": ["old c"]})
    before, replace = tree(tmp_path), os.replace

    def fails_at_c(source, target):
        if str(source).endswith(os.sep + "c"):
            raise OSError("disk full")
        replace(source, target)

    monkeypatch.setattr(os, "replace", fails_at_c)
    with pytest.raises(OSError, match="disk full"):
        write_staged(folder, {"a": ["new a"], "b": ["new b"], "c": ["new c"]})
    assert tree(tmp_path) == before
    assert os.listdir(tmp_path) == ["set"]


def test_two_writers_of_a_new_folder(tmp_path):
    folder = tmp_path / "set"
    with staged(folder) as temporary:
        (temporary / "a").write_text("slow")
        write_staged(folder, {"a": ["fast"], "b": ["fast"]})
    assert tree(tmp_path) == {"set/a": b"slow", "set/b": b"fast\n"}


def test_a_file_in_the_way(tmp_path):
    (tmp_path / "set").write_text("mine")
    with pytest.raises(DataError, match="is a file"):
        write_staged(tmp_path / "set", {"a": ["1"]})
    assert tree(tmp_path) == {"set": b"mine"}


def test_a_name_that_no_folder_can_have_leaves_nothing(tmp_path):
    """The name of the temporary folder is even longer, so the error comes before the block runs."""
    with pytest.raises(OSError), staged(tmp_path / "new" / "deep" / ("x" * 250)):
        pytest.fail("entered")
    assert not list(tmp_path.iterdir())
