"""Random logs: both converters must give the same output; and random damage, which must give an error or a right output."""

import csv
import io
import json
import random
import re
import shutil
import tempfile
from pathlib import Path

import pytest
from helpers_convert import COLUMNS, DAY, START, check_set, json_lines, meta_of, output, pack, reviews_of, shop, tree, write
from hypothesis import example, given, settings
from hypothesis import strategies as st

from benchmarks.dataset import FIGURES
from benchmarks.obvious_dataset import obvious
from dataset_scripts.convert import convert
from recbole_flr.errors import FLRError

# ---- equality ----------------------------------------------------------------------------------------------------------

TITLES = [
    ' "Q" ', "A", "", "x <span id='a'>", "<span>", None, ["a"], "雪 🚒", "tab\there", 'nl\n"x', "a\\b \\n", "w " * 19 + "w",
    "w " * 20 + "w",
    "&quot;&amp;quot;", "\u00a0", "\u3000x\u3000", True, {"a": 1}, "\x00z", "\x85y", "\rcr", 5, 1999, 2.5, float("nan"),
    "lone \ud83d half",
    '"open', "NA", "None", "double  blank", "w  " + "w " * 18, "&amp;", '"  "', " a ",
]  # fmt: skip
BRANDS = [
    "Acme",
    "by\n\n A &amp; B",
    None,
    "",
    '"B"',
    "t\tb",
    ["x"],
    "\u00a0n",
    "b\\s",
    '"',
    '" x"',
    3,
    False,
    "half \udc00",
]
CATEGORIES = [None, [], ["Toys & Games", "Dice x"], "One two", ["a", None, 3, ["z"]], "", [""], ['q"q'], [" lead"],
              "[not json", ["雪 a"],
              '["as", "text"]', {"a": 1}, 7, True, ['"', "b"], "nul\0"]  # fmt: skip
PRICES = [
    None,
    "",
    "$12.99",
    "1,299.00",
    ".a{4px}",
    12.5,
    3,
    "$1.00 - $2.00",
    "12.",
    "free",
    True,
    -1,
    "$ 5",
    " 7 ",
    "1e3",
    0,
    "1,2",
    "٣",
]
IDS = ["a b", "50%", "%41", "NA", "nan", "[PAD]", "null", 'q"q', "é", "雪", "\u3000", "\x01", "x\x85", "\u2028", 5, 5.5, True,
       "a/b", "ab\ufeff",
       "\u200b", 10**25, 1e30, "\x00n", " lead", "5.0", "[1]", '{"a":1}', "new\nline", "t\tt", "%", "-0"]  # fmt: skip
BAD_IDS = [None, "", [], {}, ["a"], {"a": 1}, "lone\ud800"]
TIMES = [0, -5, 10**30, "soon", "", None, True, [START], "1e9", f"  {START} ", "infinity", "nan", "0x10", START + 0.25,
         str(START), 1e400,
         "2017-12-01", "2017-12-01T10:00:00Z", "2017-12-01 10:00:00.5+02:00", "2017-13-01", "12:00", START * 1000 + 123,
         START * 10**6 + 7,
         START * 10**9, float("nan"), "2031-01-01", 1541030400, 1541030401, START - 1, START]  # fmt: skip
RATINGS = ["x", None, float("nan"), "inf", True, -0.0, 0.0, 1e400, [], "", "5,0", 0.1 + 0.2, 10**30, " 4 ", "3.5", 1e-7]
LINES = [b"", b"  ", b"{", b"[1]", b"7", b'"s"', b"null", b"\xfd\xfe\x00", b"\t", b"\x0b", b"\x00", b"{}", b"[" * 9999]


def log(rng, odd):
    """Random rows (role -> value): of reviews, and of items. `odd`: the share of odd values."""
    users = [f"U{number}" for number in range(12)] + rng.sample(IDS, 6)
    items = [f"B{number}" for number in range(10)] + rng.sample(IDS, 5)
    unit = rng.choice([1, 1, 1, 1000, 10**6, 10**9])
    rows = []
    for _ in range(rng.randint(150, 350)):
        stamp = START + DAY * rng.randint(-200, 390) + rng.choice([0, 0, 0, 1])
        row = {
            "user": rng.choice(users),
            "item": rng.choice(items),
            "time": stamp * unit,
            "rating": rng.choice([5.0, 4.0, 3, 1.0]),
        }
        for role, pool in (("user", BAD_IDS), ("item", BAD_IDS), ("time", TIMES), ("rating", RATINGS)):
            if rng.random() < odd:
                row[role] = rng.choice(pool)
        if rng.random() < odd:
            row.pop(rng.choice([*row]))
        rows.append(row)
    titles = []
    for item in items:
        for _ in range(rng.choice([0, 1, 1, 1, 1, 2, 2, 3])):
            row = {"item": item, "title": rng.choice(["Toy a", "Toy b", f"Toy {item}", rng.choice(TITLES)])}
            row.update(
                (role, rng.choice(pool))
                for role, pool in (("brand", BRANDS), ("category", CATEGORIES), ("price", PRICES))
                if rng.random() < 0.7
            )
            if rng.random() < odd:
                row.pop(rng.choice([*row]))
            titles.append(row)
    rng.shuffle(titles)
    return rows, titles


def renamed(row, columns):
    return {columns[role]: value for role, value in row.items() if role in columns}


def as_json(rng, rows, columns, odd):
    found = []
    for row in rows:
        text = json.dumps({**renamed(row, columns), "z": [None, "x\n"]}, ensure_ascii=rng.random() < 0.5)
        line = text.encode("utf-8", "surrogatepass")
        if rng.random() < odd:
            broken = [line[: len(line) // 2], line + line, line + b" x", b"[" + line + b"]", line.replace(b"U", b"\xff"),
                      line + b"\x00",
                      line + b"\r", b" " + line, line[:-1] + b', "z": NaN}', b"\xef\xbb\xbf" + line]  # fmt: skip
            line = rng.choice(LINES + broken)
        found.append(line)
    bom = b"\xef\xbb\xbf" if rng.random() < 0.1 else b""
    return bom + rng.choice([b"\n", b"\n", b"\r\n"]).join(found) + (b"\n" if rng.random() < 0.8 else b"")


def as_csv(rng, rows, columns, odd, separator):
    end = rng.choice(["\n", "\r\n"])
    text = io.StringIO()
    writer = csv.writer(
        text, delimiter=separator, lineterminator=end, quoting=rng.choice([csv.QUOTE_MINIMAL, csv.QUOTE_ALL])
    )
    writer.writerow(["", *columns.values()])  # as pandas writes its index: a column without name
    for number, row in enumerate(rows):
        fields = [str(number)]
        for role in columns:
            value = row.get(role, "")
            value = json.dumps(value) if isinstance(value, (list, dict)) else "" if value is None else str(value)
            fields.append(value.encode("utf-8", "replace").decode())  # a file cannot hold a lone surrogate
        if rng.random() < odd:
            fields = rng.choice([fields[:-1], [*fields, "x"], [*fields, ""], ["x"], [*fields[:-1], 'a "b" c']])
        if rng.random() < odd:
            text.write(rng.choice(["", " ", "\x0b", "\x00"]) + end)
        writer.writerow(fields)
    data = text.getvalue().encode()
    if odd and rng.random() < 0.5:
        data = data.replace(b"B1", b"\xff\xfe", 3)  # in an item: DuckDB only looks at columns that are used
    return (b"\xef\xbb\xbf" if rng.random() < 0.1 else b"") + (
        data if rng.random() < 0.8 else data.removesuffix(end.encode())
    )


AMAZON = {
    "2018": ({"user": "reviewerID", "item": "asin", "rating": "overall", "time": "unixReviewTime"},
             {"item": "asin", "title": "title", "brand": "brand", "category": "category", "price": "price"}),
    "2023": ({"user": "user_id", "item": "parent_asin", "rating": "rating", "time": "timestamp"},
             {"item": "parent_asin", "title": "title", "brand": "store", "category": "categories", "price": "price"}),
}  # fmt: skip
OWN = {**COLUMNS, "rating": "stars", "brand": "maker", "category": "aisle", "price": "usd"}


def drawn_options(rng, bounded, rated):
    """Random options for a conversion of `log`."""
    options = {"k": rng.choice([1, 2, 3]), "max_history": rng.choice([1, 2, 3, 10]), "drop_repeats": rng.random() < 0.4}
    options.update(split=rng.choice(["ratio", "ratio", "leave-one-out"]), drop_markup_titles=rng.random() < 0.2,
                   titles=rng.choice([None, None, "first", "published"]))
    options.update(
        max_title_words=rng.choice([20, 20, 0, 3, 2]),
        min_title_chars=rng.choice([2, 1, 4]),
        time_unit=rng.choice(["auto"] * 4 + ["s", "ms"]),
    )
    options["ratios"] = rng.choice([(0.8, 0.1, 0.1), (0.5, 0.0, 0.5), (0.7, 0.1, 0.2), (1, 0, 0)])
    if rated and rng.random() < 0.3:
        options["min_rating"] = rng.choice([2, 4.0, -1])
    if bounded or rng.random() < 0.5:
        options["start"] = rng.choice(["2017-10-01", "2017-12-31", "2018-01-31T12:00:00", "2017-11-30T23:00:00-01:00"])
        options["end"] = rng.choice(["2018-11-01", "2018-09-30", None])
        options.update(min_items=rng.choice([0, 0, 5, 8]), step_months=rng.choice([1, 3, 7]))
    return options


def drawn_world(rng, folder):
    """Writes random files. Returns the path of the reviews, and random options for both converters."""
    odd = rng.choice([0, 0, 0.05])
    rows, titles = log(rng, odd)
    kind, suffix = rng.choice(["2018", "2018", "2023", "jsonl", "csv", "tsv"]), rng.choice(["", "", ".gz", ".zst"])
    if kind in AMAZON:
        columns, meta_columns = AMAZON[kind]
        options = drawn_options(rng, True, True)
        reviews, meta = as_json(rng, rows, columns, odd), as_json(rng, titles, meta_columns, odd)
        options["meta"] = folder / f"m.json{suffix}"
        kind = "json"
    else:
        apart = rng.random() < 0.5
        columns = {
            role: name for role, name in OWN.items() if role in ("user", "item", "time", "title") or rng.random() < 0.7
        }
        options = drawn_options(rng, False, "rating" in columns) | {"columns": dict(columns)}
        if apart:
            meta_columns = {role: columns.pop(role) for role in ("title", "brand", "category", "price") if role in columns}
            meta_columns["item"] = rng.choice(["sku", "number"])
            options.update(columns=columns, meta_columns=meta_columns, meta=folder / f"m.{kind}{suffix}")
        else:
            of_item = {str(row["item"]): row for row in titles if "item" in row}
            rows = [{**of_item.get(str(row.get("item")), {}), **row} for row in rows]
        if kind == "jsonl":
            reviews, meta = as_json(rng, rows, columns, odd), apart and as_json(rng, titles, meta_columns, odd)
        else:
            separator = {"csv": ",", "tsv": "\t"}[kind]
            reviews = as_csv(rng, rows, columns, odd, separator)
            meta = apart and as_csv(rng, titles, meta_columns, odd, separator)
    (folder / f"r.{kind}{suffix}").write_bytes(pack(reviews, suffix))
    if options.get("meta"):
        options["meta"].write_bytes(pack(meta, suffix))
    return folder / f"r.{kind}{suffix}", options


def both(reviews, out, **options):
    """Runs both converters. For each: the report and the files, or None and the error."""
    found = []
    for convert_one, folder in ((convert, out / "ours"), (obvious, out / "obvious")):
        shutil.rmtree(folder, ignore_errors=True)
        try:
            report = convert_one(reviews, "s", folder, **options)
            if convert_one is convert:
                check_set(report, folder)
            found.append((report, output(folder)))
        except FLRError as error:
            assert convert_one is obvious or not folder.exists()
            found.append((None, str(error)))
    return found


def differences(reviews, out, **options):
    """Runs both converters and returns a list of the differences."""
    (report, files), (expected_report, expected_files) = both(reviews, out, **options)
    if report is None or expected_report is None:
        return [] if report is expected_report is None else [(files, expected_files)]
    figures = [*FIGURES, "time_units"]
    found = [(key, report[key], expected_report[key]) for key in figures if report[key] != expected_report[key]]
    return found + [
        (kind, set(files[kind]) ^ set(expected_files[kind])) for kind in files if files[kind] != expected_files[kind]
    ]


@pytest.mark.parametrize("block", range(8))
def test_equals_the_obvious_converter(tmp_path, block):
    written = 0
    for seed in range(block * 13, block * 13 + 13):
        reviews, options = drawn_world(random.Random(seed), tmp_path)
        assert differences(reviews, tmp_path, **options) == [], f"seed {seed}"
        written += (tmp_path / "ours").exists()
    assert written >= 7  # in the other worlds too little remains for an output


# ---- damage ------------------------------------------------------------------------------------------------------------

# A change of a file: its kind, its place (as a share of the length), and a length or bytes.
PLACE, LENGTH = st.floats(0, 1, exclude_max=True), st.one_of(st.integers(1, 5), st.integers(1, 400))
TELLING = [b'"', b",", b"\n", b"\r", b"{", b"}", b"[", b"]", b":", b"\\", b"\0", b"\t", b" ", b"\xff", b"\xc3",
           b"\xef\xbb\xbf", b"null", b"NaN", b'""', b"0", b"-", b".",
           b"e9", b"\\u0000", b"\\ud800", b"\xe2\x80\xa8", b"\n\n", b'\n"', b"1506816000", b"\x1f\x8b", b"PAR1"]  # fmt: skip
BYTES = st.one_of(st.sampled_from(TELLING), st.binary(min_size=1, max_size=8))
CHANGES = st.one_of(
    st.tuples(st.just("put"), PLACE, BYTES), st.tuples(st.just("insert"), PLACE, BYTES),
    st.tuples(st.just("flip"), PLACE, st.integers(0, 7)),
    st.tuples(st.just("delete"), PLACE, LENGTH), st.tuples(st.just("repeat"), PLACE, LENGTH),
    st.tuples(st.just("cut"), PLACE, st.none()),
    st.tuples(st.just("line"), PLACE, PLACE), st.tuples(st.just("noise"), PLACE, st.binary(min_size=20, max_size=300)),
)  # fmt: skip


def changed(data, change):
    kind, share, what = change
    place = int(share * len(data))
    if kind == "put":
        return data[:place] + what + data[place + len(what) :]
    if kind in ("insert", "noise"):
        return data[:place] + what + data[place:]
    if kind == "flip":
        return data[:place] + bytes([data[place] ^ 1 << what]) + data[place + 1 :] if data else data
    if kind == "delete":
        return data[:place] + data[place + what :]
    if kind == "repeat":
        return data[: place + what] + data[place:]
    if kind == "cut":
        return data[:place]
    lines = data.splitlines(keepends=True)
    return b"".join(
        [*lines[: int(what * len(lines))], *lines[int(share * len(lines)) :][:1], *lines[int(what * len(lines)) :]]
    )


def without_twice(pairs):
    """A JSON object. If a key stands there twice, DuckDB takes the first value and Python the last."""
    assert len(dict(pairs)) == len(pairs)
    return dict(pairs)


def comparable(data, kind):
    """Whether DuckDB and Python read the file alike, because it has none of the things that only one of them accepts:

    - numbers such as 1_000, dates other than ISO dates, white space other than blanks beside a number;
    - in JSON: trailing commas, nan, keys that stand there twice;
    - in CSV: blanks beside quotes, a line of a quoted nothing, a changed header.
    """
    if re.search(rb"\d[-_/]\d|[\x0b\x0c\x1c-\x1f]|\xc2[\x85\xa0]|\xe1\x9a|\xe2[\x80\x81]|\xe3\x80", data):
        return False
    if kind == "csv":
        if data.decode(errors="ignore").encode() != data:  # DuckDB only looks at columns that are used
            return False
        head, *lines = data.split(b"\n")
        odd = re.compile(rb'[ \t]"|"[ \t]|^[ \t"]*\r*$')
        return head == SHOP.split(b"\n")[0] and not any(odd.search(line) for line in lines if line.strip())
    for line in data.removeprefix(b"\xef\xbb\xbf").split(b"\n"):
        try:
            json.loads(line.decode(), object_pairs_hook=without_twice)
        except AssertionError:
            return False
        except ValueError:
            if re.search(rb"(?i),\s*[\]}]|nan|inf", line):
                return False
    return True


def stands(data, kind, packed, changes, folder, **options):
    """Converts a damaged file, and checks that there is an error and no output, or the right output."""
    if packed != "behind":
        for change in changes:
            data = changed(data, change)
    raw = pack(data, ".gz") if packed else data
    if packed == "behind":
        for change in changes:
            raw = changed(raw, change)
    reviews = folder / f"r.{kind}"
    reviews.write_bytes(raw)
    before = tree(folder)
    try:
        report = convert(reviews, "s", folder / "out", k=1, **options)
    except FLRError as error:
        assert "\n" not in str(error) and len(str(error)) < 2000
        assert tree(folder) == before
        return
    check_set(report, folder / "out")
    ours = output(folder / "out")
    assert {path: content for path, content in tree(folder).items() if not path.startswith("out")} == before
    if kind == "jsonl":
        assert report["lines"] == sum(1 for line in data.split(b"\n") if line.strip())
    if kind != "parquet" and comparable(data, kind):
        expected = obvious(reviews, "s", folder / "obvious", k=1, **options)
        assert {key: report[key] for key in [*FIGURES, "time_units"]} == {
            key: expected[key] for key in [*FIGURES, "time_units"]
        }
        assert ours == output(folder / "obvious")


SHOP = b"customer,sku,bought,product\n" + b"".join(b'%s,%s,%d,"%s"\n' % (*(row[key].encode() for key in ("customer", "sku")),
                                                                         row["bought"],
                                                    row["product"].encode()) for row in shop(4, 5))  # fmt: skip
PACKED = st.sampled_from(["", "", "", "before", "behind"])


@settings(max_examples=50, deadline=None)
@given(st.lists(CHANGES, min_size=1, max_size=4), PACKED)
def test_damaged_json_lines(changes, packed):
    with tempfile.TemporaryDirectory() as folder:
        meta = write(Path(folder) / "m.json", meta_of())
        stands(json_lines(reviews_of(4, 5)), "jsonl", packed, changes, Path(folder), meta=meta, min_items=0)


@settings(max_examples=30, deadline=None)
@given(st.lists(CHANGES, min_size=1, max_size=3))
def test_damaged_metadata(changes):
    """If an item loses its title, its reviews are dropped, and all others stay."""
    data = json_lines(meta_of(5))
    for change in changes:
        data = changed(data, change)
    with tempfile.TemporaryDirectory() as folder:
        folder = Path(folder)
        reviews, meta = write(folder / "r.json", reviews_of(4, 5)), folder / "m.json"
        meta.write_bytes(data)
        before = tree(folder)
        try:
            report = convert(reviews, "s", folder / "out", meta=meta, k=1, min_items=0)
        except FLRError:
            assert tree(folder) == before
            return
        check_set(report, folder / "out")
        assert report["meta"] == sum(1 for line in data.split(b"\n") if line.strip()) and report["malformed"] == 0
        if comparable(data, "jsonl"):
            expected = obvious(reviews, "s", folder / "obvious", meta=meta, k=1, min_items=0)
            assert {key: report[key] for key in FIGURES} == {key: expected[key] for key in FIGURES}
            assert output(folder / "out") == output(folder / "obvious")


@settings(max_examples=70, deadline=None)
@given(st.lists(CHANGES, min_size=1, max_size=4), PACKED)
@example([("delete", 0.74609375, 3), ("delete", 0.99609375, 2)], "")  # a stray quote, and an end inside quotes
@example([("line", 0.0, 0.0), ("cut", 0.90625, None), ("delete", 0.6875, 4)], "")
def test_damaged_csv(changes, packed):
    with tempfile.TemporaryDirectory() as folder:
        stands(SHOP, "csv", packed, changes, Path(folder), columns=COLUMNS)


@settings(max_examples=25, deadline=None)
@given(st.lists(CHANGES, min_size=1, max_size=2), st.sampled_from(["snappy", "zstd", "uncompressed"]))
@example([("put", 0.6875, b"\xff")], "uncompressed")  # an internal error of DuckDB: from then on it refuses every statement
def test_damaged_parquet(changes, compression):
    import duckdb

    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "r.jsonl").write_bytes(json_lines(shop(4, 5)))
        path = Path(folder) / "r.parquet"
        with duckdb.connect() as connection:
            connection.execute(f"COPY (FROM '{folder}/r.jsonl') TO '{path}' (FORMAT parquet, COMPRESSION {compression})")
        stands(path.read_bytes(), "parquet", "", changes, Path(folder), columns=COLUMNS)
