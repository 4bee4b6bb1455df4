"""A conversion on an engine for data beyond one machine: `--engine=spark`.

DuckDB reads the log, because no engine accounts for every line of a dirty file. It writes the usable reviews as Parquet. The
engine applies the rules from the window to the split (`dataset_scripts.expressions`), and leaves the sorted samples as Parquet.
From there they are written piece by piece, with the same code as without an engine: the files are the same byte for byte.
"""

import importlib.util

import numpy as np

from dataset_scripts import disk, rules
from dataset_scripts.output import (
    PARTS, SAMPLES_HEADER, followed_by_blank, history_bytes, inter_header, kept_items, too_few, write_items,
)  # fmt: skip
from dataset_scripts.sql import literal
from dataset_scripts.tables import clean_again, slide
from dataset_scripts.writing import as_bytes, fit_id, numbers, seconds, write_batches
from recbole_flr.errors import ConfigError, first_line

ENGINES = ("duckdb", "spark")


def connect():
    """The Ibis backend of PySpark. Spark's own settings (PYSPARK_SUBMIT_ARGS, spark-defaults.conf) say where it runs.

    Raises:
        ConfigError: packages or Java are missing, or Spark does not start.
    """
    missing = [name for name in ("ibis", "pyspark", "pyarrow") if importlib.util.find_spec(name) is None]
    if missing:
        raise ConfigError(f"engine: found spark, but {', '.join(missing)} cannot be imported; run  "
                          "pip install '.[spark]' in the checkout")
    import ibis
    from pyspark.sql import SparkSession

    try:
        settings = {"spark.ui.showConsoleProgress": "false", "spark.sql.session.timeZone": "UTC"}
        session = SparkSession.builder.appName("recbole_flr").config(map=settings).getOrCreate()
        session.sparkContext.setLogLevel("ERROR")
        return ibis.pyspark.connect(session)
    except Exception as error:  # of Spark or of Java, of many kinds
        raise ConfigError(f"engine: found spark, which does not start ({first_line(error)}); it needs Java 17 or later, and a "
                          "master that can be reached") from error


def convert_rows(database, report, folder, name, start, end, k, min_items, step_months, drop_repeats, with_rating, max_history,
                 split, ratios, titles):  # fmt: skip
    """Rules 4 to 8 on the engine, and all files but the report.

    Args:
        database (Database): with the tables `reviews` and `items`; the first is dropped.
        report (dict): gets the counts, and the SHA-256 of each output.
        folder (Path): of the output; all workers of the engine must see it.
        others: as for `dataset_scripts.convert.convert`.

    Raises:
        DataError: too little remains. ConfigError: the engine does not start.
    """
    backend = connect()  # says which packages are missing
    import ibis

    from dataset_scripts.expressions import ORDER, Engine, Tables
    from dataset_scripts.expressions import samples as samples_of
    from dataset_scripts.expressions import split as split_of

    work = folder / "engine"
    work.mkdir()
    engine = Engine(backend, work)
    rating = ", rating" if with_rating else ""
    database.run(f"""COPY (SELECT reviews.rowid AS row, user, items.rowid AS item, time{rating}
        FROM reviews JOIN items USING (item) WHERE state = {rules.OK}) TO {literal(work / 'reviews.parquet')} (FORMAT parquet)""")
    database.run("DROP TABLE reviews")
    reviews = Tables(engine, engine.read(work / "reviews.parquet"), end)
    kept = slide(report, reviews, start, end, k, min_items, step_months, drop_repeats).table
    clean_again(database, report, titles)
    item = kept.select("item").distinct().execute()["item"].to_numpy(np.int64)
    item_ids, _, item_lines, counts = kept_items(database, item)
    bounds = kept.agg(first=kept.time.min(), last=kept.time.max(), users=kept.user.nunique()).execute().iloc[0]
    table, _ = engine.stored(samples_of(kept, max_history))
    count = int(table.count().execute())
    parts = split_of(table, count, split, ratios)
    sizes = {part: int(rows.count().execute()) for part, rows in zip(PARTS, parts)}
    for part, ratio in zip(PARTS, ratios if split == "ratio" else (1, 1, 1)):
        if ratio and not sizes[part]:
            raise too_few(count, part)
    users = int(bounds["users"])
    report.update((key, rules.iso(rules.from_microseconds(bounds[key]))) for key in ("first", "last"))
    report.update(users=users, items=len(item_ids), density=report["kept"] / (users * len(item_ids)), **sizes)
    report.update({key: counts[key] for key in ("distinct_titles", "items_sharing_title")})
    codes, items = np.sort(item), as_bytes(item_ids)
    in_histories = int(ibis.least(table.before, max_history).sum().execute())
    means = float(kept.user.length().mean().execute()), float(np.char.str_len(items).mean())
    report["disk_output"] = disk.samples(count, in_histories, report["kept"], *means) + sum(map(len, item_lines))
    disk.check(folder, report["disk_output"], "the files of the data set")
    followed, outputs, escaped = followed_by_blank(items), {}, set()
    place = lambda values: np.searchsorted(codes, values)

    def of_samples(batch):
        missing = len(items)
        back = [batch[f"back{step}"] for step in range(min(max_history, int(batch["before"].max())), 0, -1)]
        back = np.stack([np.where(one < 0, missing, place(one)) for one in back], axis=1)
        return [as_bytes(map(fit_id, batch["user"])), history_bytes(items, followed, back[:, :-1], back[:, -1]),
                items[place(batch["item"])], seconds(batch["time"])]  # fmt: skip

    def of_reviews(batch):
        names = [fit_id(user) for user in batch["user"]]
        escaped.update(raw for raw, one in zip(batch["user"], names) if raw != one)
        given = [numbers(batch["rating"])] if with_rating else []
        return [as_bytes(names), items[place(batch["item"])], *given, seconds(batch["time"])]

    back = ", ".join(f"coalesce(back{step}, -1) AS back{step}" for step in range(1, max_history + 1))
    for part, rows in zip(PARTS, parts):
        batches = _sorted(engine, database, rows, ORDER, f"user, item, time, before, {back}")
        path = folder / f"{name}.{part}.inter"
        outputs[path.name] = write_batches(path, SAMPLES_HEADER, map(of_samples, batches))
    batches = _sorted(engine, database, kept, ("row",), f"user, item, time{rating}")
    outputs[f"{name}.inter"] = write_batches(folder / f"{name}.inter", inter_header(with_rating), map(of_reviews, batches))
    report["escaped_ids"] = counts["escaped_ids"] + len(escaped)
    report["outputs"] = {**outputs, **write_items(folder, name, item_lines)}


def _sorted(engine, database, table, order, columns):
    """Yields the rows of a table in an order, in batches: dict, column -> array."""
    _, path = engine.stored(table.order_by(list(order)))
    files = sorted(path.glob("*.parquet")) if path.is_dir() else [path]  # Spark numbers the files of a sorted table
    if not files:
        return
    listed, last = ", ".join(map(literal, files)), None
    found = database.run(f"SELECT {columns}, {', '.join(f'{key} AS key_{key}' for key in order)} FROM read_parquet([{listed}])")
    while len(batch := found.fetch_df_chunk(32)):
        keys = np.stack([batch[f"key_{key}"].to_numpy(np.int64) for key in order], axis=1)
        ends = [tuple(keys[0]), tuple(keys[-1])]
        if (last is not None and last >= ends[0]) or ends[0] > ends[1]:
            raise AssertionError("the engine did not keep the order of a sorted table")
        last = ends[1]
        yield {column: values.to_numpy() for column, values in batch.items()}
    engine.remove(path)
