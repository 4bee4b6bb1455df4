import gzip
import json
import os
import random
import re
import subprocess
import sys
import time
from collections import Counter
from datetime import datetime, timedelta, timezone
from pathlib import Path

import pytest

from dataset_scripts import amazon
from dataset_scripts.amazon import clean_title, convert
from recbole_flr.data.atomic import read_columns, unescape
from recbole_flr.errors import ConfigError, DataError

ROOT = Path(__file__).resolve().parents[2]
REAL = ROOT.parent / "shared" / "data"
KINDS = ("train.inter", "valid.inter", "test.inter", "inter", "item")
DAY = 86400
START = 1506816000  # 2017-10-01 UTC


def lines(path):
    raw = path.read_bytes()
    return (gzip.decompress(raw) if path.suffix == ".gz" else raw).decode().removesuffix("\n").split("\n")


def output(folder, name):
    return {kind: lines(folder / name / f"{name}.{kind}") for kind in KINDS}


def tree(folder):
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


# ---- the published sets ------------------------------------------------------------------------------------------------


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
    report = convert(source / "reviews.json.gz", source / "meta.json.gz", name, tmp_path, **options)
    assert (report["train"], report["valid"], report["test"]) == rows
    assert (report["items"], report["start"]) == (items, start)
    ours = output(tmp_path, name)
    # The times of training rows are rebuilt, so their order is not the published one; their content is.
    assert Counter(ours["train.inter"]) == Counter(lines(source / f"{name}.train.inter.gz"))
    assert ours["valid.inter"] == lines(source / f"{name}.valid.inter")
    assert ours["test.inter"] == lines(source / f"{name}.test.inter")
    assert ours["inter"] == lines(source / f"{name}.inter.gz")
    assert [unescape(line) for line in ours["item"]] == lines(source / f"{name}.item")


# ---- a made-up set against a slow, obvious implementation --------------------------------------------------------------

# Raw title -> what becomes of it.
TITLES = {
    "Plain": "Plain",
    '  "In quotes"  ': "In quotes",
    "&quot;Q&quot; &amp; A &#39;": 'Q" & A &#39;',
    " \" Blank kept ": " Blank kept",
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
    "A": None,
    "&amp;": None,
    '"A"': None,
    '" "': None,
    '"   "': None,
    "": None,
    'x <span id="productTitle">': None,
    None: None,
    ("a", "list"): None,
}


@pytest.mark.parametrize("raw, title", TITLES.items())
def test_title_rule(raw, title):
    assert clean_title(raw) == title


def test_markup_titles_go_on_demand():
    assert clean_title('<span class="a"') == '<span class="a'
    assert clean_title('<span class="a"', drop_markup_titles=True) is None
    assert clean_title("1 < 2", drop_markup_titles=True) == "1 < 2"


def world(seed):
    """Reviews and metadata with everything that the rules speak of; users and items in no order, many ties in time."""
    rng = random.Random(seed)
    asins = [f"B{number:03d}" for number in range(60)]
    raw_titles = [list(title) if isinstance(title, tuple) else title for title in TITLES]
    meta = []
    for asin in asins:
        for _ in range(rng.choice([1, 1, 1, 2, 3, 0])):  # several lines of an item, or none
            row = {"asin": asin}
            if rng.random() < 0.95:
                usable = rng.random() < 0.8
                row["title"] = rng.choice(["Shared title", f"Toy {asin}", f"Toy {asin}"]) if usable else rng.choice(raw_titles)
            if rng.random() < 0.5:
                row["brand"] = rng.choice(["Acme", "by\n\n   Larkspur &amp; Fen", "", None, '"B"', "tab\tbrand"])
            meta.append(row)
    rng.shuffle(meta)
    reviews = []
    for user in range(90):
        for _ in range(rng.randint(1, 14)):
            asin = asins[min(int(rng.expovariate(0.04)), 59)]
            day = rng.choice([rng.randint(-900, 500)] * 5 + [rng.randint(0, 30), 0, 396])  # 396: the end of the window
            stamp = START + DAY * day + rng.choice([0, 0, 0, 1, -1])
            for _ in range(rng.choice([1, 1, 1, 1, 2])):
                reviews.append(
                    {"reviewerID": f"R{user}", "asin": asin, "overall": rng.choice([1.0, 4.0, 5]), "unixReviewTime": stamp}
                )
    for bad in ("two words", "tab\tid", 'quo"te', "[PAD]", "NA", "", "lone\ud800"):
        reviews.append({"reviewerID": bad, "asin": "B000", "overall": 5.0, "unixReviewTime": START})
        reviews.append({"reviewerID": "R1", "asin": bad, "overall": 5.0, "unixReviewTime": START})
    rng.shuffle(reviews)
    return reviews, meta


def write(path, rows):
    text = "".join(json.dumps(row) + "\n" for row in rows)
    path.write_bytes(gzip.compress(text.encode()) if path.suffix == ".gz" else text.encode())
    return path


def seconds(date):
    return int(datetime.fromisoformat(date + "T00:00:00+00:00").timestamp())


def minus_three_months(date):
    year, month, day = map(int, date.split("-"))
    return f"{year - (month <= 3)}-{(month + 8) % 12 + 1:02d}-{day:02d}"


def slow_convert(reviews, meta, start="2017-10-01", end="2018-11-01", k=5, min_items=0, max_history=10, drop_markup=False):
    """The rules once more, by plain loops; returns the outputs as lists of fields."""
    titles, brands = {}, {}
    for row in meta:
        raw = row.get("title")
        title = TITLES.get(raw, raw) if isinstance(raw, str) else None
        if title is None or row["asin"] in titles or (drop_markup and "<span" in title):
            continue
        titles[row["asin"]] = title
        brands[row["asin"]] = {"by\n\n   Larkspur &amp; Fen": "by Larkspur & Fen", '"B"': "B", "tab\tbrand": "tab brand"}.get(
            row.get("brand"), row.get("brand") or ""
        )
    while True:
        kept = []
        for row in reviews:
            fine = re.fullmatch(r"R\d+", row["reviewerID"]) and row["asin"] in titles
            if fine and seconds(start) <= row["unixReviewTime"] <= seconds(end):
                kept.append(row)
        changed = True
        while changed:
            changed = False
            for key in ("asin", "reviewerID"):
                counts = Counter(row[key] for row in kept)
                changed = changed or min(counts.values(), default=k) < k
                kept = [row for row in kept if counts[row[key]] >= k]
        items = {row["asin"] for row in kept}
        if len(items) >= min_items:
            break
        start = minus_three_months(start)
    by_user = {}
    for row in kept:
        by_user.setdefault(row["reviewerID"], []).append(row)
    samples = []
    for user, rows in by_user.items():
        rows = sorted(rows, key=lambda row: row["unixReviewTime"])
        for place in range(1, len(rows)):
            history = [row["asin"] for row in rows[:place]][-max_history:]
            samples.append([user, " ".join(history), rows[place]["asin"], str(rows[place]["unixReviewTime"])])
    samples.sort(key=lambda sample: int(sample[3]))
    a, b = int(0.8 * len(samples)), int(0.9 * len(samples))
    shown = [asin for asin in titles if asin in items]
    with_brand = any(brands[asin] for asin in shown)
    return {
        "train.inter": samples[:a],
        "valid.inter": samples[a:b],
        "test.inter": samples[b:],
        "inter": [[r["reviewerID"], r["asin"], str(float(r["overall"])), str(r["unixReviewTime"])] for r in kept],
        "item": [[asin, titles[asin], brands[asin]] if with_brand else [asin, titles[asin]] for asin in shown],
        "start": start,
    }


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize(
    "options",
    [
        {"k": 3},
        {"k": 1, "max_history": 2, "start": "2017-12-31", "end": "2018-10-31"},
        {"k": 4, "slide_to": "2016-11-15", "max_history": 4},
        {"k": 2, "slide_to": "2017-03-31", "start": "2018-01-01", "drop_markup": True},
    ],
)
def test_equals_the_slow_implementation(tmp_path, seed, options):
    reviews, meta = world(seed)
    options = {**options, "min_items": 0}
    if slide_to := options.pop("slide_to", None):  # as many items as remain from that day on: within reach, but not at once
        options["min_items"] = len(slow_convert(reviews, meta, **{**options, "start": slide_to})["item"])
    expected = slow_convert(reviews, meta, **options)
    drop = options.pop("drop_markup", False)
    suffix = (".json", ".json.gz")[seed % 2]
    files = write(tmp_path / f"r{suffix}", reviews), write(tmp_path / f"m{suffix}", meta)
    before = tree(tmp_path)
    report = convert(*files, "made", tmp_path / "out", drop_markup_titles=drop, **options)
    got = output(tmp_path / "out", "made")
    for kind in KINDS:
        found = [[unescape(field) for field in line.split("\t")] for line in got[kind][1:]]
        assert found == expected[kind], kind
    assert got["train.inter"][0] == "user_id:token\titem_id_list:token_seq\titem_id:token\ttimestamp:float"
    assert got["inter"][0] == "user_id:token\titem_id:token\trating:float\ttimestamp:float"
    assert got["item"][0] == "item_id:token\ttitle:token\tbrand:token"

    assert report["start"] == expected["start"]
    if options["min_items"]:
        assert len(report["windows"]) > 1  # otherwise this case would not test sliding
    assert report["windows"][-1] == [report["start"], report["items"]]
    assert report["bad_ids"] == 14 and report["malformed"] == 0
    assert report["reviews"] == len(reviews)
    dropped = [report[key] for key in ("bad_ids", "without_title", "outside_window", "below_k")]
    assert report["reviews"] == report["kept"] + sum(dropped)
    assert report["kept"] == len(expected["inter"])
    assert report["users"] == len({row[0] for row in expected["inter"]})
    assert report["items"] == len(expected["item"])
    bearers = Counter(row[1] for row in expected["item"])
    assert report["distinct_titles"] == len(bearers)
    assert report["items_sharing_title"] == sum(count for count in bearers.values() if count > 1)
    assert {name: content for name, content in tree(tmp_path).items() if not name.startswith("out")} == before


# ---- small things ------------------------------------------------------------------------------------------------------


def simple(tmp_path, n_users=6, n_items=6):
    """Every user reviews every item, one a day: nothing is dropped for k <= 6, and 30 samples come out."""
    reviews = [
        {"reviewerID": f"R{user}", "asin": f"B{item}", "overall": 5.0, "unixReviewTime": START + DAY * item}
        for user in range(n_users)
        for item in range(n_items)
    ]
    meta = [{"asin": f"B{item}", "title": f"Toy {item}"} for item in range(n_items)]
    return write(tmp_path / "reviews.json", reviews), write(tmp_path / "meta.json", meta)


def test_without_brands_there_is_no_brand_column(tmp_path):
    report = convert(*simple(tmp_path), "s", tmp_path, min_items=0)
    assert lines(tmp_path / "s" / "s.item")[:2] == ["item_id:token\ttitle:token", "B0\tToy 0"]
    assert (report["train"], report["valid"], report["test"]) == (24, 3, 3)


def test_titles_come_back(tmp_path):
    reviews, _ = simple(tmp_path)
    titles = ['Sir "Ember" 🚒', "tab\tand\nline", "back\\slash \\n", "NA", "雪", " a "]
    meta = write(tmp_path / "meta.json", [{"asin": f"B{item}", "title": title} for item, title in enumerate(titles)])
    convert(reviews, meta, "s", tmp_path, min_items=0, k=1)
    columns = read_columns(tmp_path / "s" / "s.item", ["title"])
    assert [unescape(title) for title in columns["title"]] == titles[:4]  # the last two have one character


def test_gzip_is_told_by_content(tmp_path):
    reviews, meta = simple(tmp_path)
    convert(reviews, meta, "s", tmp_path / "plain", min_items=0)
    hidden = tmp_path / "hidden.json"
    hidden.write_bytes(gzip.compress(reviews.read_bytes()))
    mislabelled = tmp_path / "meta.json.gz"
    mislabelled.write_bytes(meta.read_bytes())
    convert(hidden, mislabelled, "s", tmp_path / "other", min_items=0)
    assert tree(tmp_path / "plain") == tree(tmp_path / "other")


def test_malformed_lines_are_counted(tmp_path):
    reviews, meta = simple(tmp_path)
    good = reviews.read_bytes().splitlines(keepends=True)
    ok = {"reviewerID": "R0", "asin": "B0", "overall": 5.0, "unixReviewTime": START}
    bad = [
        b"{'reviewerID': 'R0'}\n",  # the 2014 release
        b"{\"reviewerID\": \"R0\"\n",
        b"[1, 2]\n",
        b"7\n",
        b"\xff\xfe\n",
        b"[" * 100000 + b"\n",
        *(json.dumps({**ok, key: value}).encode() + b"\n" for key, value in [
            ("reviewerID", None), ("asin", 5), ("overall", "good"), ("overall", float("nan")), ("unixReviewTime", None),
            ("unixReviewTime", float("inf")), ("unixReviewTime", 10**30), ("unixReviewTime", "today")
        ]),
    ]  # fmt: skip
    reviews.write_bytes(good[0] + b"\n" + b"".join(bad) + b"".join(good[1:]))
    meta.write_bytes(b"nonsense\n" + meta.read_bytes() + b'{"title": "no asin"}\n')
    report = convert(reviews, meta, "s", tmp_path, min_items=0)
    assert report["malformed"] == len(bad)
    assert report["malformed_lines"] == [3, 4, 5, 6, 7]  # line 2 is blank
    assert report["reviews"] == report["kept"] == 36
    assert (report["meta"], report["meta_malformed"]) == (6, 2)


def damage(tmp_path, what):
    reviews, meta = simple(tmp_path)
    options = {"min_items": 0}
    if what == "truncated gzip":
        packed = gzip.compress(os.urandom(9999).hex().encode() + b"\n" + reviews.read_bytes())
        reviews.write_bytes(packed[:-2000])
    elif what == "damaged gzip":
        packed = bytearray(gzip.compress(reviews.read_bytes()))
        packed[-6] ^= 255  # the check sum
        reviews.write_bytes(packed)
    elif what == "missing reviews":
        reviews = tmp_path / "nowhere.json"
    elif what == "missing meta":
        meta = tmp_path / "nowhere.json"
    elif what == "a folder":
        meta = tmp_path
    elif what == "no valid review":
        reviews.write_text("x\n\ny\n")
    elif what == "no review":
        reviews.write_text("")
    elif what == "no valid metadata":
        meta.write_text("x\n")
    elif what == "no usable title":
        write(meta, [{"asin": "B0", "title": "A"}, {"asin": "other", "title": "Fine"}])
    elif what == "nothing remains":
        options["k"] = 7
    elif what == "never enough":
        options = {"min_items": 7}
    elif what == "too few samples":
        reviews, meta = simple(tmp_path, n_users=2, n_items=2)
        options["k"] = 1
    return reviews, meta, options


DAMAGES = {
    "truncated gzip": "reviews.json is a broken gzip file",
    "damaged gzip": "reviews.json is a broken gzip file",
    "missing reviews": "cannot read .*nowhere.json: No such file",
    "missing meta": "cannot read .*nowhere.json: No such file",
    "a folder": "cannot read .*: Is a directory",
    "no valid review": "reviews.json: no valid review among 2 lines; expected JSON lines",
    "no review": "reviews.json: no valid review among 0 lines",
    "no valid metadata": "meta.json: no valid line among 1",
    "no usable title": "meta.json: none of its 2 lines has a usable title",
    "nothing remains": "nothing remains of 36 reviews from 2017-10-01 to 2018-11-01 in the 7-core",
    "never enough": "6 items remain even from 1996-07-01, fewer than the 7 wanted",
    "too few samples": "only 2 samples remain, too few for a valid part",
}


@pytest.mark.parametrize("what", DAMAGES)
def test_bad_input_is_one_error_and_leaves_nothing(tmp_path, what):
    reviews, meta, options = damage(tmp_path, what)
    before = tree(tmp_path)
    with pytest.raises(DataError, match=DAMAGES[what]):
        convert(reviews, meta, "s", tmp_path / "out", **options)
    assert tree(tmp_path) == before
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "options",
    [{"k": 0}, {"max_history": 0}, {"step_months": 0}, {"min_items": -1}, {"start": "soon"}, {"start": "2019-01-01"},
     {"ratios": (0.8, 0.1)}, {"ratios": (0.8, 0.1, 0.2)}, {"ratios": (1.1, -0.1, 0)}, {"name": "a/b"}, {"name": ""}],
)  # fmt: skip
def test_impossible_options(tmp_path, options):
    reviews, meta = simple(tmp_path)
    name = options.pop("name", "s")
    with pytest.raises(ConfigError):
        convert(reviews, meta, name, tmp_path / "out", **options)
    assert not (tmp_path / "out").exists()


def test_an_input_is_not_written_over(tmp_path):
    reviews, meta = simple(tmp_path)
    (tmp_path / "s").mkdir()
    inside = reviews.rename(tmp_path / "s" / "s.inter")
    before = tree(tmp_path)
    with pytest.raises(ConfigError, match="written over"):
        convert(inside, meta, "s", tmp_path, min_items=0)
    assert tree(tmp_path) == before


def test_failure_while_writing_leaves_nothing(tmp_path, monkeypatch):
    reviews, meta = simple(tmp_path)
    monkeypatch.setattr(amazon, "escape", lambda text: 1 / 0)  # the item file is the last
    before = tree(tmp_path)
    with pytest.raises(ZeroDivisionError):
        convert(reviews, meta, "s", tmp_path / "deep" / "out", min_items=0)
    assert tree(tmp_path) == before and not (tmp_path / "deep").exists()


def test_other_ratios(tmp_path):
    report = convert(*simple(tmp_path), "s", tmp_path, min_items=0, ratios=(0.5, 0.0, 0.5))
    assert (report["train"], report["valid"], report["test"]) == (15, 0, 15)


@pytest.mark.skipif(not hasattr(time, "tzset"), reason="needs time.tzset")
@pytest.mark.parametrize("zone", ["Asia/Shanghai", "America/Los_Angeles"])
def test_the_window_is_utc_everywhere(tmp_path, monkeypatch, zone):
    start, end = START, seconds("2018-11-01")
    stamps = [start - 1, start, start + 1, end - 1, end, end + 1]
    rows = [{"reviewerID": f"R{user}", "asin": "B0", "overall": 5.0, "unixReviewTime": s} for user in range(9) for s in stamps]
    reviews = write(tmp_path / "reviews.json", rows)
    meta = write(tmp_path / "meta.json", [{"asin": "B0", "title": "Toy"}])
    monkeypatch.setenv("TZ", zone)
    time.tzset()
    try:
        assert time.timezone != 0
        # a start with an offset is the same moment written otherwise
        shifted = datetime.fromtimestamp(start, timezone(timedelta(hours=8))).isoformat()
        for begin in ("2017-10-01", shifted):
            report = convert(reviews, meta, "s", tmp_path, start=begin, k=1, min_items=0)
            assert report["start"] == "2017-10-01"
            assert report["outside_window"] == 2 * 9  # one second before and one after; both ends belong to it
    finally:
        monkeypatch.undo()
        time.tzset()


def test_sliding_keeps_to_the_months(tmp_path):
    # From the 31st the start moves to the last day of a shorter month, and back to the 31st in a longer one.
    reviews, meta = simple(tmp_path)
    rows = [json.loads(line) for line in lines(reviews)]
    for row in rows:
        row["unixReviewTime"] = seconds("2017-05-31") + DAY * int(row["asin"][1:])
    write(reviews, rows)
    report = convert(reviews, meta, "s", tmp_path, start="2018-01-31", min_items=6, step_months=2)
    assert [start for start, _ in report["windows"]] == ["2018-01-31", "2017-11-30", "2017-09-30", "2017-07-31", "2017-05-31"]


def cli(*arguments):
    command = [sys.executable, "-m", "dataset_scripts.amazon", *map(str, arguments)]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True)


def test_command_line(tmp_path):
    reviews, meta = simple(tmp_path)
    shared = ("--reviews", reviews, "--meta", meta, "--name", "s", "--out", tmp_path / "out")
    done = cli(*shared, "--no-sliding", "--max-history", "2", "--k", "6")
    assert done.returncode == 0, done.stderr
    assert re.search(r"^train +24$", done.stdout, re.MULTILINE)
    assert re.search(r"^windows +2017-10-01 \(6 items\)$", done.stdout, re.MULTILINE)
    convert(reviews, meta, "s", tmp_path / "same", min_items=0, max_history=2, k=6)
    assert tree(tmp_path / "out") == tree(tmp_path / "same")


def test_command_line_error(tmp_path):
    reviews, meta = simple(tmp_path)
    done = cli("--reviews", reviews, "--meta", meta, "--name", "s", "--out", tmp_path / "out", "--k", "7", "--min-items", "0")
    assert done.returncode == 2
    assert done.stderr.splitlines()[-1].startswith("error: nothing remains") and "Traceback" not in done.stderr
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("option, value, keyword", [
    ("--start", "2017-10-03", "start"), ("--end", "2017-10-04", "end"), ("--k", "2", "k"), ("--min-items", "4", "min_items"),
    ("--step-months", "5", "step_months"), ("--max-history", "3", "max_history"), ("--no-sliding", None, "min_items"),
    ("--drop-markup-titles", None, "drop_markup_titles"), ("--out", "elsewhere", "out"),
])  # fmt: skip
def test_every_option_reaches_convert(monkeypatch, option, value, keyword):
    calls = []
    monkeypatch.setattr(amazon, "convert", lambda *a, **kw: calls.append((a, kw)) or {"windows": [], "malformed_lines": []})
    assert amazon.main(["--reviews", "r", "--meta", "m", "--name", "n", option, *([value] if value else [])]) == 0
    (arguments, keywords), = calls
    assert arguments[:3] == ("r", "m", "n")
    found = {**keywords, "out": arguments[3]}[keyword]
    expected = {"--no-sliding": 0, "--drop-markup-titles": True}.get(option, value)
    assert found == (int(expected) if isinstance(found, int) and not isinstance(found, bool) else expected)
