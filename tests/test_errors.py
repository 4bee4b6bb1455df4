"""Messages show control characters of data as escapes."""

import pytest

from recbole_flr.errors import DataError, printable


@pytest.mark.parametrize("text, shown", [
    ("Robot", "Robot"), ("積み木 🎲 é", "積み木 🎲 é"), ("\x1b[31mred\x07\x00", r"\x1b[31mred\x07\x00"), ("\x9b2J", r"\x9b2J"),
    ("a\u202eb", r"a\u202eb"), ("\ud800", r"\ud800"), ("a\nb\tc", r"a\nb\tc"), ("\\x1b", "\\x1b"), (3, "3"),
])
def test_printable(text, shown):
    assert printable(text) == shown


def test_lines_may_stay():
    assert printable("a\nb\tc\r\x1b", lines=True) == "a\nb\tc\\r\\x1b"
    assert str(DataError("ways:\n  1. \x1b[2J")) == "ways:\n  1. \\x1b[2J"
