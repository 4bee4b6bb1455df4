"""Amazon-2018 reviews and metadata -> RecBole benchmark files.

    python -m dataset_scripts.amazon --reviews CDs_and_Vinyl_5.json.gz --meta meta_CDs_and_Vinyl.json.gz --name cds

The data are those of Ni, Li and McAuley (EMNLP 2019): JSON lines with `reviewerID`, `asin`, `overall`, `unixReviewTime`,
and `asin`, `title`, `brand`. The rules are those of the D3 / LatentR3 line of work, so that the published splits come out
row by row. In this order:

1. Titles. An item whose raw title is absent or holds `<span id` has none. Else `&quot;` and `&amp;` are unescaped, blanks
   and then quotes stripped from both ends, and a title of one character, of nothing but white space or of more than 20
   pieces between single blanks is dropped. Of several metadata lines of an item the first with a usable title counts.
2. Window. Reviews with start <= time <= end, both at midnight UTC (the published script too keeps a review at the very
   end). Every rating counts, and repeated reviews of one item by one user stay.
3. k-core. Users and items with fewer than k reviews (not distinct partners) go, until none is left that has fewer.
4. Sliding. While fewer than `min_items` items remain, the start moves back `step_months` and 2 and 3 run afresh.
5. Samples. Users in the order of their first kept review in the file; their reviews sorted by time, ties in file order;
   every review but a user's first is a target, its history the `max_history` reviews before it.
6. Split. Samples sorted by the target's time, ties in the order of 5; cut at int(0.8 N) and int(0.9 N).
"""

import argparse
import calendar
import gzip
import json
import logging
import math
import re
import sys
import zlib
from array import array
from collections import Counter
from datetime import datetime, timezone
from pathlib import Path

import numpy as np

from recbole_flr.data.atomic import escape, publish
from recbole_flr.errors import ConfigError, DataError, FLRError

_log = logging.getLogger(__name__)

OLDEST_START = datetime(1996, 5, 1, tzinfo=timezone.utc)  # the first month of the data set
MAX_WORDS = 20
OPTIONS = (  # of the data set, for recbole_flr.config: the split is in the files, titles are escaped
    "benchmark_filename: [train, valid, test]", "alias_of_item_id: [item_id_list]", "title_escapes: True",
    "eval_args: {split: {LS: valid_and_test}, order: TO, group_by: user, mode: full}",
)
# RecBole splits lists at blanks, pads with [PAD], and reads with pandas, which takes quotes for quoting and these words for
# missing values. A lone surrogate cannot be written as UTF-8.
_BAD_ID = re.compile(r'[\s"\x00\ud800-\udfff]')
_RESERVED_IDS = frozenset(
    "|[PAD]|#N/A|#N/A N/A|#NA|-1.#IND|-1.#QNAN|-NaN|-nan|1.#IND|1.#QNAN|<NA>|N/A|NA|NULL|NaN|None|n/a|nan|null".split("|")
)


def convert(reviews, meta, name, out="dataset", *, start="2017-10-01", end="2018-11-01", k=5, min_items=5000,
            step_months=3, max_history=10, ratios=(0.8, 0.1, 0.1), drop_markup_titles=False):  # fmt: skip
    """Converts one category; the rules are at the top of this module.

    Writes `<out>/<name>/<name>.{train,valid,test}.inter`, `<name>.inter` (all kept reviews, in file order) and `<name>.item`
    (in metadata order; `title:token`, and `brand:token` if any kept item has one; escaped, see `recbole_flr.data.atomic`),
    and `<name>.yaml`, the options with which recbole_flr reads them:
    all of them or, on any error, none.

    Args:
        reviews, meta: JSON-lines files, plain or gzip (told by content, not by name).
        start, end: ISO dates (or date and time), UTC unless they carry an offset; both ends belong to the window.
        k: the k of the k-core; 1 keeps everything.
        min_items: slide back until this many items remain; 0 keeps the start.
        step_months: months by which the start moves.
        max_history: the longest history of a sample, in items.
        ratios: shares of train, valid and test.
        drop_markup_titles: also drop titles with a left-over `<span` of any kind.

    Returns:
        dict: counts of what was read, dropped and written, for the window that was used: `reviews` (well-formed ones),
        `malformed`, `malformed_lines` (the first five line numbers), `meta`, `meta_malformed`, `bad_ids`, `without_title`,
        `outside_window`, `below_k`, `kept`, `windows` (list of [start, items]), `start`, `end`, `users`, `items`,
        `distinct_titles`, `items_sharing_title`, `train`, `valid`, `test`, `folder`.

    Raises:
        DataError: a file that cannot be read, has no valid line, or leaves too little.
        ConfigError: an option with an impossible value.
    """
    start, end = _utc(start, "start"), _utc(end, "end")
    _check_options(name, start, end, k, min_items, step_months, max_history, ratios)
    folder = Path(out) / name
    outputs = [f"{name}.{kind}" for kind in ("train.inter", "valid.inter", "test.inter", "inter", "item", "yaml")]
    for source in (reviews, meta):
        if Path(source).resolve() in {(folder / output).resolve() for output in outputs}:
            raise ConfigError(f"{source} is an input and would be written over; choose another name or --out")

    table, report = _read_reviews(reviews)
    titles, brands, counts = _read_meta(meta, table["items"], drop_markup_titles)
    report.update(counts)
    titled = np.zeros(len(table["items"]), bool)
    titled[list(titles)] = True
    usable = np.flatnonzero(titled[table["item"]])  # row numbers, in file order
    report["without_title"] = len(table["item"]) - len(usable)
    rows, inside, start, windows = _slide(table, usable, start, end, k, min_items, step_months)
    report.update(outside_window=len(usable) - inside, below_k=inside - len(rows), kept=len(rows))
    report.update(windows=windows, start=_iso(start), end=_iso(end))

    user, item, time = (table[column][rows] for column in ("user", "item", "time"))
    order, samples = _samples(user, time)
    cuts = [int(share * len(samples)) for share in (round(ratios[0], 12), round(ratios[0] + ratios[1], 12))]
    parts = dict(zip(("train", "valid", "test"), np.split(samples, cuts)))
    for (part, of_part), ratio in zip(parts.items(), ratios):
        if ratio and not len(of_part):
            raise DataError(f"only {len(samples)} samples remain, too few for a {part} part; lower k or widen the window")

    kept = set(item.tolist())
    items = [code for code in titles if code in kept]  # metadata order
    bearers = Counter(titles[code] for code in items)
    report.update(users=len(set(user.tolist())), items=len(items), distinct_titles=len(bearers))
    report.update(items_sharing_title=sum(count for count in bearers.values() if count > 1))
    report.update({part: len(of_part) for part, of_part in parts.items()}, folder=str(folder))

    users, asins = table["users"], table["items"]
    asin_of = [asins[code] for code in item[order].tolist()]
    user_of = [users[code] for code in user[order].tolist()]
    time_of = time[order].tolist()

    def part_lines(of_part):
        yield "user_id:token\titem_id_list:token_seq\titem_id:token\ttimestamp:float"
        for position, before in of_part.tolist():
            history = " ".join(asin_of[position - min(before, max_history) : position])
            yield f"{user_of[position]}\t{history}\t{asin_of[position]}\t{time_of[position]}"

    def all_lines():
        yield "user_id:token\titem_id:token\trating:float\ttimestamp:float"
        for u, i, rating, t in zip(user.tolist(), item.tolist(), table["rating"][rows].tolist(), time.tolist()):
            yield f"{users[u]}\t{asins[i]}\t{rating}\t{t}"

    def item_lines():
        with_brand = any(code in brands for code in items)
        yield "item_id:token\ttitle:token" + "\tbrand:token" * with_brand
        for code in items:
            yield f"{asins[code]}\t{escape(titles[code])}" + ("\t" + escape(brands.get(code, ""))) * with_brand

    publish(folder, dict(zip(outputs, [*map(part_lines, parts.values()), all_lines(), item_lines(), OPTIONS])))
    return report


def clean_title(title, drop_markup_titles=False):
    """The title that an item gets by rule 1, or None if it is to be dropped."""
    if not isinstance(title, str) or "<span id" in title or (drop_markup_titles and "<span" in title):
        return None
    title = _unescape_html(title).strip(" ").strip('"')
    if len(title) <= 1 or not title.strip() or len(title.split(" ")) > MAX_WORDS:
        return None
    return _writable(title)


def _read_reviews(path):
    """The reviews as columns, and what was counted.

    Columns `user`, `item` (codes, by first appearance), `rating`, `time` (seconds), one entry a review in file order; `users`
    and `items` list the ids of the codes.
    """
    users, items = {}, {}
    columns = {"user": array("q"), "item": array("q"), "rating": array("d"), "time": array("q")}
    malformed, first_lines, bad_ids = 0, [], 0
    for number, row in _json_lines(path):
        try:
            user, item, rating, time = row["reviewerID"], row["asin"], float(row["overall"]), int(row["unixReviewTime"])
            if not (isinstance(user, str) and isinstance(item, str) and math.isfinite(rating) and abs(time) < 2**53):
                raise ValueError
        except (KeyError, TypeError, ValueError, OverflowError):
            malformed += 1
            first_lines += [number] * (len(first_lines) < 5)
            continue
        if not (_good_id(user) and _good_id(item)):
            bad_ids += 1
            continue
        columns["user"].append(users.setdefault(user, len(users)))
        columns["item"].append(items.setdefault(item, len(items)))
        columns["rating"].append(rating)
        columns["time"].append(time)
    n_reviews = len(columns["time"])
    if not n_reviews:
        expected = "JSON lines with reviewerID, asin, overall and unixReviewTime (the 2018 release)"
        raise DataError(f"{path}: no valid review among {malformed + bad_ids} lines; expected {expected}")
    table = {column: np.array(values) for column, values in columns.items()}
    table.update(users=list(users), items=list(items))
    report = {"reviews": n_reviews + bad_ids, "malformed": malformed, "malformed_lines": first_lines, "bad_ids": bad_ids}
    return table, report


def _read_meta(path, asins, drop_markup_titles):
    """Titles and brands of the reviewed items: dicts item code -> text, in the order of the file; and what was counted."""
    codes = {asin: code for code, asin in enumerate(asins)}
    titles, brands, lines, malformed = {}, {}, 0, 0
    for _, row in _json_lines(path):
        if not isinstance(row, dict) or not isinstance(row.get("asin"), str):
            malformed += 1
            continue
        lines += 1
        code = codes.get(row["asin"])
        title = None if code is None or code in titles else clean_title(row.get("title"), drop_markup_titles)
        if title is None:
            continue
        titles[code] = title
        brand = row.get("brand")
        if isinstance(brand, str) and (brand := " ".join(_unescape_html(brand).split()).strip('"')):
            brands[code] = _writable(brand)  # raw ones hold line breaks and runs of blanks
    if not lines:
        raise DataError(f"{path}: no valid line among {malformed}; expected JSON lines with asin and title (2018 release)")
    if not titles:
        raise DataError(f"{path}: none of its {lines} lines has a usable title of a reviewed item; is it the right file?")
    return titles, brands, {"meta": lines, "meta_malformed": malformed}


def _json_lines(path):
    """Yields (line number from 1, value) of each line that is not blank; the value of a malformed line is None."""
    try:
        with open(path, "rb") as raw:
            compressed = raw.peek(2)[:2] == b"\x1f\x8b"
            with gzip.open(raw) if compressed else raw as lines:
                for number, line in enumerate(lines, start=1):
                    if not line.strip():
                        continue
                    try:
                        value = json.loads(line)
                    except (ValueError, RecursionError):  # also of a wrong encoding, and of numbers of absurd length
                        value = None
                    yield number, value
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise DataError(f"{path} is a broken gzip file ({error}); fetch it again") from error
    except OSError as error:
        raise DataError(f"cannot read {path}: {error.strerror or error}") from error


def _slide(table, usable, start, end, k, min_items, step_months):
    """Rules 2 to 4: the kept rows, the number of rows inside the window, the start that was used, and all windows tried."""
    first_start, windows = start, []
    while True:
        time = table["time"][usable]
        inside = usable[(time >= start.timestamp()) & (time <= end.timestamp())]
        rows = _k_core(table["user"], table["item"], inside, k)
        n_items = len(np.unique(table["item"][rows]))
        windows.append([_iso(start), n_items])
        _log.info("window %s to %s: %d reviews, %d items in the %d-core", _iso(start), _iso(end), len(rows), n_items, k)
        if n_items >= max(min_items, 1):
            return rows, len(inside), start, windows
        if not min_items:
            raise DataError(f"nothing remains of {len(inside)} reviews from {_iso(start)} to {_iso(end)} in the {k}-core")
        start = _months_back(first_start, len(windows) * step_months)
        if start < OLDEST_START:
            found = f"{n_items} items remain even from {windows[-1][0]}, fewer than the {min_items} wanted"
            raise DataError(f"{found}; lower --min-items, or keep the start with --no-sliding")


def _k_core(user, item, rows, k):
    """The rows whose users and items all have at least k of them. It is unique: the order of removal does not matter."""
    while True:
        keep = (np.bincount(user[rows])[user[rows]] >= k) & (np.bincount(item[rows])[item[rows]] >= k)
        if keep.all():
            return rows
        rows = rows[keep]


def _samples(user, time):
    """Rules 5 and 6, from the user and time ([R]) of each kept review in file order.

    Returns order ([R]), the reviews with those of a user side by side, by time; and samples ([N, 2]), by time: the place in
    `order` of the target, and how many reviews of its user come before it there.
    """
    _, first, inverse = np.unique(user, return_index=True, return_inverse=True)
    order = np.lexsort((time, first[inverse]))  # stable: ties keep the order of the file
    user, time = user[order], time[order]
    places = np.arange(len(user))
    begins = np.r_[True, user[1:] != user[:-1]]
    before = places - np.maximum.accumulate(np.where(begins, places, 0))
    targets = places[before > 0]
    targets = targets[np.argsort(time[targets], kind="stable")]
    return order, np.stack([targets, before[targets]], axis=1)


def _good_id(text):
    return text not in _RESERVED_IDS and not _BAD_ID.search(text)


def _unescape_html(text):
    return text.replace("&quot;", '"').replace("&amp;", "&")  # these two alone: the published titles hold others


def _writable(text):
    """JSON may hold half of a surrogate pair, which no file can; it becomes U+FFFD."""
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")


def _utc(date, option):
    try:
        parsed = datetime.fromisoformat(str(date))
    except ValueError:
        raise ConfigError(f"{option} is {date!r}; expected a date such as 2017-10-01") from None
    return parsed.astimezone(timezone.utc) if parsed.tzinfo else parsed.replace(tzinfo=timezone.utc)


def _iso(moment):
    return moment.replace(tzinfo=None).isoformat().removesuffix("T00:00:00")


def _months_back(moment, months):
    year, month = divmod(moment.year * 12 + moment.month - 1 - months, 12)
    if year < 1:  # datetime cannot go there; any moment before OLDEST_START stops the sliding
        return OLDEST_START.replace(month=4)
    return moment.replace(year=year, month=month + 1, day=min(moment.day, calendar.monthrange(year, month + 1)[1]))


def _check_options(name, start, end, k, min_items, step_months, max_history, ratios):
    if not name or name in (".", "..") or re.search(r"[/\\\s]", name):
        raise ConfigError(f"name is {name!r}; expected a plain file name without blanks and slashes")
    if start > end:
        raise ConfigError(f"the start {_iso(start)} lies after the end {_iso(end)}")
    if min(k, step_months, max_history) < 1 or min_items < 0:
        found = f"k {k}, step_months {step_months}, max_history {max_history}, min_items {min_items}"
        raise ConfigError(f"found {found}; expected at least 1, for min_items at least 0")
    if len(ratios) != 3 or min(ratios) < 0 or abs(sum(ratios) - 1) > 1e-9:
        raise ConfigError(f"ratios are {ratios}; expected three shares (train, valid, test) that add up to 1")


def main(argv=None):
    """The command line. Returns the exit status: 0, or 2 after a one-line message about input or options."""
    parser = argparse.ArgumentParser(prog="python -m dataset_scripts.amazon", description="Amazon-2018 files to RecBole files.")
    parser.add_argument("--reviews", required=True, help="JSON lines of reviews, plain or gzip")
    parser.add_argument("--meta", required=True, help="JSON lines of metadata, plain or gzip")
    parser.add_argument("--name", required=True, help="name of the data set")
    parser.add_argument("--out", default="dataset", help="RecBole's data_path; the files go to OUT/NAME (default: dataset)")
    parser.add_argument("--start", default="2017-10-01", help="start of the window, UTC (default: 2017-10-01)")
    parser.add_argument("--end", default="2018-11-01", help="end of the window, UTC (default: 2018-11-01)")
    parser.add_argument("--k", type=int, default=5, help="k of the k-core (default: 5)")
    parser.add_argument("--min-items", type=int, default=5000, help="move the start back until so many remain; 0: never")
    parser.add_argument("--no-sliding", dest="min_items", action="store_const", const=0, help="keep the start: --min-items 0")
    parser.add_argument("--step-months", type=int, default=3, help="months by which the start moves (default: 3)")
    parser.add_argument("--max-history", type=int, default=10, help="longest history, in items (default: 10)")
    parser.add_argument("--drop-markup-titles", action="store_true", help="also drop titles with any left-over <span")
    options = vars(parser.parse_args(argv))
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    try:
        report = convert(options.pop("reviews"), options.pop("meta"), options.pop("name"), options.pop("out"), **options)
    except FLRError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    report["windows"] = ", ".join(f"{start} ({items} items)" for start, items in report["windows"])
    report["malformed_lines"] = ", ".join(map(str, report["malformed_lines"])) or "-"
    for key, value in report.items():
        print(f"{key.replace('_', ' '):20}", f"{value:>10,}" if isinstance(value, int) else value)
    return 0


if __name__ == "__main__":
    sys.exit(main())
