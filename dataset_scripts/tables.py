"""The tables of items and reviews in DuckDB, and the reviews that are kept (rules 1 to 6 of `dataset_scripts.convert`)."""

import time as clock

import numpy as np

from dataset_scripts import rules, windows
from dataset_scripts.reading import load
from dataset_scripts.roles import REVIEW_ROLES
from dataset_scripts.rules import UNREADABLE
from recbole_flr.errors import DataError

_N_LINES = 5  # the report gives the numbers of this many malformed lines


def load_items(database, report, source, columns, title_rule, titles, show_progress):
    """Makes the table `items`: one row for each item with a usable title, in file order.

    Args:
        database (Database), source (Source), columns (dict), show_progress: as for `dataset_scripts.reading.load`.
        report (dict): gets the counts of the file.
        title_rule (dict): keyword arguments of `dataset_scripts.rules.usable_title`.
        titles (str): one of `dataset_scripts.rules.TITLES`.

    Returns:
        Check: of the file.

    Raises:
        DataError: the file cannot be read, or has no valid line or no usable title.
    """
    lines = load(database, "meta", source, columns, lambda rows: rules.item_query(rows, **title_rule), show_progress)
    counted = dict(database.rows("SELECT state, count(*) FROM meta GROUP BY state"))
    malformed = counted.get(UNREADABLE, 0) + len(lines.refused)
    total = sum(counted.values()) + len(lines.refused)
    report.update(meta=total, meta_malformed=malformed, titled=0)
    _note_encoding(report, source, lines.check)
    if not counted.get(rules.OK):
        raise DataError(f"{source.path}: no valid line among {total}; expected lines with {' and '.join(columns.values())}"
                        + encoding_hint(report))
    chosen = "min(rowid) FILTER (title IS NOT NULL)" if titles == "first" else "CASE WHEN count(*) = count(title) THEN max(rowid) END"
    database.run(f"""CREATE TABLE items AS SELECT meta.rowid AS line, item, title, brand, category, price FROM meta
        WHERE rowid IN (SELECT {chosen} FROM meta WHERE state = {rules.OK} GROUP BY item) ORDER BY line""")
    database.run("DROP TABLE meta")
    n_titled = database.rows("SELECT count(*) FROM items")[0][0]
    if not n_titled:
        raise DataError(f"{source.path}: none of its {total} lines has a usable title; is this the right file?"
                        + encoding_hint(report))
    report["titled"] = n_titled
    return lines.check


def load_reviews(database, report, source, columns, options, show_progress):
    """Makes the table `reviews`: one row for each line of the log. Needs the table `items`.

    Args:
        database (Database), source (Source), columns (dict), show_progress: as for `dataset_scripts.reading.load`.
        report (dict): gets the counts of the file.
        options (dict): `unit`, `format` and `min_rating` of `dataset_scripts.rules.review_query`.

    Returns:
        Check: of the file.

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
    untitled = sum(counted.get(state, 0) - titled.get(state, 0) for state in (rules.OK, rules.LOW_RATING))
    units = database.rows(f"SELECT unit, count(*) FROM reviews WHERE NOT ({bad}) GROUP BY unit ORDER BY unit")
    n_unread, unread = database.rows("SELECT count(unread_time), min(unread_time) FROM reviews")[0]
    report.update({
        "lines": total, "malformed": malformed, "malformed_lines": lines.first(first, _N_LINES),
        "unread_times": n_unread, "bad_ids": counted.get(rules.BAD_ID, 0), "bad_times": counted.get(rules.BAD_TIME, 0),
        "time_units": {rules.UNIT_NAMES[code]: count for code, count in units}, "without_title": untitled,
        "low_rating": titled.get(rules.LOW_RATING, 0), "ok": titled.get(rules.OK, 0),
    })  # fmt: skip
    _note_encoding(report, source, lines.check)
    _check_times(database, source, report, options, unread, counted)
    if malformed == total:
        expected = ", ".join(log_columns.values())
        raise DataError(f"{source.path}: no valid review among {total} lines; expected lines with {expected}"
                        + encoding_hint(report))
    if untitled and not any(titled.values()):
        raise DataError(f"{source.path}: none of its {total - malformed} reviews is of an item with a usable title; do "
                        "the two files belong together?" + encoding_hint(report))  # fmt: skip
    return lines.check


def _check_times(database, source, report, options, unread, counted):
    """Refuse a log whose times were not understood: nearly all unreadable, all out of range, or dates read as seconds."""
    n_read = report["lines"] - report["malformed"]
    if report["unread_times"] > max(9 * n_read, report["lines"] / 2):
        given = f"do not fit --time-format {options['format']}" if options["format"] else "are neither numbers nor ISO dates"
        raise DataError(f"{source.path}: {report['unread_times']} of {report['lines']} lines have times that {given}, such as "
                        f"{unread!r}; say how they are written with --time-format, such as %d/%m/%Y or %m/%d/%Y %H:%M")
    good = counted.get(rules.OK, 0) + counted.get(rules.LOW_RATING, 0)
    if report["bad_times"] and not good:
        units = ", ".join(report["time_units"])
        raise DataError(f"{source.path}: none of its {n_read} reviews has a usable time: {report['bad_times']} are not positive "
                        f"or lie in the future, read as {units} since 1970; say what they are with --time-unit, or with "
                        "--time-format (such as %Y%m%d%H%M%S for 20240301120000)")
    if options["unit"] == "auto" and not options["format"] and good:
        n_dates, example = database.rows(rules.compact_dates("reviews"))[0]
        if n_dates > 0.9 * good:
            raise DataError(f"{source.path}: {n_dates} of {good} times look like dates without separators, such as {example}; "
                            "say so with --time-format %Y%m%d (or, if they are seconds of the year 1970, with --time-unit s)")


def _note_encoding(report, source, check):
    """Add the first byte of a file that is not UTF-8 to the report."""
    found = check.not_utf8
    if found and all(each["file"] != source.path.name for each in report.setdefault("not_utf8", [])):
        report["not_utf8"].append({"file": source.path.name, "line": found[0], "byte": f"0x{found[1]:02X}"})


def encoding_hint(report):
    """What to say about bytes that are not UTF-8; an empty text if there are none."""
    found = next(iter(report.get("not_utf8", ())), None)
    if not found:
        return ""
    return (f"; line {found['line']} of {found['file']} has the byte {found['byte']}, which is not UTF-8, and such lines are "
            "malformed: if the file has another encoding, name it, such as --encoding latin-1 or cp1252")


def clean_again(database, report, titles):
    """Cleans the titles once more for each window after the first, as the published script does with `titles="published"`."""
    if titles == "published":
        for _ in report["windows"][1:]:
            database.run(f"UPDATE items SET title = {rules.stripped_title('title')}")


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
        columns["user"] = windows.codes(columns["user"])
        return columns

    rows = slide(report, windows.Arrays(inside, end), start, end, k, min_items, step_months, drop_repeats)
    return {name: column[rows.places] for name, column in rows.columns.items()}


def slide(report, reviews, start, end, *options):
    """`windows.slide`, whose counts go into the report. Returns the kept reviews."""
    try:
        rows, counts = windows.slide(reviews, start, end, *options)
    except windows.TooLittle as error:
        counts = error.counts
        report["outside_window"] = report.pop("ok") - counts.pop("inside")
        report.update(counts, start=rules.iso(counts["start"]), end=rules.iso(end))
        if 2 * report["malformed"] < report["lines"]:
            raise
        raise DataError(f"{error}; but first look at the file: {report['malformed']} of its {report['lines']} lines are malformed"
                        + encoding_hint(report)) from error
    report["outside_window"] = report.pop("ok") - counts.pop("inside")
    report.update(counts, kept=rows.count(), start=rules.iso(counts["start"]), end=rules.iso(end))
    return rows
