"""The DuckDB connection: values in and out, limits and settings."""

import numpy as np
import pytest

from dataset_scripts.database import Database
from recbole_flr.errors import ConfigError, DataError


@pytest.fixture
def database(tmp_path):
    with Database(tmp_path / "spill") as opened:
        yield opened


def test_values_of_codes(database):
    """The text of each code, and whether all its rows have it; in a table of several row groups."""
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
    """Any text, and a column of nulls only."""
    database.run("CREATE TABLE t (line BIGINT, a VARCHAR, b VARCHAR)")
    rows = [[number, text, None] for number, text in enumerate(["x", None, "", "nul\0", "雪'\"", "NULL", "[1]"])]
    database.insert("t", rows)
    database.insert("t", [[2**40, None, "y"]])
    assert database.rows("SELECT * FROM t ORDER BY rowid") == [*map(tuple, rows), (2**40, None, "y")]


def test_arrays(database):
    found = database.arrays("SELECT a.value + 1 AS b FROM a WHERE value > 1 ORDER BY 1 DESC", a=np.array([1, 2, 3]))
    assert list(found) == ["b"] and found["b"].tolist() == [4, 3]
    with pytest.raises(Exception):
        database.rows("SELECT * FROM a")  # the array is no longer known


@pytest.mark.parametrize("limit", ["", "much", "5", "GB", "1 XB"])
def test_memory_limits_that_are_none(tmp_path, limit):
    with pytest.raises(ConfigError, match="memory_limit is .*; expected a size such as 1GB or 500MB"):
        Database(tmp_path, limit)


def test_too_little_memory(tmp_path):
    with (
        Database(tmp_path / "spill", "5MB") as database,
        pytest.raises(DataError, match="Out of Memory.*; raise --memory-limit"),
    ):
        database.run(
            "CREATE TABLE t AS SELECT hash(range) AS a, repeat('x', range::INT % 99) AS b FROM range(1000000) ORDER BY a"
        )


def test_settings(database):
    assert database.rows("SELECT current_setting('TimeZone'), current_setting('autoload_known_extensions'), "
                         "current_setting('autoinstall_known_extensions')") == [("UTC", False, False)]  # fmt: skip
