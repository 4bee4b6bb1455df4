"""The rules on arrays against loops, hand-worked dates, and the SQL of titles and times on one value at a time."""

import random
from collections import Counter
from datetime import datetime, timezone

import duckdb
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dataset_scripts import rules
from recbole_flr.errors import DataError

UTC = timezone.utc
PAIRS = st.lists(st.tuples(st.integers(0, 5), st.integers(0, 5)), max_size=40)


def value(expression):
    with duckdb.connect() as connection:
        connection.execute("SET TimeZone = 'UTC'")
        return connection.execute(f"SELECT {expression}").fetchone()[0]


def title_of(raw, **rule):
    raw = "NULL::VARCHAR" if raw is None else rules.quoted(raw)
    with duckdb.connect() as connection:
        query = f"SELECT *, false AS doubtful FROM (SELECT 'i' AS item, {raw} AS title, NULL AS brand, NULL AS category, NULL AS price)"
        return connection.execute(rules.item_query(f"({query})", **rule)).fetchone()[2]


@pytest.mark.parametrize("raw, title", [
    ("Plain", "Plain"), ('  "In quotes"  ', "In quotes"), ("&quot;Q&quot; &amp; A &#39;", 'Q" & A &#39;'),
    (' " Blank kept ', " Blank kept"), ("ends in a tab\t", "ends in a tab\t"), ("雪 🚒", "雪 🚒"), ("it's", "it's"), ("Ab", "Ab"),
    ("&amp;quot;x", "&quot;x"), (" ".join(["w"] * 20), " ".join(["w"] * 20)), (" ".join(["w"] * 21), None),
    ("w  " + " ".join(["w"] * 19), None), ("A", None), ('"A"', None), ("\u3000\u00a0", None), ("", None), (None, None),
    ('x <span id="productTitle">', None), ('<span class="a"', '<span class="a'),
])  # fmt: skip
def test_title_rule(raw, title):
    assert title_of(raw) == title


def test_title_options():
    assert title_of('<span class="a"', drop_markup=True) is None
    assert title_of("1 < 2", drop_markup=True) == "1 < 2"
    assert title_of("A", min_chars=1) == "A" and title_of("Abc", min_chars=4) is None
    assert title_of("a b c", max_words=2) is None and title_of("a b c", max_words=3) == "a b c"
    assert title_of("w " * 99 + "w", max_words=0) == "w " * 99 + "w"


@pytest.mark.parametrize("text, options, microseconds, unit", [
    ("1506816000", {}, 1506816000 * 10**6, "s"), ("1506816000.25", {}, 1506816000250000, "s"), ("99999999999", {}, 99999999999 * 10**6, "s"),
    ("100000000000", {}, 10**14, "ms"), ("1588687728923", {}, 1588687728923000, "ms"), ("1588687728923456", {}, 1588687728923456, "us"),
    ("1588687728923456000", {}, 1588687728923456, "ns"), ("5000", {"unit": "ms"}, 5 * 10**6, "ms"), ("-1", {}, -(10**6), "s"),
    ("2017-10-01", {}, 1506816000 * 10**6, "text"), ("2017-10-01T08:00:00+08:00", {}, 1506816000 * 10**6, "text"),
    ("2017-10-01T00:00:00Z", {}, 1506816000 * 10**6, "text"), ("2017-10-01 00:00:00.5", {}, 1506816000500000, "text"),
    ("20171001", {"format": "%Y%m%d"}, 1506816000 * 10**6, "text"), ("soon", {}, None, "text"), ("nan", {}, None, None),
    ("1e300", {}, 9 * 10**18, "ns"), ("2017-13-01", {}, None, "text"),
])  # fmt: skip
def test_times(text, options, microseconds, unit):
    time, code = rules.microseconds(rules.quoted(text), **options)
    assert value(time) == microseconds
    if unit:
        assert rules.UNIT_NAMES[value(code)] == unit


def test_reserved_ids_are_what_pandas_takes_for_missing():
    from pandas._libs.parsers import STR_NA_VALUES

    assert rules.RESERVED_IDS == STR_NA_VALUES | {"[PAD]"}


# ---- windows and k-core ------------------------------------------------------------------------------------------------


@given(PAIRS, st.integers(1, 4))
def test_k_core(pairs, k):
    user, item = (np.array([pair[place] for pair in pairs], np.uint32) for place in (0, 1))
    kept, rounds = rules.k_core(user, item, np.arange(len(pairs)), k)
    left, expected = list(range(len(pairs))), []
    while True:
        users, items = Counter(pairs[row][0] for row in left), Counter(pairs[row][1] for row in left)
        stay = [row for row in left if users[pairs[row][0]] >= k and items[pairs[row][1]] >= k]
        if len(stay) == len(left):
            break
        expected.append(len(left) - len(stay))
        left = stay
    assert kept.tolist() == left and rounds == expected


@given(st.lists(st.integers(0, 2**64 - 1) | st.integers(0, 3), max_size=30))
def test_codes(values):
    found = rules.codes(np.array(values, np.uint64))
    assert found.tolist() == [sorted(set(values)).index(each) for each in values]


@given(st.lists(st.tuples(st.integers(0, 2), st.integers(0, 2), st.integers(0, 3)), max_size=25))
def test_first_of_each_pair(rows):
    columns = {name: np.array([row[place] for row in rows], np.uint32) for place, name in enumerate(("user", "item", "time"))}
    columns["time"] = columns["time"].astype(np.int64)
    places = np.arange(0, len(rows), 2)
    expected = {}
    for place in places.tolist():
        pair = rows[place][:2]
        if pair not in expected or rows[place][2] < rows[expected[pair]][2]:
            expected[pair] = place
    assert rules.first_of_each_pair(columns, places).tolist() == sorted(expected.values())


def window(times, n_items=3):
    """A loader for `slide`: a review of a new user of each item at each time (days since 2017-01-01), and the calls."""
    first = rules.to_microseconds(datetime(2017, 1, 1, tzinfo=UTC))
    time = np.repeat(np.array(times) * 86_400_000_000 + first, n_items)
    everything = {"user": np.arange(len(time), dtype=np.uint32), "item": np.tile(np.arange(n_items, dtype=np.uint32), len(times)),
                  "time": time}  # fmt: skip
    calls = []

    def load(begin, last):
        calls.append((begin, last))
        inside = (time >= (-np.inf if begin is None else begin)) & (time <= (np.inf if last is None else last))
        return {name: column[inside] for name, column in everything.items()}

    return load, calls


@pytest.mark.parametrize("needed", range(1, 15))
def test_sliding_finds_the_latest_start(needed):
    """One review each month before 2018-01: so many months back make so many items enough, however much is loaded ahead."""
    starts = [rules.months_back(datetime(2018, 1, 1, tzinfo=UTC), back) for back in range(20)]
    times = [(start - datetime(2017, 1, 1, tzinfo=UTC)).days for start in starts]
    first = rules.to_microseconds(datetime(2017, 1, 1, tzinfo=UTC))
    time = np.array(times) * 86_400_000_000 + first
    loads = []

    def load(begin, last):
        loads.append(begin)
        inside = np.flatnonzero((time >= begin) & (time <= last))
        return {"user": np.zeros(len(inside), np.uint32), "item": inside.astype(np.uint32), "time": time[inside]}

    end = datetime(2018, 2, 1, tzinfo=UTC)
    columns, places, counts = rules.slide(load, starts[0], end, 1, needed, 1, False)
    assert counts["start"] == starts[needed - 1] and counts["inside"] == len(places) == needed
    assert counts["windows"] == [[rules.iso(start), number + 1] for number, start in enumerate(starts[:needed])]
    assert len(columns["time"]) >= needed and len(loads) <= 6


def test_sliding_ends():
    load, calls = window([0, 5])
    start, end = datetime(2017, 1, 1, tzinfo=UTC), datetime(2018, 1, 1, tzinfo=UTC)
    _, places, counts = rules.slide(load, start, end, 1, 3, 3, False)
    assert len(places) == counts["inside"] == 6 and len(calls) == 1
    with pytest.raises(DataError, match="3 items remain even from 1996-07-01, fewer than the 4 wanted"):
        rules.slide(load, start, end, 1, 4, 3, False)
    with pytest.raises(DataError, match="nothing remains of 6 reviews from 2017-01-01 to 2018-01-01 in the 3-core"):
        rules.slide(load, start, end, 3, 0, 3, False)
    with pytest.raises(DataError, match="nothing remains of 6 reviews from - to -"):
        rules.slide(load, None, None, 3, 0, 3, False)


@pytest.mark.parametrize("moment, months, expected", [
    ("2018-01-31", 1, "2017-12-31"), ("2018-01-31", 2, "2017-11-30"), ("2016-05-31", 3, "2016-02-29"), ("2017-10-01", 12, "2016-10-01"),
    ("2017-03-15", 3, "2016-12-15"), ("1997-01-01", 9, "1996-04-01"), ("2017-10-01", 10**6, "1996-04-01"),
])  # fmt: skip
def test_months_back(moment, months, expected):
    assert rules.iso(rules.months_back(datetime.fromisoformat(moment).replace(tzinfo=UTC), months)) == expected


# ---- samples -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(20))
def test_samples_and_splits(seed):
    rng = random.Random(seed)
    reviews = [(rng.randint(0, 6), rng.randint(0, 5)) for _ in range(rng.randint(2, 40))]  # user, time
    user, time = (np.array([row[place] for row in reviews]) for place in (0, 1))
    order, targets, before = rules.samples(user.astype(np.uint32), time)
    firsts = list(dict.fromkeys(row[0] for row in reviews))
    expected, by_user = [], []
    for each in firsts:
        own = sorted((place for place, row in enumerate(reviews) if row[0] == each), key=lambda place: reviews[place][1])
        by_user += own
        expected += [(reviews[place][1], place, own[:count]) for count, place in enumerate(own) if count]
    expected.sort(key=lambda sample: sample[0])
    assert order.tolist() == by_user
    assert order[targets].tolist() == [place for _, place, _ in expected]
    histories = [order[target - count : target].tolist() for target, count in zip(targets, before)]
    assert histories == [history for _, _, history in expected]

    owner = [reviews[place][0] for _, place, _ in expected]
    parts = rules.split("leave-one-out", None, np.array(owner, int))
    left = [[], [], []]
    for place, each in enumerate(owner):
        later = owner[place + 1 :].count(each)
        left[2 - min(later, 2)].append(place)
    assert [part.tolist() for part in parts] == left
    train, valid, test = rules.split("ratio", (0.7, 0.1, 0.2), np.array(owner, int))
    n = len(owner)
    assert (len(train), len(train) + len(valid)) == (int(0.7 * n), int(0.8 * n))
    assert [*train, *valid, *test] == list(range(n))
