"""The language in which an option declares its allowed values, such as `int >= 1` or `full | trie`.

The allowed values are written as types or words, separated by `or` or `|`:

====================================  ==========================================================
``int``, ``float``                    a finite number; an int is allowed for a float, a bool is not
``int >= 1``, ``float > 0``           a number with a lower bound
``float in [0, 1]``                   a number between two bounds, both included
``float in [0, 1)``                   the same without the upper bound itself
``bool``, ``str``, ``list``, ``dict`` a value of that type; a tuple is allowed for a list
``null``                              no value
any other word, such as ``full``      this text
====================================  ==========================================================

pydantic does the checking, in strict mode: the text "5" is no int and 1 is no bool. NaN and infinity are refused.
"""

import functools
import re
from typing import Annotated, Literal, Union

from pydantic import ConfigDict, Field, TypeAdapter, ValidationError

NUMBER = r"-?\d+(?:\.\d+)?"
ALTERNATIVE = re.compile(
    rf"(?P<word>[A-Za-z]\w*)(?:\s*(?P<sign>>=|>)\s*(?P<low>{NUMBER})"
    rf"|\s+in\s+\[(?P<least>{NUMBER}),\s*(?P<most>{NUMBER})(?P<end>[\])]))?"
)
TYPES = {"bool": bool, "str": str, "list": list | tuple, "dict": dict, "null": None}
NUMBERS = {"int": int, "float": float}
NOT_TEXT = {"true", "false", "yes", "no", "on", "off"}  # yaml reads these words as a bool
LANGUAGE = ("int, float (both also as 'int >= 1', 'float > 0', 'float in [0, 1]' or 'float in [0, 1)'), bool, str, list, dict, "
            "null or other words")
# Names of types elsewhere. Taken as words, they would declare an option that accepts only this text.
FOREIGN = {"integer", "string", "boolean", "number", "double", "array", "tuple", "mapping", "any"}


def alternatives(allowed):
    """Split allowed values at `or` and `|`: ``"str or null"`` -> ``["str", "null"]``."""
    return re.split(r"\s*\|\s*|\s+or\s+", allowed.strip())


@functools.cache
def parse_type(allowed):
    """Turn allowed values, such as ``int >= 1`` or ``full | trie``, into a pydantic type.

    Args:
        allowed (str): in the language of the module's docstring.

    Returns:
        pydantic.TypeAdapter: its ``validate_python`` raises a ValidationError for a value that is not allowed.

    Raises:
        ValueError: the text is not in that language.
    """
    parts = alternatives(allowed)
    if len(set(parts)) < len(parts):
        raise ValueError(f"found {allowed!r}, in which an alternative is repeated")
    if len(parts) == 1 and not re.match(r"(int|float|bool|str|list|dict)\b", parts[0]):
        raise ValueError(f"found {allowed!r}, expected {LANGUAGE} (two words or more, separated by '|')")
    kinds = tuple(_parse_alternative(part, allowed) for part in parts)
    return TypeAdapter(Union[kinds], config=ConfigDict(strict=True, allow_inf_nan=False))


def _parse_alternative(part, allowed):
    """One alternative of the allowed values -> a type that pydantic understands."""
    match = ALTERNATIVE.fullmatch(part)
    if not match:
        raise ValueError(f"found {part!r} in {allowed!r}, expected {LANGUAGE}")
    word = match["word"]
    upper = "lt" if match["end"] == ")" else "le"
    bounds = {"gt" if match["sign"] == ">" else "ge": match["low"] or match["least"], upper: match["most"]}
    bounds = {name: text for name, text in bounds.items() if text is not None}
    if word in NUMBERS:
        return _bounded(NUMBERS[word], bounds, part)
    if bounds:
        raise ValueError(f"found {part!r} in {allowed!r}; only int and float can have bounds")
    if word in TYPES:
        return TYPES[word]
    if word.lower() in {*FOREIGN, *TYPES, *NUMBERS}:
        raise ValueError(f"found {word!r} in {allowed!r}, which is no type here; expected {LANGUAGE}")
    if word.lower() in NOT_TEXT:
        raise ValueError(f"found the word {word!r} in {allowed!r}, which yaml does not read as text; use another word")
    return Literal[word]


def _bounded(number, bounds, part):
    """A number's type with the bounds that were found in the text `part`."""
    try:
        bounds = {name: number(text) for name, text in bounds.items()}
    except ValueError:
        raise ValueError(f"found {part!r}; the bounds of an int must be ints") from None
    upper = bounds.get("le", bounds.get("lt"))
    if upper is not None and (bounds["ge"] > upper or "lt" in bounds and bounds["ge"] == upper):
        raise ValueError(f"found {part!r}, whose lower bound is above the upper one")
    return Annotated[number, Field(**bounds)]


def accepts(allowed, value):
    """Whether a value is among the allowed ones (a text in the language of the module's docstring)."""
    try:
        parse_type(allowed).validate_python(value)
    except ValidationError:
        return False
    return True
