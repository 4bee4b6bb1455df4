"""The benchmark of the converter at its small size, and cases worked by hand for the obvious script that it compares with."""

import gzip
import json
from pathlib import Path
from urllib.parse import unquote

import pytest

from benchmarks import dataset as benchmark
from benchmarks.obvious_dataset import obvious
from benchmarks.obvious_lines import clean_brand, clean_categories, clean_price, clean_title, microseconds_of, written_id
from benchmarks.raw_reviews import write_raw
from recbole_flr.errors import DataError

DAY = 86400
START = 1506816000  # 2017-10-01 UTC
SAMPLES = "user_id:token\titem_id_list:token_seq\titem_id:token\ttimestamp:float"
COLUMNS = {"user": "user", "item": "item", "time": "time", "title": "title"}


def jsonl(path, rows):
    """Rows are dicts, or text that is to stand as it is."""
    text = "".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows)
    Path(path).write_text(text, encoding="utf-8", newline="\n")
    return path


def review(user, item, time, rating=5.0):
    return {"reviewerID": user, "asin": item, "overall": rating, "unixReviewTime": time}


def items(*names):
    return jsonl("meta.json", [{"asin": name, "title": f"Toy {name}"} for name in names])


def converted(rows, *, meta=None, **options):
    """Report, and kind -> lines of the files; k=1, no sliding and everything to train, if nothing else is said."""
    reviews = rows if isinstance(rows, (str, Path)) else jsonl("reviews.json", rows)
    report = obvious(reviews, "t", "out", meta=meta, **{"k": 1, "min_items": 0, "ratios": (1, 0, 0), **options})
    lines = {kind: Path(f"out/t/t.{kind}").read_bytes().decode().split("\n") for kind in benchmark.KINDS}
    assert all(of_kind.pop() == "" for of_kind in lines.values())  # each line has its end
    dropped = "malformed bad_ids bad_times without_title low_rating outside_window repeated below_k".split()
    assert report["lines"] == report["kept"] + sum(report[key] for key in dropped)
    return report, lines


# the benchmark


def stand_in(**arguments):
    return obvious(**arguments)


def wrong_title(**arguments):
    report = obvious(**arguments)
    path = Path(report["folder"]) / "made.item"
    path.write_bytes(path.read_bytes().replace(b"\t", b"\t ", 3))
    return report


def wrong_report(**arguments):
    return {**obvious(**arguments), "bad_times": 1}


def with_ours(monkeypatch, function):
    """The child process imports this file as a module."""
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parent))
    monkeypatch.setitem(benchmark.VERSIONS, "ours", (Path(__file__).stem, function))


def test_small_size(capsys):
    report = benchmark.main(["--small", "--json=figures.json"])
    out = capsys.readouterr().out.splitlines()
    assert "time ratio" in out[0] and "20,000" in out[2] and out[3].startswith("The files are the same")
    assert report == json.loads(Path("figures.json").read_text())
    assert report["seed"] == 2018 and report["settings"]["reviews"] == 20_000 and report["growth"] == []
    assert len(report["commit"]) == 40 or report["commit"] == "unknown"
    (found,) = report["results"]
    figures = found["figures"]
    assert figures["lines"] == 20_000 and figures["malformed"] == len(figures["malformed_lines"]) == 2
    assert figures["kept"] > 100 and figures["items"] >= 33 and figures["k_core_rounds"] and figures["without_title"] > 500
    assert len(figures["windows"]) > 1  # it had to slide
    for version in benchmark.VERSIONS:
        (run,) = found["runs"][version]
        assert run["seconds"] > 0 and run["peak_bytes"] >= 2**20 and (run["peak_own_bytes"] or 0) <= run["peak_bytes"]
    assert found["summary"]["ours"]["time_ratio"] == found["summary"]["ours"]["memory_ratio"] == 1
    assert [path.name for path in Path().iterdir()] == ["figures.json"]  # nothing else is left behind


def test_growth_and_repeats(monkeypatch, capsys):
    with_ours(monkeypatch, "stand_in")
    words = ["--reviews=2000", "--items=200", "--repeats=2", "--growth", "--sizes=2000,4000", "--compression=gz", "--out=kept"]
    report = benchmark.main(words)
    small, large = report["growth"]
    assert (small["reviews"], large["reviews"]) == (2000, 4000)
    assert small["seconds_each_ratio"] == 1 and large["peak_bytes_each_ratio"] < 1
    assert all(len(runs) == 2 for runs in report["results"][0]["runs"].values())
    assert "memory each, to first" in capsys.readouterr().out
    assert gzip.decompress(Path("kept/raw-4000/reviews.json.gz").read_bytes()).count(b"\n") == 4000


@pytest.mark.parametrize(
    "function, what", [("wrong_title", "made.item of 'ours', line 1"), ("wrong_report", "bad_times of 'ours'")]
)
def test_a_difference_stops_the_benchmark(monkeypatch, function, what):
    with_ours(monkeypatch, function)
    with pytest.raises(AssertionError, match=what):
        benchmark.main(["--reviews=2000", "--items=200"])


@pytest.mark.parametrize("word", ["--reviews=10", "--items=1", "--repeats=0", "--sizes=many"])
def test_sizes_without_meaning_are_refused(word, capsys):
    with pytest.raises(SystemExit):
        benchmark.main([word])
    assert f"{word.split('=')[0]}: found" in capsys.readouterr().err


def test_raw_files_are_like_amazons(tmp_path):
    reviews, meta = write_raw(tmp_path, 20_000, 2000)
    rows, broken = [], 0
    for line in reviews.read_bytes().removesuffix(b"\n").split(b"\n"):
        try:
            rows.append(json.loads(line.decode()))
        except ValueError:
            broken += 1
    assert (len(rows), broken) == (19_998, 2)
    order = ("image overall vote verified reviewTime reviewerID asin style reviewerName reviewText summary "
             "unixReviewTime").split()  # fmt: skip
    assert {tuple(key for key in order if key in row) for row in rows} == {tuple(row) for row in rows}
    assert {key for row in rows for key in row} == set(order)
    assert 450 < reviews.stat().st_size / 20_000 < 600
    assert 5000 < len({row["reviewerID"] for row in rows}) < 9000 and {len(row["reviewerID"]) for row in rows} == {12, 13, 14}
    assert all(row["asin"].startswith("B0") and len(row["asin"]) == 10 for row in rows)
    assert any("😀" in row["reviewText"] for row in rows)
    described = [json.loads(line) for line in meta.read_text().splitlines()]
    names = [row["asin"] for row in described]
    assert 0 < len(names) - len(set(names)) < 100 and 1900 < len(set(names)) < 2000
    assert 0.03 < sum(clean_title(row["title"]) is None for row in described) / len(described) < 0.08

    packed, _ = write_raw(tmp_path, 20_000, 2000, "gz")
    assert gzip.decompress(packed.read_bytes()) == reviews.read_bytes()  # the same seed, the same bytes


# the obvious script, by hand


def test_a_world_by_hand():
    """Every rule before the k-core drops one review; ties in time keep the order of the file."""
    rows = [
        review("u", "B", START + 2 * DAY),
        "",
        review("v", "A", START),
        "   ",
        "{'reviewerID': 'u'}",  # malformed, line 5
        review("u", "A", START, 4),
        review("NA", "A", START),  # an id that pandas takes for missing
        review("v", "A", 0),  # a time that cannot be
        review("v", "E", START),  # no metadata
        review("v", "A", START, 1.5),  # a low rating
        review("v", "A", START - 1),  # before the window
        review("u", "C", START + 2 * DAY),  # at the time of B, later in the file
        review("v", "C", 1541030400),  # the very end of the window
        review("v", "C", 1541030401),  # behind it
        review("u", "A", START),  # the second review of A
    ]
    meta = jsonl("meta.json", [
        {"asin": "C", "title": "A"},  # no usable title
        {"asin": "D", "title": "Never reviewed"},
        {"asin": "B", "title": " Toy &quot;B&quot; ", "brand": "by\n  Us"},
        {"asin": "C", "title": "Tab\there", "brand": "", "category": ["Toys & Games", "Dice"], "price": "$1,299.00"},
        {"asin": "A", "title": "Shared"},
        {"asin": "C", "title": "Too late", "brand": "None"},
        "nonsense",
    ])  # fmt: skip
    report, lines = converted(rows, meta=meta, min_rating=2, drop_repeats=True, max_history=1)
    assert lines["inter"] == [
        "user_id:token\titem_id:token\trating:float\ttimestamp:float",
        f"u\tB\t5.0\t{START + 2 * DAY}",
        f"v\tA\t5.0\t{START}",
        f"u\tA\t4.0\t{START}",
        f"u\tC\t5.0\t{START + 2 * DAY}",
        "v\tC\t5.0\t1541030400",
    ]
    assert lines["train.inter"] == [
        SAMPLES, f"u\tA\tB\t{START + 2 * DAY}", f"u\tB\tC\t{START + 2 * DAY}", "v\tA\tC\t1541030400",
    ]  # fmt: skip
    assert lines["valid.inter"] == lines["test.inter"] == [SAMPLES]
    assert lines["item"] == [
        "item_id:token\ttitle:token\tbrand:token\tcategories:token_seq\tprice:float",
        'B\tToy "B\tby Us\t\t',
        "C\tTab\\there\t\tToys_&_Games Dice\t1299.00",
        "A\tShared\t\t\t",
    ]
    expected = {
        "lines": 13, "malformed": 1, "malformed_lines": [5], "bad_ids": 1, "bad_times": 1, "without_title": 1, "low_rating": 1,
        "outside_window": 2, "repeated": 1, "below_k": 0, "k_core_rounds": [], "kept": 5, "users": 2, "items": 3,
        "windows": [["2017-10-01", 3]], "start": "2017-10-01", "end": "2018-11-01", "first": "2017-10-01",
        "last": "2018-11-01", "distinct_titles": 3, "items_sharing_title": 0, "density": 5 / 6, "train": 3, "valid": 0,
        "test": 0, "meta": 7, "meta_malformed": 1, "escaped_ids": 0,
    }  # fmt: skip
    assert {key: report[key] for key in expected} == expected
    assert json.loads(Path("out/t/t.report.json").read_text()) == report


def test_rounds_of_the_core():
    """v has one review, then B has one, then u has one, then A has one: a chain that unravels; x, y stay."""
    pairs = ["vB", "uB", "uA", "wA", "xC", "xD", "yC", "yD"]
    report, lines = converted([review(*pair, START) for pair in pairs], meta=items(*"ABCD"), k=2)
    assert report["k_core_rounds"] == [2, 2] and report["below_k"] == 4  # v and w go; then A and B, and u with them
    assert lines["inter"][1:] == [f"{user}\t{item}\t5.0\t{START}" for user, item in pairs[4:]]
    pairs = ["vB", "uB", "uA", "xA", "xC", "xD", "yC", "yD"]
    report, lines = converted([review(*pair, START) for pair in pairs], meta=items(*"ABCD"), k=2)
    assert report["k_core_rounds"] == [1, 1, 1, 1]  # vB, uB, uA, xA
    with pytest.raises(DataError, match="0 items remain"):
        converted([review(*pair, START) for pair in pairs], meta=items(*"ABCD"), k=3)


def test_sliding():
    """The start moves from the first start, so that the 31st comes back after a month that has no such day."""
    rows = [review(user, item, time) for user in "uv" for item, time in zip("ABC", (START, 1486000000, 1482710400))]
    options = {"meta": items(*"ABC"), "start": "2017-05-31"}
    report, _ = converted(rows, min_items=2, **options)
    assert report["windows"] == [["2017-05-31", 1], ["2017-02-28", 1], ["2016-11-30", 3]]  # B: 2017-02-02; C: 2016-12-26
    report, _ = converted(rows, min_items=2, step_months=1, **options)
    starts = ["2017-05-31", "2017-04-30", "2017-03-31", "2017-02-28", "2017-01-31"]
    assert report["windows"] == [[start, 1 + (start == "2017-01-31")] for start in starts]
    assert (report["start"], report["outside_window"], report["first"]) == ("2017-01-31", 2, "2017-02-02T01:46:40")
    with pytest.raises(DataError, match="3 items remain even from 1996-05-31"):
        converted(rows, min_items=4, **options)


def test_shares():
    """20 samples; 0.7 + 0.1 is 0.7999999999999999, and yet the second cut is at 16."""
    rows = [review("u", "AB"[n % 2], START + n) for n in range(21)]
    report, lines = converted(rows, meta=items("A", "B"), ratios=(0.7, 0.1, 0.2))
    assert (report["train"], report["valid"], report["test"]) == (14, 2, 4)
    assert lines["valid.inter"][1:] == [
        f"u\tB A B A B A B A B A\tB\t{START + 15}", f"u\tA B A B A B A B A B\tA\t{START + 16}"
    ]  # fmt: skip
    with pytest.raises(DataError, match="empty"):
        converted(rows[:3], meta=items("A", "B"), ratios=(0.8, 0.1, 0.1))


def test_leave_one_out():
    """w has one target: test. v has two, at times before those of u. Each part by time."""
    rows = [review(*row) for row in [
        ("u", "A", START), ("u", "B", START + 10), ("u", "C", START + 20), ("u", "A", START + 30),
        ("v", "C", START + 1), ("v", "B", START + 9), ("v", "A", START + 29), ("w", "A", START), ("w", "B", START + 30),
    ]]  # fmt: skip
    _, lines = converted(rows, meta=items(*"ABC"), split="leave-one-out")
    assert lines["train.inter"][1:] == [f"u\tA\tB\t{START + 10}"]
    assert lines["valid.inter"][1:] == [f"v\tC\tB\t{START + 9}", f"u\tA B\tC\t{START + 20}"]
    assert lines["test.inter"][1:] == [f"v\tC B\tA\t{START + 29}", f"u\tA B C\tA\t{START + 30}", f"w\tA\tB\t{START + 30}"]


def test_repeats_are_those_of_the_window():
    """The first review of A lies before the window; of the two at the same time the first in the file stays."""
    rows = [review("u", "A", START + 5, 1), review("u", "A", START - DAY, 2), review("u", "A", START + 3, 3),
            review("u", "A", START + 3, 4), review("u", "B", START, 5)]  # fmt: skip
    report, lines = converted(rows, meta=items("A", "B"), drop_repeats=True)
    assert lines["inter"][1:] == [f"u\tA\t3.0\t{START + 3}", f"u\tB\t5.0\t{START}"]
    assert (report["outside_window"], report["repeated"]) == (1, 2)


def test_csv_with_titles_of_its_own():
    """Titles come with the reviews, the first usable one of an item counts; no window, no sliding, no rating."""
    text = (
        "user,title,item,time\r\n"
        'a b,"One, ""1""",1,1588687728923\r\n'
        "\r\n"
        "50%,x,2,2020-05-05T14:08:49Z\n"
        "50%,x,2,2020-05-05\n"
        "too,few,fields\n"
        'a b,"Two\nlines",2,1588687730\n'
        "%41,Three,3,1588687731.5\n"
        "%41,Three,1,1588687732000001\n"
        "c,Three,1,soon\n"
    )
    Path("reviews.csv").write_text(text, newline="")
    report, lines = converted("reviews.csv", columns=COLUMNS)
    assert lines["inter"] == [
        "user_id:token\titem_id:token\ttimestamp:float",
        "a%20b\t1\t1588687728.923", "50%\t2\t1588687729", "50%\t2\t1588636800", "a%20b\t2\t1588687730",
        "%2541\t3\t1588687731.5", "%2541\t1\t1588687732.000001",
    ]  # fmt: skip
    assert lines["train.inter"][1:] == [
        "50%\t2\t2\t1588687729", "a%20b\t1\t2\t1588687730", "%2541\t3\t1\t1588687732.000001",
    ]  # fmt: skip
    assert lines["item"] == ["item_id:token\ttitle:token", '1\tOne, "1', "2\tTwo\\nlines", "3\tThree"]
    assert (report["lines"], report["malformed_lines"], report["escaped_ids"], report["start"]) == (8, [6, 11], 2, "-")
    assert (report["first"], report["last"]) == ("2020-05-05", "2020-05-05T14:08:52.000001")


def test_2023_release():
    one = {"rating": 5, "title": "My review", "asin": "A1", "parent_asin": "A", "user_id": "u"}
    rows = [{**one, "timestamp": (START + n) * 1000} for n in range(2)]
    meta = jsonl("meta.jsonl", [{"title": "Toy A", "store": "Us", "categories": [], "price": 3.5, "parent_asin": "A"}])
    _, lines = converted(rows, meta=meta)
    assert lines["inter"][1:] == [f"u\tA\t5.0\t{START}", f"u\tA\t5.0\t{START + 1}"]
    assert lines["item"] == ["item_id:token\ttitle:token\tbrand:token\tprice:float", "A\tToy A\tUs\t3.5"]


MALFORMED = [
    "[1]", "7", '"x"', "null", "{", '{"reviewerID": "u"}', "[" * 5000, review(None, "A", START), review("", "A", START),
    review("u", ["A"], START), review({}, "A", START), review("u", "A", None), review("u", "A", ""), review("u", "A", True),
    review("u", "A", "soon"), review("u", "A", [START]), review("u", "A", START, None), review("u", "A", START, "good"),
    review("u", "A", START, float("nan")), review("u", "A", START, "inf"), review("u", "A", START, 10**400),
]  # fmt: skip


def test_malformed_lines():
    fine = [review("u", "A", START), review(5, "A", f"{START}", "4"), review("5", "A", START + 0.5)]
    report, lines = converted([*MALFORMED, *fine], meta=items("A"))
    assert (report["malformed"], report["malformed_lines"], report["kept"]) == (len(MALFORMED), [1, 2, 3, 4, 5], 3)
    assert lines["inter"][1:] == [f"u\tA\t5.0\t{START}", f"5\tA\t4.0\t{START}", f"5\tA\t5.0\t{START}.5"]


@pytest.mark.parametrize("value, unit, expected", [
    (99_999_999_999, "auto", 99_999_999_999_000_000), (100_000_000_000, "auto", 100_000_000_000_000),
    (99_999_999_999_999, "auto", 99_999_999_999_999_000), (10**14, "auto", 10**14), (10**17 - 16, "auto", 10**17 - 16),
    (10**17, "auto", 10**14), ("1.5", "auto", 1_500_000), (1.1, "auto", 1_100_000), (-1, "auto", -1_000_000),
    (START, "ms", START * 1000), (1500, "ns", 2), ("1e3", "s", 10**9), ("2017-10-01", "auto", START * 10**6),
    ("2017-10-01 02:00:00.000001+02:00", "auto", START * 10**6 + 1), ("2017-10-01T00:00:01", "ms", START * 10**6 + 10**6),
])  # fmt: skip
def test_times(value, unit, expected):
    assert microseconds_of(value, unit, None)[0] == pytest.approx(expected, rel=2**-53, abs=0)  # a double, as in the converter


def test_time_format():
    assert microseconds_of("10 1, 2017", "auto", "%m %d, %Y")[0] == START * 10**6
    with pytest.raises(ValueError):
        microseconds_of("2017-10-01", "auto", "%m %d, %Y")


@pytest.mark.parametrize("raw, written", [
    ("a b", "a%20b"), ("50%", "50%"), ("50%z", "50%z"), ("%4a%", "%254a%25"), ("5% \t", "5%25%20%09"), ('"', "%22"),
    ("\x00\x7f\x85", "%00%7F%C2%85"), ("é\u3000雪", "é%E3%80%80雪"), ("a+b&<>[]|", "a+b&<>[]|"),
])  # fmt: skip
def test_escaped_ids(raw, written):
    assert written_id(raw) == written and unquote(written) == raw


@pytest.mark.parametrize("raw, title", [
    ('  "In quotes"  ', "In quotes"), ("&amp;quot; &#39;", "&quot; &#39;"), (' " Blank kept ', " Blank kept"), ("Ab", "Ab"),
    ("A", None), ("&amp;", None), ('"A"', None), ('"  "', None), ("", None), (" \t\t ", None), ('x <span id="t">', None),
    (7, None), (["list"], None), (None, None), ("<span class", "<span class"), ("lone \ud83d", "lone \ufffd"),
    ("w " * 19 + "w", "w " * 19 + "w"), ("w " * 20 + "w", None), ("w  " + "w " * 18 + "w", None),
])  # fmt: skip
def test_title_rule(raw, title):
    assert clean_title(raw) == title


def test_other_rules_of_titles():
    assert clean_title("w " * 50 + "w", max_words=0) and clean_title("w w", max_words=1) is None
    assert clean_title("A", min_chars=1) == "A" and clean_title("ABC", min_chars=4) is None
    assert clean_title("<span class", drop_markup=True) is None


def test_other_columns_of_items():
    assert clean_brand('by\n\n  "Us &amp; Co"') == 'by "Us & Co' and clean_brand(None) == clean_brand(["x"]) == ""
    assert clean_categories(["Toys & Games", "", None, "A\tB"]) == "Toys_&_Games A_B"
    assert clean_categories("One  two") == "One_two" and clean_categories(None) == clean_categories([]) == ""
    prices = {"12.99": "12.99", "$ 12.90": "12.90", "1,299.00": "1299.00", "$5.00 - $7.00": "", "1,2": "", 3: "3", 3.5: "3.5",
              "": "", None: "", ".a-box{padding:4px}": "", "from 9.99": ""}  # fmt: skip
    assert {raw: clean_price(raw) for raw in prices} == prices
