"""Roles, and columns that are missing or could be meant twice."""

import pytest

from dataset_scripts.roles import ITEM_ROLES, REVIEW_ROLES, ROLES, check_columns
from dataset_scripts.sources import recognise
from recbole_flr.errors import DataError


def test_check_columns(tmp_path):
    path = tmp_path / "x"
    path.write_text("u,i,i,U\n")
    source = recognise(path, "csv")
    check_columns(source, {"user": "u", "item": "U"})
    with pytest.raises(DataError, match=r"has no column 't' \(time\), 'r' \(rating\); its columns are u, i, i, U"):
        check_columns(source, {"user": "u", "time": "t", "rating": "r"})
    with pytest.raises(DataError, match="has 2 columns 'i'"):
        check_columns(source, {"item": "i"})
    path.write_text('{"u": 1, "U": 2}\n')
    source = recognise(path)
    check_columns(source, {"user": "u", "title": "later", "rating": "later"})  # other keys may come in later lines
    with pytest.raises(DataError, match=r"has no column 'i' \(item\); its columns are u, U"):
        check_columns(source, {"user": "u", "item": "i"})
    with pytest.raises(DataError, match="differ only in upper and lower case"):
        check_columns(source, {"user": "u", "item": "U"})


def test_roles():
    """The order is that of the columns in DuckDB's tables."""
    assert REVIEW_ROLES == ("user", "item", "time", "rating") and ITEM_ROLES == ("item", "title", "brand", "category", "price")
    assert ROLES == (*REVIEW_ROLES, *ITEM_ROLES[1:])
