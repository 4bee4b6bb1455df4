"""Texts, names and paths as parts of a DuckDB statement."""


def literal(text):
    """`text` (or a path) as an SQL string."""
    return "'" + str(text).replace("'", "''") + "'"


def identifier(name):
    """The name of a column in SQL."""
    return '"' + name.replace('"', '""') + '"'


def unglobbed(path):
    """A path that DuckDB takes as it is: DuckDB would read a plain `*`, `?` or `[` as a pattern."""
    return "".join(f"[{letter}]" if letter in "*?[" else letter for letter in str(path))
