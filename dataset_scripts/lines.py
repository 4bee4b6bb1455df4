"""Lines of raw files: which line a row of a table came from, and a second parser for lines that DuckDB refuses."""

import csv
import io
import json
import math
from bisect import bisect_left
from dataclasses import dataclass, field

from dataset_scripts.check import Check
from dataset_scripts.roles import ID_ROLES, ROLES, TEXT_ROLES
from dataset_scripts.rules import UNREADABLE
from dataset_scripts.sources import Source, csv_limit, parse_json

_BLOCK = 4 << 20  # bytes that are searched for lines at a time
_BATCH = 10_000  # rows that are inserted at a time


@dataclass
class Lines:
    """Finds the line of a file that a row of its table came from.

    Attributes:
        source (Source), check (Check): the file.
        refused: for CSV: numbers of the records that DuckDB refused, so that they have no row; the header is record 1.
        blank: for CSV: numbers of the records that hold nothing but white space; they do not count as lines.
        total: for JSON lines: number of rows of the table.
    """

    source: Source
    check: Check
    refused: list = field(default_factory=list)
    blank: list = field(default_factory=list)
    total: int = None

    def first(self, rows, limit):
        """The line numbers (from 1) of some rows and of all refused records: the first `limit` of them, ascending.

        Args:
            rows: row numbers of the table, from 0, ascending. For Parquet, a line number is the row number plus 1.
            limit: how many to return at most.
        """
        rows = rows[:limit]
        if self.source.format == "parquet":
            return [row + 1 for row in rows]
        if self.source.format == "jsonl":
            return [number for _, number, _ in self.find(rows)]
        return self._csv_first(rows, min(limit, len(rows) + len(self.refused)))

    def find(self, rows):
        """Yields (row, line number, line as bytes without its end) for ascending row numbers of a JSON-lines file."""
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
        """`find` in a plain file without blank lines, where row i is line i + 1."""
        steps, size = self.check.steps, self.check.STEP
        place = 0  # the row at which the stream stands; after a jump the stream stands inside this row
        with self.source.open() as stream:
            for row in rows:
                step = bisect_left(steps, row, lo=1) - 1 if row else 0  # the line feed before the row comes after this step
                if steps[step] > place:
                    stream.seek(step * size)
                    place = steps[step]
                for _ in range(row - place):
                    stream.readline()
                yield row, row + 1, stream.readline().removesuffix(b"\n")
                place = row + 1

    def _has_blanks(self):
        # Every line that is not blank has a row.
        return self.total != self.check.line_ends + self.check.ends_open

    def _blocks(self):
        """Yields the decompressed content in blocks of whole lines."""
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


def parse_again(database, table, lines, columns, select):
    """Reads some lines of a JSON-lines file again, with Python's `json`, and corrects their rows in the table.

    These are the lines that DuckDB's parser refused (Python accepts half of a surrogate pair), and those where an id may be a
    list or an object. Also sets `lines.total`. Arguments as in `dataset_scripts.reading.load`.
    """
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
    database.run(f"CREATE TABLE second_look AS {look}")  # row i of one table belongs to row i of the other
    sets = ", ".join(f"{row[0]} = look.{row[0]}" for row in database.rows(f"DESCRIBE {table}"))
    looks = "(SELECT raw_look.line, second_look.* FROM raw_look POSITIONAL JOIN second_look) AS look"
    database.run(f"UPDATE {table} SET {sets} FROM {looks} WHERE {table}.rowid = look.line")
    database.run("DROP TABLE raw_look")
    database.run("DROP TABLE second_look")


def _as_text(role, value):
    """A JSON value as the text that `dataset_scripts.reading` gives for a role, or None."""
    if isinstance(value, bool) or isinstance(value, float) and not math.isfinite(value):
        value = None if role in TEXT_ROLES else value
    if isinstance(value, dict) or (isinstance(value, list) and role != "category"):
        value = None
    if value is None:
        return None
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:  # half of a surrogate pair, which no file can hold: not an id; in other texts U+FFFD replaces it
        return None if role in ID_ROLES else text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    return text
