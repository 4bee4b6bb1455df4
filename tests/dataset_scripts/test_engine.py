"""Rules 4 to 8 on an engine: the same files as without one, through Ibis on DuckDB, and on a local PySpark."""

import importlib.util
import json
import random
import shutil

import pytest
from helpers_convert import COLUMNS, DAY, START, check_set, meta_of, output, review, reviews_of, shop, tree, write

from dataset_scripts import engine
from dataset_scripts.convert import convert
from recbole_flr.errors import ConfigError, DataError

INSTALLED = {name: importlib.util.find_spec(name) is not None for name in ("ibis", "pyspark", "pyarrow")}
needs_ibis = pytest.mark.skipif(not (INSTALLED["ibis"] and INSTALLED["pyarrow"]), reason="ibis-framework is not installed")
needs_spark = pytest.mark.skipif(not all(INSTALLED.values()) or shutil.which("java") is None, reason="PySpark or Java is missing")
SPARK = "--master local[1] --conf spark.sql.shuffle.partitions=2 --conf spark.ui.enabled=false --driver-memory 1g pyspark-shell"


@pytest.fixture
def through_ibis(monkeypatch):
    """`--engine=spark` on Ibis' DuckDB: the same expressions without Java."""
    import ibis

    monkeypatch.setattr(engine, "connect", ibis.duckdb.connect)


@pytest.fixture
def on_spark(monkeypatch):
    monkeypatch.setenv("PYSPARK_SUBMIT_ARGS", SPARK)


def random_log(seed):
    """Reviews with many ties in time, repeats, odd ids and users without a sample; and options that drop some of them."""
    rng = random.Random(seed)
    users, items = [f"U{n}" for n in range(rng.choice([5, 25]))] + ["a b", "é%", "50%"], [f"B{n}" for n in range(12)] + ["q\"q"]
    reviews = [review(rng.choice(users), rng.choice(items), START + DAY * rng.randint(-300, 60) + rng.choice([0, 0, 0.25]),
                      rng.choice([5.0, 1.0, -0.0, 0.1])) for _ in range(rng.choice([80, 300]))]  # fmt: skip
    options = {
        "k": rng.choice([1, 2, 3]), "min_items": rng.choice([0, 0, 8]), "step_months": rng.choice([1, 3]),
        "drop_repeats": rng.random() < 0.5, "max_history": rng.choice([1, 2, 10]),
        "split": rng.choice(["ratio", "leave-one-out"]), "start": rng.choice(["2017-10-01", "2017-03-01"]),
        "ratios": rng.choice([(0.8, 0.1, 0.1), (0.5, 0.5, 0.0)]),
    }  # fmt: skip
    meta = [{"asin": item, "title": f"Toy {n // 2}"} for n, item in enumerate(items) if n != 3]
    return reviews, meta, options


def without_disk(report):
    return {key: value for key, value in report.items() if not key.startswith("disk") and key != "folder"}


def compare(folder, reviews, meta, options):
    """Converts with both engines. Returns whether there was an output."""
    files = write(folder / "reviews.json", reviews), write(folder / "meta.json", meta)
    outcomes = []
    for name in ("duckdb", "spark"):
        try:
            report = convert(files[0], "s", folder / name, meta=files[1], engine=name, **options)
            check_set(report, folder / name)
            outcomes.append((without_disk(report), output(folder / name)))
        except DataError as error:
            outcomes.append((str(error), without_disk(error.report)))
            assert not (folder / name).exists()
    assert outcomes[0] == outcomes[1]
    return isinstance(outcomes[0][0], dict)


@needs_ibis
def test_random_logs_through_ibis(tmp_path, through_ibis):
    written = [compare(tmp_path / str(seed), *random_log(seed)) for seed in range(10)]
    assert 3 < sum(written) < 10  # some options leave nothing


@needs_spark
@pytest.mark.parametrize("seed", [1, 2])
def test_random_logs_on_spark(tmp_path, on_spark, seed):
    compare(tmp_path, *random_log(seed))


@needs_spark
def test_a_log_of_several_files_on_spark(tmp_path, on_spark):
    """All times are equal: only the line numbers order the samples, over more rows than one task reads."""
    reviews = [review(f"R{n % 40}", f"B{n * 7 % 30}", START) for n in range(3000)]
    assert compare(tmp_path, reviews, meta_of(30), {"min_items": 0})


@needs_ibis
def test_a_log_that_is_not_amazons(tmp_path, through_ibis):
    path = write(tmp_path / "log.json", shop())
    reports = [convert(path, "s", tmp_path / name, columns=COLUMNS, engine=name) for name in ("duckdb", "spark")]
    assert without_disk(reports[0]) == without_disk(reports[1]) and reports[1]["disk_output"] > 0
    assert output(tmp_path / "duckdb") == output(tmp_path / "spark")


@needs_ibis
def test_the_engine_keeps_the_order_of_more_rows_than_a_batch(tmp_path, through_ibis):
    rng = random.Random(5)
    reviews = [review(f"R{rng.randrange(900)}", f"B{rng.randrange(50)}", START + DAY * rng.randrange(30)) for _ in range(90_000)]
    assert compare(tmp_path, reviews, meta_of(50), {"min_items": 0, "max_history": 3})


@needs_ibis
def test_an_engine_that_loses_the_order_is_refused(tmp_path, through_ibis, monkeypatch):
    from dataset_scripts import expressions

    files = write(tmp_path / "reviews.json", reviews_of()), write(tmp_path / "meta.json", meta_of())
    before, stored = tree(tmp_path), expressions.Engine.stored

    def shuffled(self, table):
        return stored(self, table.order_by(table.row.desc()) if "row" in table.columns else table)

    monkeypatch.setattr(expressions.Engine, "stored", shuffled)
    with pytest.raises(AssertionError, match="did not keep the order"):
        convert(files[0], "s", tmp_path / "out", meta=files[1], engine="spark", min_items=0)
    assert tree(tmp_path) == before


def test_an_unknown_engine(tmp_path):
    with pytest.raises(ConfigError, match="engine is 'flink'; expected duckdb or spark"):
        convert(write(tmp_path / "log.json", shop()), "s", tmp_path, columns=COLUMNS, engine="flink")


def test_missing_packages_are_named(tmp_path, monkeypatch):
    path = write(tmp_path / "log.json", shop())
    before = tree(tmp_path)
    monkeypatch.setattr(engine.importlib.util, "find_spec", lambda name: None)
    wanted = r"found spark, but ibis, pyspark, pyarrow cannot be imported; run  pip install '.\[spark\]' in the checkout"
    with pytest.raises(ConfigError, match=wanted):
        convert(path, "s", tmp_path / "out", columns=COLUMNS, engine="spark")
    assert tree(tmp_path) == before


def test_the_engine_is_no_part_of_the_report(tmp_path):
    report = convert(write(tmp_path / "log.json", shop()), "s", tmp_path / "out", columns=COLUMNS)
    assert "engine" not in json.loads((tmp_path / "out" / "s" / "s.report.json").read_text())["options"] and report["kept"] == 36
