"""Conversions of good files: the published sets, and the options of the rules."""

import sys
import time
from collections import Counter
from datetime import datetime, timedelta, timezone

import pytest
from helpers_convert import (
    COLUMNS, DAY, ROOT, START, amazon, check_set, converted, lines, output, parquet, review, reviews_of, shop,
    simple, tree, write,
)  # fmt: skip

from dataset_scripts.convert import convert
from recbole_flr.data.atomic import read_columns, unescape
from recbole_flr.errors import ConfigError, DataError

REAL = ROOT.parent / "shared" / "data"


@pytest.mark.skipif(not REAL.is_dir(), reason="the real data lie outside the project")
@pytest.mark.parametrize(
    "name, options, rows, items, start",
    [
        ("cds", {}, (49251, 6156, 6157), 5841, "2015-10-01"),
        ("movies", {"min_items": 0}, (21937, 2742, 2743), 2653, "2017-10-01"),
    ],
)
def test_published_rows(tmp_path, name, options, rows, items, start):
    source = REAL / name
    report = convert(source / "reviews.json.gz", name, tmp_path, meta=source / "meta.json.gz", **options)
    check_set(report, tmp_path, name)
    assert (report["train"], report["valid"], report["test"]) == rows
    assert (report["items"], report["start"]) == (items, start)
    ours = output(tmp_path, name)
    # The times of training rows are rebuilt, so their order is not the published one; their content is.
    assert Counter(ours["train.inter"]) == Counter(lines(source / f"{name}.train.inter.gz"))
    assert ours["valid.inter"] == lines(source / f"{name}.valid.inter")
    assert ours["test.inter"] == lines(source / f"{name}.test.inter")
    assert ours["inter"] == lines(source / f"{name}.inter.gz")
    columns = read_columns(tmp_path / name / f"{name}.item", ["item_id", "title"])
    assert ours["item"][0].startswith("item_id:token\ttitle:token")
    published = [line.split("\t")[:2] for line in lines(source / f"{name}.item")[1:]]
    assert [[item, unescape(title)] for item, title in zip(*columns.values())] == published


def test_a_window_from_before_the_oldest_start(tmp_path):
    """Sliding stops at the oldest start, but a window may begin before it."""
    rows = [{**row, "bought": row["bought"] - 27 * 365 * DAY} for row in shop()]
    log = write(tmp_path / "log.jsonl", rows)
    report, _ = converted(tmp_path, log, columns=COLUMNS, start="1990-01-01", end="1991-01-01")
    assert (report["kept"], report["start"], report["first"]) == (36, "1990-01-01", "1990-10-08")
    with pytest.raises(DataError, match="6 items remain even from 1990-01-01"):
        convert(log, "t", tmp_path / "out", columns=COLUMNS, start="1990-01-01", min_items=7, k=1)


@pytest.mark.parametrize("options, kept", [
    ({}, 36), ({"start": "2017-10-03"}, 24), ({"end": "2017-10-03"}, 18), ({"start": "2017-10-03", "end": "2017-10-03"}, 6),
    ({"start": "2017-10-03T00:00:01"}, 18), ({"start": "none", "end": None}, 36), ({"start": datetime(2017, 10, 2)}, 30),
    ({"start": "2017-10-03T08:00+08:00"}, 24), ({"start": "2017-10-02T23:59:59.999999"}, 24), ({"end": "none"}, 36),
])  # fmt: skip
def test_windows(tmp_path, options, kept):
    """Six users review six items, one item a day, and every review stands there twice."""
    report, _ = amazon(tmp_path, reviews_of() * 2, ratios=(1, 0, 0), **options)
    assert (report["kept"], report["outside_window"]) == (2 * kept, 72 - 2 * kept)
    report, _ = converted(tmp_path, write(tmp_path / "log", shop() * 2), columns=COLUMNS, ratios=(1, 0, 0), **options)
    assert (report["kept"], report["outside_window"]) == (2 * kept, 72 - 2 * kept)


def test_without_a_start_no_number_of_items_is_wanted(tmp_path):
    """Amazon's default asks for 5,000 items, for which the start moves back."""
    reviews, meta = simple(tmp_path)
    assert convert(reviews, "t", tmp_path / "out", meta=meta, start="none", k=1)["kept"] == 36


def test_without_bounds_everything_is_inside(tmp_path):
    rows = [
        {**row, "bought": moment} for row, moment in zip(shop(), [1, 10**6, 10**8, 10**9, 1_600_000_000, 1_700_000_000] * 6)
    ]
    report, _ = converted(tmp_path, write(tmp_path / "log", rows), columns=COLUMNS)
    assert (report["kept"], report["start"], report["end"], report["first"]) == (36, "-", "-", "1970-01-01T00:00:01")


def test_repeats_may_take_a_user_below_k(tmp_path):
    """The k-core counts the reviews that are left when repeats are dropped."""
    rows = [
        review(user, item, START + number) for user in "uvw" for number, item in enumerate("AB" if user != "w" else "AA")
    ]
    meta = [{"asin": item, "title": f"Toy {item}"} for item in "AB"]
    report, _ = amazon(tmp_path, rows, meta, k=2, drop_repeats=True, ratios=(1, 0, 0))
    assert (report["users"], report["repeated"], report["k_core_rounds"]) == (2, 1, [1])
    report, _ = amazon(tmp_path, rows, meta, k=2, ratios=(1, 0, 0))
    assert (report["users"], report["repeated"], report["k_core_rounds"]) == (3, 0, [])


@pytest.mark.parametrize("history, first", [(1, "B4"), (2, "B3 B4"), (5, "B0 B1 B2 B3 B4"), (10**9, "B0 B1 B2 B3 B4")])
def test_max_history(tmp_path, history, first):
    _, found = amazon(tmp_path, reviews_of(), max_history=history)
    assert found["test.inter"][1].split("\t")[:3] == ["R3", first, "B5"]
    assert found["train.inter"][1].split("\t")[:3] == ["R0", "B0", "B1"]


def test_min_rating(tmp_path):
    rows = [review("u", "A", START + number, rating) for number, rating in enumerate([4, 3.9, "4.0", 5, -1, 4.000001])]
    report, found = amazon(tmp_path, rows, [{"asin": "A", "title": "Toy"}], min_rating=4, ratios=(1, 0, 0))
    assert report["low_rating"] == 2
    assert [line.split("\t")[2] for line in found["inter"][1:]] == ["4.0", "4.0", "5.0", "4.000001"]


def test_of_several_lines_of_an_item_the_first_with_a_usable_title_counts(tmp_path):
    meta = [{"asin": "A", "brand": "no title"}, {"asin": "B", "title": "Toy B"},
            {"asin": "A", "title": "x", "brand": "short"},
            {"asin": "A", "title": "Toy A"}, {"asin": "A", "title": "Later", "brand": "Late"},
            {"asin": "B", "title": "Later B"}]  # fmt: skip
    report, found = amazon(tmp_path, [review("u", item, START) for item in "ABAB"], meta, ratios=(1, 0, 0), titles="first")
    assert found["item"] == ["item_id:token\ttitle:token", "B\tToy B", "A\tToy A"]  # in the order of those lines
    assert (report["meta"], report["titled"]) == (6, 2)


def test_shared_titles_and_density(tmp_path):
    meta = [{"asin": f"B{item}", "title": ["Same", "Same", "Same", "Other", "Twice", "Twice"][item]} for item in range(6)]
    report, _ = amazon(tmp_path, reviews_of(5, 6)[:-3], meta)
    assert (report["distinct_titles"], report["items_sharing_title"]) == (3, 5)
    assert (report["users"], report["items"], report["density"]) == (5, 6, 27 / 30)


@pytest.mark.parametrize("values, options, expected", [
    ([START, "%d" % START, f" {START}.0 ", START * 1000, START * 10**6, START * 10**9], {},
     {"s": 3, "ms": 1, "us": 1, "ns": 1}),
    (["2017-10-01", "2017-10-01T00:00:00", "2017-10-01 00:00:00Z", "2017-10-01T02:00:00+02:00", "2017-09-30T19:00-05:00"],
     {}, {"text": 5}),
    ([START * 1000] * 3, {"time_unit": "ms"}, {"ms": 3}), ([START, "2017-10-01"], {"time_unit": "s"}, {"s": 1, "text": 1}),
    ([START * 10**6] * 2, {"time_unit": "us"}, {"us": 2}), ([START * 10**9] * 2, {"time_unit": "ns"}, {"ns": 2}),
    (["Oct 01, 2017"] * 2, {"time_format": "%b %d, %Y"}, {"text": 2}),
    ([20171001, "20171001"], {"time_format": "%Y%m%d"}, {"text": 2}),
    (["01.10.2017 02:00 +0200"] * 2, {"time_format": "%d.%m.%Y %H:%M %z"}, {"text": 2}),
])  # fmt: skip
def test_times(tmp_path, values, options, expected):
    """All values are the same moment."""
    rows = [{"customer": "u", "sku": f"B{number}", "bought": value, "product": "Toy"} for number, value in enumerate(values)]
    report, found = converted(tmp_path, write(tmp_path / "log", rows), columns=COLUMNS, ratios=(1, 0, 0), **options)
    assert [line.split("\t")[-1] for line in found["inter"][1:]] == [str(START)] * len(values)
    assert report["time_units"] == expected


@pytest.mark.parametrize("values, options", [
    ([0, -1, "0", START * 10**10, 4_000_000_000, "2090-01-01", "1969-12-31"], {}), ([START * 1000], {"time_unit": "s"}),
    (["19000101", "29000101"], {"time_format": "%Y%m%d"}),
])  # fmt: skip
def test_times_that_cannot_be(tmp_path, values, options):
    good = "20171001" if "time_format" in options else START
    rows = [{"customer": "u", "sku": "B", "bought": value, "product": "Toy"} for value in [good, *values, good]]
    report, found = converted(tmp_path, write(tmp_path / "log", rows), columns=COLUMNS, ratios=(1, 0, 0), **options)
    assert (report["bad_times"], report["malformed"], len(found["inter"])) == (len(values), 0, 3)


def test_fractions_of_seconds_are_kept(tmp_path):
    values = {
        START + 0.5: ".5",
        START * 1000 + 120: ".12",
        START * 10**6 + 1: ".000001",
        f"{START}.9999999": "",
        "2017-10-01T00:00:00.25": ".25",
    }
    rows = [{"customer": "u", "sku": "B", "bought": value, "product": "Toy"} for value in values]
    _, found = converted(tmp_path, write(tmp_path / "log", rows), columns=COLUMNS, ratios=(1, 0, 0))
    shown = [line.split("\t")[-1] for line in found["inter"][1:]]
    assert shown == [f"{START + (raw == f'{START}.9999999')}{fraction}" for raw, fraction in values.items()]
    assert [line.split("\t")[-1] for line in found["train.inter"][1:]] == sorted(shown, key=float)[1:]


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no time.tzset")
@pytest.mark.parametrize("zone", ["Asia/Shanghai", "America/Los_Angeles"])
def test_times_are_utc_everywhere(tmp_path, monkeypatch, zone):
    start, end = START, 1541030400
    stamps = [start - 1, start, start + 1, end - 1, end, end + 1]
    rows = [review(f"R{user}", "B0", stamp) for user in range(9) for stamp in stamps]
    monkeypatch.setenv("TZ", zone)
    time.tzset()
    try:
        assert time.timezone != 0
        # a start with an offset is the same moment written otherwise
        shifted = datetime.fromtimestamp(start, timezone(timedelta(hours=8))).isoformat()
        for begin in ("2017-10-01", shifted):
            report, _ = amazon(tmp_path, rows, start=begin)
            assert report["start"] == "2017-10-01"
            assert report["outside_window"] == 2 * 9  # one second before and one after; both ends belong to it
        text = [{"customer": "u", "sku": "B", "bought": "2017-10-01 00:00:00", "product": "Toy"}] * 3
        timestamps = parquet(tmp_path / "log.pq", time="make_timestamp(1506816000000000)")
        zoned = parquet(tmp_path / "zoned.pq", time="to_timestamp(1506816000)")
        for log in (write(tmp_path / "log.json", text), timestamps, zoned):
            report, found = converted(tmp_path, log, columns=COLUMNS, ratios=(1, 0, 0))
            assert {line.split("\t")[-1] for line in found["inter"][1:]} == {str(START)}
            assert (report["first"], report["last"]) == ("2017-10-01", "2017-10-01")
        rows = [{"customer": "u", "sku": "B", "bought": "20171001", "product": "Toy"}] * 3
        _, found = converted(
            tmp_path, write(tmp_path / "log.json", rows), columns=COLUMNS, ratios=(1, 0, 0), time_format="%Y%m%d"
        )
        assert found["inter"][1].endswith(f"\t{START}")
    finally:
        monkeypatch.undo()
        time.tzset()


@pytest.mark.parametrize("options, message", [
    ({"k": 0}, "k 0"), ({"max_history": 0}, "max_history 0"), ({"step_months": 0}, "step_months 0"),
    ({"min_items": -1}, "min_items -1"),
    ({"start": "soon"}, "start is 'soon'; expected a date"), ({"start": "2019-01-01"}, "is later than the end"),
    ({"end": "0001-01-01T00:00+05:00"}, "end is"),
    ({"start": None, "min_items": 3}, "there is no start to move back"),
    ({"ratios": (0.8, 0.1)}, "three shares"),
    ({"ratios": (0.8, 0.1, 0.2)}, "add up to 1"), ({"ratios": (1.1, -0.1, 0)}, "ratios"),
    ({"ratios": (float("nan"), 0.5, 0.5)}, "ratios"),
    ({"name": "a/b"}, "name is 'a/b'"), ({"name": ""}, "name is ''"), ({"name": ".."}, "name"), ({"name": "a b"}, "name"),
    ({"name": "a\0b"}, "name"), ({"name": "a\udcff"}, r"name: 'a\\udcff' is not UTF-8"),
    ({"out": "\udcff"}, "out: .* is not UTF-8"),
    ({"time_format": "%Y\udcff"}, "time_format: .* is not UTF-8"),
    ({"columns": {**COLUMNS, "title": "\udcff"}}, "columns: .* is not UTF-8"),
    ({"meta_columns": {"item": "asin", "title": "\udcff"}}, "meta_columns: .* is not UTF-8"),
    ({"split": "random"}, "split is 'random'; expected ratio or leave-one-out"),
    ({"time_unit": "h"}, "time_unit is 'h'; expected auto, s, ms"),
    ({"time_format": "%Q"}, "time_format is '%Q'"), ({"min_rating": float("nan")}, "min_rating is nan"),
    ({"min_rating": float("inf")}, "min_rating"),
    ({"max_title_words": -1}, "max_title_words -1"), ({"min_title_chars": -1}, "min_title_chars -1"),
    ({"format": "xml"}, "format is 'xml'; expected auto"),
    ({"meta_format": "xml"}, "meta_format is 'xml'"), ({"quote": "''"}, "quote is"), ({"quote": "é"}, "quote is"),
    ({"delimiter": ";;"}, "delimiter is ';;'"),
    ({"delimiter": '"'}, "delimiter"), ({"delimiter": "\n"}, "delimiter"), ({"delimiter": ""}, "delimiter is ''"),
    ({"memory_limit": "much"}, "memory_limit is 'much'; expected a size such as"), ({"memory_limit": ""}, "memory_limit"),
    ({"columns": {"user": "a", "item": "b"}}, "columns lacks time; expected ROLE=COLUMN"),
    ({"columns": {**COLUMNS, "who": "x"}}, "unknown role 'who'"),
    ({"columns": {"user": "reviewerID", "item": "asin", "time": "unixReviewTime", "title": "asin"}, "meta": None,
      "min_rating": 3}, "min_rating is 3, but columns has no rating"),
    ({"columns": {"user": "reviewerID", "item": "asin", "time": "unixReviewTime"}},
     r"the title of .*meta.json is not named; add --meta-columns item=..,title=..; its columns are asin, title"),
    ({"columns": {"user": "reviewerID", "item": "asin", "time": "unixReviewTime"}, "meta": None},
     "columns has no title; add title=COLUMN, or .* --meta; the columns of .*reviews.json are reviewerID, asin, "),
    ({"meta_columns": {"item": "asin"}}, "meta_columns lacks title"),
    ({"meta_columns": {"item": "asin", "title": "title", "time": "x"}}, "unknown role 'time'"),
    ({"meta": None}, "Amazon's reviews have no titles; give the metadata file with --meta"),
])  # fmt: skip
def test_impossible_options(tmp_path, options, message):
    reviews, meta = simple(tmp_path)
    before = tree(tmp_path)
    options = {"name": "s", "out": tmp_path / "out", "meta": meta, "min_items": 0, **options}
    with pytest.raises(ConfigError, match=message):
        convert(reviews, **options)
    assert tree(tmp_path) == before
