"""The language of allowed values: which values each expression allows, and which texts are no expression."""

import math
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from recbole_flr.allowed_values import accepts, parse_type

ACCEPTS = [  # allowed, values that are, values that are not
    ("int >= 1", [1, 20, 10**400], [0, -1, 1.0, 1.5, True, False, "1", None, [1], math.nan]),
    ("int > 1", [2, 10**400], [1, 0, 2.0, True]),
    ("int", [-3, 0, 7], [False, 2.0, "7", None]),
    ("int in [0, 10]", [0, 10], [-1, 11, True]),
    ("int in [-2, -1]", [-2, -1], [-3, 0]),
    ("float > 0", [1e-9, 1, 3.5], [0, 0.0, -1, True, "1", math.nan, math.inf, None]),
    ("float >= 0", [0, 0.0, 2], [-1e-9, -math.inf, math.inf, False]),
    ("float in [0, 1]", [0, 1, 0.5, 1.0], [-0.01, 1.01, math.nan, True, "0.5"]),
    ("float", [-1, 0, 2.5], [math.nan, math.inf, True, "x", None]),
    ("float > 0 or null", [0.5, 1, None], [0, True, "null", math.inf]),
    ("bool", [True, False], [0, 1, "True", None]),
    ("str", ["", "123", "full"], [123, None, True, ["x"], b"x"]),
    ("str or null", ["x", None], [0, False, {}]),
    ("list", [[], [1], ("a",)], ["[]", None, {}, {1}]),
    ("list or int", [5, [5, 10]], [True, 5.0, "5", None]),
    ("dict or null", [{}, {"a": 1}, None], [[], "x", 5]),
    ("dict or null or auto", [{}, None, "auto"], ["automatic", True, []]),
    ("full | trie", ["full", "trie"], ["fulll", "Full", "", None, True, ["full"], 0]),
    ("full|trie", ["full", "trie"], ["full|trie", "full "]),
    ("compact | paper | null", ["compact", "paper", None], ["null", "papers", 0]),
]


@pytest.mark.parametrize("allowed, good, bad", ACCEPTS, ids=[row[0] for row in ACCEPTS])
def test_accepts(allowed, good, bad):
    assert [value for value in good if not accepts(allowed, value)] == []
    assert [value for value in [*bad, object()] if accepts(allowed, value)] == []


@given(st.integers(-10**300, 10**300) | st.floats())
def test_bounds_agree_with_arithmetic(value):
    finite = math.isfinite(value) if isinstance(value, float) else True
    assert accepts("float >= 0", value) == (finite and value >= 0)
    assert accepts("float in [0, 0.5]", value) == (finite and 0 <= value <= 0.5)
    assert accepts("float in [0, 0.5)", value) == (finite and 0 <= value < 0.5)


@pytest.mark.parametrize("allowed, reason", [
    ("", "found ''"), (" ", "found ' '"), ("integer", "two words or more"), ("string or null", "found 'string'"),
    ("Int or null", "found 'Int'"),
    ("BOOL | null", "found 'BOOL'"), ("any | null", "found 'any'"), ("full", "two words or more"), ("null", "two words or more"),
    ("int => 1", "found 'int => 1'"), ("int >= one", "found 'int >= one'"), ("int 1", "found 'int 1'"),
    ("int >=", "found 'int >='"),
    ("float in [1, 1)", "lower bound is above"), ("float in (0, 1)", "found"), ("float in [1, 0]", "lower bound is above"),
    ("float in [0]", "found"), ("int <= 5", "found 'int <= 5'"), ("int >= 0.5", "bounds of an int must be ints"),
    ("str >= 1", "only int and float"),
    ("full | trie >= 1", "only int and float"), ("full |", "found"), ("| full", "found"), ("full || trie", "found"),
    ("int or", "found 'int or'"),
    ("full, trie", "found"), ("full | trie | full", "repeated"), ("str or str", "repeated"),
    ("on | off", "does not read as text"),
    ("full | True", "does not read as text"), ("1 | 2", "found '1'"), ("list[int]", "found 'list[int]'"),
    ("int or null.", "found"),
])
def test_what_is_not_in_the_language_is_refused(allowed, reason):
    with pytest.raises(ValueError, match=re.escape(reason)):
        parse_type(allowed)


@given(st.text(alphabet="int float>=[0,1]|or nul", max_size=16))
def test_a_text_is_parsed_or_refused(text):
    """There is no third outcome: nothing but a ValueError is raised, and what is parsed can check a value."""
    try:
        parse_type(text)
    except ValueError:
        return
    assert accepts(text, object()) is False
