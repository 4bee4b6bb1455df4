"""The DuckDB connection of a conversion: its limits, its errors, and values in and out as numpy arrays."""

from pathlib import Path

import duckdb
import numpy as np

from dataset_scripts.sql import literal
from recbole_flr.errors import ConfigError, DataError, first_line


class Database:
    """An in-memory DuckDB.

    Tables that need more memory than `memory_limit` go to disk, into `folder`. DuckDB may not download or load extensions,
    whatever a file holds.

    Raises:
        ConfigError: `memory_limit` is not a size such as `200MB`.
    """

    def __init__(self, folder, memory_limit="200MB"):
        self.folder = Path(folder)
        self._connection = duckdb.connect()
        try:
            self._connection.execute("SET memory_limit = " + literal(memory_limit))
        except duckdb.Error:
            raise ConfigError(f"memory_limit is {memory_limit!r}; expected a size such as 1GB or 500MB") from None
        self.run("SET temp_directory = " + literal(self.folder))
        for setting in ("TimeZone = 'UTC'", "autoinstall_known_extensions = false", "autoload_known_extensions = false",
                        "preserve_insertion_order = true", "enable_progress_bar = false"):  # fmt: skip
            self.run("SET " + setting)

    def keep_on_disk(self):
        """New tables go to a file in `folder` instead of memory.

        That takes more time. But what DuckDB remembers of tables in memory grows with them, even if they are spilled: with tables in
        memory, 200 MB were not enough for 100 million reviews (results/scale.md).
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        self.run(f"ATTACH {literal(self.folder / 'tables.duckdb')} AS on_disk")
        self.run("USE on_disk")

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self._connection.close()

    def run(self, query, *parameters):
        """Runs one statement and returns DuckDB's connection with its result.

        Raises:
            DataError: DuckDB could not read a file, or ran out of memory or disk.
        """
        try:
            return self._connection.execute(query, *parameters)
        except duckdb.OutOfMemoryException as error:
            raise DataError(f"{first_line(error)}; raise --memory-limit") from error
        except (duckdb.IOException, duckdb.InvalidInputException) as error:
            raise DataError(first_line(error)) from error

    def rows(self, query):
        """The result of a query as a list of tuples."""
        return self.run(query).fetchall()

    def insert(self, table, rows):
        """Appends rows to a table. Each row is a list: a number, then texts or None."""
        types = ["BIGINT[]", *["VARCHAR[]"] * (len(rows[0]) - 1)]  # whole columns are a hundred times as fast as executemany
        self.run(f"INSERT INTO {table} SELECT {', '.join(f'unnest(?::{kind})' for kind in types)}", [*map(list, zip(*rows))])

    def arrays(self, query, **tables):
        """The result of a query as a dict: column -> numpy array. The query may use each array of `tables` as `name.value`."""
        for name, array in tables.items():
            self._connection.register(name, {"value": array})
        try:
            return self.run(query).fetchnumpy()
        finally:
            for name in tables:
                self._connection.unregister(name)

    def of_codes(self, column, rows, codes, n_rows):
        """The value that a column of the table `reviews` has in the rows of each code.

        The codes are laid beside the table as an array. That needs no hash table and no sorting, as a join would.

        Args:
            column: name of the column.
            rows: [R] row numbers.
            codes: [R] code of each of these rows: 0, 1, 2, ... without gaps.
            n_rows: number of rows of the table.

        Returns:
            tuple: [number of codes] the smallest value of each code; [number of codes] bool, whether it is the only value.
        """
        beside = np.zeros(n_rows, np.uint32)
        beside[rows] = codes + 1
        found = self.arrays(f"""SELECT beside.value AS code, min({column}) AS value, min({column}) = max({column}) AS same
            FROM reviews POSITIONAL JOIN beside WHERE beside.value > 0 GROUP BY code ORDER BY code""", beside=beside)
        return found["value"], found["same"]

    def memory_bytes(self):
        """The memory limit in bytes."""
        number, unit = self.rows("SELECT current_setting('memory_limit')")[0][0].split(" ")
        return round(float(number) * 1024 ** ("bytes", "KiB", "MiB", "GiB", "TiB").index(unit))

    def progress(self):
        """How much of the running statement is done, in percent; -1 if DuckDB cannot tell."""
        return self._connection.query_progress()
