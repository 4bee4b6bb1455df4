"""The options of a conversion: the parser of the command line, and the checks of their values."""

import argparse
import math
from datetime import datetime, timezone
from pathlib import Path

from dataset_scripts import amazon, rules
from dataset_scripts.sources import FORMATS
from recbole_flr.errors import ConfigError
from recbole_flr.paths import check_name

SPLITS = ("ratio", "leave-one-out")


# ---- command line ------------------------------------------------------------------------------------------------------


def parser(description):
    """The argparse parser. Every option has the name of its argument of `dataset_scripts.convert.convert`."""
    command = argparse.ArgumentParser(
        prog="python -m dataset_scripts.convert", formatter_class=argparse.RawDescriptionHelpFormatter, description=description,
    )  # fmt: skip
    add = command.add_argument
    add("--reviews", "--interactions", required=True, help="the log: JSON lines, CSV, TSV or Parquet; plain, gzip or zstd")
    add("--name", required=True, help="name of the data set")
    add("--meta", "--items", help="file with the titles of the items; not needed if --columns names a title")
    add("--out", default="dataset", help="RecBole's data_path; the files go to OUT/NAME (default: dataset)")
    files = command.add_argument_group("input files")
    add = files.add_argument
    add("--columns", type=_pairs, help="the columns of a log that is not Amazon's: "
        "user=..,item=..,time=..[,title=..][,rating=..][,brand=..][,category=..][,price=..]")
    add("--meta-columns", type=_pairs, help="the columns of --meta: item=..,title=..[,brand=..].. (default: those of --columns)")
    formats = ("auto", *amazon.REVIEWS, *FORMATS)
    add("--format", default="auto", choices=formats, help="format of --reviews (default: recognised by its content)")
    add("--meta-format", default="auto", choices=formats, help="format of --meta (default: recognised by its content)")
    add("--delimiter", help="delimiter of a CSV file (default: whichever of , ; | and tab is most frequent in the first line)")
    add("--quote", default='"', help="character that quotes a field of CSV or TSV; '' if fields are never quoted (default: \")")
    add("--encoding", default="utf-8", help="encoding of the text files, such as latin-1 or cp1252 (default: utf-8)")
    add("--time-unit", default="auto", choices=("auto", *rules.UNITS), help="unit of times that are numbers (default: by size)")
    add("--time-format", help="strptime format of times, such as %%Y%%m%%d (default: numbers or ISO dates)")
    kept = command.add_argument_group("which reviews are kept")
    add = kept.add_argument
    add("--start", default="default", help="start of the window, UTC, or none (default: 2017-10-01; with --columns none)")
    add("--end", default="default", help="end of the window, UTC, or none (default: 2018-11-01; with --columns none)")
    add("--k", type=int, default=5, help="k of the k-core (default: 5)")
    add("--min-items", type=int, help="move the start back until this many items remain; 0: never (default: 5000; with "
        "--columns or --start none 0)")
    add("--no-sliding", dest="min_items", action="store_const", const=0, help="do not move the start; the same as --min-items 0")
    add("--step-months", type=int, default=3, help="months by which the start moves back each time (default: 3)")
    add("--min-rating", type=float, help="drop reviews with a lower rating (default: keep all)")
    add("--drop-repeats", action="store_true", help="keep only the first of several reviews of an item by the same user")
    add("--max-title-words", type=int, default=20, help="drop items with longer titles; 0: no limit (default: 20)")
    add("--min-title-chars", type=int, default=2, help="drop items with shorter titles (default: 2)")
    add("--drop-markup-titles", action="store_true", help="also drop items with any left-over <span in their title")
    add("--titles", choices=rules.TITLES, help="of several lines of an item: first, the first usable title; published, the last, and no item "
        "with an unusable one (default: published for Amazon's files of 2018, else first)")
    made = command.add_argument_group("output")
    add = made.add_argument
    add("--max-history", type=int, default=10, help="longest history of a sample, in items (default: 10)")
    add("--split", default="ratio", choices=SPLITS, help="ratio: by time over all users; leave-one-out: the last two samples of "
        "each user (default: ratio)")
    add("--ratios", type=_shares, default=(0.8, 0.1, 0.1), help="shares train,valid,test of --split ratio (default: 0.8,0.1,0.1)")
    add("--memory-limit", default="200MB", help="memory for DuckDB's tables; larger ones go to disk, next to the output "
        "(default: 200MB)")
    add("--engine", default="duckdb", choices=("duckdb", "spark"), help="spark: the rules from the window on run on PySpark, for "
        "data beyond one machine; needs pip install '.[spark]' in the checkout and Java; writes the same files (default: duckdb)")
    return command


def _pairs(text):
    """The value of `--columns`: role -> column."""
    pairs = dict(part.partition("=")[::2] for part in text.split(",") if part)
    if not pairs or not all(pairs.values()):
        raise argparse.ArgumentTypeError(f"found {text!r}; expected ROLE=COLUMN,ROLE=COLUMN")
    roles = [part.partition("=")[0] for part in text.split(",") if part]
    twice = next((role for role in pairs if roles.count(role) > 1), None)
    if twice is not None:
        raise argparse.ArgumentTypeError(f"found {twice!r} {roles.count(twice)} times in {text!r}; expected each role once")
    return pairs


def _shares(text):
    """The value of `--ratios`."""
    try:
        shares = tuple(float(part) for part in text.split(","))
    except ValueError:
        raise argparse.ArgumentTypeError(f"found {text!r}; expected three numbers such as 0.8,0.1,0.1") from None
    if 0 in shares:
        raise argparse.ArgumentTypeError(f"found {text!r}; expected three shares above 0, as a run needs all three parts")
    return shares


# ---- values ------------------------------------------------------------------------------------------------------------


def moment(date, option):
    """A date option as a datetime in UTC; None for None or `none`."""
    if date is None or date == "none":
        return None
    try:
        parsed = datetime.fromisoformat(str(date))
        return parsed.astimezone(timezone.utc) if parsed.tzinfo else parsed.replace(tzinfo=timezone.utc)
    except (ValueError, OverflowError):
        raise ConfigError(f"{option} is {date!r}; expected a date such as 2017-10-01, or none") from None


def check_roles(option, columns, roles, needed):
    """Returns `columns` (role -> column) if it has all needed roles and no unknown one; else raises a ConfigError."""
    unknown = [role for role in columns if role not in roles]
    missing = [role for role in needed if role not in columns]
    if unknown or missing:
        found = f"has an unknown role {unknown[0]!r}" if unknown else f"lacks {', '.join(missing)}"
        raise ConfigError(f"{option} {found}; expected ROLE=COLUMN,... with roles {', '.join(roles)} "
                          f"(needed: {', '.join(needed)})")  # fmt: skip
    return columns


def check_files(reviews, meta, outputs):
    """Raises a ConfigError if an output would overwrite an input."""
    outputs = {output.resolve() for output in outputs}
    for source in (reviews, meta):
        if source is not None and Path(source).resolve() in outputs:
            raise ConfigError(f"{source} is an input and would be overwritten; choose another --name or --out")


def check_options(name, start, end, k, min_items, step_months, max_history, ratios, split, time_unit, min_rating,
                  max_title_words, min_title_chars):  # fmt: skip
    """Raises a ConfigError for the first option with an impossible value. `start` and `end` as `moment` gives them."""
    check_name(name, "name")
    if start and end and start > end:
        raise ConfigError(f"the start {rules.iso(start)} is later than the end {rules.iso(end)}; exchange or change them")
    if min(k, step_months, max_history) < 1 or min_items < 0:
        found = f"k {k}, step_months {step_months}, max_history {max_history}, min_items {min_items}"
        raise ConfigError(f"found {found}; expected at least 1 (for min_items at least 0)")
    if min_items and start is None:
        raise ConfigError(f"min_items is {min_items}, but there is no start to move back; give --start, or --min-items 0")
    if len(ratios) != 3 or min(ratios) < 0 or abs(sum(ratios) - 1) > 1e-9 or not all(map(math.isfinite, ratios)):
        raise ConfigError(f"ratios are {ratios}; expected three shares (train, valid, test) that add up to 1")
    if split not in SPLITS:
        raise ConfigError(f"split is {split!r}; expected {' or '.join(SPLITS)}")
    if time_unit not in ("auto", *rules.UNITS):
        raise ConfigError(f"time_unit is {time_unit!r}; expected auto, {', '.join(rules.UNITS)}")
    if min_rating is not None and not math.isfinite(min_rating):
        raise ConfigError(f"min_rating is {min_rating}; expected a number")
    if max_title_words < 0 or min_title_chars < 0:
        raise ConfigError(f"found max_title_words {max_title_words}, min_title_chars {min_title_chars}; expected at least 0")


def check_texts(**options):
    """Raises a ConfigError for an option that is not valid Unicode.

    Python turns bytes of the command line that are not UTF-8 into surrogates, and DuckDB cannot take these.
    """
    for option, value in options.items():
        for text in value.values() if isinstance(value, dict) else (value,):
            try:
                str(text).encode("utf-8")
            except UnicodeEncodeError:
                raise ConfigError(f"{option}: {str(text)!r} is not UTF-8; expected text in UTF-8") from None
