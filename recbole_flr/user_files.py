"""Files of users and their histories: one user in a row, with the columns `user_id` and `history` (item ids, oldest first).

csv, tsv    the history is item ids separated by blanks, or a JSON list (for ids with blanks in them)
jsonl       the history is a list
parquet     the history is a list, or text as in a csv file

csv, tsv and jsonl files may be compressed (.gz). Files are read row by row.
"""

import csv
import gzip
import json
import sys
from pathlib import Path

import duckdb

from recbole_flr.errors import DataError, first_line

ENDINGS = (".csv", ".tsv", ".jsonl", ".parquet")
USER, HISTORY = "user_id", "history"


def check_user_file(path):
    """Make sure that a file is there and has a known format.

    Raises:
        DataError: otherwise.
    """
    if _ending(path) not in ENDINGS:
        raise DataError(f"users: found {str(path)!r}, expected test, all, or a file that ends with {', '.join(ENDINGS)}")
    if not Path(path).is_file():
        raise DataError(f"users: found no file {path}; expected test, all, or the path of a file")


def _ending(path):
    return Path(str(path).removesuffix(".gz")).suffix.lower()


def count_users(path):
    """Rows of a file, for a progress bar; line ends within quotes count too."""
    if _ending(path) == ".parquet":
        return _parquet(path, f"SELECT count(*) FROM read_parquet({quoted(path)})").fetchone()[0]
    lines, end = 0, b"\n"
    with _open(path, "rb") as file:
        while block := file.read(1 << 20):
            lines, end = lines + block.count(b"\n"), block[-1:]
    return max(0, lines + (end != b"\n") - (_ending(path) != ".jsonl"))


def read_users(path):
    """Read the users of a file.

    Args:
        path: of the file.

    Yields:
        place, such as `users.csv, line 3`; user, text; history, list of text.

    Raises:
        DataError: for what is not as the module's docstring says; the message begins with the place.
    """
    rows = {".jsonl": _read_json, ".parquet": _read_parquet}.get(_ending(path), _read_csv)(Path(path))
    for place, user, history in rows:
        if isinstance(history, str):
            history = _split(place, history)
        elif not isinstance(history, (list, tuple)):
            raise DataError(f"{place}: found the {HISTORY} {history!r}, expected a list of item ids")
        if user is None or isinstance(user, (list, dict)):
            raise DataError(f"{place}: found the {USER} {user!r}, expected a text or a number")
        yield place, str(user), [str(item) for item in history]


def _split(place, text):
    """The history of a csv file -> list."""
    if not text.lstrip().startswith("["):
        return text.split()
    try:
        return json.loads(text)
    except ValueError as error:
        raise DataError(f"{place}: found the {HISTORY} {text!r}, which is no JSON list ({error})") from error


def _open(path, mode="rt"):
    text = {"encoding": "utf-8-sig", "newline": ""} if mode == "rt" else {}
    return (gzip.open if str(path).endswith(".gz") else open)(path, mode, **text)


def _check_columns(path, columns):
    missing = [name for name in (USER, HISTORY) if name not in columns]
    if missing:
        found = ", ".join(map(str, columns)) or "none"
        raise DataError(f"users: {path} has no column {' and '.join(missing)}; its columns are {found}")


def _read_csv(path):
    csv.field_size_limit(sys.maxsize if sys.maxsize < 2**31 else 2**31 - 1)
    with _open(path) as file:
        reader = csv.reader(file, delimiter="\t" if _ending(path) == ".tsv" else ",", strict=True)
        line = 1
        try:
            columns = next(reader, [])
            _check_columns(path, columns)
            user, history = columns.index(USER), columns.index(HISTORY)
            line = reader.line_num + 1
            for row in reader:
                place, line = f"{path}, line {line}", reader.line_num + 1
                if not row:
                    continue
                if len(row) != len(columns):
                    raise DataError(f"{place}: found {len(row)} fields, expected {len(columns)}, as in the first line")
                yield place, row[user], row[history]
        except (csv.Error, UnicodeDecodeError) as error:
            raise DataError(f"{path}, line {line}: {error}") from error


def _read_json(path):
    with _open(path) as file:
        number = 0
        try:
            for number, text in enumerate(file, 1):
                place = f"{path}, line {number}"
                if not text.strip():
                    continue
                row = json.loads(text)
                if not isinstance(row, dict) or not {USER, HISTORY} <= row.keys():
                    raise DataError(f"{place}: found {text.strip()[:80]!r}, expected an object with {USER} and {HISTORY}")
                yield place, row[USER], row[HISTORY]
        except UnicodeDecodeError as error:
            raise DataError(f"{path}, line {number + 1}: {error}") from error
        except ValueError as error:
            raise DataError(f"{path}, line {number}: {error}") from error


def _read_parquet(path):
    columns = [name for name, *_ in _parquet(path, f"DESCRIBE SELECT * FROM read_parquet({quoted(path)})").fetchall()]
    _check_columns(path, columns)
    found, number = _parquet(path, f"SELECT {USER}, {HISTORY} FROM read_parquet({quoted(path)})"), 0
    while rows := found.fetchmany(2048):
        for user, history in rows:
            number += 1
            yield f"{path}, row {number}", user, history


def quoted(text):
    """A text as SQL writes it."""
    return "'" + str(text).replace("'", "''") + "'"


def _parquet(path, query):
    try:
        return duckdb.connect().execute(query)
    except duckdb.Error as error:
        raise DataError(f"users: cannot read {path} ({first_line(error)})") from error
