"""The rules of a conversion, worked by hand. The converter and the obvious one of the benchmark must both come to these results.

The options are k=1, no sliding and everything to train, unless a test says otherwise.
"""

import json

import pytest
from helpers_convert import COLUMNS, DAY, DROPPED, START, check_set, output, review, sha256, write

from benchmarks.obvious_dataset import obvious
from dataset_scripts.convert import convert
from recbole_flr.data.atomic import unescape
from recbole_flr.errors import DataError

SAMPLES = "user_id:token\titem_id_list:token_seq\titem_id:token\ttimestamp:float"


@pytest.fixture(params=[convert, obvious], ids=lambda function: function.__name__)
def converted(request, tmp_path):
    """A function: reviews (rows of Amazon's, or a path), metadata rows, options -> the report, and kind -> lines of the files.

    A row is a dict, or bytes for a whole line.
    """

    def run(reviews, meta=None, **options):
        if isinstance(reviews, list):
            reviews = write(tmp_path / "reviews.json", as_lines(reviews))
        if meta is not None:
            options["meta"] = write(tmp_path / "meta.json", as_lines(meta))
        options = {"k": 1, "min_items": 0, "ratios": (1, 0, 0), **options}
        report = request.param(reviews, "s", tmp_path / "out", **options)
        if request.param is convert:
            check_set(report, tmp_path / "out")
        assert report["lines"] == report["kept"] + sum(report[key] for key in DROPPED)
        return report, output(tmp_path / "out")

    return run


def as_lines(rows):
    return b"".join((row if isinstance(row, bytes) else json.dumps(row).encode()) + b"\n" for row in rows)


def toys(names):
    """Metadata of items."""
    return [{"asin": name, "title": f"Toy {name}"} for name in names]


def test_every_rule(tmp_path, converted):
    """Every rule before the k-core drops one review; reviews at the same time keep the order of the file."""
    rows = [
        review("u", "B", START + 2 * DAY),
        b"",
        review("v", "A", START),
        b"   ",
        b"{'reviewerID': 'u'}",  # malformed, line 5
        review("u", "A", START, 4),
        review("NA", "A", START),  # an id that pandas reads as missing
        review("v", "A", 0),  # an impossible time
        review("v", "E", START),  # no metadata
        review("v", "A", START, 1.5),  # a low rating
        review("v", "A", START - 1),  # before the window
        review("u", "C", START + 2 * DAY),  # at the time of B, later in the file
        review("v", "C", 1541030400),  # the very end of the window
        review("v", "C", 1541030401),  # after the window
        review("u", "A", START),  # the second review of A
        review("v", "", START),  # malformed, line 16
    ]
    meta = [
        {"asin": "C", "title": "A"},  # no usable title
        {"asin": "D", "title": "Never reviewed"},
        {"asin": "B", "title": " Toy &quot;B&quot; ", "brand": "by\n  Us"},
        {"asin": "C", "title": "Tab\there", "brand": "", "category": ["Toys & Games", "Dice"], "price": "$1,299.00"},
        {"asin": "A", "title": "Shared"},
        {"asin": "C", "title": "Too late", "brand": "None"},
        b"nonsense",
        {"title": "of nothing"},
    ]
    report, found = converted(rows, meta, min_rating=2, drop_repeats=True, max_history=1, titles="first")
    assert found["inter"] == [
        "user_id:token\titem_id:token\trating:float\ttimestamp:float",
        f"u\tB\t5.0\t{START + 2 * DAY}", f"v\tA\t5.0\t{START}", f"u\tA\t4.0\t{START}", f"u\tC\t5.0\t{START + 2 * DAY}",
        "v\tC\t5.0\t1541030400",
    ]  # fmt: skip
    assert found["train.inter"] == [
        SAMPLES, f"u\tA\tB\t{START + 2 * DAY}", f"u\tB\tC\t{START + 2 * DAY}", "v\tA\tC\t1541030400",
    ]  # fmt: skip
    assert found["valid.inter"] == found["test.inter"] == [SAMPLES]
    assert found["item"] == [
        "item_id:token\ttitle:token\tbrand:token\tcategories:token_seq\tprice:float",
        'B\tToy "B\tby Us\t\t', "C\tTab\\there\t\tToys_&_Games Dice\t1299.00", "A\tShared\t\t\t",
    ]  # fmt: skip
    expected = {
        "lines": 14, "malformed": 2, "malformed_lines": [5, 16], "bad_ids": 1, "bad_times": 1, "without_title": 1,
        "low_rating": 1, "outside_window": 2, "repeated": 1, "below_k": 0, "k_core_rounds": [], "kept": 5, "users": 2, "items": 3,
        "windows": [["2017-10-01", 3]], "start": "2017-10-01", "end": "2018-11-01", "first": "2017-10-01",
        "last": "2018-11-01", "distinct_titles": 3, "items_sharing_title": 0, "density": 5 / 6, "train": 3, "valid": 0,
        "test": 0, "meta": 8, "meta_malformed": 2, "escaped_ids": 0, "time_units": {"s": 12},
        "inputs": {name: sha256(tmp_path / name) for name in ("reviews.json", "meta.json")},
    }  # fmt: skip
    assert {key: report[key] for key in expected} == expected
    assert report.get("titled", 4) == 4  # the obvious converter does not report this
    written = json.loads((tmp_path / "out" / "s" / "s.report.json").read_text())
    assert {key: written[key] for key in expected} == expected


def test_rounds_of_the_core(converted):
    rows = [review(*pair, START) for pair in ("vB", "uB", "uA", "xA", "xC", "xD", "yC", "yD")]
    report, found = converted(rows, toys("ABCD"), k=2)
    assert (report["below_k"], report["k_core_rounds"]) == (4, [1, 1, 1, 1])  # vB, uB, uA, xA: each makes the next one fall
    assert found["inter"][1:] == [f"{user}\t{item}\t5.0\t{START}" for user, item in ("xC", "xD", "yC", "yD")]
    rows[3] = review(*"wA", START)
    report, found = converted(rows, toys("ABCD"), k=2)
    assert (report["below_k"], report["k_core_rounds"]) == (4, [2, 2])  # v and w; then A and B, and u with them
    assert found["inter"][1:] == [f"{user}\t{item}\t5.0\t{START}" for user, item in ("xC", "xD", "yC", "yD")]
    with pytest.raises(DataError, match="nothing remains|0 items remain"):
        converted(rows, toys("ABCD"), k=3)


def test_sliding(converted):
    """Each start is counted from the first, so day 31 comes back after a month that has none."""
    rows = [review(user, item, time) for user in "uv" for item, time in zip("ABC", (START, 1486000000, 1482710400))]
    report, _ = converted(rows, toys("ABC"), start="2017-05-31", min_items=2)
    assert report["windows"] == [["2017-05-31", 1], ["2017-02-28", 1], ["2016-11-30", 3]]  # B: 2017-02-02; C: 2016-12-26
    report, _ = converted(rows, toys("ABC"), start="2017-05-31", min_items=2, step_months=1)
    starts = ["2017-05-31", "2017-04-30", "2017-03-31", "2017-02-28", "2017-01-31"]
    assert report["windows"] == [[start, 1 + (start == "2017-01-31")] for start in starts]
    assert (report["start"], report["outside_window"], report["first"]) == ("2017-01-31", 2, "2017-02-02T01:46:40")
    if "options" in report:  # the obvious converter does not report them
        assert (report["options"]["start"], report["options"]["min_items"]) == ("2017-01-31", 2)
    with pytest.raises(DataError, match="3 items remain even from 1996-05-31, fewer than the 4 wanted"):
        converted(rows, toys("ABC"), start="2017-05-31", min_items=4)


def test_ratios(converted):
    """20 samples. 0.7 + 0.1 is 0.7999999999999999, but the second cut is at 16."""
    rows = [review("u", "AB"[number % 2], START + number) for number in range(21)]
    report, found = converted(rows, toys("AB"), ratios=(0.7, 0.1, 0.2))
    assert (report["train"], report["valid"], report["test"]) == (14, 2, 4)
    assert found["valid.inter"][1:] == [
        f"u\tB A B A B A B A B A\tB\t{START + 15}", f"u\tA B A B A B A B A B\tA\t{START + 16}",
    ]  # fmt: skip
    report, _ = converted(rows, toys("AB"), ratios=(0.5, 0.0, 0.5))
    assert (report["train"], report["valid"], report["test"]) == (10, 0, 10)
    with pytest.raises(DataError, match="too few"):
        converted(rows[:3], toys("AB"), ratios=(0.8, 0.1, 0.1))


def test_leave_one_out(converted):
    """w has one target: test. v has two, at earlier times than those of u. Each part is sorted by time."""
    rows = [review(*row) for row in [
        ("u", "A", START), ("u", "B", START + 10), ("u", "C", START + 20), ("u", "A", START + 30),
        ("v", "C", START + 1), ("v", "B", START + 9), ("v", "A", START + 29), ("w", "A", START), ("w", "B", START + 30),
    ]]  # fmt: skip
    _, found = converted(rows, toys("ABC"), split="leave-one-out")
    assert found["train.inter"][1:] == [f"u\tA\tB\t{START + 10}"]
    assert found["valid.inter"][1:] == [f"v\tC\tB\t{START + 9}", f"u\tA B\tC\t{START + 20}"]
    assert found["test.inter"][1:] == [f"v\tC B\tA\t{START + 29}", f"u\tA B C\tA\t{START + 30}", f"w\tA\tB\t{START + 30}"]
    with pytest.raises(DataError, match="only 1 samples remain, too few for a train part|1 samples are too few"):
        converted(rows[-2:], toys("ABC"), split="leave-one-out")


def test_repeats_are_those_of_the_window(converted):
    """The first review of A lies before the window. Of the two at the same time, the first in the file is kept."""
    rows = [review("u", "A", START + 5, 1), review("u", "A", START - DAY, 2), review("u", "A", START + 3, 3),
            review("u", "A", START + 3, 4), review("u", "B", START, 5)]  # fmt: skip
    report, found = converted(rows, toys("AB"), drop_repeats=True)
    assert found["inter"][1:] == [f"u\tA\t3.0\t{START + 3}", f"u\tB\t5.0\t{START}"]
    assert (report["outside_window"], report["repeated"]) == (1, 2)
    report, _ = converted(rows, toys("AB"))
    assert (report["kept"], report["repeated"]) == (4, 0)


def test_csv_with_titles_of_its_own(tmp_path, converted):
    """The first usable title of an item counts. There is no window, no sliding and no rating."""
    text = (
        "customer,product,sku,bought\r\n"
        'a b,"One, ""1""",1,1588687728923\r\n'
        "\r\n"
        "50%,x,2,2020-05-05T14:08:49Z\r\n"
        "50%,x,2,2020-05-05\r\n"
        "too,few,fields\r\n"
        'a b,"Two\nlines",2,1588687730\r\n'
        "%41,Three,3,1588687731.5\r\n"
        "%41,Three,1,1588687732000001\r\n"
        "c,Three,1,soon\r\n"
    )
    log = write(tmp_path / "reviews.csv", text.encode())
    report, found = converted(log, columns=COLUMNS)
    assert found["inter"] == [
        "user_id:token\titem_id:token\ttimestamp:float",
        "a%20b\t1\t1588687728.923", "50%\t2\t1588687729", "50%\t2\t1588636800", "a%20b\t2\t1588687730",
        "%2541\t3\t1588687731.5", "%2541\t1\t1588687732.000001",
    ]  # fmt: skip
    assert found["train.inter"][1:] == [
        "50%\t2\t2\t1588687729", "a%20b\t1\t2\t1588687730", "%2541\t3\t1\t1588687732.000001",
    ]  # fmt: skip
    assert found["item"] == ["item_id:token\ttitle:token", '1\tOne, "1', "2\tTwo\\nlines", "3\tThree"]
    assert (report["lines"], report["malformed_lines"], report["escaped_ids"], report["start"]) == (8, [6, 11], 2, "-")
    assert (report["first"], report["last"]) == ("2020-05-05", "2020-05-05T14:08:52.000001")


def test_2023_release(tmp_path, converted):
    one = {"rating": 5, "title": "My review", "asin": "A1", "parent_asin": "A", "user_id": "u"}
    reviews = write(tmp_path / "reviews.jsonl", [{**one, "timestamp": (START + n) * 1000} for n in range(2)])
    _, found = converted(reviews, [{"title": "Toy A", "store": "Us", "categories": [], "price": 3.5, "parent_asin": "A"}])
    assert found["inter"][1:] == [f"u\tA\t5.0\t{START}", f"u\tA\t5.0\t{START + 1}"]
    assert found["item"] == ["item_id:token\ttitle:token\tbrand:token\tprice:float", "A\tToy A\tUs\t3.5"]


MALFORMED = [
    b"[1]", b"7", b'"x"', b"null", b"{", b'{"reviewerID": "u"}', b"[" * 5000,
    review(None, "A", START), review("", "A", START), review("u", ["A"], START), review({}, "A", START), review("u", "A", None),
    review("u", "A", ""), review("u", "A", True), review("u", "A", "soon"), review("u", "A", [START]),
    review("u", "A", START, None), review("u", "A", START, "good"), review("u", "A", START, float("nan")),
    review("u", "A", START, "inf"), review("u", "A", START, 10**400),
]  # fmt: skip


def test_malformed_lines(converted):
    fine = [review("u", "A", START), review(5, "A", f"{START}", "4"), review("5", "A", START + 0.5)]
    report, found = converted([*MALFORMED, *fine], toys("A"))
    assert (report["malformed"], report["malformed_lines"], report["kept"]) == (len(MALFORMED), [1, 2, 3, 4, 5], 3)
    assert found["inter"][1:] == [f"u\tA\t5.0\t{START}", f"5\tA\t4.0\t{START}", f"5\tA\t5.0\t{START}.5"]


# ---- items -------------------------------------------------------------------------------------------------------------

TITLES = {  # raw title -> title, or None if it is not usable
    "Plain": "Plain",
    '  "In quotes"  ': "In quotes",
    "&quot;Q&quot; &amp; A &#39;": 'Q" & A &#39;',
    ' " Blank kept ': " Blank kept",
    "&amp;quot;": "&quot;",  # once, not twice
    "Tab\there\nand\r back\\slash": "Tab\there\nand\r back\\slash",
    "雪 🚒": "雪 🚒",
    "ends in a tab\t": "ends in a tab\t",  # only blanks are stripped
    "lone \ud83d half": "lone \ufffd half",
    "Ab": "Ab",
    "&amp;!": "&!",
    '<span class="left over"': '<span class="left over',
    " ".join(["w"] * 20): " ".join(["w"] * 20),
    " ".join(["w"] * 21): None,
    "w  " + " ".join(["w"] * 18): "w  " + " ".join(["w"] * 18),
    "w  " + " ".join(["w"] * 19): None,  # a double blank has an empty word in it
    "nul\0inside": "nul\0inside",
    "NA": "NA",
    1984: "1984",
    2.5: "2.5",
    "A": None,
    "&amp;": None,
    '"A"': None,
    '" "': None,
    '"   "': None,
    "\u3000\u00a0\t": None,
    "": None,
    'x <span id="productTitle">': None,
    None: None,
    True: None,
    float("nan"): None,
    ("a", "list"): None,
    7: None,
}


def titles_of(converted, raw, **options):
    """The titles that raw titles become: a list, with None for those that are not usable."""
    meta = [{"asin": "fine", "title": "A fine title"}]
    meta += [{"asin": f"B{number}", "title": title} for number, title in enumerate(raw)]
    rows = [review("u", row["asin"], START + number) for number, row in enumerate(meta)] * 2
    _, found = converted(rows, meta, **options)
    titles = dict(line.split("\t") for line in found["item"][1:])
    return [unescape(titles[f"B{number}"]) if f"B{number}" in titles else None for number in range(len(raw))]


def test_title_rule(converted):
    raw = [list(title) if isinstance(title, tuple) else title for title in TITLES]
    assert titles_of(converted, raw) == list(TITLES.values())


def test_options_of_the_title_rule(converted):
    raw = ["<span class", "<span id=1", "w " * 50 + "w", "A", "", "one two three", "four 4 five 5", "1 < 2"]
    one, four = "one two three", "four 4 five 5"
    assert titles_of(converted, raw, drop_markup_titles=True) == [None, None, None, None, None, one, four, "1 < 2"]
    assert titles_of(converted, raw, max_title_words=0)[2] == raw[2]
    assert titles_of(converted, raw, max_title_words=3) == ["<span class", None, None, None, None, one, None, "1 < 2"]
    assert titles_of(converted, raw, min_title_chars=0)[3:5] == ["A", None]
    assert titles_of(converted, raw, min_title_chars=11) == ["<span class", None, None, None, None, one, four, None]


REPEATED = [("A", "One"), ("A", "Two"), ("B", None), ("B", "Three"), ("C", "Four"), ("C", "x"), ("D", "Q &amp;amp;quot;D")]


@pytest.mark.parametrize("titles, expected", [
    ("first", {"A": "One", "B": "Three", "C": "Four", "D": "Q &amp;quot;D"}),
    ("published", {"A": "Two", "D": "Q &amp;quot;D"}),  # B and C have a line without a usable title
    (None, {"A": "Two", "D": "Q &amp;quot;D"}),  # for Amazon's files of 2018, as these are
])
def test_several_lines_of_an_item(converted, titles, expected):
    meta = [{"asin": item, **({"title": title} if title else {})} for item, title in REPEATED]
    rows = [review("u", item, START + number) for number, item in enumerate("ABCDABCD")]
    report, found = converted(rows, meta, titles=titles)
    assert dict(line.split("\t")[:2] for line in found["item"][1:]) == expected


@pytest.mark.parametrize("titles, expected", [("first", "Q &amp;quot;D"), ("published", 'Q "D')])
def test_the_published_script_cleans_titles_again_when_the_window_slides(converted, titles, expected):
    """Three windows: the title is unescaped three times."""
    meta = [{"asin": "D", "title": "Q &amp;amp;quot;D"}, {"asin": "E", "title": "Late"}]
    rows = [review("u", "D", START - 120 * 86_400), *(review("u", "E", START + second) for second in range(12))]
    report, found = converted(rows, meta, titles=titles, min_items=2, step_months=3)
    assert len(report["windows"]) == 3
    assert [line.split("\t")[1] for line in found["item"][1:]] == [expected, "Late"]


BRANDS = [
    ('by\n\n  "Us &amp; Co"', 'by "Us & Co'), ("\u00a0x\u3000y ", "x y"), ('"', ""), (None, ""), (["a"], ""), (7, "7"),
    (False, ""), ("t\tb\\s", "t b\\\\s"),
]  # fmt: skip
PRICES = [
    ("12.99", "12.99"), ("$ 12.90", "12.90"), ("1,299.00", "1299.00"), ("$5.00 - $7.00", ""), ("1,2", ""), (3, "3"), (3.5, "3.5"),
    ("", ""), (None, ""), (".a-box{padding:4px}", ""), ("from 9.99", ""), ("٣", ""), (True, ""),
]  # fmt: skip
CATEGORIES = [
    (["Toys & Games", "", None, "A\tB"], "Toys_&_Games A_B"), ("One  two", "One_two"), (None, ""), ([], ""),
    (['q"q', '"', "z\0"], "qq z"), ("[not json", "[not_json"), ('["as", "text"]', "as text"), ([["in"], 5, "x"], "x"),
    ({"a": 1}, ""), (12, "12"),
]  # fmt: skip


@pytest.mark.parametrize("key, name, cases", [
    ("brand", "brand:token", BRANDS), ("price", "price:float", PRICES), ("category", "categories:token_seq", CATEGORIES),
])  # fmt: skip
def test_other_columns_of_items(converted, key, name, cases):
    meta = [{"asin": f"B{number}", "title": "Toy", key: raw} for number, (raw, _) in enumerate(cases)]
    _, found = converted([review("u", row["asin"], START) for row in meta], meta)
    assert found["item"][0] == f"item_id:token\ttitle:token\t{name}"
    assert [line.split("\t")[2] for line in found["item"][1:]] == [shown for _, shown in cases]
