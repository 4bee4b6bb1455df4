"""Files of users: all formats give the same users, and what is wrong is named with its line."""

import csv
import gzip
import json

import duckdb
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from recbole_flr.errors import DataError
from recbole_flr.user_files import check_user_file, count_users, quoted, read_users

TEXT = st.text(st.characters(exclude_categories=["Cs", "Cc"]), min_size=1, max_size=6).filter(str.strip)


def write(path, users, as_json=True):
    """Write (user, history) in the format of the path's ending."""
    opened = gzip.open if path.endswith(".gz") else open
    if ".parquet" in path:
        with duckdb.connect() as database:
            database.execute("CREATE TABLE users (user_id VARCHAR, history VARCHAR[])")
            if users:
                database.executemany("INSERT INTO users VALUES (?, ?)", users)
            database.execute(f"COPY users TO {quoted(path)} (FORMAT parquet)")
        return
    with opened(path, "wt", encoding="utf-8", newline="") as file:
        if ".jsonl" in path:
            file.writelines(json.dumps({"other": 1, "user_id": user, "history": history}) + "\n" for user, history in users)
            return
        writer = csv.writer(file, delimiter="\t" if ".tsv" in path else ",")
        writer.writerow(["other", "history", "user_id"])
        writer.writerows(["", json.dumps(history) if as_json else " ".join(history), user] for user, history in users)


@settings(max_examples=12, deadline=None)
@given(st.lists(st.tuples(TEXT, st.lists(TEXT, max_size=4)), max_size=12))
@pytest.mark.parametrize("name", ["a.csv", "a.tsv", "a.jsonl", "a.jsonl.gz", "a'b.csv.gz", "a'b.parquet"])
def test_what_is_written_is_read(name, users):
    write(name, users)
    check_user_file(name)
    found = list(read_users(name))
    assert [(user, history) for _, user, history in found] == [(user, list(history)) for user, history in users]
    assert count_users(name) == len(users)
    first = 1 if "jsonl" in name else 2
    if "parquet" not in name:
        assert [place for place, *_ in found] == [f"{name}, line {number}" for number in range(first, first + len(users))]


def test_ids_separated_by_blanks_and_numbers_as_ids():
    write("a.csv", [("u", ["1", "b"])], as_json=False)
    assert next(read_users("a.csv"))[1:] == ("u", ["1", "b"])
    with open("a.jsonl", "w") as file:
        file.write('{"user_id": 7, "history": [1, "b"]}\n\n')
    assert list(read_users("a.jsonl")) == [("a.jsonl, line 1", "7", ["1", "b"])]
    duckdb.sql("COPY (SELECT 7 AS user_id, [1, 2] AS history) TO 'a.parquet' (FORMAT parquet)")
    assert list(read_users("a.parquet")) == [("a.parquet, row 1", "7", ["1", "2"])]


def test_lines_behind_a_quoted_line_end_keep_their_numbers():
    with open("a.csv", "w") as file:
        file.write('\ufeffuser_id,history\n"u\n1",a\nu2,b\n')
    assert [place for place, *_ in read_users("a.csv")] == ["a.csv, line 2", "a.csv, line 4"]


@pytest.mark.parametrize("name, text, message", [
    ("a.csv", "user,history\nu,a\n", r"users: a.csv has no column user_id; its columns are user, history"),
    ("a.csv", "", "has no column user_id and history; its columns are none"),
    ("a.csv", "user_id,history\nu,a\nu,a,b\n", "a.csv, line 3: found 3 fields, expected 2"),
    ("a.csv", "user_id,history\nu,[1\n", "a.csv, line 2: found the history '\\[1', which is no JSON list"),
    ("a.csv", 'user_id,history\n"u,a\n', "a.csv, line 2: unexpected end"),
    ("a.csv", b"user_id,history\nu,a\nu\xff,a\n", "a.csv, line .: 'utf-8' codec can't decode"),
    ("a.jsonl", '{"user_id": 1, "history": []}\n{"user_id": 1}\n', "a.jsonl, line 2: found .* expected an object"),
    ("a.jsonl", "[1]\n", "a.jsonl, line 1: found '\\[1\\]', expected an object"),
    ("a.jsonl", "\n{\n", "a.jsonl, line 2: Expecting property name"),
    ("a.jsonl", '{"user_id": 1, "history": 3}', "a.jsonl, line 1: found the history 3, expected a list"),
    ("a.jsonl", '{"user_id": null, "history": []}', "a.jsonl, line 1: found the user_id None"),
    ("a.parquet", "no parquet", "users: cannot read a.parquet"),
])
def test_what_cannot_be_read(name, text, message):
    with open(name, "wb") as file:
        file.write(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(DataError, match=message):
        list(read_users(name))


@pytest.mark.parametrize("name, message", [
    ("tests", "expected test, all, or a file"), ("a.xlsx", "expected test"), ("no.csv", "no file"),
])
def test_what_is_no_file_of_users(name, message):
    with pytest.raises(DataError, match=message):
        check_user_file(name)
