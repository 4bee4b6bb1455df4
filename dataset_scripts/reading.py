"""Raw logs as DuckDB tables, every line accounted for.

What a column of a file stands for is its *role*: user, item, time, and perhaps rating, title, brand, category, price.

DuckDB parses a file (many threads, bounded memory; lines that are no JSON object come as rows of nulls, so that row numbers
are those of the lines that are not blank). `sources.Check` reads the bytes beside it: their sha256, and whether a
compressed file is whole, which DuckDB does not tell of a cut zstd file or of a wrong gzip check sum. Lines that DuckDB
refuses get a second look by Python's `json`, which takes half of a surrogate pair; what that refuses, too, is malformed.
Where the quotes of a CSV file do not pair up DuckDB loses lines, and where line ends are of several kinds it stops: such a
file is copied by Python's `csv`, and DuckDB reads the copy.

DuckDB takes some things that strict readers do not: of JSON trailing commas, `nan` and the first of equal keys; of CSV surplus
fields at the end of a line if they are empty, and blanks around a quoted field; of numbers `1_000`, of dates `2017/12/01`.
"""

import csv
import io
import json
import logging
import math
import threading
from bisect import bisect_left
from dataclasses import dataclass, field
from pathlib import Path

import duckdb
import numpy as np
from tqdm import tqdm

from dataset_scripts.sources import (
    Check, Source, broken_parquet, csv_limit, first_line, listed, literal, parse_json, unglobbed,
)  # fmt: skip
from recbole_flr.errors import ConfigError, DataError

_log = logging.getLogger(__name__)

ROLES = ("user", "item", "time", "rating", "title", "brand", "category", "price")
ID_ROLES, TEXT_ROLES = ("user", "item"), ("title", "brand", "category", "price")
UNREADABLE = 1  # the state of a row that DuckDB could not read
_BLOCK = 4 << 20  # bytes
_BATCH = 10_000  # rows
_SPACE = " \t\n\r\v\f"
_LONGEST = 16 << 20  # bytes of a line: DuckDB's limit of JSON lines, and the one that CSV gets here


# ---- loading -----------------------------------------------------------------------------------------------------------


class Database:
    """An in-memory DuckDB that spills to `folder` beyond `memory_limit`, and lets no file or text install anything."""

    def __init__(self, folder, memory_limit="200MB"):
        self.folder = Path(folder)
        self._connection = duckdb.connect()
        try:
            self._connection.execute("SET memory_limit = " + literal(memory_limit))
        except duckdb.Error:
            raise ConfigError(f"memory_limit is {memory_limit!r}; expected such as 1GB or 500MB") from None
        self.run("SET temp_directory = " + literal(self.folder))
        for setting in ("TimeZone = 'UTC'", "autoinstall_known_extensions = false", "autoload_known_extensions = false",
                        "preserve_insertion_order = true", "enable_progress_bar = false"):  # fmt: skip
            self.run("SET " + setting)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self._connection.close()

    def run(self, query, *parameters):
        """Runs one statement; DuckDB's errors about files and memory become a DataError."""
        try:
            return self._connection.execute(query, *parameters)
        except duckdb.OutOfMemoryException as error:
            raise DataError(f"{first_line(error)}; raise --memory-limit") from error
        except (duckdb.IOException, duckdb.InvalidInputException) as error:
            raise DataError(first_line(error)) from error

    def rows(self, query):
        """list of tuples."""
        return self.run(query).fetchall()

    def insert(self, table, rows):
        """Appends rows (lists of a number and texts) to a table."""
        types = ["BIGINT[]", *["VARCHAR[]"] * (len(rows[0]) - 1)]  # whole columns: a hundred times as fast as executemany
        self.run(f"INSERT INTO {table} SELECT {', '.join(f'unnest(?::{kind})' for kind in types)}", [*map(list, zip(*rows))])

    def arrays(self, query, **tables):
        """dict of numpy arrays, one a column; `tables` are numpy arrays that the query may name as `name.value`."""
        for name, array in tables.items():
            self._connection.register(name, {"value": array})
        try:
            return self.run(query).fetchnumpy()
        finally:
            for name in tables:
                self._connection.unregister(name)

    def of_codes(self, column, rows, codes, n_rows):
        """What the rows of one code have in a column of the table `reviews`.

        An array beside the table instead of a join with the numbers: no hash table, and no sorting.

        Args:
            column: its name.
            rows, codes: row numbers, and a code from 0 of each; all codes up to the greatest.
            n_rows: of the table.

        Returns:
            tuple: the least value of each code, and whether it is the only one.
        """
        beside = np.zeros(n_rows, np.uint32)
        beside[rows] = codes + 1
        found = self.arrays(f"""SELECT beside.value AS code, min({column}) AS value, min({column}) = max({column}) AS same
            FROM reviews POSITIONAL JOIN beside WHERE beside.value > 0 GROUP BY code ORDER BY code""", beside=beside)
        return found["value"], found["same"]

    def progress(self):
        """Share of the running statement that is done, in percent; -1 if nobody knows."""
        return self._connection.query_progress()


def load(database, table, source, columns, select, show_progress=False):
    """Makes a table with one row for each line of a file that is not blank, in their order.

    Args:
        database: Database.
        table: name of the new table.
        source: Source.
        columns (dict): role -> name of the column in the file.
        select (callable): the SQL of something with the roles as VARCHAR columns (null where the file has nothing; a
            category may be a JSON array as text) and `doubtful` (an id may be a JSON list or object) -> the SQL of the
            table. It has a column `state`, `UNREADABLE` where user, item and time are null, or it is doubtful.
        show_progress: a bar on stderr.

    Returns:
        Lines: which line a row came from, and which ones CSV's rows could not be.

    Raises:
        DataError: a file that DuckDB cannot read at all.
    """
    check, odd = Check(source), False
    lines = Lines(source, check)
    try:
        _create(database, table, source, columns, select, show_progress)
    except DataError as error:
        check.finish()  # a broken file has a clearer message than its first effect
        odd = "state machine" in str(error) and source.format in ("csv", "tsv")  # line ends of several kinds
        if "maximum_object_size" in str(error):
            limit = f"{_LONGEST >> 20} MB"
            raise DataError(f"{source.path} has a line of more than {limit}; is it one JSON object a line?") from error
        if not odd:
            raise DataError(f"cannot read {source.path}: {error}") from error
    except duckdb.Error as error:  # even DuckDB's internal ones
        if source.format != "parquet":
            raise
        raise broken_parquet(source.path, error) from error
    check.finish()
    if source.format in ("csv", "tsv"):
        if odd or (source.readable == source.path and _quotes_astray(database, table, check)):
            source.readable = _rewritten(source, database.folder / f"{table}.csv")
            _create(database, table, source, columns, select, show_progress)
        refused = f"SELECT line, bool_and({_BLANK}) FROM reject_errors GROUP BY line ORDER BY line"
        for number, blank in database.rows(refused):
            (lines.blank if blank else lines.refused).append(number)
    if source.format == "jsonl":
        _second_look(database, table, lines, columns, select)
    return lines


_BLANK = "coalesce(NOT regexp_matches(csv_line, '[^\\s\\v]'), false)"


def _create(database, table, source, columns, select, show_progress):
    for name in ("reject_errors", "reject_scans"):
        database.run(f"DROP TABLE IF EXISTS {name}")
    rows = f"(SELECT {_raw(source, columns)} FROM {_scan(source, columns)})"
    if "JOIN" in _operators(json.loads(database.rows(f"EXPLAIN (FORMAT json) {select(rows)}")[0][1])):
        raise AssertionError("DuckDB plans a join, behind which rows are not in the order of the file")
    query = f"CREATE OR REPLACE TABLE {table} AS {select(rows)}"
    if not show_progress:
        database.run(query)
        return
    done = threading.Event()

    def watch():
        with tqdm(total=100, desc=source.path.name, unit="%", leave=False, bar_format="{l_bar}{bar}| {elapsed}") as bar:
            while not done.wait(0.2):
                bar.n = max(bar.n, database.progress())
                bar.refresh()

    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    try:
        database.run(query)
    finally:
        done.set()
        watcher.join()


def _operators(plan):
    """The names of the steps of a query plan, side by side."""
    return " ".join(f"{step['name']} {_operators(step['children'])}" for step in plan)


def check_columns(source, columns):
    """Raises a DataError if columns (role -> name) are not in a file, or not without doubt."""
    # a key of JSON need not be in the first lines, but user, item and time are in any
    needed = {role: name for role, name in columns.items() if source.format != "jsonl" or role in ROLES[:3]}
    missing = [f"{name!r} ({role})" for role, name in needed.items() if name not in source.fields]
    if missing:
        there = listed(source.fields) or "none"
        raise DataError(f"{source.path} has no column {', '.join(missing)}; its columns are {there}")
    twice = [name for name in columns.values() if source.fields.count(name) > 1]
    if twice:
        found = f"{source.fields.count(twice[0])} columns {twice[0]!r}"
        raise DataError(f"{source.path} has {found}; rename those that are not meant")
    names = {name.lower(): name for name in columns.values()}
    alike = [name for name in columns.values() if names[name.lower()] != name]
    if alike and source.format == "jsonl":
        found = f"the keys {alike[0]!r} and {names[alike[0].lower()]!r} of {source.path}"
        raise DataError(f"{found} differ in case alone, which DuckDB cannot tell apart; rename one of them")


def _scan(source, columns):
    """The table function over the file."""
    path = literal(unglobbed(source.readable))
    compression = f"'{source.compression if source.readable == source.path else 'none'}'"
    if source.format == "jsonl":
        types = ", ".join(f"{literal(name)}: '{kind}'" for name, kind in _json_types(columns).items())
        return (f"read_json({path}, format = 'newline_delimited', records = true, ignore_errors = true, "
                f"columns = {{{types}}}, maximum_object_size = {_LONGEST}, hive_partitioning = false, "
                f"compression = {compression})")  # fmt: skip
    if source.format == "parquet":
        return f"read_parquet({path}, hive_partitioning = false)"
    # By place, as names may repeat, and as DuckDB does not tell upper from lower case. Where fields may be quoted its
    # threads may begin inside a quoted field without noticing, so there is one.
    types = ", ".join(f"c{place}: 'VARCHAR'" for place in range(len(source.fields)))
    names = ", ".join(f"'c{place}'" for place in range(len(source.fields)))
    quote = literal(source.quote)
    return (f"read_csv({path}, auto_detect = false, header = true, delim = {literal(source.delimiter)}, quote = {quote}, "
            f"escape = {quote}, columns = {{{types}}}, force_not_null = [{names}], store_rejects = true, "
            f"max_line_size = {_LONGEST}, buffer_size = {2 * _LONGEST}, parallel = {'false' if source.quote else 'true'}, "
            f"hive_partitioning = false, compression = {compression})")  # fmt: skip


def _json_types(columns):
    """key -> DuckDB type: JSON of those that are nothing but text, to know what is one."""
    others = {name for role, name in columns.items() if role not in TEXT_ROLES}
    return {name: "VARCHAR" if name in others else "JSON" for name in columns.values()}


def _raw(source, columns):
    """Every role as VARCHAR, null where the file has none; and whether an id may be a list or object, given as text."""
    roles = [f"{_text(source, role, columns) if role in columns else 'NULL::VARCHAR'} AS {role}" for role in ROLES]
    doubts = ["false"]
    if source.format == "jsonl":
        ids = [identifier(columns[role]) for role in ID_ROLES if role in columns]
        # CASE calls json_valid for few texts, AND would for all of them
        bracketed = f"unicode({{0}}) IN ({ord('[')}, {ord('{')})"
        doubts += [f"CASE WHEN {bracketed.format(column)} THEN json_valid({column}) ELSE false END" for column in ids]
    return ", ".join([*roles, f"{' OR '.join(doubts)} AS doubtful"])


def _text(source, role, columns):
    name = columns[role]
    if source.format in ("csv", "tsv"):
        return f"c{source.fields.index(name)}"
    column = identifier(name)
    if source.format == "jsonl":
        if _json_types(columns)[name] == "VARCHAR":
            return column
        array = f"WHEN starts_with({column}::VARCHAR, '[') THEN {column}::VARCHAR" if role == "category" else ""
        text = f"regexp_matches({column}::VARCHAR, '^(\"|-?[0-9])')"  # a string or number, no NaN, no true
        return f"CASE WHEN {text} THEN {column} ->> '$' {array} END"
    kind = source.types[name]
    if kind.endswith("]") and role == "category":
        return f"to_json({column})::VARCHAR"
    if kind.endswith("]") or kind.startswith(("STRUCT", "MAP", "UNION")):
        return "NULL::VARCHAR"
    if kind == "BLOB":  # text of programs that do not say it is; a cast makes `\xC3\xA9` of `é`, which will do for ids of bytes
        text = f"TRY(decode({column}))"
        return f"coalesce({text}, {column}::VARCHAR)" if role in ID_ROLES else text
    if kind in ("DOUBLE", "FLOAT") and role in ID_ROLES:  # pandas makes floats of integers beside missing values
        whole = f"{column} = trunc({column}) AND abs({column}) < 1e18"
        return f"CASE WHEN {whole} THEN {column}::BIGINT::VARCHAR ELSE {column}::VARCHAR END"
    if kind in ("DOUBLE", "FLOAT"):
        return f"CASE WHEN isfinite({column}) THEN {column}::VARCHAR END"
    return f"{column}::VARCHAR"


def identifier(name):
    """A name of a column in SQL."""
    return '"' + name.replace('"', '""') + '"'


def _quotes_astray(database, table, check):
    """Whether quotes of a CSV file do not pair up, so that what DuckDB takes for one record is not to be trusted."""
    if not check.quotes:
        return False
    n_odd = "count(*) FILTER (error_type::VARCHAR IN ('UNQUOTED VALUE', 'LINE SIZE OVER MAXIMUM'))"
    n_refused, n_odd = database.rows(f"SELECT count(DISTINCT line), {n_odd} FROM reject_errors")[0]
    n_records = 1 + n_refused + database.rows(f"SELECT count(*) FROM {table}")[0][0]
    return n_odd > 0 or (check.quotes % 2 == 1 and n_records != check.line_ends + check.ends_open)


def _rewritten(source, copy):
    """A plain copy of a CSV file as Python's csv module reads it: one kind of line ends, fields quoted, no line moved."""
    copy.parent.mkdir(exist_ok=True)
    text = {"encoding": "utf-8", "errors": "surrogateescape", "newline": ""}
    with csv_limit(_LONGEST), source.open() as raw, io.TextIOWrapper(raw, **text) as lines, open(copy, "w", **text) as out:
        reader, writer = csv.reader(lines, **source.csv_style()), None
        begin, first, n_long, n_lines = 1, None, 0, 0  # of this record; of those over several lines: the first, their number
        if source.quote:
            writer = csv.writer(out, lineterminator="\n", quoting=csv.QUOTE_ALL, **source.csv_style())
        try:
            for row in reader:
                if reader.line_num > begin:
                    first, n_long, n_lines = first or begin, n_long + 1, n_lines + reader.line_num - begin + 1
                begin = reader.line_num + 1
                line = source.delimiter.join(row)
                if writer is None or (len(row) != len(source.fields) and not line.strip(_SPACE)):
                    out.write(line.strip("\r") + "\n")
                else:
                    writer.writerow(row)
        except csv.Error as error:
            hint = "is a quote not closed? Of a file that does not quote say --quote ''"
            raise DataError(f"cannot read {source.path}: {error} before line {reader.line_num + 1}; {hint}") from error
    if first:
        _log.warning("%s: quotes make %d records of %d lines, the first from line %d on; is a quote not closed? Of a file that "
                     "does not quote say --quote ''", source.path, n_long, n_lines, first)  # fmt: skip
    return copy


# ---- lines -------------------------------------------------------------------------------------------------------------


@dataclass
class Lines:
    """Which line of a file a row of its table came from.

    Attributes:
        refused: numbers of the records of a CSV file that made no row; the header is 1.
        blank: numbers of its records that are none, as they are nothing but white space.
        total: rows of the table, of a JSON-lines file.
    """

    source: Source
    check: Check
    refused: list = field(default_factory=list)
    blank: list = field(default_factory=list)
    total: int = None

    def first(self, rows, limit):
        """The first line numbers of rows (from 0, ascending) and of refused records; of Parquet row numbers from 1."""
        rows = rows[:limit]
        if self.source.format == "parquet":
            return [row + 1 for row in rows]
        if self.source.format == "jsonl":
            return [number for _, number, _ in self.find(rows)]
        return self._csv_first(rows, min(limit, len(rows) + len(self.refused)))

    def find(self, rows):
        """Yields (row, line number, line without its end) for ascending row numbers of a JSON-lines file."""
        if not self._has_blanks() and self.source.compression == "none":
            yield from self._jump_to(rows)
            return
        number, n_rows, place = 0, 0, 0
        skip = not self._has_blanks()
        for block in self._blocks():
            if place == len(rows):
                return
            if skip and rows[place] >= n_rows + (n_lines := block.count(b"\n") + (not block.endswith(b"\n"))):
                number, n_rows = number + n_lines, n_rows + n_lines
                continue
            for line in block.removesuffix(b"\n").split(b"\n"):
                if place == len(rows):
                    return
                number += 1
                if not line.strip():
                    continue
                if rows[place] == n_rows:
                    yield n_rows, number, line
                    place += 1
                n_rows += 1

    def _jump_to(self, rows):
        """`find` in a plain file without blank lines: row i is line i + 1."""
        steps, size, place = self.check.steps, self.check.STEP, 0  # the stream stands at this row, or inside it after a jump
        with self.source.open() as stream:
            for row in rows:
                step = bisect_left(steps, row, lo=1) - 1 if row else 0  # the line feed before the row is behind this step
                if steps[step] > place:
                    stream.seek(step * size)
                    place = steps[step]
                for _ in range(row - place):
                    stream.readline()
                yield row, row + 1, stream.readline().removesuffix(b"\n")
                place = row + 1

    def _has_blanks(self):
        # Without blank lines the number of rows is that of the lines.
        return self.total != self.check.line_ends + self.check.ends_open

    def _blocks(self):
        """The decompressed content in blocks of whole lines."""
        rest = b""
        with self.source.open() as stream:
            while block := stream.read(_BLOCK):
                cut = block.rfind(b"\n") + 1
                if cut:
                    yield rest + block[:cut]
                    rest = block[cut:]
                else:
                    rest += block
        if rest.strip():
            yield rest

    def _csv_first(self, rows, limit):
        rows, refused, blank = set(rows), set(self.refused), set(self.blank)
        found, n_rows, begin = [], -1, 1  # the header is row -1
        text = {"encoding": "utf-8", "errors": "replace", "newline": ""}
        with csv_limit(), self.source.open() as raw, io.TextIOWrapper(raw, **text) as lines:
            reader = csv.reader(lines, **self.source.csv_style())
            for number, fields in enumerate(reader, start=1):
                if len(found) == limit:
                    break
                if number in refused or (fields and number not in blank and n_rows in rows):
                    found.append(begin)
                n_rows += bool(fields) and number not in refused and number not in blank
                begin = reader.line_num + 1
        return found


def _second_look(database, table, lines, columns, select):
    """Python's json on the lines that DuckDB's parser refused, or gave something of that may be wrong."""
    lines.total = database.rows(f"SELECT count(*) FROM {table}")[0][0]
    rows = [row[0] for row in database.rows(f"SELECT rowid FROM {table} WHERE state = {UNREADABLE} ORDER BY rowid")]
    if not rows:
        return
    database.run(f"CREATE TABLE raw_look (line BIGINT, {', '.join(f'{role} VARCHAR' for role in ROLES)})")
    found = []
    for row, number, line in lines.find(rows):
        value = parse_json(line.removeprefix(b"\xef\xbb\xbf") if number == 1 else line)
        if isinstance(value, dict):
            found.append([row, *(_as_text(role, value.get(columns.get(role))) for role in ROLES)])
        if len(found) == _BATCH:
            database.insert("raw_look", found)
            found = []
    if found:
        database.insert("raw_look", found)
    look = select("(SELECT *, false AS doubtful FROM raw_look)")
    database.run(f"CREATE TABLE second_look AS {look}")  # the rows of both tables are side by side
    sets = ", ".join(f"{row[0]} = look.{row[0]}" for row in database.rows(f"DESCRIBE {table}"))
    looks = "(SELECT raw_look.line, second_look.* FROM raw_look POSITIONAL JOIN second_look) AS look"
    database.run(f"UPDATE {table} SET {sets} FROM {looks} WHERE {table}.rowid = look.line")
    database.run("DROP TABLE raw_look")
    database.run("DROP TABLE second_look")


def _as_text(role, value):
    """A JSON value as `load` gives it."""
    if isinstance(value, bool) or isinstance(value, float) and not math.isfinite(value):
        value = None if role in TEXT_ROLES else value
    if isinstance(value, dict) or (isinstance(value, list) and role != "category"):
        value = None
    if value is None:
        return None
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:  # half of a surrogate pair, which no file can hold: no id; in a text it becomes U+FFFD
        return None if role in ID_ROLES else text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    return text
