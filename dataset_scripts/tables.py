"""The tables of items and reviews in DuckDB, and the reviews that are kept (rules 1 to 6 of `dataset_scripts.convert`)."""

import time as clock

import numpy as np

from dataset_scripts import rules
from dataset_scripts.reading import load
from dataset_scripts.roles import REVIEW_ROLES
from dataset_scripts.rules import UNREADABLE
from recbole_flr.errors import DataError

_N_LINES = 5  # the report gives the numbers of this many malformed lines


def load_items(database, source, columns, title_rule, show_progress):
    """Makes the table `items`: one row for each item with a usable title, in file order.

    Args:
        database (Database), source (Source), columns (dict), show_progress: as for `dataset_scripts.reading.load`.
        title_rule (dict): keyword arguments of `dataset_scripts.rules.usable_title`.

    Returns:
        tuple: the report's counts (dict), and the Check of the file.

    Raises:
        DataError: the file cannot be read, or has no valid line or no usable title.
    """
    lines = load(database, "meta", source, columns, lambda rows: rules.item_query(rows, **title_rule), show_progress)
    counted = dict(database.rows("SELECT state, count(*) FROM meta GROUP BY state"))
    malformed = counted.get(UNREADABLE, 0) + len(lines.refused)
    total = sum(counted.values()) + len(lines.refused)
    if not counted.get(rules.OK):
        raise DataError(f"{source.path}: no valid line among {total}; expected lines with {' and '.join(columns.values())}")
    database.run("""CREATE TABLE items AS SELECT meta.rowid AS line, item, title, brand, category, price FROM meta
        WHERE rowid IN (SELECT min(rowid) FROM meta WHERE state = 0 AND title IS NOT NULL GROUP BY item) ORDER BY line""")
    database.run("DROP TABLE meta")
    n_titled = database.rows("SELECT count(*) FROM items")[0][0]
    if not n_titled:
        raise DataError(f"{source.path}: none of its {total} lines has a usable title; is this the right file?")
    return {"meta": total, "meta_malformed": malformed, "titled": n_titled}, lines.check


def load_reviews(database, source, columns, options, show_progress):
    """Makes the table `reviews`: one row for each line of the log. Needs the table `items`.

    Args:
        database (Database), source (Source), columns (dict), show_progress: as for `dataset_scripts.reading.load`.
        options (dict): `unit`, `format` and `min_rating` of `dataset_scripts.rules.review_query`.

    Returns:
        tuple: the report's counts (dict), and the Check of the file.

    Raises:
        DataError: the file cannot be read, or has no valid review of an item with a title.
    """
    query = {**options, "with_rating": "rating" in columns, "now": int(clock.time() * 1e6)}
    log_columns = {role: column for role, column in columns.items() if role in REVIEW_ROLES}
    lines = load(database, "reviews", source, log_columns, lambda rows: rules.review_query(rows, **query), show_progress)
    counts = database.rows("SELECT state, count(*), count(line) FROM reviews LEFT JOIN items USING (item) GROUP BY state")
    counted, titled = {state: count for state, count, _ in counts}, {state: count for state, _, count in counts}
    bad = f"state IN ({UNREADABLE}, {rules.MALFORMED})"
    first = [row[0] for row in database.rows(f"SELECT rowid FROM reviews WHERE {bad} ORDER BY rowid LIMIT {_N_LINES}")]
    malformed = counted.get(UNREADABLE, 0) + counted.get(rules.MALFORMED, 0) + len(lines.refused)
    total = sum(counted.values()) + len(lines.refused)
    if malformed == total:
        expected = ", ".join(log_columns.values())
        raise DataError(f"{source.path}: no valid review among {total} lines; expected lines with {expected}")
    untitled = sum(counted.get(state, 0) - titled.get(state, 0) for state in (rules.OK, rules.LOW_RATING))
    if untitled and not any(titled.values()):
        raise DataError(f"{source.path}: none of its {total - malformed} reviews is of an item with a usable title; do "
                        "the two files belong together?")  # fmt: skip
    units = database.rows(f"SELECT unit, count(*) FROM reviews WHERE NOT ({bad}) GROUP BY unit ORDER BY unit")
    units = {rules.UNIT_NAMES[code]: count for code, count in units}
    return {
        "lines": total, "malformed": malformed, "malformed_lines": lines.first(first, _N_LINES),
        "bad_ids": counted.get(rules.BAD_ID, 0),
        "bad_times": counted.get(rules.BAD_TIME, 0), "time_units": units, "without_title": untitled,
        "low_rating": titled.get(rules.LOW_RATING, 0), "ok": titled.get(rules.OK, 0),
    }, lines.check  # fmt: skip


def keep_reviews(database, report, start, end, k, min_items, step_months, drop_repeats, with_rating):
    """Applies the window, the k-core and the sliding start (rules 4 to 6).

    Args:
        database (Database): with the tables `reviews` and `items`.
        report (dict): gets the counts of what these rules dropped.
        start, end: datetimes, or None for no bound.
        k, min_items, step_months, drop_repeats: as for `dataset_scripts.convert.convert`.
        with_rating: whether the log has ratings.

    Returns:
        dict: the kept reviews in file order, as arrays [R]: `row` (in the table `reviews`), `user` (a small code), `item` (row
        in the table `items`), `time` (microseconds) and perhaps `rating`.

    Raises:
        DataError: too little remains.
    """

    def inside(begin, last):
        bounds = [f"state = {rules.OK}"]
        bounds += [f"time >= {begin}"] if begin is not None else []
        bounds += [f"time <= {last}"] if last is not None else []
        # Hashes are enough to count users. `output` checks that no two of the users that remain have the same hash.
        rating = ", rating" if with_rating else ""
        row = "reviews.rowid::UINTEGER" if report["lines"] < 2**32 else "reviews.rowid"
        columns = database.arrays(f"""SELECT {row} AS row, hash(user) AS user, items.rowid::UINTEGER AS item, time{rating}
            FROM reviews JOIN items USING (item) WHERE {' AND '.join(bounds)}""")
        order = np.argsort(columns["row"], kind="stable")  # a join does not keep the rows in order
        for name in columns:
            columns[name] = columns[name][order]
        del order
        columns["user"] = rules.codes(columns["user"])
        return columns

    columns, places, counts = rules.slide(inside, start, end, k, min_items, step_months, drop_repeats)
    report["outside_window"] = report.pop("ok") - counts.pop("inside")
    report.update(counts, kept=len(places), start=rules.iso(counts["start"]), end=rules.iso(end))
    return {name: column[places] for name, column in columns.items()}
