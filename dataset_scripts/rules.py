"""The rules of a conversion: titles and times as SQL; samples, splits and dates on numpy arrays. For windows see `windows`.

`dataset_scripts.convert` explains the rules and their order. Times are whole microseconds since 1970 UTC (int64).
Shapes: R reviews, N samples.
"""

import calendar
import re
from datetime import datetime, timedelta, timezone

import numpy as np

from dataset_scripts.sql import literal

OLDEST_START = datetime(1996, 5, 1, tzinfo=timezone.utc)  # the first month of Amazon's data
TITLES = ("first", "published")  # which line of an item has its title: rule 2 of `dataset_scripts.convert`
UNITS = {"s": 1e6, "ms": 1e3, "us": 1.0, "ns": 1e-3}  # name -> microseconds in one
UNIT_NAMES = (*UNITS, "text")  # unit code in the table -> name; `text`: a date written as text
# RecBole uses [PAD] for padding, and pandas reads the others as missing values.
RESERVED_IDS = frozenset(
    "|[PAD]|#N/A|#N/A N/A|#NA|-1.#IND|-1.#QNAN|-NaN|-nan|1.#IND|1.#QNAN|<NA>|N/A|NA|NULL|NaN|None|n/a|nan|null".split("|")
)
# The state of a row of the tables. UNREADABLE: DuckDB could not read the line, or an id may be a list or an object.
OK, UNREADABLE, MALFORMED, BAD_ID, BAD_TIME, LOW_RATING = range(6)
_SPACES = "".join(filter(str.isspace, map(chr, range(0x3001))))  # Unicode has no white space beyond
_EPOCH = datetime(1970, 1, 1, tzinfo=timezone.utc)


# ---- SQL of one row ----------------------------------------------------------------------------------------------------


def stripped_title(title):
    """SQL of a title without entities, outer blanks and outer quotes; `title` is SQL of the raw one."""
    return f"trim(trim({unescape_html(title)}, ' '), '\"')"


def usable_title(title, stripped, max_words=20, min_chars=2, drop_markup=False):
    """SQL of whether a title is usable.

    Args:
        title, stripped (str): SQL of the raw title, and of the same title after `stripped_title`.
        max_words: the most pieces between single blanks; 0: no limit.
        min_chars: the fewest characters.
        drop_markup: refuse titles with any left-over `<span`, not only those with `<span id`.
    """
    # The regular expression is slow, and not needed for a title that begins with a printable ASCII character.
    not_blank = f"CASE WHEN unicode({stripped}) BETWEEN 33 AND 126 THEN true ELSE regexp_matches({stripped}, '[^{_SPACES}]') END"
    usable = [f"NOT contains({title}, '{'<span' if drop_markup else '<span id'}')",
              f"length({stripped}) >= {int(min_chars)}", not_blank]  # fmt: skip
    if max_words:
        usable.append(f"length({stripped}) - length(replace({stripped}, ' ', '')) < {int(max_words)}")
    return " AND ".join(usable)


def unescape_html(text):
    """SQL of a text with `&quot;` and `&amp;` resolved. Other entities stay, because the published titles have them."""
    resolved = f"replace(replace({text}, '&quot;', '\"'), '&amp;', '&')"
    return f"CASE WHEN contains({text}, '&') THEN {resolved} ELSE {text} END"


def microseconds(time, unit="auto", format=None):
    """SQL that parses a time.

    Args:
        time (str): SQL of the time as text.
        unit: unit of times that are numbers; `auto`: the unit that makes the number a time after 1973.
        format: strptime format of times, instead of numbers and ISO dates.

    Returns:
        tuple[str, str]: SQL of the time in microseconds (null if the text is not a time), and SQL of the code of its unit (the
        place in `UNIT_NAMES`).
    """
    text_code = f"{len(UNITS)}::UTINYINT"
    if format:
        return f"epoch_us(try_strptime({time}, {literal(format)})::TIMESTAMPTZ)", text_code
    number = f"try_cast({time} AS DOUBLE)"
    if unit == "auto":
        code = f"((abs({number}) >= 1e11)::UTINYINT + (abs({number}) >= 1e14)::UTINYINT + (abs({number}) >= 1e17)::UTINYINT)"
    else:
        code = f"{list(UNITS).index(unit)}::UTINYINT"
    scale = f"CASE {code} " + " ".join(f"WHEN {place} THEN {value}" for place, value in enumerate(UNITS.values())) + " END"
    # times beyond the range of int64 become its ends, which are refused, too
    value = f"round(greatest(least({number} * {scale}, 9e18), -9e18))::BIGINT"
    written = f"epoch_us(try_cast({time} AS TIMESTAMPTZ))"
    known = f"CASE WHEN {number} IS NULL THEN {written} WHEN isfinite({number}) THEN {value} END"
    return known, f"CASE WHEN {number} IS NULL THEN {text_code} ELSE {code} END"


def review_query(rows, *, with_rating, unit, format, now, min_rating):
    """SQL of the table of reviews, with the columns state, user, item, rating, time (microseconds), unit (code), and unread_time:
    the beginning of a time that could not be read.

    User and item are null in rows that are dropped.

    Args:
        rows (str): SQL of the raw rows, see `dataset_scripts.reading.load`.
        with_rating: whether the log has ratings; then a row without a finite rating is malformed.
        unit, format: as for `microseconds`.
        now: microseconds; later times are refused.
        min_rating: rows with a lower rating get the state LOW_RATING; None: keep all.
    """
    time, unit = microseconds("time", unit, format)
    # A regular expression instead of `IN`: DuckDB turns a long list into a join, which does not keep the order of rows.
    words, longest = literal("|".join(map(re.escape, sorted(RESERVED_IDS)))), max(map(len, RESERVED_IDS))
    reserved = f"(length({{0}}) <= {longest} AND regexp_full_match({{0}}, {words}))"
    reserved = " OR ".join(reserved.format(role) for role in ("user", "item"))
    malformed = "nullif(user, '') IS NULL OR nullif(item, '') IS NULL OR time IS NULL"
    if with_rating:
        malformed += " OR NOT coalesce(isfinite(rating), false)"
    low = f"WHEN rating < {float(min_rating)} THEN {LOW_RATING}" if min_rating is not None else ""
    state = f"""CASE WHEN nothing OR doubtful THEN {UNREADABLE}
        WHEN {malformed} THEN {MALFORMED} WHEN {reserved} THEN {BAD_ID}
        WHEN time <= 0 OR time > {int(now)} THEN {BAD_TIME} {low} ELSE {OK} END::UTINYINT"""
    columns = f"""user, item, {time} AS time, {unit} AS unit, time AS written, try_cast(rating AS DOUBLE) AS rating,
        doubtful, user IS NULL AND item IS NULL AND time IS NULL AS nothing"""
    well = f"state IN ({OK}, {LOW_RATING})"
    return f"""SELECT state, CASE WHEN {well} THEN user END AS user, CASE WHEN {well} THEN item END AS item,
        rating, time, unit, CASE WHEN state = {MALFORMED} AND time IS NULL THEN left(written, 40) END AS unread_time
        FROM (SELECT *, {state} AS state FROM (SELECT {columns} FROM {rows}))"""


def compact_dates(table):
    """SQL of how many usable times of a table, read as seconds, are dates such as 20240301; and one of them."""
    number = "(time // 1000000)"
    year, month, day = f"{number} // 10000", f"{number} // 100 % 100", f"{number} % 100"
    return f"""SELECT count(*), min({number}) FROM {table} WHERE state IN ({OK}, {LOW_RATING}) AND unit = 0 AND time % 1000000 = 0
        AND {year} BETWEEN 1970 AND 2100 AND {month} BETWEEN 1 AND 12 AND {day} BETWEEN 1 AND 31"""


def item_query(rows, **title_rule):
    """SQL of the table of metadata, with the columns state, item, title (null if not usable), brand, category and price.

    Args:
        rows (str): SQL of the raw rows, see `dataset_scripts.reading.load`.
        title_rule: keyword arguments of `usable_title`.
    """
    state = f"CASE WHEN nullif(item, '') IS NULL OR doubtful THEN {UNREADABLE} ELSE {OK} END::UTINYINT AS state"
    usable = usable_title("title", "stripped", **title_rule)
    return f"""SELECT {state}, item, CASE WHEN {usable} THEN stripped END AS title, brand,
        category, price FROM (SELECT *, {stripped_title('title')} AS stripped FROM {rows})"""


# ---- samples -----------------------------------------------------------------------------------------------------------


def samples(user, time):
    """One sample for every review but a user's first.

    Args:
        user: [R] codes of the users, for the kept reviews in file order.
        time: [R].

    Returns:
        tuple:
        - order [R]: the reviews sorted by user (in the order of their first reviews in the file), then by time;
        - targets [N]: places in `order`, sorted by time;
        - before [N]: how many reviews of the same user come before each target.
    """
    order = np.lexsort((time, first_places(user)[user]))  # stable: ties keep the order of the file
    user, time = user[order], time[order]
    places = np.arange(len(user))
    begins = np.ones(len(user), bool)
    begins[1:] = user[1:] != user[:-1]
    before = places - np.maximum.accumulate(np.where(begins, places, 0))
    targets = places[before > 0]
    targets = targets[np.argsort(time[targets], kind="stable")]
    return order, targets, before[targets]


def first_places(codes):
    """The place where each code occurs first: [R] -> [largest code + 1]. Entries of codes that do not occur mean nothing."""
    first = np.zeros(int(codes.max()) + 1 if len(codes) else 0, np.int64)
    first[codes[::-1]] = np.arange(len(codes) - 1, -1, -1)  # if several values are assigned to one place, the last counts
    return first


def split(kind, ratios, user):
    """Divides the samples into train, valid and test.

    Args:
        kind: `ratio`: the first share of the samples is train, the next valid, the last test. `leave-one-out`: the last sample
            of each user is test, the one before it valid, the rest train.
        ratios: three shares that add up to 1.
        user: [N] codes of the users, for the samples in the order of time.

    Returns:
        tuple of three arrays: the numbers of the samples of train, valid and test, ascending.
    """
    n = len(user)
    if kind == "ratio":
        cuts = [int(share * n) for share in (round(ratios[0], 12), round(ratios[0] + ratios[1], 12))]
        return tuple(np.split(np.arange(n), cuts))
    order = np.argsort(user, kind="stable")
    ends = np.ones(n, bool)
    ends[:-1] = user[order][1:] != user[order][:-1]
    last = np.flatnonzero(ends)
    from_end = last[np.searchsorted(last, np.arange(n))] - np.arange(n)  # how many later samples the same user has
    return tuple(np.sort(order[from_end >= 2 if part == 2 else from_end == part]) for part in (2, 1, 0))


# ---- dates -------------------------------------------------------------------------------------------------------------


def to_microseconds(moment):
    """A datetime with a time zone -> microseconds since 1970 UTC."""
    return (moment - _EPOCH) // timedelta(microseconds=1)


def from_microseconds(microseconds):
    """Microseconds since 1970 UTC -> a datetime in UTC."""
    return _EPOCH + timedelta(microseconds=int(microseconds))


def iso(moment):
    """A moment as ISO date, with the time unless it is midnight; `-` for None."""
    return "-" if moment is None else moment.replace(tzinfo=None).isoformat().removesuffix("T00:00:00")


def months_back(moment, months):
    """The same day some months earlier, or the last day of that month if it is shorter."""
    year, month = divmod(moment.year * 12 + moment.month - 1 - months, 12)
    if year < OLDEST_START.year - 1:  # datetime has no such years; any moment before OLDEST_START stops the sliding
        return OLDEST_START.replace(month=4)
    return moment.replace(year=year, month=month + 1, day=min(moment.day, calendar.monthrange(year, month + 1)[1]))
