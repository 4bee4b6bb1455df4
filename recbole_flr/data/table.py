"""Large atomic files, read by DuckDB: each text once, numbers as arrays, and lists as integers.

`atomic.read_columns` makes a Python string of every field, and RecBole makes an array of strings of every history. Here
a column of texts refers to the distinct texts, and a column of lists is two arrays of integers.

DuckDB is stricter than `read_columns` in some things and more lenient in others. So :func:`read_table` refuses every file that
both might read in another way; its caller then reads that file with `read_columns`.
"""

import codecs
import re
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

import duckdb
import numpy as np
import pandas as pd
from pandas._libs.parsers import STR_NA_VALUES

SMALLEST = 1 << 20  # bytes; DuckDB gains nothing on smaller files
_BLOCK = 1 << 22  # bytes that are looked at together
_ROWS = 1 << 18  # rows that are filled together
_NUMBER = r"[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][+-]?[0-9]+)?"  # Python and DuckDB agree on these
_REFUSED = "a number that Python may read in another way"


class Unusual(Exception):
    """The file is small, or has something that DuckDB and `read_columns` might read in different ways."""


@dataclass
class Lists:
    """A column of lists of texts.

    Attributes:
        texts: list of str, the distinct texts in any order.
        codes: uint32 [E], place in `texts` of every entry, row after row.
        lengths: int64 [R], entries of each row.
    """

    texts: list
    codes: np.ndarray
    lengths: np.ndarray

    @classmethod
    def of(cls, column, separator):
        """From a column of texts, each with `separator` between the entries of its list."""
        number = {}
        rows = [[number.setdefault(entry, len(number)) for entry in row.split(separator) if entry] for row in column]
        codes = np.fromiter(chain.from_iterable(rows), dtype=np.uint32)
        return cls(list(number), codes, np.array([len(row) for row in rows], dtype=np.int64))

    def distinct(self):
        """Codes of the distinct texts, in the order in which they first occur: uint32 [V]."""
        return pd.unique(self.codes)

    def fill(self, numbers, rows):
        """Writes the lists into an array, each at the beginning of its row.

        Args:
            numbers: int64 [len(texts)], what stands for each text.
            rows: int64 [R, at least the longest list], of zeros; is changed.
        """
        ends = np.concatenate([[0], np.cumsum(self.lengths)])
        for first in range(0, len(rows), _ROWS):  # in parts, because the mask and the numbers take as much memory as the rows
            some = rows[first:first + _ROWS]
            within = np.arange(rows.shape[1]) < self.lengths[first:first + _ROWS, None]
            some[within] = numbers[self.codes[ends[first]:ends[first + len(some)]]]


def read_table(path, names, wanted, separator, encoding, list_separator=" "):
    """Reads columns of an atomic file.

    Args:
        path: the file.
        names: list of str, the names of all its columns.
        wanted (dict): name -> `str`, `float` or `list`.
        separator, encoding: of the file.
        list_separator: what stands between the entries of a list. Empty entries are dropped.

    Returns:
        tuple: a DataFrame of the columns of texts (dtype object; empty texts are missing) and numbers (float64; what pandas takes
        for a missing value is missing), one row for each line that is not empty; and a dict, name -> :class:`Lists`.

    Raises:
        Unusual: the file has to be read in another way.
    """
    if not set(wanted) <= set(names):
        raise Unusual("a missing column")
    rows, dense = _look(Path(path), names, separator, encoding, list_separator)
    with duckdb.connect(config={"temp_directory": ""}) as connection:
        try:
            for setting in ("preserve_insertion_order = true", "enable_progress_bar = false"):
                connection.execute(f"SET {setting}")
            connection.execute(f"CREATE TEMP TABLE rows AS {_scan(path, names, wanted, separator)}")
            return _columns(connection, wanted, rows, list_separator, dense)
        except duckdb.Error as error:
            raise Unusual(str(error)) from error


def _look(path, names, separator, encoding, list_separator):
    """Number of rows of a plain file, and whether no list in it can have an empty entry.

    Plain: UTF-8, lines that end with LF alone and are not empty, and as many separators as there should be.
    """
    plain = len(separator) == 1 and separator.isascii() and separator not in "\n\r\"" and encoding and len(names) > 1
    if not plain or codecs.lookup(encoding).name != "utf-8" or set("*?[") & set(str(path)):  # DuckDB would look for many files
        raise Unusual("the options")
    mark, end, decoder = ord(separator), ord("\n"), codecs.getincrementaldecoder("utf-8")()
    inner = ord(list_separator) if len(list_separator) == 1 and list_separator.isascii() else None
    rows, separators, dense, last = -1, 0, inner is not None, b""
    try:
        if path.stat().st_size < SMALLEST:
            raise Unusual("a small file")
        with open(path, "rb") as file:
            while block := file.read(_BLOCK):
                if not block.isascii() or decoder.getstate()[0]:
                    decoder.decode(block)
                values = np.frombuffer(last + block, np.uint8)
                ends, marks = values == end, values == mark
                if b"\0" in block or b"\r" in block or (ends[1:] & ends[:-1]).any():
                    raise Unusual("NUL, CR or an empty line")
                rows += int(np.count_nonzero(ends[len(last):]))
                separators += int(np.count_nonzero(marks[len(last):]))
                if dense:
                    between = ends | marks | (values == inner)
                    dense = not (between[1:] & between[:-1]).any()
                last = block[-1:]
        decoder.decode(b"", final=True)
    except (OSError, UnicodeDecodeError) as error:
        raise Unusual(str(error)) from error
    rows += last != b"\n"
    if separators != (rows + 1) * (len(names) - 1):
        raise Unusual("the number of columns")
    return rows, dense


def _scan(path, names, wanted, separator):
    """SQL that reads the wanted columns of the file as texts."""
    types = ", ".join(f"c{place}: 'VARCHAR'" for place in range(len(names)))
    filled = ", ".join(f"'c{place}'" for place in range(len(names)))
    selected = ", ".join(f"c{names.index(name)} AS w{place}" for place, name in enumerate(wanted))
    return (f"SELECT {selected} FROM read_csv({_literal(path)}, auto_detect = false, header = true, "
            f"delim = {_literal(separator)}, quote = '', escape = '', columns = {{{types}}}, force_not_null = [{filled}], "
            "new_line = '\\n', hive_partitioning = false, compression = 'none')")  # fmt: skip


def _columns(connection, wanted, rows, list_separator, dense):
    """What :func:`read_table` returns, from the table `rows`."""
    missing = _literal("|".join(map(re.escape, sorted(STR_NA_VALUES))))  # of a list of words DuckDB would make a join
    number = f"""CASE WHEN regexp_full_match({{0}}, {_literal(_NUMBER)}) THEN {{0}}::DOUBLE
        WHEN regexp_full_match({{0}}, {missing}) THEN 'nan'::DOUBLE ELSE error({_literal(_REFUSED)}) END"""
    entries = f"string_split({{0}}, {_literal(list_separator)})"
    if not dense:
        entries = f"list_filter({entries}, lambda entry: entry <> '')"
    table, lists = {}, {}
    for place, (name, kind) in enumerate(wanted.items()):
        column = f"w{place}"
        if kind is float:
            table[name] = _array(connection, number.format(column))
        elif kind is str:
            texts = _make_type(connection, column)
            shared = np.array([*texts, None], dtype=object)[:-1]  # with None, numpy makes no array of arrays
            shared[shared == ""] = np.nan
            table[name] = shared[_array(connection, f"enum_code({column}::texts_{column})")]
        else:
            unnested = f"(SELECT unnest({entries.format(column)}) AS {column} FROM rows)"
            texts = _make_type(connection, column, unnested)
            codes = _array(connection, f"enum_code({column}::texts_{column})", unnested)
            lists[name] = Lists(texts, codes.astype(np.uint32, copy=False), _array(connection, f"len({entries.format(column)})"))
    if any(len(values) != rows for values in [*table.values(), *(one.lengths for one in lists.values())]):
        raise Unusual("the number of rows")
    return pd.DataFrame(table, copy=False), lists


def _array(connection, value, rows="rows"):
    """An expression in all rows, in their order, as an array."""
    plan = connection.execute(f"EXPLAIN SELECT {value} AS value FROM {rows}").fetchall()
    if "JOIN" in plan[0][1]:
        raise AssertionError("DuckDB plans a join, and a join does not keep the rows in order")
    return np.asarray(connection.execute(f"SELECT {value} AS value FROM {rows}").fetchnumpy()["value"])


def _make_type(connection, column, rows="rows"):
    """Makes an ENUM of the distinct texts of a column. Returns them as a list, in the order of their codes."""
    connection.execute(f"CREATE TEMP TABLE distinct_{column} AS SELECT DISTINCT {column} AS text FROM {rows}")
    connection.execute(f"CREATE TYPE texts_{column} AS ENUM (SELECT text FROM distinct_{column})")
    texts = _array(connection, "text", f"distinct_{column}").tolist()  # enum_range() would give them, too, but slowly
    connection.execute(f"DROP TABLE distinct_{column}")
    return texts


def _literal(text):
    """A text (or a path) as SQL writes it."""
    return "'" + str(text).replace("'", "''") + "'"
