"""Roles: what a column of a file stands for.

Every file names its columns in its own way. A dict role -> name of the column says what they stand for.
"""

from dataset_scripts.sources import listed
from recbole_flr.errors import DataError

ID_ROLES = ("user", "item")
REVIEW_ROLES = ("user", "item", "time", "rating")  # in a log
TEXT_ROLES = ("title", "brand", "category", "price")  # of an item, in a log or in a file of its own
ITEM_ROLES = ("item", *TEXT_ROLES)
ROLES = (*REVIEW_ROLES, *TEXT_ROLES)


def check_columns(source, columns):
    """Checks that a file has every column once.

    Args:
        source (Source): the file.
        columns (dict): role -> name of the column.

    Raises:
        DataError: a column is missing, or more than one column could be meant.
    """
    # In JSON lines a key may first appear in a later line, but every line has a user, an item and a time.
    needed = {role: name for role, name in columns.items() if source.format != "jsonl" or role in ("user", "item", "time")}
    missing = [f"{name!r} ({role})" for role, name in needed.items() if name not in source.fields]
    if missing:
        there = listed(source.fields) or "none"
        raise DataError(f"{source.path} has no column {', '.join(missing)}; its columns are {there}")
    twice = [name for name in columns.values() if source.fields.count(name) > 1]
    if twice:
        found = f"{source.fields.count(twice[0])} columns {twice[0]!r}"
        raise DataError(f"{source.path} has {found}; rename all but one of them")
    names = {name.lower(): name for name in columns.values()}
    alike = [name for name in columns.values() if names[name.lower()] != name]
    if alike and source.format == "jsonl":
        found = f"the keys {alike[0]!r} and {names[alike[0].lower()]!r} of {source.path}"
        raise DataError(f"{found} differ only in upper and lower case, which DuckDB cannot tell apart; rename one of them")
