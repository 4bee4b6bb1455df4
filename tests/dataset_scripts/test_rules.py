"""The rules on arrays, compared with loops over lists; and the SQL of times."""

import random
from collections import Counter
from datetime import datetime, timedelta, timezone

import duckdb
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from benchmarks.obvious_lines import microseconds_of
from dataset_scripts import rules, windows
from recbole_flr.errors import DataError

UTC = timezone.utc
PAIRS = st.lists(st.tuples(st.integers(0, 6), st.integers(0, 5), st.integers(0, 9)), max_size=60)  # user, item, time


def arrays(rows):
    user, item, time = (
        np.array([row[place] for row in rows], kind) for place, kind in enumerate((np.uint32, np.uint32, np.int64))
    )
    return user, item, time


def slow_k_core(rows, left, k):
    """`k_core` with lists; `left`: numbers of rows to begin with."""
    rounds = []
    while True:
        of_user, of_item = Counter(rows[n][0] for n in left), Counter(rows[n][1] for n in left)
        rest = [n for n in left if of_user[rows[n][0]] >= k and of_item[rows[n][1]] >= k]
        if len(rest) == len(left):
            return left, rounds
        rounds.append(len(left) - len(rest))
        left = rest


@settings(deadline=None, max_examples=200)
@given(PAIRS, st.integers(1, 4))
def test_k_core(rows, k):
    user, item, _ = arrays(rows)
    kept, rounds = windows.k_core(user, item, np.arange(len(rows)), k)
    assert (kept.tolist(), rounds) == slow_k_core(rows, list(range(len(rows))), k)
    assert all(isinstance(count, int) for count in rounds)  # JSON cannot hold numpy's integers


def test_k_core_of_some_rows():
    """Only the given rows count."""
    user, item = np.array([0, 0, 1, 1], np.uint32), np.array([0, 1, 0, 1], np.uint32)
    assert windows.k_core(user, item, np.arange(4), 2)[0].tolist() == [0, 1, 2, 3]
    kept, rounds = windows.k_core(user, item, np.array([0, 1, 3]), 2)
    assert (kept.tolist(), rounds) == ([], [2, 1])


@settings(deadline=None, max_examples=200)
@given(PAIRS)
def test_samples(rows):
    user, _, time = arrays(rows)
    order, targets, before = rules.samples(user, time)
    users = list(dict.fromkeys(row[0] for row in rows))
    sides = [sorted((n for n, row in enumerate(rows) if row[0] == one), key=lambda n: rows[n][2]) for one in users]
    assert order.tolist() == [n for side in sides for n in side]
    expected, begin = [], 0
    for side in sides:
        expected += [(begin + place, place) for place in range(1, len(side))]
        begin += len(side)
    expected.sort(key=lambda sample: rows[order[sample[0]]][2])
    assert list(zip(targets.tolist(), before.tolist())) == expected


@settings(deadline=None, max_examples=200)
@given(PAIRS, st.lists(st.booleans(), min_size=60, max_size=60))
def test_first_of_each_pair(rows, chosen):
    user, item, time = arrays(rows)
    places = np.array([n for n in range(len(rows)) if chosen[n]], np.int64)
    found = windows.first_of_each_pair({"user": user, "item": item, "time": time}, places)
    earliest = {}
    for n in places.tolist():
        pair = rows[n][:2]
        if pair not in earliest or rows[n][2] < rows[earliest[pair]][2]:
            earliest[pair] = n
    assert found.tolist() == sorted(earliest.values())


@settings(deadline=None, max_examples=100)
@given(st.lists(st.integers(0, 2**64 - 1) | st.integers(0, 5), max_size=50))
def test_codes(values):
    found = windows.codes(np.array(values, np.uint64)).tolist()
    names = sorted(set(values))
    assert found == [names.index(value) for value in values]


@settings(deadline=None, max_examples=100)
@given(st.lists(st.integers(0, 5), max_size=30))
def test_first_places(codes):
    found = rules.first_places(np.array(codes, np.int64))
    assert all(found[code] == codes.index(code) for code in codes)


@settings(deadline=None, max_examples=200)
@given(st.lists(st.integers(0, 5), max_size=40))
def test_leave_one_out(user):
    parts = [part.tolist() for part in rules.split("leave-one-out", None, np.array(user, np.int64))]
    left = Counter()
    expected = ([], [], [])
    for n in range(len(user) - 1, -1, -1):
        expected[max(2 - left[user[n]], 0)].insert(0, n)
        left[user[n]] += 1
    assert parts == list(expected)


@pytest.mark.parametrize("n, ratios, sizes", [
    (30, (0.8, 0.1, 0.1), (24, 3, 3)), (20, (0.7, 0.1, 0.2), (14, 2, 4)), (10, (0.29, 0.71, 0), (2, 8, 0)),
    (7, (1, 0, 0), (7, 0, 0)), (0, (0.8, 0.1, 0.1), (0, 0, 0)),
    (100, (0.57, 0.01, 0.42), (56, 1, 43)), (9, (1 / 3, 1 / 3, 1 / 3), (2, 4, 3)),
])  # fmt: skip
def test_ratio_split(n, ratios, sizes):
    """The cuts are at int(r0 N) and int((r0 + r1) N), with shares rounded to 12 digits."""
    parts = rules.split("ratio", ratios, np.zeros(n))
    assert sum((part.tolist() for part in parts), []) == list(range(n))
    assert [len(part) for part in parts] == [int(round(ratios[0], 12) * n),
                                             int(round(ratios[0] + ratios[1], 12) * n) - int(round(ratios[0], 12) * n),
                                             n - int(round(ratios[0] + ratios[1], 12) * n)]  # fmt: skip
    assert tuple(map(len, parts)) == sizes


@pytest.mark.parametrize("moment, months, expected", [
    ("2017-10-01", 0, "2017-10-01"), ("2017-10-01", 3, "2017-07-01"), ("2017-01-15", 1, "2016-12-15"),
    ("2017-05-31", 3, "2017-02-28"), ("2016-05-31", 3, "2016-02-29"),
    ("2017-10-31T12:30:05.000007", 1, "2017-09-30T12:30:05.000007"), ("2018-03-31", 13, "2017-02-28"),
    ("2017-12-01", 12, "2016-12-01"),
    ("1996-06-30", 1, "1996-05-30"), ("1997-01-01", 8, "1996-05-01"),  # the oldest start itself
    ("1997-01-01", 9, "1996-04-01"), ("1997-01-01", 24, "1995-01-01"), ("1997-01-01", 25, "1994-12-01"),
    ("1997-01-01", 10**30, "1994-12-01"),  # any moment before the oldest start will do
])  # fmt: skip
def test_months_back(moment, months, expected):
    found = rules.months_back(datetime.fromisoformat(moment).replace(tzinfo=UTC), months)
    if datetime.fromisoformat(expected).replace(tzinfo=UTC) < rules.OLDEST_START:
        assert found < rules.OLDEST_START
    else:
        assert rules.iso(found) == expected and found.tzinfo is UTC


def test_moments():
    for moment in (
        datetime(2017, 10, 1, tzinfo=UTC),
        datetime(2017, 10, 1, 2, 3, 4, 5, UTC),
        datetime(1969, 12, 31, 23, 59, 59, 999_999, UTC),
    ):
        assert rules.from_microseconds(rules.to_microseconds(moment)) == moment
    assert rules.to_microseconds(datetime(1970, 1, 1, 0, 0, 1, 5, UTC)) == 1_000_005
    assert rules.to_microseconds(datetime(1969, 12, 31, 23, 59, 59, tzinfo=UTC)) == -1_000_000
    assert (rules.iso(None), rules.iso(datetime(2017, 10, 1, tzinfo=UTC))) == ("-", "2017-10-01")
    assert rules.iso(datetime(2017, 10, 1, 0, 0, 0, 5, UTC)) == "2017-10-01T00:00:00.000005"


# ---- sliding -----------------------------------------------------------------------------------------------------------

FIRST = datetime(2001, 3, 31, tzinfo=UTC)
NEVER = timedelta(days=400)


def slow_slide(rows, start, end, k, min_items, step_months, drop_repeats):
    """`slide` with lists; rows of (user, item, time as datetime)."""
    windows, number = [], 0
    while True:
        year, month = divmod(start.year * 12 + start.month - 1 - number * step_months, 12)
        day = min(start.day, [31, 29 if year % 4 == 0 else 28, 31, 30, 31, 30, 31, 31, 30, 31, 30, 31][month])
        begin = start.replace(year=year, month=month + 1, day=day)
        if begin < rules.OLDEST_START:
            return None, windows
        inside = [n for n, row in enumerate(rows) if begin <= row[2] and (end is None or row[2] <= end)]
        left = inside
        if drop_repeats:
            first = {}
            for n in sorted(inside, key=lambda n: rows[n][2]):
                first.setdefault(rows[n][:2], n)
            left = sorted(first.values())
        repeated = len(inside) - len(left)
        left, rounds = slow_k_core(rows, left, k)
        items = len({rows[n][1] for n in left})
        windows.append([begin.replace(tzinfo=None).isoformat()[:10], items])
        if items >= max(min_items, 1):
            return {
                "rows": left,
                "inside": len(inside),
                "repeated": repeated,
                "k_core_rounds": rounds,
                "start": begin,
            }, windows
        if not min_items:
            return None, windows
        number += 1


@pytest.mark.parametrize("seed", range(60))
def test_slide(seed):
    """Reviews over up to five years before the first start. No review is missing, and few loads are needed."""
    rng = random.Random(seed)
    days = rng.choice([60, 400, 1700])
    rows = [
        (rng.randrange(9), rng.randrange(12), FIRST - timedelta(days=rng.randrange(days), seconds=rng.randrange(3) - 1))
        for _ in range(rng.choice([20, 80, 200]))
    ]
    rows.sort(key=lambda _: rng.random())
    end = rng.choice([None, FIRST - timedelta(days=20), FIRST + NEVER])
    k, min_items, step, repeats = (
        rng.choice([1, 2, 3]),
        rng.choice([0, 3, 8, 12, 13]),
        rng.choice([1, 3, 5]),
        rng.random() < 0.5,
    )
    expected, tried = slow_slide(rows, FIRST, end, k, min_items, step, repeats)
    calls = []

    def load(begin, last):
        calls.append(begin)
        inside = [
            n
            for n, row in enumerate(rows)
            if begin <= rules.to_microseconds(row[2]) and (last is None or rules.to_microseconds(row[2]) <= last)
        ]
        user, item, _ = arrays([(*rows[n][:2], 0) for n in inside])
        time = np.array([rules.to_microseconds(rows[n][2]) for n in inside], np.int64)
        return {"row": np.array(inside, np.int64), "user": windows.codes(user), "item": item, "time": time}

    if expected is None:
        with pytest.raises(DataError, match="nothing remains" if not min_items else "items remain even from"):
            windows.slide(windows.Arrays(load, end), FIRST, end, k, min_items, step, repeats)
        return
    kept, counts = windows.slide(windows.Arrays(load, end), FIRST, end, k, min_items, step, repeats)
    assert kept.columns["row"][kept.places].tolist() == expected["rows"]
    assert counts == {**{key: expected[key] for key in ("inside", "repeated", "k_core_rounds", "start")}, "windows": tried,
                      "below_k": sum(expected["k_core_rounds"])}  # fmt: skip
    assert len(calls) <= 2 + len(tried) // 2


def test_sliding_without_a_start():
    columns = {"user": np.zeros(2, np.uint32), "item": np.zeros(2, np.uint32), "time": np.array([5, 6])}
    reviews = windows.Arrays(lambda *bounds: columns if bounds == (None, None) else None, None)
    kept, counts = windows.slide(reviews, None, None, 2, 0, 3, False)
    assert kept.places.tolist() == [0, 1] and counts["windows"] == [["-", 1]] and counts["start"] is None


# ---- SQL ---------------------------------------------------------------------------------------------------------------


def sql(expression, **values):
    """The value of an SQL expression over texts."""
    with duckdb.connect() as connection:
        connection.execute("SET TimeZone = 'UTC'")
        columns = ", ".join(f"?::VARCHAR AS {name}" for name in values)
        return connection.execute(f"SELECT {expression} FROM (SELECT {columns})", list(values.values())).fetchone()[0]


@pytest.mark.parametrize("value, unit, expected", [
    ("99999999999", "auto", 99_999_999_999_000_000), ("100000000000", "auto", 100_000_000_000_000),
    ("9000000000000", "auto", 9_000_000_000_000_000), ("100000000000000", "auto", 10**14), ("1e17", "auto", 10**14),
    ("100000000000000000", "auto", 10**14),
    ("99999999999999", "auto", 99_999_999_999_999_008), ("99999999999999984", "auto", 10**17 - 16), ("1.5", "auto", 1_500_000),
    ("1.1", "auto", 1_100_000),
    ("1588687728.923", "auto", 1_588_687_728_923_000), ("1588687728.123456", "auto", 1_588_687_728_123_456),
    ("-1", "auto", -1_000_000),
    ("1500", "ns", 2), ("1e3", "s", 10**9), ("1506816000", "ms", 1_506_816_000_000), ("1e300", "s", 9 * 10**18),
    ("-1e300", "auto", -9 * 10**18),
    ("2017-10-01", "auto", 1_506_816_000_000_000), ("2017-10-01 02:00:00.000001+02:00", "ms", 1_506_816_000_000_001),
    ("2017-10-01T00:00:01Z", "s", 1_506_816_001_000_000),
    ("", "auto", None), ("soon", "auto", None), ("nan", "auto", None), ("inf", "auto", None), ("-inf", "s", None),
    (None, "auto", None), ("infinity", "auto", None),
])  # fmt: skip
def test_times(value, unit, expected):
    assert sql(rules.microseconds("time", unit)[0], time=value) == expected
    if expected is None:
        with pytest.raises(ValueError):
            microseconds_of(value, unit)
    elif abs(expected) < 9e18:  # the obvious converter does not limit times to int64
        assert microseconds_of(value, unit)[0] == pytest.approx(expected, rel=2**-53, abs=0)  # the precision of a double


@pytest.mark.parametrize("value, unit, expected", [
    ("1", "auto", "s"), ("99999999999", "auto", "s"), ("99999999999999", "auto", "ms"), ("-1e11", "auto", "ms"),
    ("1e14", "auto", "us"), ("1e17", "auto", "ns"), ("2017-10-01", "auto", "text"), ("5", "ns", "ns"),
    ("2017-10-01", "ns", "text"),
])  # fmt: skip
def test_units(value, unit, expected):
    assert rules.UNIT_NAMES[sql(rules.microseconds("time", unit)[1], time=value)] == expected
    assert microseconds_of(value, unit)[1] == expected


def test_all_reserved_words_are_those_of_pandas():
    from pandas._libs.parsers import STR_NA_VALUES

    assert rules.RESERVED_IDS == set(STR_NA_VALUES) | {"[PAD]", ""}
