"""The rules of a conversion: titles and times as SQL; windows, k-core, samples and splits on numpy arrays.

`dataset_scripts.convert` explains the rules and their order. Times are whole microseconds since 1970 UTC (int64).
Shapes: R reviews, N samples.
"""

import calendar
import logging
import re
from datetime import datetime, timedelta, timezone

import numpy as np

from dataset_scripts.sql import literal
from recbole_flr.errors import DataError

_log = logging.getLogger(__name__)

OLDEST_START = datetime(1996, 5, 1, tzinfo=timezone.utc)  # the first month of Amazon's data
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


# ---- windows and k-core ------------------------------------------------------------------------------------------------


class TooLittle(DataError):
    """Too few reviews remain.

    Attributes:
        counts (dict): what the rules dropped in the last window, as :func:`slide` returns it.
    """

    def __init__(self, message, counts):
        super().__init__(message)
        self.counts = counts


def slide(load, start, end, k, min_items, step_months, drop_repeats):
    """Moves the start back until `min_items` items remain in the k-core.

    Args:
        load (callable): (start, end) in microseconds -> dict of arrays over the reviews of that window, in file order: `user`
            and `item` (small codes), `time`, and any others.
        start, end: datetimes, or None for no bound.
        k, min_items, step_months, drop_repeats: as for `dataset_scripts.convert.convert`.

    Returns:
        tuple: the dict of arrays that `load` returned; the places of the kept reviews in them; and a dict of counts: `inside`,
        `repeated` and `below_k` (reviews), `k_core_rounds` (reviews dropped in each round), `windows` ([start, items] of each
        window that was tried) and `start` (of the last window).

    Raises:
        TooLittle: nothing remains, or fewer than `min_items` items.
    """
    first_start, windows, columns, loaded = start, [], None, None
    last = None if end is None else to_microseconds(end)
    while True:
        begin = None if start is None else to_microseconds(start)
        if loaded is None or begin < loaded:
            # Load half as far again each time: few reviews are loaded in vain, and none many times.
            ahead = len(windows) + len(windows) // 2 + 1
            loaded = to_microseconds(months_back(first_start, ahead * step_months)) if windows else begin
            columns = None  # free the old arrays before the new ones are made
            columns = load(loaded, last)
        inside = begin is None or begin == loaded
        places = np.arange(len(columns["time"])) if inside else np.flatnonzero(columns["time"] >= begin)
        counts = {"inside": len(places), "repeated": 0}
        if drop_repeats:
            places = first_of_each_pair(columns, places)
            counts["repeated"] = counts["inside"] - len(places)
        places, rounds = k_core(columns["user"], columns["item"], places, k)
        n_items = len(np.unique(columns["item"][places]))
        windows.append([iso(start), n_items])
        _log.info("window %s to %s: %d reviews, %d items in the %d-core", iso(start), iso(end), len(places), n_items, k)
        counts.update(below_k=sum(rounds), k_core_rounds=rounds, windows=windows, start=start)
        if n_items >= max(min_items, 1):
            return columns, places, counts
        if not min_items:
            found = f"nothing remains of {counts['inside']} reviews from {iso(start)} to {iso(end)} in the {k}-core"
            raise TooLittle(f"{found}; lower --k or widen the window", counts)
        start = None if start is None else months_back(first_start, len(windows) * step_months)
        if start is None or start < OLDEST_START:
            found = f"{n_items} items remain even from {windows[-1][0]}, fewer than the {min_items} wanted"
            raise TooLittle(f"{found}; lower --min-items, or keep the start with --no-sliding", counts)


def codes(values):
    """The rank of each value among the distinct values: [R] -> [R] uint32. As np.unique's inverse, in less memory."""
    order = np.argsort(values)
    values = values[order]
    steps = np.zeros(len(values), np.uint32)
    np.cumsum(values[1:] != values[:-1], out=steps[1:])
    found = np.empty(len(values), np.uint32)
    found[order] = steps
    return found


def first_of_each_pair(columns, places):
    """Of several reviews of an item by the same user, the earliest; at the same time the first in the file.

    `places`: [R] places in the arrays of `columns`, ascending. Returns those that stay, ascending.
    """
    user, item, time = (columns[name][places] for name in ("user", "item", "time"))
    order = np.lexsort((time, item, user))
    first = np.ones(len(order), bool)
    first[1:] = (np.diff(user[order].astype(np.int64)) != 0) | (np.diff(item[order].astype(np.int64)) != 0)
    return places[np.sort(order[first])]


def k_core(user, item, rows, k):
    """The largest set of rows in which every user and every item has at least k rows.

    Args:
        user, item: [R] codes.
        rows: row numbers to begin with.

    Returns:
        tuple: the row numbers that remain, and a list: how many rows each round dropped.
    """
    rounds = []
    while len(rows):
        keep = (np.bincount(user[rows])[user[rows]] >= k) & (np.bincount(item[rows])[item[rows]] >= k)
        if keep.all():
            break
        rounds.append(int(len(rows) - keep.sum()))
        rows = rows[keep]
    return rows, rounds


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
