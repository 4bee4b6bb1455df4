"""A copy of a CSV file that DuckDB would misread: its quotes do not pair up, or its line ends are of several kinds."""

import csv
import io
import logging

from dataset_scripts.sources import csv_limit
from recbole_flr.errors import DataError

LONGEST_LINE = 16 << 20  # bytes: DuckDB's limit for JSON lines, and our limit for CSV, too
_SPACE = " \t\n\r\v\f"
_log = logging.getLogger(__name__)


def quotes_astray(database, table, check):
    """Whether DuckDB may have read the records of a CSV file wrongly because its quotes do not pair up.

    DuckDB says nothing if the file ends inside a quoted field: it drops that record.

    Args:
        database (Database): with DuckDB's table `reject_errors`, right after the file was read.
        table: name of the table that was read from the file.
        check (Check): finished, of the same file.
    """
    if not check.quotes:
        return False
    n_odd = "count(*) FILTER (error_type::VARCHAR IN ('UNQUOTED VALUE', 'LINE SIZE OVER MAXIMUM'))"
    n_refused, n_odd = database.rows(f"SELECT count(DISTINCT line), {n_odd} FROM reject_errors")[0]
    n_records = 1 + n_refused + database.rows(f"SELECT count(*) FROM {table}")[0][0]
    n_lines = check.line_ends + check.ends_open
    return n_odd > 0 or check.ends_quoted or (check.quotes % 2 == 1 and n_records != n_lines)


def rewritten(source, copy):
    """Writes a plain copy of a CSV file that DuckDB reads as Python's csv module reads the original.

    The copy has one kind of line ends. If fields may be quoted, all of them are. Warns if quotes join several lines into
    one record, because that is often the work of a quote that was never closed.

    Args:
        source (Source): a CSV or TSV file.
        copy (Path): the new file; its folder is made if needed.

    Returns:
        Path: `copy`.

    Raises:
        DataError: Python's csv module cannot read the file either.
    """
    copy.parent.mkdir(exist_ok=True)
    text = {"encoding": "utf-8", "errors": "surrogateescape", "newline": ""}
    with csv_limit(LONGEST_LINE), source.open() as raw, io.TextIOWrapper(raw, **text) as lines, open(copy, "w", **text) as out:
        reader, writer = csv.reader(lines, **source.csv_style()), None
        begin = 1  # the line where the current record begins
        first, n_long, n_lines = None, 0, 0  # records of several lines: where the first begins, how many, their lines
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
            hint = "is a quote not closed? If the file never quotes fields, say --quote ''"
            raise DataError(f"cannot read {source.path}: {error} before line {reader.line_num + 1}; {hint}") from error
    if first:
        _log.warning("%s: quotes join %d lines into %d records, the first from line %d on; is a quote not closed? If the file "
                     "never quotes fields, say --quote ''", source.path, n_lines, n_long, first)  # fmt: skip
    return copy
