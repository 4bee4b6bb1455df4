"""Reviews, or any log of who chose what and when, -> RecBole benchmark files.

    python -m dataset_scripts.convert --reviews CDs_and_Vinyl_5.json.gz --meta meta_CDs_and_Vinyl.json.gz --name cds
    python -m dataset_scripts.convert --reviews log.csv --columns user=customer,item=sku,time=bought,title=name --name shop

Amazon's files of 2018 and 2023 are recognised by themselves; of any other CSV, TSV, JSON-lines or Parquet file `--columns`
says what its columns are. Files may be gzip or zstd. For Amazon's the rules are, by default, those of the D3 / LatentR3 line
of work, so that the published splits come out row by row; for others there is no window. In this order:

1. Lines. One that is not a row (no JSON object, wrong number of fields), or without user, item, time or (where there is such
   a column) rating, is malformed. A user or item called as pandas calls missing values (`NA`, `null`, ...) is dropped; other
   ids that RecBole could not read (blanks, tabs, quotes, ...) are percent-encoded. Times are UTC: seconds, milli-, micro- or
   nanoseconds by their size, or ISO dates; one that is not positive or lies in the future is dropped.
2. Titles. An item whose raw title is absent or holds `<span id` has none. Else `&quot;` and `&amp;` are unescaped, blanks
   and then quotes stripped from both ends, and a title of one character, of nothing but white space or of more than 20
   pieces between single blanks is dropped. Of several metadata lines of an item the first with a usable title counts.
3. Ratings below `min_rating` go, if it is given.
4. Window. Reviews with start <= time <= end, both at midnight UTC (the published script too keeps a review at the very
   end). Repeated reviews of one item by one user stay, unless `drop_repeats` keeps the first only.
5. k-core. Users and items with fewer than k reviews (not distinct partners) go, until none is left that has fewer.
6. Sliding. While fewer than `min_items` items remain, the start moves back `step_months` and 4 and 5 run afresh.
7. Samples. Users in the order of their first kept review in the file; their reviews sorted by time, ties in file order;
   every review but a user's first is a target, its history the `max_history` reviews before it.
8. Split. Samples sorted by the target's time, ties in the order of 7; cut at int(0.8 N) and int(0.9 N). With
   `split="leave-one-out"` a user's last sample is test, the one before it valid, the rest train.
"""

import argparse
import json
import logging
import math
import re
import shutil
import sys
import time as clock
from datetime import datetime, timezone
from pathlib import Path

import numpy as np

from dataset_scripts import amazon, rules
from dataset_scripts.reading import ROLES, UNREADABLE, Database, check_columns, load
from dataset_scripts.report import print_report
from dataset_scripts.sources import FORMATS, listed, literal, recognise
from dataset_scripts.writing import as_bytes, fit_id, numbers, seconds, write_lines, write_rows
from recbole_flr.data.atomic import escape, staged
from recbole_flr.errors import ConfigError, DataError, FLRError

OPTIONS = (  # of the data set, for recbole_flr.config: the split is in the files, titles are escaped
    "benchmark_filename: [train, valid, test]", "alias_of_item_id: [item_id_list]", "title_escapes: True",
    "eval_args: {split: {LS: valid_and_test}, order: TO, group_by: user, mode: full}",
)
PARTS = ("train", "valid", "test")
KINDS = (*(f"{part}.inter" for part in PARTS), "inter", "item", "yaml", "report.json")
SPLITS = ("ratio", "leave-one-out")
N_LINES = 5  # so many malformed lines have their numbers in the report
_WITHOUT_EFFECT = ("reviews", "meta", "out", "show_progress", "memory_limit")  # on the files; or their paths
_PRICE = re.compile(r"\s*\$?\s*([0-9]{1,3}(?:,[0-9]{3})+(?:\.[0-9]+)?|[0-9]+(?:\.[0-9]+)?)\s*")


def convert(reviews, name, out="dataset", *, meta=None, columns=None, meta_columns=None, format="auto", meta_format="auto",
            delimiter=None, quote='"', time_unit="auto", time_format=None, start="default", end="default", k=5,
            min_items=None, step_months=3, max_history=10, ratios=(0.8, 0.1, 0.1), split="ratio", min_rating=None,
            drop_repeats=False, max_title_words=20, min_title_chars=2, drop_markup_titles=False, memory_limit="200MB",
            show_progress=False):  # fmt: skip
    """Converts one data set; the rules are at the top of this module.

    Writes `<out>/<name>/<name>.{train,valid,test}.inter`, `<name>.inter` (all kept reviews, in file order), `<name>.item`
    (in metadata order: title and, if any kept item has them, brand, categories, price; text is escaped, see
    `recbole_flr.data.atomic`), `<name>.yaml`, the options with which recbole_flr reads them, and `<name>.report.json`:
    all of them or, on any error, none.

    Args:
        reviews: the log; JSON lines, CSV, TSV or Parquet, the first three plain, gzip or zstd (told by content, not name).
        meta: the items' titles, in a file of their own. Not needed if `columns` names a title.
        columns (dict): role (user, item, time, title, rating, brand, category, price) -> column of `reviews`, for files that
            are not Amazon's.
        meta_columns (dict): the same of `meta` (item, title, ...); by default what `columns` says.
        format, meta_format: amazon-2018, amazon-2023, jsonl, csv, tsv, parquet, or auto.
        delimiter, quote: of CSV and TSV. An empty `quote`: fields are never quoted.
        time_unit: s, ms, us, ns, or auto: by the size of each number.
        time_format: strptime format of times, in place of numbers and ISO dates.
        start, end: ISO dates (or date and time), UTC unless they carry an offset; both ends belong to the window. None: no
            bound. Default: the published window of Amazon's files, no bound for others.
        k: the k of the k-core; 1 keeps everything.
        min_items: slide back until this many items remain; 0 keeps the start. Default: 5000 of Amazon's files, 0 of others.
        step_months: months by which the start moves.
        max_history: the longest history of a sample, in items.
        ratios: shares of train, valid and test, for the split `ratio`.
        split: `ratio` or `leave-one-out`.
        min_rating: drop lower ratings.
        drop_repeats: of several reviews of an item by a user inside the window keep the first.
        max_title_words, min_title_chars, drop_markup_titles: the title rule; words 0: any number.
        memory_limit: of DuckDB's tables; beyond it they go to disk, beside the output.
        show_progress: progress bars on stderr.

    Returns:
        dict: what was read, dropped and written, as in the report; see `dataset_scripts.report`.

    Raises:
        DataError: a file that cannot be read or written, has no valid line, or leaves too little.
        ConfigError: an option with an impossible value.
    """
    given = {option: value for option, value in locals().items() if option not in _WITHOUT_EFFECT}
    default = dict.fromkeys(amazon.PUBLISHED) | {"min_items": 0} if columns else amazon.PUBLISHED
    start = _utc(default["start"] if start == "default" else start, "start")
    end = _utc(default["end"] if end == "default" else end, "end")
    min_items = default["min_items"] if min_items is None else min_items
    _check_texts(name=name, out=out, time_format=time_format, columns=columns, meta_columns=meta_columns)
    _check_options(name, start, end, k, min_items, step_months, max_history, ratios, split, time_unit, min_rating)
    _check_title_rule(max_title_words, min_title_chars)
    folder = Path(out) / name
    _check_files(reviews, meta, [folder / f"{name}.{kind}" for kind in KINDS])
    log, items = _sources(reviews, meta, columns, meta_columns, format, meta_format, delimiter, quote)
    if min_rating is not None and "rating" not in log[1]:
        raise ConfigError(f"min_rating is {min_rating}, but no column is named as the rating; say rating=COLUMN")
    for source, roles in (log, items):
        check_columns(source, roles)

    try:
        with staged(folder) as temporary, Database(temporary / "spill", memory_limit) as database:
            _check_time_format(database, time_format)
            title_rule = {"max_words": max_title_words, "min_chars": min_title_chars, "drop_markup": drop_markup_titles}
            of_items, meta_check = _load_items(database, *items, title_rule, show_progress)
            of_reviews = {"unit": time_unit, "format": time_format, "min_rating": min_rating}
            report, log_check = _load_reviews(database, *log, of_reviews, show_progress)
            report.update(of_items, inputs=None)
            _keep(database, report, start, end, k, min_items, step_months, drop_repeats, with_rating="rating" in log[1])
            _write(database, report, temporary, name, max_history, split, ratios)
            report["inputs"] = _digests(log_check, meta_check)
            given.update(start=report["start"], end=report["end"], min_items=min_items, ratios=list(ratios))
            report.update(options=given, folder=str(folder))
            written = {**report, "folder": name}  # the same report wherever the files lie
            write_lines(temporary / f"{name}.report.json", json.dumps(written, ensure_ascii=False, indent=1).split("\n"))
            shutil.rmtree(temporary / "spill", ignore_errors=True)
    except OSError as error:
        raise DataError(f"cannot write {folder}: {error.strerror or error}; nothing was changed. Choose another --out, or "
                        "make room there") from error  # fmt: skip
    return report


# ---- the steps ---------------------------------------------------------------------------------------------------------


def _sources(reviews, meta, columns, meta_columns, format, meta_format, delimiter, quote):
    """(Source, columns) of the reviews, and of the items."""
    for option, value in (("format", format), ("meta_format", meta_format)):
        if value not in ("auto", *amazon.REVIEWS, *FORMATS):
            raise ConfigError(f"{option} is {value!r}; expected auto, {', '.join((*amazon.REVIEWS, *FORMATS))}")
    log = recognise(reviews, format if format in FORMATS else "auto", delimiter, quote)
    release = None
    if columns:
        columns = _check_roles("columns", columns, ROLES, needed=("user", "item", "time"))
        if meta is None and "title" not in columns:
            raise ConfigError("columns name no title; say title=COLUMN, or give the titles' file with --meta; the columns "
                              f"of {log.path} are {listed(log.fields)}")  # fmt: skip
    else:
        release, columns = amazon.columns_of(log, amazon.REVIEWS, format if format in amazon.REVIEWS else "auto")
        if meta is None:
            raise ConfigError("Amazon's reviews have no titles; give the file of metadata with --meta")
    if meta is None:
        return (log, columns), (log, {role: columns[role] for role in columns if role not in ("user", "time", "rating")})
    items = recognise(meta, meta_format if meta_format in FORMATS else "auto", delimiter if columns else None, quote)
    if meta_columns:
        meta_columns = _check_roles("meta_columns", meta_columns, ("item", *ROLES[4:]), needed=("item", "title"))
    elif release or meta_format in amazon.METADATA:
        release = meta_format if meta_format in amazon.METADATA else release
        _, meta_columns = amazon.columns_of(items, amazon.METADATA, release)
    elif "title" in columns:
        meta_columns = {role: column for role, column in columns.items() if role in ("item", *ROLES[4:])}
    else:
        raise ConfigError(f"no column of {items.path} is named as the title; say --meta-columns item=..,title=..; its "
                          f"columns are {listed(items.fields)}")  # fmt: skip
    return (log, {role: column for role, column in columns.items() if role in ROLES[:4]}), (items, meta_columns)


def _load_items(database, source, columns, title_rule, show_progress):
    """Makes the table `items` (those with a usable title, in file order); returns what was counted, and the Check."""
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
        raise DataError(f"{source.path}: none of its {total} lines has a usable title; is it the right file?")
    return {"meta": total, "meta_malformed": malformed, "titled": n_titled}, lines.check


def _load_reviews(database, source, columns, options, show_progress):
    """Makes the table `reviews`; returns the counts of its states, and the Check."""
    query = {**options, "with_rating": "rating" in columns, "now": int(clock.time() * 1e6)}
    log_columns = {role: column for role, column in columns.items() if role in ROLES[:4]}
    lines = load(database, "reviews", source, log_columns, lambda rows: rules.review_query(rows, **query), show_progress)
    counts = database.rows("SELECT state, count(*), count(line) FROM reviews LEFT JOIN items USING (item) GROUP BY state")
    counted, titled = {state: count for state, count, _ in counts}, {state: count for state, _, count in counts}
    bad = f"state IN ({UNREADABLE}, {rules.MALFORMED})"
    first = [row[0] for row in database.rows(f"SELECT rowid FROM reviews WHERE {bad} ORDER BY rowid LIMIT {N_LINES}")]
    malformed = counted.get(UNREADABLE, 0) + counted.get(rules.MALFORMED, 0) + len(lines.refused)
    total = sum(counted.values()) + len(lines.refused)
    if malformed == total:
        expected = ", ".join(log_columns.values())
        raise DataError(f"{source.path}: no valid review among {total} lines; expected lines with {expected}")
    untitled = sum(counted.get(state, 0) - titled.get(state, 0) for state in (rules.OK, rules.LOW_RATING))
    if untitled and not any(titled.values()):
        raise DataError(f"{source.path}: none of its {total - malformed} reviews is of an item with a usable title; do "
                        "reviews and titles belong together?")  # fmt: skip
    units = database.rows(f"SELECT unit, count(*) FROM reviews WHERE NOT ({bad}) GROUP BY unit ORDER BY unit")
    units = {rules.UNIT_NAMES[code]: count for code, count in units}
    return {
        "lines": total, "malformed": malformed, "malformed_lines": lines.first(first, N_LINES),
        "bad_ids": counted.get(rules.BAD_ID, 0),
        "bad_times": counted.get(rules.BAD_TIME, 0), "time_units": units, "without_title": untitled,
        "low_rating": titled.get(rules.LOW_RATING, 0), "ok": titled.get(rules.OK, 0),
    }, lines.check  # fmt: skip


def _digests(*checks):
    """name of a file -> its sha256."""
    digests = {}
    for check in checks:
        name = check.source.path.name
        if digests.get(name, check.sha256) != check.sha256:  # two files of one name in two folders
            name = f"{name} (meta)"
        digests[name] = check.sha256
    return digests


def _keep(database, report, start, end, k, min_items, step_months, drop_repeats, with_rating):
    """Rules 4 to 6. Adds to the report what they dropped, and under `columns` the kept reviews in file order."""

    def inside(begin, last):
        bounds = [f"state = {rules.OK}"]
        bounds += [f"time >= {begin}"] if begin is not None else []
        bounds += [f"time <= {last}"] if last is not None else []
        # Hashes do for counting; `_users` looks whether two of the users that remain had the same.
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
    report["columns"] = {name: column[places] for name, column in columns.items()}


def _write(database, report, folder, name, max_history, split, ratios):
    """Rules 7 and 8, and the files; takes `columns` out of the report and adds the rest to it."""
    columns = report.pop("columns")
    time = columns["time"]
    user_ids, user = _users(database, columns["row"], columns["user"], report["lines"])
    item_ids, item, item_lines, counts = _items(database, columns["item"])
    ratings = numbers(columns["rating"]) if "rating" in columns else None
    database.run("DROP TABLE reviews")
    order, targets, before = rules.samples(user, time)
    parts = rules.split(split, ratios, user[order][targets])
    for part, rows, ratio in zip(PARTS, parts, ratios if split == "ratio" else (1, 1, 1)):
        if ratio and not len(rows):
            raise DataError(f"only {len(targets)} samples remain, too few for a {part} part; lower --k or widen the window")
    report.update(first=rules.iso(rules.from_microseconds(time.min())), last=rules.iso(rules.from_microseconds(time.max())))
    report.update(users=len(user_ids), items=len(item_ids))
    report.update({key: counts[key] for key in ("distinct_titles", "items_sharing_title")})
    report["escaped_ids"] = counts["escaped_ids"] + sum(1 for text in user_ids if fit_id(text) != text)
    report["density"] = len(user) / (len(user_ids) * len(item_ids))

    users = as_bytes(map(fit_id, user_ids))
    items = as_bytes(item_ids)
    followed = np.append(np.char.add(items, b" "), b"")  # an item of a history with the blank behind it; the last: nothing
    user_of, item_of, time_of = user[order], item[order], time[order]
    outputs = {}
    for part, rows in zip(PARTS, parts):
        target, n_before = targets[rows], before[rows]

        def history(chosen, target=target, n_before=n_before):
            back = np.arange(min(max_history, int(n_before.max(initial=1))), 1, -1)
            at = target[chosen, None] - back
            older = followed[np.where(n_before[chosen, None] >= back, item_of[np.maximum(at, 0)], len(items))]
            return np.concatenate([_flat(older), _flat(items[item_of[target[chosen] - 1]])], axis=1)

        outputs[f"{name}.{part}.inter"] = write_rows(
            folder / f"{name}.{part}.inter", "user_id:token\titem_id_list:token_seq\titem_id:token\ttimestamp:float",
            [lambda chosen, target=target: users[user_of[target[chosen]]], history,
             lambda chosen, target=target: items[item_of[target[chosen]]],
             lambda chosen, target=target: seconds(time_of[target[chosen]])],
            len(target),
        )  # fmt: skip
        report[part] = len(target)
    fields = [lambda chosen: users[user[chosen]], lambda chosen: items[item[chosen]]]
    if ratings is not None:
        fields.append(lambda chosen: ratings[chosen])
    fields.append(lambda chosen: seconds(time[chosen]))
    header = "user_id:token\titem_id:token" + "\trating:float" * (ratings is not None) + "\ttimestamp:float"
    outputs[f"{name}.inter"] = write_rows(folder / f"{name}.inter", header, fields, len(user))
    outputs[f"{name}.item"] = write_lines(folder / f"{name}.item", item_lines)
    outputs[f"{name}.yaml"] = write_lines(folder / f"{name}.yaml", OPTIONS)
    report["outputs"] = outputs


def _flat(texts):
    return np.ascontiguousarray(texts).view(np.uint8).reshape(len(texts), -1)


def _users(database, row, user, n_lines):
    """Ids of the kept users, by their first review; and of each review its user's place among them."""
    distinct, user = np.unique(user, return_inverse=True)
    user = user.reshape(-1)
    ids, same = database.of_codes("user", row, user, n_lines)
    if not same.all():
        raise DataError("two users have the same 64-bit hash, a chance of one in millions; rename one of them")
    by_first = np.argsort(rules.first_places(user))
    place = np.empty_like(by_first)
    place[by_first] = np.arange(len(by_first))
    return ids[by_first].tolist(), place[user]


def _items(database, item):
    """Ids of the kept items in metadata order, of each review its item's place among them, lines of `.item`, and counts."""
    kept, inverse = np.unique(item, return_inverse=True)  # codes are in metadata order
    table = database.arrays("""SELECT item, title, brand, category, price FROM items JOIN kept ON items.rowid = kept.value
        ORDER BY kept.value""", kept=kept)  # fmt: skip
    raw, titles, brands, categories, prices = (column.tolist() for column in table.values())
    ids = [fit_id(text) for text in raw]
    of_title = {}
    for title in titles:
        of_title[title] = of_title.get(title, 0) + 1
    fields = {"item_id:token": ids, "title:token": [escape(title) for title in titles],
              "brand:token": [escape(_brand(brand)) for brand in brands],
              "categories:token_seq": list(map(_categories, categories)),
              "price:float": list(map(_price, prices))}  # fmt: skip
    fields = {field: values for field, values in fields.items() if any(values)}
    lines = ["\t".join(fields), *map("\t".join, zip(*fields.values()))]
    counts = {"distinct_titles": len(of_title),
              "items_sharing_title": sum(count for count in of_title.values() if count > 1),
              "escaped_ids": sum(1 for one, other in zip(raw, ids) if one != other)}  # fmt: skip
    return ids, inverse.reshape(-1), lines, counts


def _brand(text):
    """A brand, cleaned as titles are, and in one line."""
    text = (text or "").replace("&quot;", '"').replace("&amp;", "&")
    return " ".join(text.split()).strip('"')


def _categories(text):
    """A category, or a JSON array of them, as a sequence of tokens: white space inside one becomes `_`."""
    if not text:
        return ""
    try:
        values = json.loads(text) if text[0] == "[" else [text]
    except (ValueError, RecursionError):
        values = [text]
    tokens = ["_".join(value.replace('"', "").replace("\0", "").split()) for value in values if isinstance(value, str)]
    return " ".join(filter(None, tokens))


def _price(text):
    """A price as a plain number; empty if it is none, as `from 9.99` or left-over markup."""
    match = _PRICE.fullmatch(text or "")
    return match[1].replace(",", "") if match else ""


# ---- options -----------------------------------------------------------------------------------------------------------


def _utc(date, option):
    if date is None or date == "none":
        return None
    try:
        parsed = datetime.fromisoformat(str(date))
        return parsed.astimezone(timezone.utc) if parsed.tzinfo else parsed.replace(tzinfo=timezone.utc)
    except (ValueError, OverflowError):
        raise ConfigError(f"{option} is {date!r}; expected a date such as 2017-10-01, or none") from None


def _check_roles(option, columns, roles, needed):
    unknown = [role for role in columns if role not in roles]
    missing = [role for role in needed if role not in columns]
    if unknown or missing:
        found = f"has an unknown role {unknown[0]!r}" if unknown else f"lacks {', '.join(missing)}"
        raise ConfigError(f"{option} {found}; expected ROLE=COLUMN,... with roles {', '.join(roles)} "
                          f"(needed: {', '.join(needed)})")  # fmt: skip
    return columns


def _check_files(reviews, meta, outputs):
    outputs = {output.resolve() for output in outputs}
    for source in (reviews, meta):
        if source is not None and Path(source).resolve() in outputs:
            raise ConfigError(f"{source} is an input and would be written over; choose another name or --out")


def _check_options(name, start, end, k, min_items, step_months, max_history, ratios, split, time_unit, min_rating):
    if not name or name in (".", "..") or re.search(r"[/\\\s\0]", name):
        raise ConfigError(f"name is {name!r}; expected a plain file name without blanks and slashes")
    if start and end and start > end:
        raise ConfigError(f"the start {rules.iso(start)} lies after the end {rules.iso(end)}")
    if min(k, step_months, max_history) < 1 or min_items < 0:
        found = f"k {k}, step_months {step_months}, max_history {max_history}, min_items {min_items}"
        raise ConfigError(f"found {found}; expected at least 1, for min_items at least 0")
    if min_items and start is None:
        raise ConfigError(f"min_items is {min_items}, but without a start there is nothing to move back; give --start, or "
                          "leave it out")  # fmt: skip
    if len(ratios) != 3 or min(ratios) < 0 or abs(sum(ratios) - 1) > 1e-9 or not all(map(math.isfinite, ratios)):
        raise ConfigError(f"ratios are {ratios}; expected three shares (train, valid, test) that add up to 1")
    if split not in SPLITS:
        raise ConfigError(f"split is {split!r}; expected {' or '.join(SPLITS)}")
    if time_unit not in ("auto", *rules.UNITS):
        raise ConfigError(f"time_unit is {time_unit!r}; expected auto, {', '.join(rules.UNITS)}")
    if min_rating is not None and not math.isfinite(min_rating):
        raise ConfigError(f"min_rating is {min_rating}; expected a number")


def _check_texts(**options):
    """An argument in another encoding than UTF-8 comes with surrogates in it, on which DuckDB chokes."""
    for option, value in options.items():
        for text in value.values() if isinstance(value, dict) else (value,):
            try:
                str(text).encode("utf-8")
            except UnicodeEncodeError:
                raise ConfigError(f"{option}: {str(text)!r} is no UTF-8; expected text in UTF-8") from None


def _check_title_rule(max_title_words, min_title_chars):
    if max_title_words < 0 or min_title_chars < 0:
        raise ConfigError(f"found max_title_words {max_title_words}, min_title_chars {min_title_chars}; expected at least 0")


def _check_time_format(database, time_format):
    if time_format:
        try:
            database.run(f"SELECT try_strptime('', {literal(time_format)})")
        except DataError as error:
            raise ConfigError(f"time_format is {time_format!r}; expected such as %Y%m%d ({error})") from error


# ---- command line ------------------------------------------------------------------------------------------------------


def _pairs(text):
    pairs = dict(part.partition("=")[::2] for part in text.split(",") if part)
    if not pairs or not all(pairs.values()):
        raise argparse.ArgumentTypeError(f"found {text!r}; expected ROLE=COLUMN,ROLE=COLUMN")
    return pairs


def _shares(text):
    try:
        return tuple(float(part) for part in text.split(","))
    except ValueError:
        raise argparse.ArgumentTypeError(f"found {text!r}; expected three numbers such as 0.8,0.1,0.1") from None


def parser():
    """The argparse parser; the name of every option is that of `convert`."""
    command = argparse.ArgumentParser(
        prog="python -m dataset_scripts.convert", formatter_class=argparse.RawDescriptionHelpFormatter,
        description="A log of who chose what and when -> RecBole files.\n\n" + __doc__.split("\n\n", 1)[1],
    )  # fmt: skip
    add = command.add_argument
    add("--reviews", "--interactions", required=True, help="the log: JSON lines, CSV, TSV or Parquet; plain, gzip or zstd")
    add("--name", required=True, help="name of the data set")
    add("--meta", "--items", help="the items' titles, if they are in a file of their own, as Amazon's are")
    add("--out", default="dataset", help="RecBole's data_path; the files go to OUT/NAME (default: dataset)")
    files = command.add_argument_group("what the files are")
    add = files.add_argument
    add("--columns", type=_pairs, help="user=..,item=..,time=..[,title=..][,rating=..][,brand=..][,category=..][,price=..]: "
        "the columns of a log that is not Amazon's")
    add("--meta-columns", type=_pairs, help="item=..,title=..[,brand=..]..: columns of --meta (default: those of --columns)")
    formats = ("auto", *amazon.REVIEWS, *FORMATS)
    add("--format", default="auto", choices=formats, help="of --reviews (default: told by its content)")
    add("--meta-format", default="auto", choices=formats, help="of --meta (default: told by its content)")
    add("--delimiter", help="of CSV (default: the most frequent of , ; | and tab in the first line)")
    add("--quote", default='"', help="what quotes a field of CSV or TSV; '' for nothing (default: \")")
    add("--time-unit", default="auto", choices=("auto", *rules.UNITS), help="of times that are numbers (default: by size)")
    add("--time-format", help="strptime format of times, such as %%Y%%m%%d (default: numbers or ISO dates)")
    kept = command.add_argument_group("what is kept")
    add = kept.add_argument
    add("--start", default="default", help="start of the window, UTC, or none (default: 2017-10-01; with --columns none)")
    add("--end", default="default", help="end of the window, UTC, or none (default: 2018-11-01; with --columns none)")
    add("--k", type=int, default=5, help="k of the k-core (default: 5)")
    add("--min-items", type=int, help="move the start back until so many remain; 0: never (default: 5000; with --columns 0)")
    add("--no-sliding", dest="min_items", action="store_const", const=0, help="keep the start: --min-items 0")
    add("--step-months", type=int, default=3, help="months by which the start moves (default: 3)")
    add("--min-rating", type=float, help="drop lower ratings (default: every rating counts)")
    add("--drop-repeats", action="store_true", help="of several reviews of an item by a user keep the first")
    add("--max-title-words", type=int, default=20, help="drop items with longer titles; 0: none (default: 20)")
    add("--min-title-chars", type=int, default=2, help="drop items with shorter titles (default: 2)")
    add("--drop-markup-titles", action="store_true", help="also drop titles with any left-over <span")
    made = command.add_argument_group("what is made of it")
    add = made.add_argument
    add("--max-history", type=int, default=10, help="longest history, in items (default: 10)")
    add("--split", default="ratio", choices=SPLITS, help="by time over all users, or each user's last two (default: ratio)")
    add("--ratios", type=_shares, default=(0.8, 0.1, 0.1), help="train,valid,test of --split ratio (default: 0.8,0.1,0.1)")
    add("--memory-limit", default="200MB", help="of the tables in memory; beyond it they go to disk, beside the output "
        "(default: 200MB)")
    return command


def main(argv=None):
    """The command line. Returns the exit status: 0, or 2 after a one-line message about input or options."""
    options = vars(parser().parse_args(argv))
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    if hasattr(sys.stdout, "reconfigure"):  # a name may hold what the terminal's encoding does not
        sys.stdout.reconfigure(errors="backslashreplace")
    try:
        reviews, name, out = (options.pop(option) for option in ("reviews", "name", "out"))
        report = convert(reviews, name, out, show_progress=sys.stderr.isatty(), **options)
    except FLRError as error:
        print("error:", " ".join(str(error).splitlines()), file=sys.stderr)
        return 2
    print_report(report)
    return 0


if __name__ == "__main__":
    sys.exit(main())
