"""Conversions of good files in every format: Amazon's releases, own logs, Parquet, titles in a file of their own."""

import duckdb
import pytest
from helpers_convert import (
    COLUMNS, DAY, START, TABLES, as_table, converted, files_of, json_lines, meta_of, pack, parquet, review,
    reviews_of, sha256, shop, simple, write,
)  # fmt: skip

from dataset_scripts.convert import convert
from recbole_flr.errors import DataError


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
