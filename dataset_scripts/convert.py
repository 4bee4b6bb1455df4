"""Converts reviews, or any log of who chose what and when, to RecBole benchmark files.

    python -m dataset_scripts.convert --reviews CDs_and_Vinyl_5.json.gz --meta meta_CDs_and_Vinyl.json.gz --name cds
    python -m dataset_scripts.convert --reviews log.csv --columns user=customer,item=sku,time=bought,title=name --name shop

Amazon's files of 2018 and 2023 are recognised by their columns. For any other CSV, TSV, JSON-lines or Parquet file,
`--columns` says what its columns are. Files may be gzip or zstd.

The rules follow, in the order in which they are applied. By default, Amazon's files are converted as in the D3 / LatentR3 line
of work, so that the published splits come out row by row. Other files have no window by default.

1. Lines. A line is malformed if it is not a row (no JSON object, wrong number of fields), or has no user, item, time or (where
   there is such a column) rating. A review is dropped if its user or item is called as pandas calls missing values (`NA`,
   `null`, ...). Other ids that RecBole could not read (with blanks, tabs, quotes, ...) are percent-encoded. Times are UTC:
   ISO dates, or seconds, milliseconds, microseconds or nanoseconds, told apart by their size. A review is dropped if its time
   is not positive or lies in the future.
2. Titles. Reviews of items without a usable title are dropped. A raw title that is missing or contains `<span id` is not
   usable. Otherwise `&quot;` and `&amp;` are unescaped, then blanks and then quotes are stripped from both ends. The result is
   not usable if it has one character, nothing but white space, or more than 20 pieces between single blanks. If an item has
   several metadata lines, the first with a usable title counts (`titles="first"`). With `titles="published"`, as in the published
   script, the last one counts, and the item is dropped if any of its lines has no usable title; and titles are unescaped and
   stripped once more each time the window slides (rule 6). That is the default for Amazon's files of 2018.
3. Ratings. Reviews below `min_rating` are dropped, if that option is given.
4. Window. Reviews with start <= time <= end are kept. Both bounds are midnight UTC; like the published script, this keeps a
   review at the very end. Repeated reviews of an item by the same user stay, unless `drop_repeats` keeps the first only.
5. k-core. Users and items with fewer than k reviews (repeated ones count) are dropped, again and again, until none is left.
6. Sliding. While fewer than `min_items` items remain, the start moves back by `step_months`, and rules 4 and 5 start again.
7. Samples. Users come in the order of their first kept review in the file. The reviews of a user are sorted by time, ties in
   file order. Every review but the first of a user is a target; its history is the `max_history` reviews before it.
8. Split. All samples are sorted by the time of the target, ties in the order of rule 7, and cut at int(0.8 N) and int(0.9 N).
   With `split="leave-one-out"`, the last sample of each user is test, the one before it valid, and the rest train.

The output is written only if the whole conversion succeeds.
"""

import codecs
import io
import json
import logging
import shutil
import sys
from contextlib import ExitStack
from pathlib import Path

from dataset_scripts import amazon, disk
from dataset_scripts.database import Database
from dataset_scripts.encodings import check_encoding, in_utf8
from dataset_scripts.engine import ENGINES, convert_rows
from dataset_scripts.options import check_files, check_options, check_roles, check_texts, moment, parser
from dataset_scripts.output import PARTS, write_set
from dataset_scripts.reading import mean_id_bytes
from dataset_scripts.report import print_counts, print_report
from dataset_scripts.roles import ITEM_ROLES, REVIEW_ROLES, ROLES, check_columns
from dataset_scripts.rules import TITLES
from dataset_scripts.sources import FORMATS, listed, recognise
from dataset_scripts.sql import literal
from dataset_scripts.tables import clean_again, encoding_hint, keep_reviews, load_items, load_reviews
from dataset_scripts.writing import write_lines
from recbole_flr.data.atomic import staged
from recbole_flr.errors import ConfigError, DataError, FLRError

KINDS = (*(f"{part}.inter" for part in PARTS), "inter", "item", "yaml", "report.json")  # of the files of a data set
_FAR_MORE = 4  # times the memory limit: from this size of the tables on, they are made on disk
_NOT_REPORTED = ("reviews", "meta", "out", "show_progress", "memory_limit", "engine")  # paths, and options that change no output


def convert(reviews, name, out="dataset", *, meta=None, columns=None, meta_columns=None, format="auto", meta_format="auto",
            delimiter=None, quote='"', encoding="utf-8", time_unit="auto", time_format=None, start="default", end="default", k=5,
            min_items=None, step_months=3, max_history=10, ratios=(0.8, 0.1, 0.1), split="ratio", min_rating=None,
            drop_repeats=False, max_title_words=20, min_title_chars=2, drop_markup_titles=False, titles=None,
            memory_limit="200MB", engine="duckdb", show_progress=False):  # fmt: skip
    """Converts one data set by the rules at the top of this module.

    Writes into the folder `<out>/<name>`; all files, or none if anything fails:

    - `<name>.train.inter`, `<name>.valid.inter`, `<name>.test.inter`: the samples.
    - `<name>.inter`: all kept reviews, in file order.
    - `<name>.item`: the kept items in metadata order: title and, if any kept item has them, brand, categories and price. Text is
      escaped, see `recbole_flr.data.atomic`.
    - `<name>.yaml`: the options with which recbole_flr reads these files.
    - `<name>.report.json`: what was read, dropped and written.

    Args:
        reviews: the log; JSON lines, CSV, TSV or Parquet, the first three plain, gzip or zstd. The content decides, not the name.
        name: name of the data set.
        out: RecBole's data_path.
        meta: file with the titles of the items. Not needed if `columns` names a title.
        columns (dict): role (user, item, time, title, rating, brand, category, price) -> column of `reviews`, for files that
            are not Amazon's.
        meta_columns (dict): role (item, title, brand, category, price) -> column of `meta`. Default: as in `columns`.
        format, meta_format: amazon-2018, amazon-2023, jsonl, csv, tsv, parquet, or auto.
        encoding: of the text files. Another one than UTF-8 costs a copy in UTF-8, next to the output while the conversion runs.
        delimiter, quote: for CSV and TSV. An empty `quote`: fields are never quoted.
        time_unit: s, ms, us, ns, or auto: by the size of each number.
        time_format: strptime format of times, instead of numbers and ISO dates.
        start, end: ISO dates (or date and time), UTC unless they have an offset; both belong to the window. None: no bound.
            Default: the published window for Amazon's files, no bound for others.
        k: the k of the k-core; 1 keeps everything.
        min_items: move the start back until this many items remain; 0: keep the start. Default: 5000 for Amazon's files,
            0 for others and without a start.
        step_months: months by which the start moves back each time.
        max_history: longest history of a sample, in items.
        ratios: shares of train, valid and test, for the split `ratio`.
        split: `ratio` or `leave-one-out`.
        min_rating: drop reviews with a lower rating.
        drop_repeats: keep only the first of several reviews of an item by the same user inside the window.
        max_title_words, min_title_chars, drop_markup_titles: the title rule; words 0: no limit.
        titles: `first` or `published`, see rule 2; None: `published` for Amazon's files of 2018, else `first`.
        memory_limit: memory for DuckDB's tables; larger ones go to disk, next to the output.
        engine: `duckdb`, or `spark` for rules 4 to 8 on PySpark; both write the same files. See `dataset_scripts.engine`.
        show_progress: show progress bars on stderr.

    Returns:
        dict: what was read, dropped and written, as in the report; see `dataset_scripts.report`.

    Raises:
        DataError: a file cannot be read or written, has no valid line, or leaves too little. Its attribute `report` has the
            counts up to there.
        ConfigError: an option has an impossible value.
    """
    given = {option: value for option, value in locals().items() if option not in _NOT_REPORTED}
    default = dict.fromkeys(amazon.PUBLISHED) | {"min_items": 0} if columns else amazon.PUBLISHED
    start = moment(default["start"] if start == "default" else start, "start")
    end = moment(default["end"] if end == "default" else end, "end")
    if min_items is None:
        min_items = default["min_items"] if start else 0  # without a start there is none to move back
    check_texts(name=name, out=out, time_format=time_format, columns=columns, meta_columns=meta_columns)
    check_options(name, start, end, k, min_items, step_months, max_history, ratios, split, time_unit, min_rating,
                  max_title_words, min_title_chars)  # fmt: skip
    folder = Path(out) / name
    check_files(reviews, meta, [folder / f"{name}.{kind}" for kind in KINDS])
    check_encoding(encoding)
    for option, value, allowed in (("engine", engine, ENGINES), ("titles", titles, (None, *TITLES))):
        if value not in allowed:
            raise ConfigError(f"{option} is {value!r}; expected {' or '.join(filter(None, allowed))}")
    report = {}
    try:
        with staged(folder) as temporary, Database(temporary / "spill", memory_limit) as database, ExitStack() as copies:
            originals = {}
            if codecs.lookup(encoding).name != "utf-8":
                reviews, meta = (copies.enter_context(in_utf8(path, temporary / "utf8", encoding, originals))
                                 for path in (reviews, meta))
            log, items, release = _sources(reviews, meta, columns, meta_columns, format, meta_format, delimiter, quote)
            titles = titles or ("published" if release == "amazon-2018" else "first")
            if min_rating is not None and "rating" not in log[1]:
                raise ConfigError(f"min_rating is {min_rating}, but columns has no rating; add rating=COLUMN")
            for source, roles in (log, items):
                check_columns(source, roles)
            _check_time_format(database, time_format)
            title_rule = {"max_words": max_title_words, "min_chars": min_title_chars, "drop_markup": drop_markup_titles}
            disk_needed = _check_disk(database, folder, log, memory_limit)
            meta_check = load_items(database, report, *items, title_rule, titles, show_progress)
            of_reviews = {"unit": time_unit, "format": time_format, "min_rating": min_rating}
            log_check = load_reviews(database, report, *log, of_reviews, show_progress)
            report["inputs"] = None
            window = (start, end, k, min_items, step_months, drop_repeats)
            with_rating = "rating" in log[1]
            if engine == "spark":
                convert_rows(database, report, temporary, name, *window, with_rating, max_history, split, ratios, titles)
            else:
                kept = keep_reviews(database, report, *window, with_rating)
                clean_again(database, report, titles)
                write_set(database, report, kept, temporary, name, max_history, split, ratios)
            report["disk_tables"] = disk_needed
            report["inputs"] = {**_digests(log_check, meta_check), **originals}
            given.update(start=report["start"], end=report["end"], min_items=min_items, ratios=list(ratios), titles=titles)
            report.update(options=given, folder=str(folder))
            written = {**report, "folder": name}  # so that the report does not depend on the place
            write_lines(temporary / f"{name}.report.json", json.dumps(written, ensure_ascii=False, indent=1).split("\n"))
            for made in ("spill", "utf8", "engine"):
                shutil.rmtree(temporary / made, ignore_errors=True)
    except OSError as error:
        raise DataError(f"cannot write {folder}: {error.strerror or error}; nothing was changed. Choose another --out, or "
                        "free space there") from error  # fmt: skip
    except DataError as error:
        error.report = report
        raise
    return report


def _sources(reviews, meta, columns, meta_columns, format, meta_format, delimiter, quote):
    """What is read: (Source, columns) of the reviews, the same of the items, and the release if the reviews are Amazon's."""
    for option, value in (("format", format), ("meta_format", meta_format)):
        if value not in ("auto", *amazon.REVIEWS, *FORMATS):
            raise ConfigError(f"{option} is {value!r}; expected auto, {', '.join((*amazon.REVIEWS, *FORMATS))}")
    log = recognise(reviews, format if format in FORMATS else "auto", delimiter, quote)
    release = None
    if columns:
        columns = check_roles("columns", columns, ROLES, needed=("user", "item", "time"))
        if meta is None and "title" not in columns:
            raise ConfigError("columns has no title; add title=COLUMN, or give a file of titles with --meta; the columns of "
                              f"{log.path} are {listed(log.fields)}")  # fmt: skip
    else:
        release, columns = amazon.columns_of(log, amazon.REVIEWS, format if format in amazon.REVIEWS else "auto")
        if meta is None:
            raise ConfigError("Amazon's reviews have no titles; give the metadata file with --meta")
    if meta is None:
        return (log, columns), (log, {role: columns[role] for role in columns if role not in ("user", "time", "rating")}), release
    items = recognise(meta, meta_format if meta_format in FORMATS else "auto", delimiter if columns else None, quote)
    if meta_columns:
        meta_columns = check_roles("meta_columns", meta_columns, ITEM_ROLES, needed=("item", "title"))
    elif release or meta_format in amazon.METADATA:
        release = meta_format if meta_format in amazon.METADATA else release
        _, meta_columns = amazon.columns_of(items, amazon.METADATA, release)
    elif "title" in columns:
        meta_columns = {role: column for role, column in columns.items() if role in ITEM_ROLES}
    else:
        raise ConfigError(f"the title of {items.path} is not named; add --meta-columns item=..,title=..; its columns are "
                          f"{listed(items.fields)}")  # fmt: skip
    return (log, {role: column for role, column in columns.items() if role in REVIEW_ROLES}), (items, meta_columns), release


def _check_disk(database, folder, log, memory_limit):
    """Most bytes that DuckDB's table of reviews takes. If that is far more than the memory limit, the tables go to disk.

    Raises:
        DataError: the disk has no room for what memory does not hold.
    """
    lines, _ = disk.estimated_lines(log[0])
    needed = disk.tables(lines, mean_id_bytes(database, *log))
    what = f"the tables of about {lines:,} reviews beyond --memory-limit {memory_limit}"
    disk.check(folder, needed - database.memory_bytes(), what)
    if needed > _FAR_MORE * database.memory_bytes():
        database.keep_on_disk()
    return needed


def _check_time_format(database, time_format):
    if time_format:
        try:
            database.run(f"SELECT try_strptime('', {literal(time_format)})")
        except DataError as error:
            raise ConfigError(f"time_format is {time_format!r}; expected a strptime format such as %Y%m%d ({error})") from error


def _digests(*checks):
    """dict: name of an input file -> its SHA-256."""
    digests = {}
    for check in checks:
        name = check.source.path.name
        if digests.get(name, check.sha256) != check.sha256:  # two files of one name in two folders
            name = f"{name} (meta)"
        digests[name] = check.sha256
    return digests


def main(argv=None):
    """The command line. Returns the exit status: 0, 2 after a one-line error about an input or an option, 130 after Ctrl-C."""
    options = vars(parser(__doc__).parse_args(argv))
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    if isinstance(sys.stdout, io.TextIOWrapper):  # a name may hold characters that the terminal's encoding lacks
        sys.stdout.reconfigure(errors="backslashreplace")
    try:
        reviews, name, out = (options.pop(option) for option in ("reviews", "name", "out"))
        report = convert(reviews, name, out, show_progress=sys.stderr.isatty(), **options)
    except FLRError as error:
        if isinstance(error, DataError):
            print_counts(vars(error).get("report", {}), sys.stderr)
        print("error:", " ".join(str(error).splitlines()), file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("\nerror: interrupted; nothing was written", file=sys.stderr)
        return 130
    print_report(report)
    if hint := encoding_hint(report):
        print(f"warning{hint.replace(';', ':', 1)}", file=sys.stderr)
    return 0


if __name__ == "__main__":
    sys.exit(main())
