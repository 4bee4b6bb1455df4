"""What a conversion writes: the report, numbers of lines, what RecBole reads, and many rows in their order."""

import random
import re
from collections import Counter
from urllib.parse import unquote

import duckdb
import pytest
from helpers_convert import (
    COLUMNS, DAY, PARTS, START, TABLES, amazon, converted, json_lines, meta_of, output, parquet, review,
    reviews_of, sha256, shop, tree, write,
)  # fmt: skip
from helpers_data import make_config

from dataset_scripts import convert as module
from dataset_scripts import tables
from dataset_scripts.convert import convert
from dataset_scripts.database import Database


def test_the_report_lies_beside_the_files(tmp_path):
    """The report does not depend on the folder, and has the options that were used."""
    first, _ = amazon(tmp_path, reviews_of(), out="a", k=2, max_history=3)
    second, _ = amazon(tmp_path, reviews_of(), out="deep/b", k=2, max_history=3)
    assert tree(tmp_path / "a") == tree(tmp_path / "deep" / "b")
    assert (first["folder"], second["folder"]) == (str(tmp_path / "a" / "s"), str(tmp_path / "deep" / "b" / "s"))
    options = first["options"]
    assert (
        options["k"] == 2
        and options["max_history"] == 3
        and options["start"] == "2017-10-01"
        and options["end"] == "2018-11-01"
    )
    assert options["ratios"] == [0.8, 0.1, 0.1] and options["min_items"] == 0 and options["name"] == "s"
    assert not {"reviews", "meta", "out", "show_progress", "memory_limit"} & set(options)  # paths and what changes nothing


def test_inputs_of_one_name(tmp_path):
    reviews, meta = write(tmp_path / "a" / "data.json", reviews_of()), write(tmp_path / "b" / "data.json", meta_of())
    report, _ = converted(tmp_path, reviews, meta=meta, min_items=0)
    assert report["inputs"] == {"data.json": sha256(reviews), "data.json (meta)": sha256(meta)}
    log = write(tmp_path / "log.json.gz", shop())
    report, _ = converted(tmp_path, log, columns=COLUMNS)
    assert report["inputs"] == {"log.json.gz": sha256(log)}  # of the file as it lies there


OK_JSON = json_lines(shop())[:-1].split(b"\n")
OK_CSV = TABLES["bare"][:-1].split(b"\n")
BLANK = [b"", b"  ", b"\t\t", b"\r"]


@pytest.mark.parametrize("suffix", ["", ".gz", ".zst"])
@pytest.mark.parametrize("limit", [5, 10_000])
@pytest.mark.parametrize("end", [b"\n", b"\r\n"], ids=["lf", "crlf"])
@pytest.mark.parametrize("kind", ["jsonl", "csv"])
def test_numbers_of_malformed_lines(tmp_path, monkeypatch, kind, end, limit, suffix):
    """Malformed and blank lines stand at random places between six times 36 good lines."""
    monkeypatch.setattr(tables, "_N_LINES", limit)
    good = OK_JSON if kind == "jsonl" else OK_CSV
    bad = (
        [b'{"a": 1', b"[1]", b'{"customer": "u"}', b"\xff", b"{'customer': 'x'}"]
        if kind == "jsonl"
        else [b"a,b", b"R0,B0,,x", b"R0,B0,soon,x", b"1,2,3,4,5", b"\xff,B0,1,x"]
    )
    rng = random.Random(f"{kind} {end} {limit} {suffix}")
    blank = BLANK if end == b"\n" else BLANK[:-1]  # a CR before a CR LF would end a line
    rows, header = good[:1], kind == "csv"
    for line in [*good[1:], *good[header:] * 5]:
        rows += [rng.choice(bad + blank * 2) for _ in range(rng.choice([0, 0, 0, 1, 3]))] + [line]
    rows += [rng.choice(bad) for _ in range(rng.choice([0, 1]))]
    places = [number for number, line in enumerate(rows, start=1) if line in bad]
    data = rng.choice([b"", b"\xef\xbb\xbf"]) + end.join(rows) + rng.choice([b"", end])
    report = convert(write(tmp_path / f"log{suffix}", data), "s", tmp_path / "out", columns=COLUMNS, k=1)
    assert report["malformed_lines"] == places[:limit]
    assert (report["malformed"], report["lines"]) == (len(places), len(places) + 6 * 36) and len(places) > 30


def test_numbers_behind_quoted_line_ends(tmp_path):
    """A record may have several lines; the number is that of the first."""
    text = (
        'customer,sku,bought,product\n'  # line 1
        f'R0,B0,{START},"Toy\n\n with, lines"\n'  # 2
        '\n'
        'R0,B0\n'  # 6
        f'"R\n1",B0,{START},Toy\n'  # 7
        '"\n",x\n'  # 9
        f'R0,B0,"so\non",Toy\n'  # 11
        '   \n'
        f'R0,B0,{START},"say ""no\n"""\n'  # 14
        'R0,B0,,Toy\n'  # 16
    )  # fmt: skip
    for end in ("\n", "\r\n"):
        for data in (text, "\ufeff" + text, text[:-1]):
            log = write(tmp_path / "log.csv", data.replace("\n", end).encode())
            report, found = converted(tmp_path, log, columns=COLUMNS, ratios=(1, 0, 0))
            assert (report["malformed_lines"], report["lines"], report["escaped_ids"]) == ([6, 9, 11, 16], 7, 1)
            assert unquote(found["inter"][2].split("\t")[0]) == f"R{end}1"


def test_numbers_of_parquet_rows(tmp_path):
    log = parquet(tmp_path / "log.pq", time="CASE WHEN n IN (3, 9, 20) THEN NULL ELSE bought END")
    report, _ = converted(tmp_path, log, columns=COLUMNS)
    assert (report["lines"], report["malformed"], report["malformed_lines"]) == (36, 3, [4, 10, 21])


DAMAGING = ['"open', 'Sir "Ember" 🚒', "tab\tand\nline\r", "back\\slash \\n \\t", "NA", "None", "雪", "double  blank",
            "'single'", "#hash", "nul\0", "\u2028ls",
            "a,b;c|d", "\\", "trailing \\"]  # fmt: skip
ODD_IDS = [
    "a b",
    "50%",
    "%41",
    'q"q',
    '"open',
    "雪",
    "\u3000",
    "x\x85y",
    "t\tt",
    "n\nn",
    "5",
    "5.0",
    "[x]",
    "\ufeff",
    "%",
    "a+b&c",
    "\x01",
    "'",
    "\\t",
]


def test_titles_and_ids_come_back_through_recbole(tmp_path):
    from recbole_flr.data.catalog import Catalog
    from recbole_flr.data.loading import load_dataset

    items = [*ODD_IDS, *(f"B{number}" for number in range(len(DAMAGING)))]
    title_of = {item: (["Toy"] * len(ODD_IDS) + DAMAGING)[place] for place, item in enumerate(items)}
    title_of["\ufeff"] = "Feeling \ud83d"
    meta = [{"asin": item, "title": title, "brand": f'"{title}'} for item, title in title_of.items()]
    rows = [
        review(user, item, START + DAY * place + number)
        for number, user in enumerate(ODD_IDS)
        for place, item in enumerate(items)
    ]
    report, found = amazon(tmp_path, rows, meta, min_title_chars=1)
    assert report["escaped_ids"] == 2 * len([text for text in ODD_IDS if re.search(r'[\s"\x01]|%41', text)]) == 18
    config = make_config(tmp_path / "out", name="s", load_col=None, **dict(
        benchmark_filename=["train", "valid", "test"], alias_of_item_id=["item_id_list"], title_escapes=True,
        MAX_ITEM_LIST_LENGTH=10,
        eval_args={"split": {"LS": "valid_and_test"}, "order": "TO", "group_by": "user", "mode": "full"},
    ))  # fmt: skip
    dataset = load_dataset(config)
    assert {unquote(text) for text in dataset.field2id_token["user_id"][1:]} == set(ODD_IDS)
    names = [unquote(text) for text in dataset.field2id_token["item_id"]]
    assert set(names[1:]) == set(items) and len(dataset.item_feat) == len(items) + 1
    titles = Catalog.from_dataset(config, dataset).titles
    expected = {**title_of, "\ufeff": "Feeling \ufffd", '"open': "Toy"}
    expected = {item: title.strip(" ").strip('"') for item, title in expected.items()}
    assert {name: title for name, title in zip(names[1:], titles[1:])} == expected
    row_of = {"user_id": [], "item_id": []}
    for field in row_of:
        row_of[field] = [unquote(dataset.field2id_token[field][number]) for number in dataset.inter_feat[field].tolist()]
    written = [line.split("\t") for part in PARTS for line in found[part][1:]]
    assert Counter(zip(*row_of.values())) == Counter((unquote(row[0]), unquote(row[2])) for row in written)
    times = [float(row[3]) for row in written]
    assert sorted(dataset.inter_feat["timestamp"].tolist()) == pytest.approx(sorted(times), rel=1e-6)


class Hurried(Database):
    """Many threads in little memory, so that tables go to disk. `spilled`: the most bytes seen there."""

    spilled = 0

    def __init__(self, folder, memory_limit):
        super().__init__(folder, memory_limit)
        self.run("SET threads = 16")

    def run(self, query, *parameters):
        result = super().run(query, *parameters)
        Hurried.spilled = max(Hurried.spilled, sum(path.stat().st_size for path in self.folder.rglob("*") if path.is_file()))
        return result


@pytest.fixture(scope="module")
def many():
    """More rows than one row group of DuckDB holds.

    Returns the rows (user, item, time), with None for a broken line; the items with a title, in the order of the metadata; and
    the lines of the output.
    """
    rng = random.Random(5)
    rows = [(f"U{rng.randrange(45_000)}", f"item-{rng.randrange(305)}", START + rng.randrange(3000)) for _ in range(255_000)]
    for place in [*rng.sample(range(len(rows)), 7), len(rows) - 2]:
        rows[place] = None
    order = [f"item-{number}" for number in range(300)][::-1]  # those with a title, in the order of the metadata
    kept, known = [row for row in rows if row], set(order)
    kept = [row for row in kept if row[1] in known]
    while True:
        of_user, of_item = Counter(row[0] for row in kept), Counter(row[1] for row in kept)
        rest = [row for row in kept if of_user[row[0]] >= 5 and of_item[row[1]] >= 5]
        if len(rest) == len(kept):
            break
        kept = rest
    by_user, samples = {}, []
    for row in kept:
        by_user.setdefault(row[0], []).append(row)
    for user, of_user in by_user.items():
        of_user = sorted(of_user, key=lambda row: row[2])
        for place in range(1, len(of_user)):
            history = " ".join(row[1] for row in of_user[max(0, place - 10) : place])
            samples.append((of_user[place][2], f"{user}\t{history}\t{of_user[place][1]}\t{of_user[place][2]}"))
    samples.sort(key=lambda sample: sample[0])
    inter = [f"{user}\t{item}\t{stamp}" for user, item, stamp in kept]
    return rows, order, {"inter": inter, "samples": [line for _, line in samples]}


@pytest.mark.parametrize("hurried", [False, True])
@pytest.mark.parametrize("kind", ["jsonl", "csv", "parquet"])
def test_order_of_many_rows(tmp_path, monkeypatch, many, kind, hurried):
    if hurried:
        monkeypatch.setattr(module, "Database", Hurried)
        monkeypatch.setattr(Hurried, "spilled", 0)
    rows, order, expected = many
    broken = [place for place, row in enumerate(rows) if row is None]
    if kind == "jsonl":
        text = [row and '{"customer": "%s", "sku": "%s", "bought": %d, "more": "' % row + "x" * 90 + '"}' for row in rows]
    else:  # a quoted field with a line that looks like a record
        text = [row and "%s,%s,%d," % row + '"' + "x" * 100 + '\n%s,%s,%d,y"' % row for row in rows]
    head = ["customer,sku,bought,more"] * (kind != "jsonl")
    log = write(tmp_path / "log", "\n".join(head + [line or "broken" for line in text]).encode())
    assert log.stat().st_size > 34e6
    if kind == "parquet":  # of many row groups; the records of the CSV file, the broken ones without a time
        broken_row = "broken,,," + '"' + "x" * 90 + '"'
        write(tmp_path / "csv", "\n".join(head + [line or broken_row for line in text]).encode())
        with duckdb.connect() as connection:
            rows_of_csv = f"read_csv('{tmp_path}/csv', header = true, all_varchar = true, parallel = false)"
            connection.execute(f"COPY (FROM {rows_of_csv}) TO '{log}' (FORMAT parquet, ROW_GROUP_SIZE 10000)")
    meta = write(tmp_path / "meta.jsonl", [{"sku": item, "product": f"Toy {item}"} for item in order])
    report = convert(log, "s", tmp_path / "out", meta=meta, columns=COLUMNS, memory_limit="100MB" if hurried else "1GB")
    assert not hurried or Hurried.spilled > 1e6
    # a record of CSV has two lines, unless it is a broken one
    assert report["malformed_lines"] == [
        2 * place + 2 - n if kind == "csv" else place + 1 for n, place in enumerate(broken[:5])
    ]
    assert (report["malformed"], report["lines"]) == (len(broken), len(rows))
    found = output(tmp_path / "out")
    assert found["inter"][1:] == expected["inter"]
    assert [line for part in PARTS for line in found[part][1:]] == expected["samples"]
    assert [line.split("\t")[0] for line in found["item"][1:]] == order
