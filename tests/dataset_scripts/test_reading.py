"""Files as DuckDB tables: values of JSON, a plan that keeps the order of rows, copies of CSV files."""

import json

import pytest
from helpers_convert import every_column, loaded

from dataset_scripts.database import Database
from dataset_scripts.reading import load
from dataset_scripts.sources import recognise


def test_a_plan_with_a_join_is_refused(tmp_path):
    """A join does not keep the order of rows. A column that is called JOIN is no join."""
    path = tmp_path / "join.json"
    path.write_text('{"JOIN": "JOIN", "b": 1, "c": 2}\n' * 3)
    columns = {"user": "JOIN", "item": "b", "time": "c"}
    loaded(path, columns)

    def joined(rows):
        return f"SELECT 0 AS state, a.* FROM {rows} AS a JOIN {rows} AS b USING (user)"

    with Database(tmp_path / "spill") as database, pytest.raises(AssertionError, match="plans a join"):
        load(database, "t", recognise(path), columns, joined)


# ---- JSON --------------------------------------------------------------------------------------------------------------

VALUES = [  # JSON -> as an id, as a text
    ('"x"', "x", "x"), ('""', "", ""), ("5", "5", "5"), ("5.0", "5.0", "5.0"), ("-0", "0", "0"),
          ("1e5", "100000.0", "100000.0"), ("1E-7", "1e-07", "1e-7"),
    ("18446744073709551616", "18446744073709551616", "18446744073709551616"),
          ("1234567890123456789012345", "1234567890123456789012345", "1234567890123456789012345"),
    ("null", None, None), ("true", "true", None), ("NaN", "NaN", None), ("-Infinity", "-Infinity", None),
          ('"NaN"', "NaN", "NaN"), ("[1, 2]", None, None), ("[]", None, None),
    ('{"a": 1}', None, None), ("{}", None, None), ('"[1, 2]"', "[1, 2]", "[1, 2]"), ('"{}"', "{}", "{}"),
          ('"[x"', "[x", "[x"), ('"\\u0001"', "\x01", "\x01"),
    ('"nul\\u0000"', "nul\0", "nul\0"), ('"\\ud83d\\ude00"', "😀", "😀"), ('"\\ud83d"', None, "\ufffd"),
          ('"a\\udc00b"', None, "a\ufffdb"), ('"\\\\ \\/ \\" \\n"', '\\ / " \n', '\\ / " \n'),
]  # fmt: skip


def test_values_of_json(tmp_path):
    """Ids are texts or numbers; a half of a surrogate pair is no id, and U+FFFD in a text."""
    for role, place in (("item", 1), ("title", 2), ("brand", 2), ("price", 2)):
        data = "".join(f'{{"u": "u", "v": {case[0]}}}\n' for case in VALUES).encode()
        rows, _ = loaded(tmp_path / "x", {"user": "u", role: "v"}, data)
        assert [row[role] for row in rows] == [case[place] for case in VALUES]
        assert [row["user"] for row in rows] == ["u"] * len(VALUES)


def test_categories_of_json(tmp_path):
    cases = {
        '"x"': "x",
        '["a", "b"]': ["a", "b"],
        "[]": [],
        '{"a": 1}': None,
        "true": None,
        "5": "5",
        '"[a"': "[a",
        '["\\ud83d"]': ["\ufffd"],
    }
    data = "".join(f'{{"u": "u", "v": {case}}}\n' for case in cases).encode()
    rows, _ = loaded(tmp_path / "x", {"user": "u", "category": "v"}, data)
    found = [row["category"] for row in rows]
    assert [
        json.loads(text) if isinstance(expected, list) else text for text, expected in zip(found, cases.values())
    ] == list(cases.values())


def test_numbers_stay_what_they_are_in_both_looks(tmp_path):
    """A half of a pair elsewhere in the line changes nothing of its values."""
    for values in (VALUES, VALUES[::-1]):
        lines = ['{"u": %s, "v": %s, "t": %s, "z": "\\ud83d"}' % (case[0], case[0], case[0]) for case in values]
        rows, _ = loaded(tmp_path / "x", {"item": "u", "title": "v", "time": "t"}, "\n".join(lines).encode())
        plain, _ = loaded(
            tmp_path / "x",
            {"item": "u", "title": "v", "time": "t"},
            "\n".join(lines).replace('"z": "\\ud83d"', '"z": 1').encode(),
        )
        for one, other, case in zip(rows, plain, values):
            assert (one["item"], other["item"]) == (case[1], case[1])
            if case[0] != "1E-7":  # DuckDB's 1e-7 is Python's 1e-07
                assert (one["title"], other["title"]) == (case[2], case[2])


# ---- CSV ---------------------------------------------------------------------------------------------------------------


def test_a_file_with_odd_quotes_is_copied_into_the_spill_folder(tmp_path):
    """DuckDB then reads the copy every time; the SHA-256 is that of the file itself."""
    path, columns = tmp_path / "x", {"user": "u", "item": "i"}
    rows, lines = loaded(path, columns, b'u,i\n"a" b,"x\ny"\nc,d\n')
    assert rows == [{"user": "a b", "item": "x\ny"}, {"user": "c", "item": "d"}]
    assert lines.source.readable == tmp_path / "spill" / "t.csv"
    assert lines.source.readable.read_bytes() == b'"u","i"\n"a b","x\ny"\n"c","d"\n'
    with Database(tmp_path / "spill") as database:
        again = load(database, "t", lines.source, columns, every_column)
        assert database.rows("SELECT count(*) FROM t") == [(2,)]
    assert again.check.sha256 == lines.check.sha256 and again.first([1], 5) == [4]


@pytest.mark.parametrize("end", ["", "\n", '""', "\nc,d\n"])
@pytest.mark.parametrize("inches", [0, 1, 2])
def test_the_last_record_of_a_file_that_ends_inside_quotes(tmp_path, inches, end):
    """DuckDB drops that record without a word, whatever other quotes the file has (found by test_damaged_csv)."""
    data = "u,i\na,b\n" + 'x,5"\n' * inches + 'e,"f' + end
    rows, lines = loaded(tmp_path / "x", {"user": "u", "item": "i"}, data.encode())
    expected = [{"user": "a", "item": "b"}, *[{"user": "x", "item": '5"'}] * inches]
    assert rows == [*expected, {"user": "e", "item": "f" + end.replace('""', '"')}]
    assert lines.refused == []


def test_lines_that_look_like_records_inside_a_field(tmp_path):
    """Several threads would begin to read there. The file is larger than one of DuckDB's buffers."""
    inner = "\n".join(f"{number},2" for number in range(500))
    text = "u,i\n" + "".join(f'r{number},"{inner}"\n' for number in range(20_000))
    assert len(text) > 40e6
    path = tmp_path / "x"
    path.write_text(text)
    with Database(tmp_path / "spill") as database:
        lines = load(database, "t", recognise(path), {"user": "u", "item": "i"},
                     lambda rows: f"SELECT 0 AS state, user, length(item) AS item FROM {rows}")  # fmt: skip
        found = database.rows("SELECT count(*), count(DISTINCT user), min(item), max(item) FROM t")
        assert found == [(20_000, 20_000, len(inner), len(inner))]
        assert database.rows("SELECT user FROM t WHERE rowid = 19999") == [("r19999",)]
    assert lines.refused == []
