"""The rules of a conversion: titles and times as SQL; windows, k-core, samples and splits on numpy arrays.

Their order and meaning are at the top of `dataset_scripts.convert`. Times are whole microseconds since 1970 UTC (int64).
"""

import calendar
import logging
import re
from datetime import datetime, timedelta, timezone

import numpy as np

from dataset_scripts.reading import UNREADABLE
from recbole_flr.errors import DataError

_log = logging.getLogger(__name__)

OLDEST_START = datetime(1996, 5, 1, tzinfo=timezone.utc)  # the first month of Amazon's data
UNITS = {"s": 1e6, "ms": 1e3, "us": 1.0, "ns": 1e-3}  # name -> microseconds in one
UNIT_NAMES = (*UNITS, "text")  # by their code in the table; the last of dates written as text
# RecBole pads with [PAD], and pandas takes the others for missing values.
RESERVED_IDS = frozenset(
    "|[PAD]|#N/A|#N/A N/A|#NA|-1.#IND|-1.#QNAN|-NaN|-nan|1.#IND|1.#QNAN|<NA>|N/A|NA|NULL|NaN|None|n/a|nan|null".split("|")
)
OK, MALFORMED, BAD_ID, BAD_TIME, LOW_RATING = 0, 2, 3, 4, 5  # the state of a row of the tables, beside UNREADABLE
_SPACES = "".join(filter(str.isspace, map(chr, range(0x3001))))  # there are none beyond
_EPOCH = datetime(1970, 1, 1, tzinfo=timezone.utc)


# ---- SQL of one row ----------------------------------------------------------------------------------------------------


def quoted(text):
    """`text` as a literal of SQL."""
    return "'" + text.replace("'", "''") + "'"


def stripped_title(title):
    """SQL of a title without entities, outer blanks and outer quotes."""
    return f"trim(trim({unescape_html(title)}, ' '), '\"')"


def usable_title(title, stripped, max_words=20, min_chars=2, drop_markup=False):
    """SQL of whether an item may have a title.

    Args:
        title, stripped (str): SQL of the raw title and of `stripped_title` of it.
        max_words: pieces between single blanks that a title may have; 0: any number.
        min_chars: characters that it must have.
        drop_markup: refuse titles with any left-over `<span`, not only those with `<span id`.
    """
    # most titles begin with a printable character of ASCII, and the expression takes long
    not_blank = f"CASE WHEN unicode({stripped}) BETWEEN 33 AND 126 THEN true ELSE regexp_matches({stripped}, '[^{_SPACES}]') END"
    usable = [f"NOT contains({title}, '{'<span' if drop_markup else '<span id'}')",
              f"length({stripped}) >= {int(min_chars)}", not_blank]  # fmt: skip
    if max_words:
        usable.append(f"length({stripped}) - length(replace({stripped}, ' ', '')) < {int(max_words)}")
    return " AND ".join(usable)


def unescape_html(text):
    """SQL of a text with `&quot;` and `&amp;` resolved: these two alone, as the published titles hold others."""
    resolved = f"replace(replace({text}, '&quot;', '\"'), '&amp;', '&')"
    return f"CASE WHEN contains({text}, '&') THEN {resolved} ELSE {text} END"


def microseconds(time, unit="auto", format=None):
    """SQL of a time in microseconds, null if it is none, and of the code of its unit (place in `UNIT_NAMES`).

    Args:
        time (str): SQL of the time as text.
        unit: of numbers; `auto`: what makes them a time after 1973.
        format: strptime format of text, in place of numbers and ISO dates.

    Returns:
        tuple[str, str]: both expressions.
    """
    text_code = f"{len(UNITS)}::UTINYINT"
    if format:
        return f"epoch_us(try_strptime({time}, {quoted(format)})::TIMESTAMPTZ)", text_code
    number = f"try_cast({time} AS DOUBLE)"
    if unit == "auto":
        code = f"((abs({number}) >= 1e11)::UTINYINT + (abs({number}) >= 1e14)::UTINYINT + (abs({number}) >= 1e17)::UTINYINT)"
    else:
        code = f"{list(UNITS).index(unit)}::UTINYINT"
    scale = f"CASE {code} " + " ".join(f"WHEN {place} THEN {value}" for place, value in enumerate(UNITS.values())) + " END"
    # beyond the range of int64 a time is as wrong as at its end
    value = f"round(greatest(least({number} * {scale}, 9e18), -9e18))::BIGINT"
    written = f"epoch_us(try_cast({time} AS TIMESTAMPTZ))"
    known = f"CASE WHEN {number} IS NULL THEN {written} WHEN isfinite({number}) THEN {value} END"
    return known, f"CASE WHEN {number} IS NULL THEN {text_code} ELSE {code} END"


def review_query(rows, *, with_rating, unit, format, now, min_rating):
    """SQL of the table of reviews: state, user, item, rating, time, unit; user and item only where all is well."""
    time, unit = microseconds("time", unit, format)
    # Not `IN`: DuckDB makes a join of a long list, and a join does not keep the rows in order.
    words, longest = quoted("|".join(map(re.escape, sorted(RESERVED_IDS)))), max(map(len, RESERVED_IDS))
    reserved = f"(length({{0}}) <= {longest} AND regexp_full_match({{0}}, {words}))"
    reserved = " OR ".join(reserved.format(role) for role in ("user", "item"))
    malformed = "nullif(user, '') IS NULL OR nullif(item, '') IS NULL OR time IS NULL"
    if with_rating:
        malformed += " OR NOT coalesce(isfinite(rating), false)"
    low = f"WHEN rating < {float(min_rating)} THEN {LOW_RATING}" if min_rating is not None else ""
    state = f"""CASE WHEN nothing OR doubtful THEN {UNREADABLE}
        WHEN {malformed} THEN {MALFORMED} WHEN {reserved} THEN {BAD_ID}
        WHEN time <= 0 OR time > {int(now)} THEN {BAD_TIME} {low} ELSE {OK} END::UTINYINT"""
    columns = f"""user, item, {time} AS time, {unit} AS unit, try_cast(rating AS DOUBLE) AS rating,
        doubtful, user IS NULL AND item IS NULL AND time IS NULL AS nothing"""
    well = f"state IN ({OK}, {LOW_RATING})"
    return f"""SELECT state, CASE WHEN {well} THEN user END AS user, CASE WHEN {well} THEN item END AS item,
        rating, time, unit FROM (SELECT *, {state} AS state FROM (SELECT {columns} FROM {rows}))"""


def item_query(rows, **title_rule):
    """SQL of the table of metadata: state, item, title (null: not usable), brand, category, price."""
    state = f"CASE WHEN nullif(item, '') IS NULL OR doubtful THEN {UNREADABLE} ELSE {OK} END::UTINYINT AS state"
    usable = usable_title("title", "stripped", **title_rule)
    return f"""SELECT {state}, item, CASE WHEN {usable} THEN stripped END AS title, brand,
        category, price FROM (SELECT *, {stripped_title('title')} AS stripped FROM {rows})"""


# ---- windows and k-core ------------------------------------------------------------------------------------------------


def slide(load, start, end, k, min_items, step_months, drop_repeats):
    """Moves the start back until `min_items` items remain in the k-core.

    Args:
        load (callable): (start, end) in microseconds -> dict of arrays over the reviews inside, in file order: `user` and
            `item` (small codes), `time`, and what else is to come back.
        start, end: datetimes, or None for no bound.

    Returns:
        tuple: the columns, places of the kept rows in them, and a dict of `inside`, `repeated` and `below_k` (numbers of
        reviews), `k_core_rounds` (reviews dropped in each), `windows` ([start, items] of each that was tried) and `start`.

    Raises:
        DataError: nothing or too little remains.
    """
    first_start, windows, columns, loaded = start, [], None, None
    last = None if end is None else to_microseconds(end)
    while True:
        begin = None if start is None else to_microseconds(start)
        if loaded is None or begin < loaded:
            # Half as far again each time, so that little is read for nothing and nothing often.
            ahead = len(windows) + len(windows) // 2 + 1
            loaded = to_microseconds(months_back(first_start, ahead * step_months)) if windows else begin
            columns = None  # two of them at once would be twice the memory
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
        if n_items >= max(min_items, 1):
            counts.update(below_k=sum(rounds), k_core_rounds=rounds, windows=windows, start=start)
            return columns, places, counts
        if not min_items:
            found = f"nothing remains of {counts['inside']} reviews from {iso(start)} to {iso(end)} in the {k}-core"
            raise DataError(f"{found}; lower --k or widen the window")
        start = None if start is None else months_back(first_start, len(windows) * step_months)
        if start is None or start < OLDEST_START:
            found = f"{n_items} items remain even from {windows[-1][0]}, fewer than the {min_items} wanted"
            raise DataError(f"{found}; lower --min-items, or keep the start with --no-sliding")


def codes(values):
    """A number below that of the distinct values for each value: [R] uint32; np.unique's inverse in less memory."""
    order = np.argsort(values)
    values = values[order]
    steps = np.zeros(len(values), np.uint32)
    np.cumsum(values[1:] != values[:-1], out=steps[1:])
    found = np.empty(len(values), np.uint32)
    found[order] = steps
    return found


def first_of_each_pair(columns, places):
    """Of the reviews of one item by one user the earliest, in file order if at one time; in file order."""
    user, item, time = (columns[name][places] for name in ("user", "item", "time"))
    order = np.lexsort((time, item, user))
    first = np.ones(len(order), bool)
    first[1:] = (np.diff(user[order].astype(np.int64)) != 0) | (np.diff(item[order].astype(np.int64)) != 0)
    return places[np.sort(order[first])]


def k_core(user, item, rows, k):
    """The rows whose users and items all have at least k of them, and how many rows each round dropped.

    What remains is unique: the order of removal does not matter.
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
        user: [R], codes, of the kept reviews in file order.
        time: [R].

    Returns:
        tuple: order ([R]), the reviews with those of a user side by side, by time, users by their first review in the file;
        targets ([N]), places in `order`, by time; before ([N]), how many reviews of the same user come before it.
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
    """Where each code comes first: [number of codes]; whatever for codes that do not come."""
    first = np.zeros(int(codes.max()) + 1 if len(codes) else 0, np.int64)
    first[codes[::-1]] = np.arange(len(codes) - 1, -1, -1)  # of several assignments to one place the last counts
    return first


def split(kind, ratios, user):
    """Which part each sample belongs to.

    Args:
        kind: `ratio`: the first `ratios[0]` of the samples are train, then valid, then test; `leave-one-out`: a user's last
            sample is test, the one before it valid.
        ratios: three shares that add up to 1.
        user: [N], of the samples, in their order in time.

    Returns:
        tuple of three arrays: numbers of the samples of train, valid and test, ascending.
    """
    n = len(user)
    if kind == "ratio":
        cuts = [int(share * n) for share in (round(ratios[0], 12), round(ratios[0] + ratios[1], 12))]
        return tuple(np.split(np.arange(n), cuts))
    order = np.argsort(user, kind="stable")
    ends = np.ones(n, bool)
    ends[:-1] = user[order][1:] != user[order][:-1]
    last = np.flatnonzero(ends)
    from_end = last[np.searchsorted(last, np.arange(n))] - np.arange(n)  # how many samples of its user come later
    return tuple(np.sort(order[from_end >= 2 if part == 2 else from_end == part]) for part in (2, 1, 0))


# ---- dates -------------------------------------------------------------------------------------------------------------


def to_microseconds(moment):
    return (moment - _EPOCH) // timedelta(microseconds=1)


def from_microseconds(microseconds):
    return _EPOCH + timedelta(microseconds=int(microseconds))


def iso(moment):
    """A date, with its time if it is not midnight; `-` for None."""
    return "-" if moment is None else moment.replace(tzinfo=None).isoformat().removesuffix("T00:00:00")


def months_back(moment, months):
    """The same day so many months earlier, or the last of a shorter month."""
    year, month = divmod(moment.year * 12 + moment.month - 1 - months, 12)
    if year < OLDEST_START.year - 1:  # datetime cannot go everywhere; any moment before OLDEST_START stops the sliding
        return OLDEST_START.replace(month=4)
    return moment.replace(year=year, month=month + 1, day=min(moment.day, calendar.monthrange(year, month + 1)[1]))
