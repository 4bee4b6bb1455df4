"""Converts raw reviews to RecBole files in the obvious way: `json.loads` line by line, tuples, dicts, `sorted`.

This is a second, simple version of the rules of `dataset_scripts.convert`, in the same order. It shares no code with the
converter but `escape`. Random tests compare the two outputs, and `benchmarks.dataset` compares their time and memory.

It writes the five atomic files (the same bytes as the converter) and the report. It does not write the yaml file, does not read
Parquet, and does not check options.
"""

import calendar
import hashlib
import json
import math
import time
from collections import Counter
from datetime import datetime, timedelta
from pathlib import Path

from benchmarks.obvious_lines import (
    AMAZON, AMAZON_META, EPOCH, UTC, clean_title, id_of, lines_of, microseconds_of, number_of, read_items, recognise,
    stripped, to_micros, written_id,
)  # fmt: skip
from recbole_flr.data.atomic import escape
from recbole_flr.errors import DataError

OLDEST_START = datetime(1996, 5, 1, tzinfo=UTC)
MISSING = set(
    "[PAD]|#N/A|#N/A N/A|#NA|-1.#IND|-1.#QNAN|-NaN|-nan|1.#IND|1.#QNAN|<NA>|N/A|NA|NULL|NaN|None|n/a|nan|null".split("|")
)
USER, ITEM, TIME, RATING = range(4)  # of a review; times in microseconds


def obvious(reviews, name, out="dataset", *, meta=None, columns=None, meta_columns=None, time_unit="auto", start="default",
            end="default", k=5, min_items=None, step_months=3, max_history=10, ratios=(0.8, 0.1, 0.1), split="ratio",
            min_rating=None, drop_repeats=False, max_title_words=20, min_title_chars=2,
            drop_markup_titles=False, titles=None):  # fmt: skip
    """Converts one data set. The arguments are those of `dataset_scripts.convert.convert` (not all of them).

    Returns:
        dict: the report, without `options`.

    Raises:
        DataError: a file has no valid line, or leaves too little.
    """
    now = time.time() * 1e6
    if columns is None:
        roles = recognise(reviews, AMAZON)
        start, end = "2017-10-01" if start == "default" else start, "2018-11-01" if end == "default" else end
        min_items = 5000 if min_items is None else min_items
    else:
        roles = columns
        start, end = None if start == "default" else start, None if end == "default" else end
        min_items = min_items or 0
    if meta_columns is None and meta is not None:
        meta_columns = recognise(meta, AMAZON_META) if columns is None else columns

    def usable_title(text):
        return clean_title(text, max_title_words, min_title_chars, drop_markup_titles)

    source = (reviews, roles) if meta is None else (meta, meta_columns)
    titles = titles or ("published" if columns is None and roles["item"] == "asin" else "first")
    catalogue, meta_lines, meta_malformed = read_items(*source, usable_title, titles)
    report = dict(lines=0, malformed=0, malformed_lines=[], bad_ids=0, bad_times=0, without_title=0, low_rating=0)
    units = Counter()
    rows = []  # (user, item, time, rating)
    for number, line in lines_of(reviews):
        report["lines"] += 1
        try:
            user, item = id_of(line, roles["user"]), id_of(line, roles["item"])
            micros, unit = microseconds_of(line.get(roles["time"]), time_unit)
            rating = float(number_of(line.get(roles["rating"]))) if "rating" in roles else None
        except (ValueError, OverflowError):
            report["malformed"] += 1
            if len(report["malformed_lines"]) < 5:
                report["malformed_lines"].append(number)
            continue
        units[unit] += 1
        if user in MISSING or item in MISSING:
            report["bad_ids"] += 1
        elif not 0 < micros <= now:
            report["bad_times"] += 1
        elif item not in catalogue:
            report["without_title"] += 1
        elif min_rating is not None and rating < min_rating:
            report["low_rating"] += 1
        else:
            rows.append((user, item, micros, rating))
    if report["lines"] == report["malformed"]:
        raise DataError(f"{reviews}: no valid review among {report['lines']} lines")
    report["time_units"] = dict(units)

    rows, of_window = _slide(rows, _moment(start), _moment(end), k, min_items, step_months, drop_repeats)
    report.update(of_window)
    for _ in report["windows"][1:] if titles == "published" else ():
        for values in catalogue.values():
            values["title"] = stripped(values["title"])
    samples = _samples(rows, max_history)
    parts = _leave_one_out(samples) if split == "leave-one-out" else _cut(samples, ratios)
    for part, ratio in zip(parts, ratios if split == "ratio" else (1, 1, 1)):
        if ratio > 0 and not part:
            raise DataError(f"{len(samples)} samples are too few: one of the parts is empty")

    users, items = {row[USER] for row in rows}, {row[ITEM] for row in rows}
    written = {raw: written_id(raw) for raw in users | items}
    kept_items = {item: values for item, values in catalogue.items() if item in items}
    named = Counter(values["title"] for values in kept_items.values())
    report["escaped_ids"] = sum(written[raw] != raw for ids in (users, items) for raw in ids)
    report.update(kept=len(rows), users=len(users), items=len(items), density=len(rows) / (len(users) * len(items)))
    report.update(first=_iso(min(row[TIME] for row in rows)), last=_iso(max(row[TIME] for row in rows)))
    report.update(distinct_titles=len(named), items_sharing_title=sum(n for n in named.values() if n > 1))
    report.update(train=len(parts[0]), valid=len(parts[1]), test=len(parts[2]))
    report.update(meta=meta_lines, meta_malformed=meta_malformed)

    folder = Path(out) / name
    folder.mkdir(parents=True, exist_ok=True)
    outputs = {f"{name}.{kind}.inter": _part_lines(part, written) for kind, part in zip(("train", "valid", "test"), parts)}
    outputs[f"{name}.inter"] = _inter_lines(rows, written, "rating" in roles)
    outputs[f"{name}.item"] = _item_lines(kept_items, written)
    for file, lines in outputs.items():
        with open(folder / file, "w", encoding="utf-8", newline="\n") as handle:
            for line in lines:
                handle.write(line + "\n")
    report["inputs"] = {Path(path).name: _sha256(path) for path in (reviews, meta) if path is not None}
    report["outputs"] = {file: _sha256(folder / file) for file in outputs}
    report["folder"] = str(folder)
    (folder / f"{name}.report.json").write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    return report


# dates


def _moment(date):
    if date is None:
        return None
    moment = datetime.fromisoformat(str(date).replace("Z", "+00:00"))
    return moment.astimezone(UTC) if moment.tzinfo else moment.replace(tzinfo=UTC)


def _iso(moment):
    if moment is None:
        return "-"
    if isinstance(moment, int):
        moment = EPOCH + timedelta(microseconds=moment)
    return moment.astimezone(UTC).replace(tzinfo=None).isoformat().removesuffix("T00:00:00")


def _months_back(moment, months):
    year, month = divmod(moment.year * 12 + moment.month - 1 - months, 12)
    last_day = calendar.monthrange(year, month + 1)[1]
    return moment.replace(year=year, month=month + 1, day=min(moment.day, last_day))


# selection


def _slide(usable, first_start, end, k, min_items, step_months, drop_repeats):
    """Returns the kept reviews, and the counts of the last window for the report."""
    start, windows = first_start, []
    while True:
        first, last = -math.inf if start is None else to_micros(start), math.inf if end is None else to_micros(end)
        rows = [row for row in usable if first <= row[TIME] <= last]
        inside = len(rows)
        if drop_repeats:
            rows = _without_repeats(rows)
        once = len(rows)
        rows, rounds = _k_core(rows, k)
        n_items = len({row[ITEM] for row in rows})
        windows.append([_iso(start), n_items])
        if n_items >= max(min_items, 1):
            counts = dict(outside_window=len(usable) - inside, repeated=inside - once, below_k=once - len(rows))
            return rows, dict(counts, k_core_rounds=rounds, windows=windows, start=_iso(start), end=_iso(end))
        if not min_items or start is None:
            raise DataError(f"{n_items} items remain in the {k}-core")
        start = _months_back(first_start, len(windows) * step_months)
        if start < OLDEST_START:
            raise DataError(f"{n_items} items remain even from {windows[-1][0]}, fewer than the {min_items} wanted")


def _without_repeats(rows):
    earliest = {}  # (user, item) -> place of the review that is kept
    for place, row in enumerate(rows):
        pair = row[USER], row[ITEM]
        if pair not in earliest or row[TIME] < rows[earliest[pair]][TIME]:
            earliest[pair] = place
    return [rows[place] for place in sorted(earliest.values())]


def _k_core(rows, k):
    rounds = []
    while True:
        of_user, of_item = Counter(row[USER] for row in rows), Counter(row[ITEM] for row in rows)
        kept = [row for row in rows if of_user[row[USER]] >= k and of_item[row[ITEM]] >= k]
        if len(kept) == len(rows):
            return rows, rounds
        rounds.append(len(rows) - len(kept))
        rows = kept


# samples: (user, history, target, time); those of a user side by side, by time


def _samples(rows, max_history):
    of_user = {}
    for row in rows:
        of_user.setdefault(row[USER], []).append(row)
    samples = []
    for user, reviews in of_user.items():
        reviews = sorted(reviews, key=lambda row: row[TIME])
        for place in range(1, len(reviews)):
            history = [row[ITEM] for row in reviews[max(0, place - max_history) : place]]
            samples.append((user, history, reviews[place][ITEM], reviews[place][TIME]))
    return samples


def _by_time(samples):
    return sorted(samples, key=lambda sample: sample[3])


def _cut(samples, ratios):
    samples = _by_time(samples)
    first, second = (int(round(share, 12) * len(samples)) for share in (ratios[0], ratios[0] + ratios[1]))
    return samples[:first], samples[first:second], samples[second:]


def _leave_one_out(samples):
    train, valid, test = [], [], []
    for sample, next_one, one_after in zip(samples, [*samples[1:], None], [*samples[2:], None, None]):
        if not next_one or next_one[0] != sample[0]:
            test.append(sample)
        elif not one_after or one_after[0] != sample[0]:
            valid.append(sample)
        else:
            train.append(sample)
    return _by_time(train), _by_time(valid), _by_time(test)


# writing


def _seconds(micros):
    whole, part = divmod(micros, 10**6)
    return f"{whole}.{part:06d}".rstrip("0") if part else str(whole)


def _part_lines(samples, written):
    yield "user_id:token\titem_id_list:token_seq\titem_id:token\ttimestamp:float"
    for user, history, target, micros in samples:
        yield f"{written[user]}\t{' '.join(written[item] for item in history)}\t{written[target]}\t{_seconds(micros)}"


def _inter_lines(rows, written, with_rating):
    yield "user_id:token\titem_id:token" + "\trating:float" * with_rating + "\ttimestamp:float"
    for user, item, micros, rating in rows:
        yield f"{written[user]}\t{written[item]}" + (f"\t{rating!r}" if with_rating else "") + f"\t{_seconds(micros)}"


def _item_lines(items, written):
    types = {"title": "token", "brand": "token", "categories": "token_seq", "price": "float"}
    shown = [name for name in types if any(values[name] for values in items.values())]
    yield "\t".join(["item_id:token", *(f"{name}:{types[name]}" for name in shown)])
    for item, values in items.items():
        texts = (escape(values[name]) if name in ("title", "brand") else values[name] for name in shown)
        yield "\t".join([written[item], *texts])


def _sha256(path):
    digest = hashlib.sha256()
    with open(path, "rb") as handle:
        while block := handle.read(2**20):
            digest.update(block)
    return digest.hexdigest()
