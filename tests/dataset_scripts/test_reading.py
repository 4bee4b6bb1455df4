"""Files as DuckDB tables: a row for each line, numbers of lines, errors that say what to do."""

import csv
import io
import json
import random

import numpy as np
import pytest
from helpers_convert import pack

from dataset_scripts import reading
from dataset_scripts.reading import ROLES, Database, check_columns, load
from dataset_scripts.sources import Check, recognise
from recbole_flr.errors import ConfigError, DataError


@pytest.fixture
def database(tmp_path):
    with Database(tmp_path / "spill") as opened:
        yield opened


def everything(rows):
    """SQL of a table of all roles as they come."""
    nothing = "user IS NULL AND item IS NULL AND time IS NULL"
    return f"SELECT CASE WHEN doubtful OR ({nothing}) THEN 1 ELSE 0 END AS state, * FROM {rows}"


def loaded(database, path, columns, data=None, suffix="", **options):
    """The rows of a file: list of dicts of the roles in `columns`; and its Lines."""
    if data is not None:
        path.write_bytes(pack(data, suffix))
    source = recognise(path, **options)
    lines = load(database, "t", source, columns, everything)
    assert database.rows("SELECT count(*) FROM duckdb_tables()") == [
        (1 + 2 * (source.format in ("csv", "tsv")),)
    ]  # with DuckDB's of rejects
    return [dict(zip(columns, row)) for row in database.rows(f"SELECT {', '.join(columns)} FROM t ORDER BY rowid")], lines


# ---- the database ------------------------------------------------------------------------------------------------------


def test_values_of_codes(database):
    """In a table of several pieces: the text of each code, and whether all its rows have it."""
    database.run("CREATE TABLE reviews AS SELECT 'u' || range % 1000 AS user FROM range(400000)")
    rng = np.random.default_rng(0)
    for n_rows in (0, 1, 1000, 399_999):
        rows = np.sort(rng.choice(400_000, n_rows, replace=False))
        users, codes = np.unique(rows % 1000, return_inverse=True)
        found, same = database.of_codes("user", rows, codes, 400_000)
        assert found.tolist() == [f"u{user}" for user in users] and same.all()
    found, same = database.of_codes("user", np.array([5, 1005, 7, 2, 1002]), np.array([0, 0, 1, 1, 2]), 400_000)
    assert found.tolist() == ["u5", "u2", "u2"] and same.tolist() == [True, False, True]


def test_insert(database):
    """Texts with anything in them, and a column of nothing but nulls."""
    database.run("CREATE TABLE t (line BIGINT, a VARCHAR, b VARCHAR)")
    rows = [[number, text, None] for number, text in enumerate(["x", None, "", "nul\0", "雪'\"", "NULL", "[1]"])]
    database.insert("t", rows)
    database.insert("t", [[2**40, None, "y"]])
    assert database.rows("SELECT * FROM t ORDER BY rowid") == [*map(tuple, rows), (2**40, None, "y")]


def test_arrays(database):
    found = database.arrays("SELECT a.value + 1 AS b FROM a WHERE value > 1 ORDER BY 1 DESC", a=np.array([1, 2, 3]))
    assert list(found) == ["b"] and found["b"].tolist() == [4, 3]
    with pytest.raises(Exception):
        database.rows("SELECT * FROM a")  # no longer known


@pytest.mark.parametrize("limit", ["", "much", "5", "GB", "1 XB"])
def test_memory_limits_that_are_none(tmp_path, limit):
    with pytest.raises(ConfigError, match="memory_limit is .*; expected such as 1GB or 500MB"):
        Database(tmp_path, limit)


def test_too_little_memory(tmp_path):
    with (
        Database(tmp_path / "spill", "5MB") as database,
        pytest.raises(DataError, match="Out of Memory.*; raise --memory-limit"),
    ):
        database.run(
            "CREATE TABLE t AS SELECT hash(range) AS a, repeat('x', range::INT % 99) AS b FROM range(9000000) ORDER BY a"
        )


def test_settings(database):
    assert database.rows("SELECT current_setting('TimeZone'), current_setting('autoload_known_extensions'), "
                         "current_setting('autoinstall_known_extensions')") == [("UTC", False, False)]  # fmt: skip


def test_a_plan_with_a_join_is_a_bug(database, tmp_path):
    """Behind one rows are not in order; the word alone is none."""
    path = tmp_path / "join.json"
    path.write_text('{"JOIN": "JOIN", "b": 1, "c": 2}\n' * 3)
    columns = {"user": "JOIN", "item": "b", "time": "c"}
    loaded(database, path, columns)
    with pytest.raises(AssertionError, match="plans a join"):
        load(
            database,
            "t",
            recognise(path),
            columns,
            lambda rows: f"SELECT 0 AS state, a.* FROM {rows} AS a JOIN {rows} AS b USING (user)",
        )


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


def test_values_of_json(tmp_path, database):
    """Ids are texts or numbers; a half of a surrogate pair is no id, and U+FFFD in a text."""
    for role, place in (("item", 1), ("title", 2), ("brand", 2), ("price", 2)):
        data = "".join(f'{{"u": "u", "v": {case[0]}}}\n' for case in VALUES).encode()
        rows, _ = loaded(database, tmp_path / "x", {"user": "u", role: "v"}, data)
        assert [row[role] for row in rows] == [case[place] for case in VALUES]
        assert [row["user"] for row in rows] == ["u"] * len(VALUES)


def test_categories_of_json(tmp_path, database):
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
    rows, _ = loaded(database, tmp_path / "x", {"user": "u", "category": "v"}, data)
    found = [row["category"] for row in rows]
    assert [
        json.loads(text) if isinstance(expected, list) else text for text, expected in zip(found, cases.values())
    ] == list(cases.values())


def test_numbers_stay_what_they_are_in_both_looks(tmp_path, database):
    """A half of a pair elsewhere in the line changes nothing of its values."""
    for values in (VALUES, VALUES[::-1]):
        lines = ['{"u": %s, "v": %s, "t": %s, "z": "\\ud83d"}' % (case[0], case[0], case[0]) for case in values]
        rows, _ = loaded(database, tmp_path / "x", {"item": "u", "title": "v", "time": "t"}, "\n".join(lines).encode())
        plain, _ = loaded(
            database,
            tmp_path / "x",
            {"item": "u", "title": "v", "time": "t"},
            "\n".join(lines).replace('"z": "\\ud83d"', '"z": 1').encode(),
        )
        for one, other, case in zip(rows, plain, values):
            assert (one["item"], other["item"]) == (case[1], case[1])
            if case[0] != "1E-7":  # DuckDB's 1e-7 is Python's 1e-07
                assert (one["title"], other["title"]) == (case[2], case[2])


def jsonl(rng, n_lines, blanks):
    """Lines, some blank, some broken, some that want a second look; list of (is it a row?, is it readable?)."""
    lines, kinds = [], []
    for number in range(n_lines):
        kind = rng.choice(["good"] * 6 + ["bad", "half"] + ["blank"] * blanks)
        lines.append({"good": b'{"u": "u%d", "x": "%s"}' % (number, b"x" * rng.randrange(30)),
                      "bad": rng.choice([b"{", b"[1]", b"\xff", b"{}"]),
                      "half": b'{"u": "u%d", "x": "\\ud800"}' % number,
                      "blank": rng.choice([b"", b" ", b"\t\r"])}[kind])  # fmt: skip
        kinds.append(kind)
    return lines, kinds


@pytest.mark.parametrize("suffix", ["", ".gz", ".zst"])
@pytest.mark.parametrize("seed", range(8))
def test_lines_of_json(tmp_path, database, monkeypatch, seed, suffix):
    """Found by jumps or by counting, in blocks of any size."""
    rng = random.Random(seed)
    monkeypatch.setattr(Check, "STEP", rng.choice([16, 64, 1 << 20]))
    monkeypatch.setattr(reading, "_BLOCK", rng.choice([16, 100, 1 << 20]))
    monkeypatch.setattr(reading, "_BATCH", rng.choice([1, 3, 10_000]))
    lines, kinds = jsonl(rng, 200, seed % 2)
    lines[0], kinds[0] = b'{"u": "u0"}', "good"
    data = b"\n".join(lines) + rng.choice([b"", b"\n", b"\n\n  ", b"\n \n"])
    rows, found = loaded(database, tmp_path / "x", {"user": "u"}, data, suffix)
    places = [place for place, kind in enumerate(kinds) if kind != "blank"]
    assert [row["user"] for row in rows] == [None if kinds[place] == "bad" else f"u{place}" for place in places]
    assert found.total == len(places)
    for wanted in ([], [0], [len(places) - 1], sorted(rng.sample(range(len(places)), 20)), list(range(len(places)))):
        assert [(row, number, line) for row, number, line in found.find(wanted)] == [
            (row, places[row] + 1, lines[places[row]]) for row in wanted
        ]
        assert found.first(wanted, 3) == [places[row] + 1 for row in wanted[:3]]


def test_a_mark_of_utf8_in_front(tmp_path, database):
    """It belongs to no line; before a broken one, or a blank one, which is then none."""
    mark = b"\xef\xbb\xbf"
    assert loaded(database, tmp_path / "x", {"user": "u"}, mark + b'{"u": "a"}\n')[0] == [{"user": "a"}]
    assert loaded(database, tmp_path / "x", {"user": "u"}, mark + b'{"u": "\\ud800", "v": "\\ud800"}\n{"u": "[1]"}')[0] == [
        {"user": None},
        {"user": "[1]"},
    ]
    rows, lines = loaded(database, tmp_path / "x", {"user": "u"}, mark + b'\n\n{"u": "a"}\n')
    assert rows == [{"user": None}, {"user": "a"}] and lines.first([0, 1], 5) == [1, 3]


# ---- CSV ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("separator", [",", "\t"])
@pytest.mark.parametrize("seed", range(12))
def test_records_of_csv(tmp_path, database, seed, separator):
    """Fields as Python's csv reads them, and numbers of lines as it counts them."""
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
        )  # or it might be blank, or end in a field of nothing
        writer.writerow(fields)
        (begins if kind == "good" else refused).append(line)
        if kind == "good":
            expected.append(dict(zip(("user", "item", "time"), fields)))
    data = text.getvalue().encode()
    if rng.random() < 0.5:
        data = data.removesuffix(end.encode())
    mark = rng.choice([b"", b"\xef\xbb\xbf"])
    rows, lines = loaded(
        database,
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


def test_a_file_with_odd_quotes_is_copied_into_the_spill_folder(tmp_path, database):
    """And the copy is read from then on, too; the file itself is what is hashed."""
    path = tmp_path / "x"
    rows, lines = loaded(database, path, {"user": "u", "item": "i"}, b'u,i\n"a" b,"x\ny"\nc,d\n')
    assert rows == [{"user": "a b", "item": "x\ny"}, {"user": "c", "item": "d"}]
    assert lines.source.readable == tmp_path / "spill" / "t.csv"
    assert lines.source.readable.read_bytes() == b'"u","i"\n"a b","x\ny"\n"c","d"\n'
    again = load(database, "t", lines.source, {"user": "u", "item": "i"}, everything)
    assert again.check.sha256 == lines.check.sha256 and database.rows("SELECT count(*) FROM t") == [(2,)]
    assert again.first([1], 5) == [4]


def test_lines_that_look_like_records_inside_a_field(tmp_path, database):
    """Parallel readers would begin there; more than one piece of what DuckDB reads at a time."""
    inner = "\n".join(f"{number},2" for number in range(500))
    text = "u,i\n" + "".join(f'r{number},"{inner}"\n' for number in range(20_000))
    assert len(text) > 40e6
    path = tmp_path / "x"
    path.write_text(text)
    lines = load(
        database,
        "t",
        recognise(path),
        {"user": "u", "item": "i"},
        lambda rows: f"SELECT 0 AS state, user, length(item) AS item FROM {rows}",
    )
    assert database.rows("SELECT count(*), count(DISTINCT user), min(item), max(item) FROM t") == [
        (20_000, 20_000, len(inner), len(inner))
    ]
    assert lines.refused == [] and database.rows("SELECT user FROM t WHERE rowid = 19999") == [("r19999",)]


# ---- columns -----------------------------------------------------------------------------------------------------------


def test_check_columns(tmp_path):
    path = tmp_path / "x"
    path.write_text("u,i,i,U\n")
    source = recognise(path, "csv")
    check_columns(source, {"user": "u", "item": "U"})
    with pytest.raises(DataError, match=r"has no column 't' \(time\), 'r' \(rating\); its columns are u, i, i, U"):
        check_columns(source, {"user": "u", "time": "t", "rating": "r"})
    with pytest.raises(DataError, match="has 2 columns 'i'"):
        check_columns(source, {"item": "i"})
    path.write_text('{"u": 1, "U": 2}\n')
    source = recognise(path)
    check_columns(source, {"user": "u", "title": "later", "rating": "later"})  # other keys may come in later lines
    with pytest.raises(DataError, match=r"has no column 'i' \(item\); its columns are u, U"):
        check_columns(source, {"user": "u", "item": "i"})
    with pytest.raises(DataError, match="differ in case alone"):
        check_columns(source, {"user": "u", "item": "U"})


def test_roles():
    """What other modules slice out of them."""
    assert ROLES[:4] == ("user", "item", "time", "rating") and ROLES[4:] == ("title", "brand", "category", "price")
