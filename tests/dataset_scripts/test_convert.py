"""Conversions of good files: formats, options, the report, the command line, and RecBole reads the output."""

import os
import random
import re
import subprocess
import sys
import time
from collections import Counter
from datetime import datetime, timedelta, timezone
from urllib.parse import unquote

import duckdb
import pytest
from helpers_convert import (
    COLUMNS, COLUMNS_OPTION, DAY, KINDS, PARTS, ROOT, START, check_set, json_lines, lines, meta_of, output, pack, review,
    reviews_of, sha256, shop, simple, tree, write,
)  # fmt: skip
from helpers_data import make_config

from dataset_scripts import convert as module
from dataset_scripts import tables
from dataset_scripts.convert import convert
from dataset_scripts.database import Database
from recbole_flr.data.atomic import read_columns, unescape
from recbole_flr.errors import ConfigError, DataError

REAL = ROOT.parent / "shared" / "data"


def converted(folder, reviews, out="out", **options):
    """Converts and checks the output. Returns the report, and kind -> lines of the files."""
    report = convert(reviews, "s", folder / out, **{"k": 1, **options})
    check_set(report, folder / out)
    return report, output(folder / out)


def amazon(folder, rows, meta=None, out="out", **options):
    """The same for rows in Amazon's schema of 2018, without sliding."""
    files = write(folder / "reviews.json", rows), write(folder / "meta.json", meta_of() if meta is None else meta)
    return converted(folder, files[0], out, meta=files[1], **{"min_items": 0, **options})


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


# ---- formats -----------------------------------------------------------------------------------------------------------


def files_of(folder):
    return {kind: (folder / "s" / f"s.{kind}").read_bytes() for kind in (*KINDS, "yaml")}


@pytest.fixture(scope="module")
def plain_files(tmp_path_factory):
    """The output for the files of `simple`."""
    folder = tmp_path_factory.mktemp("plain")
    reviews, meta = simple(folder)
    convert(reviews, "s", folder / "out", meta=meta, min_items=0)
    return files_of(folder / "out")


@pytest.mark.parametrize("suffix", ["", ".gz", ".zst"])
@pytest.mark.parametrize("as_name", [".json", ".json.gz", ".csv.zst", ".parquet", ""])
def test_content_tells_the_format_whatever_the_name(tmp_path, plain_files, suffix, as_name):
    hidden = [tmp_path / f"{name}{as_name}" for name in ("reviews", "meta")]
    for path, rows in zip(hidden, (reviews_of(), meta_of())):
        path.write_bytes(pack(json_lines(rows), suffix))
    convert(hidden[0], "s", tmp_path / "out", meta=hidden[1], min_items=0)
    assert files_of(tmp_path / "out") == plain_files


def as_2023(rows):
    """Reviews of 2018 in the schema of 2023. There, `asin` is a variant of the item, and `title` is the title of the review."""
    return [
        {"rating": row["overall"], "title": "Great", "asin": "X" + row["asin"], "parent_asin": row["asin"],
         "user_id": row["reviewerID"],
         "timestamp": row["unixReviewTime"] * 1000 + 123} for row in rows
    ]  # fmt: skip


@pytest.mark.parametrize("suffix", ["", ".gz", ".zst"])
def test_amazon_2023(tmp_path, suffix):
    meta = [{"title": f"Toy {item}", "store": "Us", "categories": ["Toys & Games", "Dice"], "price": 9.5 + item,
             "parent_asin": f"B{item}",
             "main_category": "Toys"} for item in range(6)]  # fmt: skip
    reviews = write(tmp_path / f"reviews.jsonl{suffix}", as_2023(reviews_of()))
    report, found = converted(tmp_path, reviews, meta=write(tmp_path / f"meta.jsonl{suffix}", meta), min_items=0)
    assert report["time_units"] == {"ms": 36} and report["kept"] == 36
    assert found["inter"][1] == f"R0\tB0\t5.0\t{START}.123"
    head = "item_id:token\ttitle:token\tbrand:token\tcategories:token_seq\tprice:float"
    assert found["item"][:3] == [head, "B0\tToy 0\tUs\tToys_&_Games Dice\t9.5", "B1\tToy 1\tUs\tToys_&_Games Dice\t10.5"]


def test_amazon_2023_as_csv_of_ratings(tmp_path):
    rows = "".join(
        f"{row['user_id']},{row['parent_asin']},{row['rating']},{row['timestamp']}\n" for row in as_2023(reviews_of())
    )
    reviews = write(tmp_path / "ratings.csv.gz", b"user_id,parent_asin,rating,timestamp\n" + rows.encode())
    meta = write(tmp_path / "meta.jsonl", [{"parent_asin": f"B{item}", "title": f"Toy {item}"} for item in range(6)])
    report, found = converted(tmp_path, reviews, meta=meta, min_items=0)
    assert report["kept"] == 36 and found["inter"][1] == f"R0\tB0\t5.0\t{START}.123"


def test_amazon_metadata_without_some_columns(tmp_path):
    """CSV and Parquet files list their columns. Optional columns of the schema may be missing there."""
    meta = write(tmp_path / "meta.csv", b"asin,title,brand\nB0,Toy 0,Us\n")
    reviews = write(tmp_path / "reviews.json", [review("R0", "B0", START + day) for day in range(9)])
    for format in ("auto", "csv"):
        _, found = converted(tmp_path, reviews, meta=meta, min_items=0, meta_format=format, ratios=(1, 0, 0))
        assert found["item"] == ["item_id:token\ttitle:token\tbrand:token", "B0\tToy 0\tUs"]
    duckdb.sql(f"COPY (SELECT 'B0' AS asin, 'Toy 0' AS title) TO '{tmp_path}/meta.pq' (FORMAT parquet)")
    _, found = converted(tmp_path, reviews, meta=tmp_path / "meta.pq", min_items=0, ratios=(1, 0, 0))
    assert found["item"] == ["item_id:token\ttitle:token", "B0\tToy 0"]


def test_the_release_can_be_said(tmp_path):
    """The lines have the keys of both releases."""
    rows = [{**old, **new, "overall": 1.0} for old, new in zip(reviews_of(), as_2023(reviews_of()))]
    rows = [{**row, "reviewerID": "R" + row["reviewerID"]} for row in rows]
    meta = [{**row, "parent_asin": row["asin"], "asin": "X" + row["asin"]} for row in meta_of()]
    files = {"reviews": write(tmp_path / "r.json", rows), "meta": write(tmp_path / "m.json", meta)}
    _, found = converted(tmp_path, **files, format="amazon-2018", meta_format="amazon-2018", min_items=0)
    assert found["inter"][1] == f"RR0\tXB0\t1.0\t{START}"
    _, found = converted(tmp_path, **files, format="amazon-2023", min_items=0)
    assert found["inter"][1] == f"R0\tB0\t5.0\t{START}.123"
    assert found["item"][1] == "B0\tToy 0"


def as_table(rows, separator=",", end="\n", quote='"'):
    """The bytes of a CSV file; every field of a row is quoted unless `quote` is empty."""
    q = quote
    text = [
        separator.join(f"{q}{str(value).replace(q, q + q) if q else value}{q}" for value in row.values()) for row in rows
    ]
    return (end.join([separator.join(rows[0]), *text]) + end).encode()


TABLES = {
    "csv": as_table(shop()), "crlf": as_table(shop(), end="\r\n"), "cr": as_table(shop()).replace(b"\n", b"\r\n", 9),
    "tsv": as_table(shop(), "\t"),
    "semicolon": as_table(shop(), ";"), "pipe": as_table(shop(), "|"), "bare": as_table(shop(), quote=""),
    "bare tsv": as_table(shop(), "\t", quote=""),
    "bom": b"\xef\xbb\xbf" + as_table(shop()), "no end": as_table(shop())[:-1], "jsonl": json_lines(shop()),
    "jsonl crlf": json_lines(shop()).replace(b"\n", b"\r\n"), "jsonl bom": b"\xef\xbb\xbf" + json_lines(shop()),
    "jsonl no end": json_lines(shop())[:-1],
    "pandas": as_table([{"": n, **row} for n, row in enumerate(shop())]),
    "spare names": as_table([{"x": 1, **row, "Sku": 2} for row in shop()]),
}  # fmt: skip


@pytest.mark.parametrize("kind, suffix", [
    *((kind, "") for kind in TABLES), *((kind, suffix) for kind in ("csv", "cr", "jsonl bom") for suffix in (".gz", ".zst")),
])  # fmt: skip
def test_own_logs(tmp_path, kind, suffix):
    report, found = converted(tmp_path, write(tmp_path / f"log{suffix}", TABLES[kind]), columns=COLUMNS)
    assert (report["lines"], report["malformed"], report["start"], report["windows"]) == (36, 0, "-", [["-", 6]])
    assert found["inter"] == [
        "user_id:token\titem_id:token\ttimestamp:float",
        *(f"R{user}\tB{item}\t{START + DAY * item}" for user in range(6) for item in range(6)),
    ]  # fmt: skip
    assert found["item"] == ["item_id:token\ttitle:token", *(f"B{item}\tToy {item}" for item in range(6))]


def test_delimiter_and_quote_can_be_said(tmp_path):
    rows = [{**row, "product": f"'A,B;;' {row['product']}"} for row in shop()]
    log = write(tmp_path / "log.csv", as_table(rows, ":", quote="'").replace(b"customer", b"a;b;c;d,customer",
                                                                             1).replace(b"\n'", b"\n0:'")
                .replace(b"a;b;c;d,customer", b"a;b;c;d:customer"))  # fmt: skip
    _, found = converted(tmp_path, log, columns=COLUMNS, delimiter=":", quote="'")
    assert found["item"][1] == "B0\t'A,B;;' Toy 0"
    bare = as_table([{**row, "product": f'"Big" {row["product"]}"'} for row in shop()], "\t", quote="")
    _, found = converted(tmp_path, write(tmp_path / "log.tsv", bare), columns=COLUMNS, quote="")
    assert found["item"][1] == 'B0\tBig" Toy 0'  # the title rule strips quotes at the ends


def test_the_format_can_be_said(tmp_path):
    columns = {**COLUMNS, "user": "{customer"}
    log = write(tmp_path / "log", as_table([{"{customer": row["customer"], **row} for row in shop()]))
    with pytest.raises(DataError, match="no column '{customer' .user., 'sku' .item., 'bought' .time.; its columns are none"):
        convert(log, "s", tmp_path / "out", columns=columns)
    report, _ = converted(tmp_path, log, columns=columns, format="csv")
    assert report["kept"] == 36
    log = write(tmp_path / "log", as_table([{"a,b,c,d,e,f": 1, **row} for row in shop()], "\t"))
    with pytest.raises(DataError, match="no column 'customer'"):
        convert(log, "s", tmp_path / "none", columns=COLUMNS)
    report, _ = converted(tmp_path, log, columns=COLUMNS, format="tsv")
    assert report["kept"] == 36


def parquet(path, time="bought", user="customer", item="sku", title="product", more="", where="true"):
    """Writes the shop as a Parquet file. The arguments are SQL over its columns and `n`, the number of the row."""
    rows = ", ".join(
        f"({n}, '{row['customer']}', '{row['sku']}', {row['bought']}, '{row['product']}')" for n, row in enumerate(shop())
    )
    values = f"(SELECT * FROM (VALUES {rows}) AS t(n, customer, sku, bought, product) WHERE {where} ORDER BY n)"
    query = f"SELECT {user} AS customer, {item} AS sku, {time} AS bought, {title} AS product {more} FROM {values}"
    with duckdb.connect() as connection:
        connection.execute("SET TimeZone = 'Asia/Tokyo'")
        connection.execute(f"COPY ({query}) TO '{path}' (FORMAT parquet)")
    return path


PARQUET_TIMES = {  # SQL -> what is added to the seconds
    "bought": "", "bought::BIGINT * 1000 + 5": ".005", "bought::DOUBLE": "", "bought::UINTEGER": "", "bought::VARCHAR": "",
                 "bought::DECIMAL(18, 3) + 0.25": ".25", "bought::DOUBLE + 0.5": ".5",
    "make_timestamp(bought::BIGINT * 1000000 + 7)": ".000007", "make_timestamp(bought::BIGINT * 1000000)::TIMESTAMP_S": "",
                 "make_timestamp(bought::BIGINT * 1000000 + 1000)::TIMESTAMP_MS": ".001",
    "make_timestamp_ns(bought::BIGINT * 1000000000 + 9000)": ".000009", "to_timestamp(bought)": "",
                 "make_timestamp(bought::BIGINT * 1000000)::DATE": "",
    "make_timestamp(bought::BIGINT * 1000000)::VARCHAR": "",
                 "strftime(make_timestamp(bought::BIGINT * 1000000), '%Y-%m-%dT%H:%M:%SZ')": "",
}  # fmt: skip


@pytest.mark.parametrize("sql", PARQUET_TIMES)
def test_times_of_parquet(tmp_path, sql):
    report, found = converted(tmp_path, parquet(tmp_path / "log", time=sql), columns=COLUMNS)
    assert found["inter"][2] == f"R0\tB1\t{START + DAY}{PARQUET_TIMES[sql]}"
    assert report["kept"] == 36


def test_ids_of_parquet(tmp_path):
    """pandas writes integers as floats if values are missing. Lists are not ids."""
    number = "CASE n WHEN 7 THEN NULL WHEN 8 THEN 'nan'::DOUBLE WHEN 9 THEN 2.5 WHEN 10 THEN 1e300 ELSE n // 6 END::DOUBLE"
    report, found = converted(tmp_path, parquet(tmp_path / "log", user=number, item="n % 6"), columns=COLUMNS)
    assert (report["malformed_lines"], report["bad_ids"]) == ([8], 1)
    assert [line.split("\t")[:2] for line in found["inter"][6:12]] == [
        ["0", "5"],
        ["1", "0"],
        ["2.5", "3"],
        ["1e+300", "4"],
        ["1", "5"],
        ["2", "0"],
    ]
    for nested in ("[customer]", "{'a': customer}", "MAP {'a': customer}"):
        with pytest.raises(DataError, match="no valid review among 36 lines"):
            convert(parquet(tmp_path / "log", user=nested), "s", tmp_path / "none", columns=COLUMNS)


def test_text_of_parquet_that_is_not_said_to_be_text(tmp_path):
    """Spark and others may write bytes. Bytes that are not UTF-8 are still an id, but not a title."""
    user = r"CASE n % 6 WHEN 5 THEN '\xFF\x00'::BLOB ELSE encode('é' || n % 6) END"
    title = r"CASE n WHEN 0 THEN '\xFF'::BLOB ELSE encode('Café 雪 ' || sku) END"
    _, found = converted(tmp_path, parquet(tmp_path / "log", user=user, title=title), columns=COLUMNS)
    assert {line.split("\t")[0] for line in found["inter"][1:]} == {"é0", "é1", "é2", "é3", "é4", r"\xFF\x00"}
    assert all(line.split("\t")[1] == "Café 雪 " + line.split("\t")[0] for line in found["item"][1:])


def test_other_columns_of_parquet(tmp_path):
    more = ", ['Toys & Games', NULL, 'Dice'] AS aisle, 3.5::FLOAT AS stars, 'nan'::DOUBLE AS usd, ['no', 'text'] AS maker"
    columns = {**COLUMNS, "category": "aisle", "rating": "stars", "price": "usd", "brand": "maker"}
    _, found = converted(tmp_path, parquet(tmp_path / "log", more=more), columns=columns)
    assert found["item"][:2] == ["item_id:token\ttitle:token\tcategories:token_seq", "B0\tToy 0\tToys_&_Games Dice"]
    assert found["inter"][1] == f"R0\tB0\t3.5\t{START}"


def test_folders_named_like_columns_say_nothing(tmp_path):
    """By default, DuckDB would take `customer=x` in a path for a column."""
    folder = tmp_path / "customer=x" / "bought=1"
    folder.mkdir(parents=True)
    for log in (parquet(folder / "a"), write(folder / "b.csv", TABLES["csv"]), write(folder / "c.json", TABLES["jsonl"])):
        report, _ = converted(tmp_path, log, columns=COLUMNS)
        assert report["users"] == 6


@pytest.mark.parametrize("kind", ["csv", "jsonl", "parquet"])
def test_paths_with_patterns_and_quotes(tmp_path, kind):
    folder = tmp_path / "it's a [1]* ?.json" / "{a}"
    folder.mkdir(parents=True)
    path = folder / "it's [1]*?.json"
    parquet(tmp_path / "log") if kind == "parquet" else write(tmp_path / "log", TABLES[kind])
    (tmp_path / "log").rename(path)
    write(folder / "it's 1x.json", b"what the pattern would find\n")
    report, _ = converted(tmp_path, path, columns=COLUMNS)
    assert report["kept"] == 36 and report["inputs"] == {path.name: sha256(path)}


def test_names_of_columns_are_nothing_but_names(tmp_path):
    """Columns may be called like words of SQL, and hold quotes and dots. A column called `joined` is not a join."""
    names = ["joined", 'o"clock', "it's", "a.b"]
    rows = [dict(zip(names, row.values())) for row in shop()]
    for log in (write(tmp_path / "r.json", rows), write(tmp_path / "r.csv", as_table(rows, quote=""))):
        report, _ = converted(tmp_path, log, columns=dict(zip(COLUMNS, names)), quote="")
        assert report["kept"] == 36


def test_one_column_in_two_roles(tmp_path):
    columns = {**COLUMNS, "title": "sku", "rating": "bought"}
    for kind in ("csv", "jsonl"):
        _, found = converted(tmp_path, write(tmp_path / "log", TABLES[kind]), columns=columns)
        assert found["item"][1] == "B0\tB0"
        assert found["inter"][1] == f"R0\tB0\t{START}.0\t{START}"


def test_titles_in_a_file_of_their_own(tmp_path):
    """The two files may have different formats. `columns` names the columns of the items, too, unless `meta_columns` does."""
    log = write(tmp_path / "log.csv", as_table([{key: row[key] for key in ("customer", "sku", "bought")} for row in shop()]))
    items = [{"sku": f"B{item}", "product": f"Toy {item}", "usd": f"${item}.50"} for item in range(6)]
    files = [write(tmp_path / "items.tsv.gz", as_table(items, "\t")), write(tmp_path / "items.jsonl", items),
             parquet(tmp_path / "items.pq", more=", '$' || n || '.50' AS usd", where="n < 6")]  # fmt: skip
    for meta in files:
        _, found = converted(tmp_path, log, meta=meta, columns={**COLUMNS, "price": "usd"})
        assert found["item"][1:3] == ["B0\tToy 0\t0.50", "B1\tToy 1\t1.50"]
        _, found = converted(tmp_path, log, meta=meta, columns=COLUMNS, meta_columns={"item": "sku", "title": "usd"})
        assert found["item"][1:3] == ["B0\t$0.50", "B1\t$1.50"]
    meta = write(tmp_path / "meta.json", meta_of())
    _, found = converted(
        tmp_path, log, meta=meta, columns={key: COLUMNS[key] for key in ("user", "item", "time")}, meta_format="amazon-2018"
    )
    assert found["item"][1] == "B0\tToy 0"
    reviews, _ = simple(tmp_path)
    _, found = converted(tmp_path, reviews, meta=files[0], meta_columns={"item": "sku", "title": "product"}, min_items=0)
    assert found["item"][1] == "B0\tToy 0"


# ---- rules and options -------------------------------------------------------------------------------------------------


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


# ---- the report --------------------------------------------------------------------------------------------------------


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


# ---- what RecBole makes of it ------------------------------------------------------------------------------------------

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


# ---- many rows ---------------------------------------------------------------------------------------------------------


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


# ---- the command line --------------------------------------------------------------------------------------------------


def cli(*arguments, program="convert", **options):
    command = [sys.executable, "-m", f"dataset_scripts.{program}", *map(str, arguments)]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, **options)


@pytest.mark.parametrize("program", ["convert", "amazon"])
def test_command_line(tmp_path, program):
    reviews, meta = simple(tmp_path)
    shared = ("--reviews", reviews, "--meta", meta, "--name", "s", "--out", tmp_path / "out")
    done = cli(*shared, "--no-sliding", "--max-history", "2", "--k", "6", program=program)
    assert done.returncode == 0, done.stderr
    assert re.search(r"^train +24 +rows$", done.stdout, re.MULTILINE)
    assert re.search(r"^= kept +36 +2017-10-01 to 2017-10-06$", done.stdout, re.MULTILINE)
    convert(reviews, "s", tmp_path / "same", meta=meta, min_items=0, max_history=2, k=6)
    assert tree(tmp_path / "out") == tree(tmp_path / "same")


def test_a_name_that_the_terminal_cannot_show(tmp_path):
    reviews, meta = simple(tmp_path)
    shared = ("--reviews", reviews, "--meta", meta, "--name", "sö", "--out", tmp_path / "out", "--no-sliding", "--k", "6")
    done = cli(*shared, env={**os.environ, "PYTHONIOENCODING": "ascii"})
    assert done.returncode == 0, done.stderr
    assert re.search(r"^written to .*s\\xf6$", done.stdout, re.MULTILINE)
    assert (tmp_path / "out" / "sö" / "sö.report.json").exists()


def test_command_line_of_an_own_log(tmp_path):
    log = write(tmp_path / "log.csv", TABLES["csv"])
    done = cli("--interactions", log, "--columns", COLUMNS_OPTION, "--name", "s", "--out", tmp_path / "out")
    assert done.returncode == 0, done.stderr
    convert(log, "s", tmp_path / "same", columns=COLUMNS)
    assert tree(tmp_path / "out") == tree(tmp_path / "same")


OPTIONS = [  # option, its text, keyword, value
    ("--out", "elsewhere", "out", "elsewhere"), ("--meta", "m", "meta", "m"), ("--items", "m", "meta", "m"),
    ("--columns", "user=u,item=i b,time=t", "columns", {"user": "u", "item": "i b", "time": "t"}),
    ("--meta-columns", "item=i,title=a=b", "meta_columns", {"item": "i", "title": "a=b"}),
           ("--format", "tsv", "format", "tsv"),
    ("--meta-format", "amazon-2023", "meta_format", "amazon-2023"), ("--delimiter", ";", "delimiter", ";"),
           ("--quote", "", "quote", ""), ("--encoding", "latin-1", "encoding", "latin-1"),
    ("--time-unit", "ms", "time_unit", "ms"), ("--time-format", "%Y", "time_format", "%Y"),
           ("--start", "none", "start", "none"),
    ("--end", "2018-01-01", "end", "2018-01-01"), ("--k", "2", "k", 2), ("--min-items", "4", "min_items", 4),
           ("--no-sliding", None, "min_items", 0),
    ("--step-months", "5", "step_months", 5), ("--min-rating", "3.5", "min_rating", 3.5),
           ("--drop-repeats", None, "drop_repeats", True),
    ("--max-title-words", "9", "max_title_words", 9), ("--min-title-chars", "1", "min_title_chars", 1),
    ("--drop-markup-titles", None, "drop_markup_titles", True), ("--max-history", "3", "max_history", 3),
    ("--titles", "first", "titles", "first"),
    ("--split", "leave-one-out", "split", "leave-one-out"), ("--ratios", "0.5,0.25,0.25", "ratios", (0.5, 0.25, 0.25)),
    ("--memory-limit", "500MB", "memory_limit", "500MB"), ("--engine", "spark", "engine", "spark"),
]  # fmt: skip


def given_to_convert(monkeypatch, *words):
    calls = []

    def stand_in(reviews, name, out="dataset", **options):
        calls.append({"reviews": reviews, "name": name, "out": out, **options})
        raise DataError("stop here")

    monkeypatch.setattr(module, "convert", stand_in)
    assert module.main(["--reviews", "r", "--name", "n", *words]) == 2
    return calls[0]


@pytest.mark.parametrize("option, text, keyword, value", OPTIONS)
def test_every_option_reaches_convert(monkeypatch, option, text, keyword, value):
    given = given_to_convert(monkeypatch, option, *([] if text is None else [text]))
    assert given == {**given_to_convert(monkeypatch), keyword: value}
    assert (given["reviews"], given["name"]) == ("r", "n")


def test_every_keyword_of_convert_has_its_option(monkeypatch):
    """The defaults on the command line are those of the function, too."""
    import inspect

    defaults = {name: parameter.default for name, parameter in inspect.signature(convert).parameters.items()}
    given = given_to_convert(monkeypatch)
    assert set(defaults) == set(given) == {keyword for _, _, keyword, _ in OPTIONS} | {"reviews", "name", "show_progress"}
    same = set(defaults) - {"reviews", "name", "show_progress"}
    assert {name: defaults[name] for name in same} == {name: given[name] for name in same}


@pytest.mark.parametrize(
    "words",
    [["--columns", "user"], ["--columns", ""], ["--ratios", "a,b"], ["--k", "x"], ["--split", "x"], ["--format", "x"]],
)
def test_values_that_mean_nothing(words, capsys):
    with pytest.raises(SystemExit) as caught:
        module.main(["--reviews", "r", "--name", "n", *words])
    assert caught.value.code == 2
    assert words[0] in capsys.readouterr().err


def test_progress_bars_change_nothing(tmp_path, capsys):
    reviews, meta = simple(tmp_path)
    for show in (False, True):
        convert(reviews, "s", tmp_path / str(show), meta=meta, min_items=0, show_progress=show)
    assert tree(tmp_path / "False") == tree(tmp_path / "True")
    assert capsys.readouterr().out == ""
