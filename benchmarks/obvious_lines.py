"""Reads and cleans the lines of raw reviews and metadata in the obvious way; see `obvious_dataset`."""

import csv
import gzip
import io
import json
import math
import re
from datetime import datetime, timedelta, timezone
from itertools import chain
from urllib.parse import quote

from recbole_flr.errors import DataError

UTC = timezone.utc
EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
AMAZON = {  # a key that only one release has -> role -> key
    "reviewerID": {"user": "reviewerID", "item": "asin", "time": "unixReviewTime", "rating": "overall"},
    "user_id": {"user": "user_id", "item": "parent_asin", "time": "timestamp", "rating": "rating"},
}
AMAZON_META = {
    "asin": {"item": "asin", "title": "title", "brand": "brand", "category": "category", "price": "price"},
    "parent_asin": {"item": "parent_asin", "title": "title", "brand": "store", "category": "categories", "price": "price"},
}
UNREADABLE = r'[\s"\x00-\x1f\x7f-\x9f\ud800-\udfff]'  # in an id: white space, quote, control characters, lone surrogates


def _open(path):
    """A binary stream of the decompressed content of a plain, gzip or zstd file; the first bytes tell which."""
    with open(path, "rb") as handle:
        magic = handle.read(4)
    if magic[:2] == b"\x1f\x8b":
        return gzip.open(path)
    if magic == b"\x28\xb5\x2f\xfd":
        import zstandard

        return io.BufferedReader(zstandard.ZstdDecompressor().stream_reader(open(path, "rb"), read_across_frames=True))
    return open(path, "rb")


def lines_of(path):
    """Yields (line number from 1, dict) for each line that is not blank; a malformed line gives an empty dict.

    Args:
        path: plain, gzip or zstd file. The suffix of its name (.json, .jsonl, .csv or .tsv) tells the format.
    """
    suffix = re.sub(r"\.(gz|zst)$", "", str(path)).rsplit(".", 1)[-1]
    yield from _json_lines(path) if suffix.startswith("json") else _csv_lines(path)


def _json_lines(path):
    with _open(path) as handle:
        for number, line in enumerate(handle, start=1):
            if not line.strip():
                continue
            if number == 1:
                line = line.removeprefix(b"\xef\xbb\xbf")
            try:
                value = json.loads(line.decode())
            except (ValueError, RecursionError):
                value = None
            yield number, value if isinstance(value, dict) else {}


def _csv_lines(path):
    with io.TextIOWrapper(_open(path), encoding="utf-8-sig", errors="surrogateescape", newline="") as text:
        header = text.readline()
        separator = "\t" if "\t" in header else ","
        csv.field_size_limit(2**31 - 1)
        reader = csv.reader(chain([header], text), delimiter=separator)
        names = next(reader, [])
        while True:
            number = reader.line_num + 1
            try:
                fields = next(reader)
                "".join(fields).encode()  # raises if bytes of the line were not UTF-8
            except StopIteration:
                return
            except (csv.Error, UnicodeEncodeError):
                fields = ["malformed"]
            if len(fields) > len(names) and not any(fields[len(names) :]):  # empty surplus fields, as spreadsheets write them
                fields = fields[: len(names)]
            if len(fields) != len(names) and not separator.join(fields).strip(" \t\n\r\v\f"):
                continue
            yield number, dict(zip(names, fields)) if len(fields) == len(names) else {}


def recognise(path, schemas):
    """role -> key of Amazon's release, by the first line with a key that only one release has."""
    for _, line in lines_of(path):
        for key, roles in schemas.items():
            if key in line and (key != "asin" or "parent_asin" not in line):
                return roles
    raise DataError(f"{path}: no line has one of the keys {', '.join(schemas)}")


def read_items(path, roles, usable_title, titles="first"):
    """Reads the metadata.

    Args:
        path: the file.
        roles (dict): role -> key.
        usable_title (callable): raw title -> title, or None if it is not usable.
        titles: `first`: the first line of an item with a usable title counts. `published`: the last one, and items with a line
            without one are left out.

    Returns:
        tuple: a dict item -> dict of title, brand, categories and price, in the order of the lines that count; the number of lines; the
        number of malformed lines.
    """
    catalogue, count, malformed, without = {}, 0, 0, set()
    for _, line in lines_of(path):
        count += 1
        try:
            item = id_of(line, roles["item"])
        except ValueError:
            malformed += 1
            continue
        title = usable_title(line.get(roles["title"]))
        if title is None:
            without.add(item)
        if title is None or (titles == "first" and item in catalogue):
            continue
        catalogue.pop(item, None)  # a later line stands later
        catalogue[item] = {
            "title": title,
            "brand": clean_brand(line.get(roles.get("brand"))),
            "categories": clean_categories(line.get(roles.get("category"))),
            "price": clean_price(line.get(roles.get("price"))),
        }
    if titles == "published":
        catalogue = {item: values for item, values in catalogue.items() if item not in without}
    return catalogue, count, malformed


# values


def id_of(line, key):
    """The raw id of a line as text. Raises ValueError if the line has none."""
    value = line.get(key)
    if value is None or value == "" or isinstance(value, (list, dict)):
        raise ValueError("no id")
    text = value if isinstance(value, str) else json.dumps(value)
    text.encode("utf-8")  # a UnicodeEncodeError is a ValueError: half of a surrogate pair
    return text


def text_of(value):
    """A text, or a number as text; None for anything else."""
    if isinstance(value, bool) or not isinstance(value, (str, int, float)):
        return None
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value if isinstance(value, str) else json.dumps(value)


def number_of(value):
    """A number or its text as float. Raises ValueError or OverflowError for anything else, and beyond float's range."""
    if isinstance(value, str) and not re.fullmatch(r"\s*[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][+-]?[0-9]+)?\s*", value):
        raise ValueError(f"{value!r} is no number")
    if value is None or isinstance(value, (bool, list, dict)):
        raise ValueError(f"{value!r} is no number")
    number = float(value)
    if not math.isfinite(number):
        raise ValueError(f"{value!r} is not finite")
    return number


def microseconds_of(value, unit):
    """Whole microseconds since 1970 of a number or a text, and the name of the unit. Raises ValueError or OverflowError."""
    try:
        number = number_of(value)
    except ValueError:
        if not isinstance(value, str):
            raise
        return to_micros(datetime.fromisoformat(value.strip().replace("Z", "+00:00"))), "text"
    if unit == "auto":
        size = abs(number)
        unit = "s" if size < 1e11 else "ms" if size < 1e14 else "us" if size < 1e17 else "ns"
    return round(number * {"s": 1e6, "ms": 1e3, "us": 1.0, "ns": 1e-3}[unit]), unit


def written_id(raw):
    """An id in a form that RecBole can read; `urllib.parse.unquote` gives the raw id back."""
    if not re.search(UNREADABLE, raw) and not re.search("%[0-9a-fA-F]{2}", raw):
        return raw
    return re.sub(UNREADABLE + "|%", lambda match: quote(match[0], safe="", errors="surrogatepass"), raw)


def stripped(title):
    """A title without entities, outer blanks and outer quotes."""
    return title.replace("&quot;", '"').replace("&amp;", "&").strip(" ").strip('"')


def clean_title(raw, max_words=20, min_chars=2, drop_markup=False):
    """The title of an item, or None if it has no usable one."""
    raw = text_of(raw)
    if raw is None or "<span id" in raw or (drop_markup and "<span" in raw):
        return None
    title = stripped(raw)
    if len(title) < min_chars or not title.strip() or (max_words and len(title.split(" ")) > max_words):
        return None
    return _writable(title)


def clean_brand(raw):
    """A brand on one line; empty if there is none."""
    raw = text_of(raw)
    if raw is None:
        return ""
    return _writable(" ".join(raw.replace("&quot;", '"').replace("&amp;", "&").split()).strip('"'))


def clean_categories(raw):
    """A category, a list of categories, or such a list as JSON text, as words on one line; empty if there is none."""
    if not isinstance(raw, list):
        raw = text_of(raw) or ""
        try:
            raw = json.loads(raw) if raw.startswith("[") else [raw]
        except (ValueError, RecursionError):
            raw = [raw]
    words = ("_".join(re.sub(r'["\0]', "", text).split()) for text in raw if isinstance(text, str))
    return _writable(" ".join(word for word in words if word))


def clean_price(raw):
    """The number in `12.99`, `$12.99` or `1,299.00`; empty for anything else."""
    if isinstance(raw, (int, float)) and not isinstance(raw, bool):
        raw = repr(raw)
    found = isinstance(raw, str) and re.fullmatch(r"\s*\$?\s*([0-9]{1,3}(,[0-9]{3})+(\.[0-9]+)?|[0-9]+(\.[0-9]+)?)\s*", raw)
    return found[1].replace(",", "") if found else ""


def _writable(text):
    """Replaces half of a surrogate pair by U+FFFD: JSON may hold it, but no file can."""
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")


def to_micros(moment):
    """Whole microseconds since 1970 of a datetime; one without offset is UTC."""
    return ((moment if moment.tzinfo else moment.replace(tzinfo=UTC)) - EPOCH) // timedelta(microseconds=1)
