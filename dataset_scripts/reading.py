"""Raw files as DuckDB tables in which every line is accounted for.

- DuckDB parses a file with many threads and bounded memory. A line that is not a JSON object becomes a row of nulls, so row
  numbers count the lines that are not blank.
- Meanwhile `check.Check` reads the bytes: it finds damage that DuckDB does not notice, and computes the SHA-256.
- JSON lines that DuckDB refuses are parsed again by Python (`lines.parse_again`). What Python refuses, too, is malformed.
- DuckDB loses lines of a CSV file whose quotes do not pair up, and stops at line ends of several kinds. DuckDB then reads
  a copy of the file that Python's csv module made (`csv_copy`).

DuckDB accepts some things that strict readers do not:

- in JSON: trailing commas, `nan`, and the first of several equal keys;
- in CSV: empty surplus fields at the end of a line, and blanks around a quoted field;
- in numbers `1_000`, in dates `2017/12/01`.
"""

import json
import threading

import duckdb
from tqdm import tqdm

from dataset_scripts.check import Check
from dataset_scripts.csv_copy import LONGEST_LINE, quotes_astray, rewritten
from dataset_scripts.lines import Lines, parse_again
from dataset_scripts.roles import ID_ROLES, ROLES, TEXT_ROLES
from dataset_scripts.sources import broken_parquet
from dataset_scripts.sql import identifier, literal, unglobbed
from recbole_flr.errors import DataError

_SAMPLE = 1000  # lines of a log whose ids are measured beforehand
_IS_BLANK = "coalesce(NOT regexp_matches(csv_line, '[^\\s\\v]'), false)"  # a line that DuckDB refused, of white space only


def load(database, table, source, columns, select, show_progress=False):
    """Makes a table with one row for each line of a file that is not blank, in the order of the file.

    Args:
        database (Database): where the table goes.
        table: name of the new table.
        source (Source): the file. Its `readable` becomes a copy if DuckDB cannot read the file itself.
        columns (dict): role -> name of the column in the file.
        select (callable): SQL of the raw rows -> SQL of the table. The raw rows have every role as a VARCHAR column (null
            where the file has nothing; a category may be a JSON array as text) and a column `doubtful` (true where an id may
            be a JSON list or object). The table must have a column `state` that is `UNREADABLE` where user, item and time are
            all null, and where `doubtful` is true.
        show_progress: shows a progress bar on stderr.

    Returns:
        Lines: finds the line that a row came from, and knows the CSV lines that have no row.

    Raises:
        DataError: the file is broken, or DuckDB cannot read it.
    """
    check, odd = Check(source), False
    lines = Lines(source, check)
    try:
        _create(database, table, source, columns, select, show_progress)
    except DataError as error:
        check.finish()  # raises if the file is broken: that message is clearer than DuckDB's
        odd = "state machine" in str(error) and source.format in ("csv", "tsv")  # line ends of several kinds
        if "maximum_object_size" in str(error):
            limit = f"{LONGEST_LINE >> 20} MB"
            raise DataError(f"{source.path} has a line of more than {limit}; expected one JSON object a line") from error
        if not odd:
            raise DataError(f"cannot read {source.path}: {error}") from error
    except duckdb.Error as error:  # even DuckDB's internal ones
        if source.format != "parquet":
            raise
        raise broken_parquet(source.path, error) from error
    check.finish()
    if source.format in ("csv", "tsv"):
        if odd or (source.readable == source.path and quotes_astray(database, table, check)):
            source.readable = rewritten(source, database.folder / f"{table}.csv")
            _create(database, table, source, columns, select, show_progress)
        refused = f"SELECT line, bool_and({_IS_BLANK}) FROM reject_errors GROUP BY line ORDER BY line"
        for number, blank in database.rows(refused):
            (lines.blank if blank else lines.refused).append(number)
    if source.format == "jsonl":
        parse_again(database, table, lines, columns, select)
    return lines


def mean_id_bytes(database, source, columns):
    """Mean bytes of the ids of users and items in the first lines of a log; None if DuckDB cannot read them as they are.

    Raises:
        DataError: a Parquet file is so damaged that DuckDB gives up, and its connection is of no more use.
    """
    lengths = ", ".join(f"avg(strlen({role}))" for role in ID_ROLES)
    try:
        sample = f"SELECT {_raw(source, columns)} FROM {_scan(source, columns)} LIMIT {_SAMPLE}"
        found = database.rows(f"SELECT {lengths} FROM ({sample})")[0]
    except (duckdb.InternalException, duckdb.FatalException) as error:
        if source.format != "parquet":
            raise
        raise broken_parquet(source.path, error) from error
    except (DataError, duckdb.Error):  # `load` says what is wrong
        return None
    return None if None in found else found


def _create(database, table, source, columns, select, show_progress):
    for name in ("reject_errors", "reject_scans"):
        database.run(f"DROP TABLE IF EXISTS {name}")
    rows = f"(SELECT {_raw(source, columns)} FROM {_scan(source, columns)})"
    if "JOIN" in _operators(json.loads(database.rows(f"EXPLAIN (FORMAT json) {select(rows)}")[0][1])):
        raise AssertionError("DuckDB plans a join, and a join does not keep the rows in the order of the file")
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
    """The names of the steps of a query plan, in one text."""
    return " ".join(f"{step['name']} {_operators(step['children'])}" for step in plan)


def _scan(source, columns):
    """SQL that reads the file: DuckDB's table function for its format."""
    path = literal(unglobbed(source.readable))
    compression = f"'{source.compression if source.readable == source.path else 'none'}'"
    if source.format == "jsonl":
        types = ", ".join(f"{literal(name)}: '{kind}'" for name, kind in _json_types(columns).items())
        return (f"read_json({path}, format = 'newline_delimited', records = true, ignore_errors = true, "
                f"columns = {{{types}}}, maximum_object_size = {LONGEST_LINE}, hive_partitioning = false, "
                f"compression = {compression})")  # fmt: skip
    if source.format == "parquet":
        return f"read_parquet({path}, hive_partitioning = false)"
    # Columns are named by their place: names may repeat, and DuckDB does not tell upper from lower case. If fields may be
    # quoted, only one thread reads: several threads may start inside a quoted field without noticing.
    types = ", ".join(f"c{place}: 'VARCHAR'" for place in range(len(source.fields)))
    names = ", ".join(f"'c{place}'" for place in range(len(source.fields)))
    quote = literal(source.quote)
    return (f"read_csv({path}, auto_detect = false, header = true, delim = {literal(source.delimiter)}, quote = {quote}, "
            f"escape = {quote}, columns = {{{types}}}, force_not_null = [{names}], store_rejects = true, "
            f"max_line_size = {LONGEST_LINE}, buffer_size = {2 * LONGEST_LINE}, "
            f"parallel = {'false' if source.quote else 'true'}, hive_partitioning = false, "
            f"compression = {compression})")  # fmt: skip


def _json_types(columns):
    """dict: key -> DuckDB type. A key of nothing but text roles is read as JSON, to tell texts from other values."""
    others = {name for role, name in columns.items() if role not in TEXT_ROLES}
    return {name: "VARCHAR" if name in others else "JSON" for name in columns.values()}


def _raw(source, columns):
    """SQL of the raw rows' columns: every role, and `doubtful`; see `load`."""
    roles = [f"{_text(source, role, columns) if role in columns else 'NULL::VARCHAR'} AS {role}" for role in ROLES]
    doubts = ["false"]
    if source.format == "jsonl":
        ids = [identifier(columns[role]) for role in ID_ROLES if role in columns]
        # CASE calls json_valid for few texts only; AND would call it for all
        bracketed = f"unicode({{0}}) IN ({ord('[')}, {ord('{')})"
        doubts += [f"CASE WHEN {bracketed.format(column)} THEN json_valid({column}) ELSE false END" for column in ids]
    return ", ".join([*roles, f"{' OR '.join(doubts)} AS doubtful"])


def _text(source, role, columns):
    """SQL of one role as VARCHAR."""
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
    if kind == "BLOB":  # some programs write text without saying so
        text = f"TRY(decode({column}))"
        return f"coalesce({text}, {column}::VARCHAR)" if role in ID_ROLES else text  # other bytes become `\\xFF`, a valid id
    if kind in ("DOUBLE", "FLOAT") and role in ID_ROLES:  # pandas turns integers into floats where values are missing
        whole = f"{column} = trunc({column}) AND abs({column}) < 1e18"
        return f"CASE WHEN {whole} THEN {column}::BIGINT::VARCHAR ELSE {column}::VARCHAR END"
    if kind in ("DOUBLE", "FLOAT"):
        return f"CASE WHEN isfinite({column}) THEN {column}::VARCHAR END"
    return f"{column}::VARCHAR"
