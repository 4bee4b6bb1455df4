"""RecBole's datasets and loaders, with files read verbatim and no pickle opened.

RecBole reads atomic files with pandas' quoting, words for missing values and line ends: an item whose brand begins with
a quote swallows the rows behind it, a user called "NA" is dropped, and a title with a lone CR becomes two items. Here
RecBole gets the same reader as the catalogue.
"""

import hashlib
import os
from contextlib import contextmanager
from logging import getLogger
from pathlib import Path

import torch
from recbole.data import create_dataset, data_preparation
from recbole.utils import ModelType

from recbole_flr.data.atomic import guess_separator, header, read_columns, unescape
from recbole_flr.data.datasets import verbatim_reader
from recbole_flr.errors import DataError, first_line

TITLE_FIELDS = ("title", "movie_title", "name", "item_name", "product_name")  # columns tried if TITLE_FIELD is null
SUFFIX_FIELDS = ("brand", "artist", "author", "release_year", "year")  # columns tried if DUPLICATE_FIELD is null


def expected_files(config):
    """Paths of the interaction files that RecBole will read."""
    folder = Path(config["data_path"])
    parts = config["benchmark_filename"]
    names = [f"{config['dataset']}.{part}.inter" for part in parts] if parts else [f"{config['dataset']}.inter"]
    return [folder / name for name in names]


def prepare_files(config, create=True):
    """Make sure that the data set's files are there: the demo is made, with `download` a category of Amazon is fetched.

    Args:
        config: of the run.
        create: whether missing files may be made or fetched. A trained model is not loaded with data that were made anew.

    Raises:
        ConfigError: `download` is asked for a data set whose address is not known.
        DataError: saying where it looked and the ways to get the files; or what the download or its conversion says.
    """
    name, folder = config["dataset"], Path(config["data_path"])
    if all(path.is_file() for path in expected_files(config)):
        return
    if not create:
        missing = next(path for path in expected_files(config) if not path.is_file())
        raise DataError(f"data set {name!r}: found no {missing} (looked in {folder.resolve()}), which the trained model needs; "
                        "name the folder of the data sets with --data_path=FOLDER, or call from the folder of the training")
    from dataset_scripts import download, toys_demo

    if name == toys_demo.NAME:
        toys_demo.prepare(folder.parent)
        return
    if config["download"]:
        download.prepare(name, folder.parent, show_progress=config["show_progress"])
    missing = [path for path in expected_files(config) if not path.is_file()]
    if not missing:
        return
    ways = [
        f"convert raw files:  python -m dataset_scripts.convert --reviews REVIEWS --meta META --name {name} "
        f"--out {folder.parent}",
        f"download the data set's atomic files ({', '.join(path.name for path in expected_files(config))} and {name}.item; "
        f"RecBole's data page has many) into that folder, or say --data_path=FOLDER where FOLDER/{name} holds them",
        "try the made-up demo, which needs no files:  --dataset=toys_demo",
    ]
    if name in download.NAMES:
        release, category = download.NAMES[name]
        ways.insert(0, f"download and convert Amazon's {category} of {release}:  --download=true, or beforehand "
                       f"python -m dataset_scripts.download {name} --convert --out {folder.parent}")
    ways = "\n".join(f"  {number}. {way}" for number, way in enumerate(ways, 1))
    raise DataError(f"data set {name!r}: found no {missing[0]} (looked in {folder.resolve()}). Ways to get it:\n{ways}")


def check_columns(config):
    """Make sure that the interaction files have the columns without which RecBole fails in places far from the cause.

    Raises:
        DataError: naming the columns that are missing and those that are there.
    """
    needed = ["USER_ID_FIELD", "ITEM_ID_FIELD"]
    if not config["benchmark_filename"] and config["eval_args"]["order"] == "TO":
        needed.append("TIME_FIELD")
    fields = {config[option]: f"({option})" for option in needed}
    if config["benchmark_filename"] and config["MODEL_TYPE"] == ModelType.SEQUENTIAL:
        fields[history_field(config)] = "(the history: ITEM_ID_FIELD + LIST_SUFFIX)"
    for path in expected_files(config):
        columns = header(path, config["field_separator"], config["encoding"] or "utf-8")
        missing = [f"{field!r} {meaning}" for field, meaning in fields.items() if field not in columns]
        if missing:
            raise DataError(f"{path} has no column {', '.join(missing)}; its columns are {', '.join(columns)}; "
                            + _cure(config, path, [field for field in fields if field not in columns]))


def _cure(config, path, missing):
    """What to do about missing columns, as the end of a message."""
    separator = guess_separator(path, config["encoding"] or "utf-8")
    if separator not in (None, config["field_separator"]):
        if separator == "\t":
            return "the columns of this file seem to be separated by a tab: leave out field_separator, whose default that is"
        return f"the columns of this file seem to be separated by {separator!r}: say --field_separator={separator!r}"
    if config["benchmark_filename"] and missing == [history_field(config)]:
        return ("a sequential model reads split files with one row for each target, and the items before it, separated by blanks, "
                f"in {missing[0]}:token_seq. Without split files, RecBole makes such rows itself from {config['dataset']}.inter, a "
                "file with all interactions")
    cure = "say which of them is meant with --OPTION=COLUMN"
    if missing == [config["TIME_FIELD"]]:
        cure += (", or, if the file is in the order of time, add a column with the numbers of the lines, "
                 f"{config['TIME_FIELD'] or 'timestamp'}:float: the order of the interactions counts")
    return cure


def history_field(config):
    """Name of the column that holds the history in split files."""
    return config["ITEM_ID_FIELD"] + config["LIST_SUFFIX"]


def load_dataset(config, create=True):
    """RecBole's ``create_dataset`` on files read verbatim.

    Missing files are made or fetched only if `create` is true; see :func:`prepare_files`.

    In split files the history speaks of the same items as the target, with or without ``alias_of_item_id`` (RecBole
    would number them apart). Histories longer than MAX_ITEM_LIST_LENGTH are refused (RecBole would keep their oldest
    items); where all are shorter, MAX_ITEM_LIST_LENGTH becomes the longest, as Caser's filters need.

    Raises:
        DataError: if files are missing or are not what RecBole can read.
    """
    prepare_files(config, create)
    check_columns(config)
    config["dataset_save_path"] = os.path.join(os.devnull, "no-pickle")  # never there; else RecBole opens one it finds
    config["dataloaders_save_path"] = config["dataset_save_path"]
    histories = config["benchmark_filename"] and config["MODEL_TYPE"] == ModelType.SEQUENTIAL
    aliases = config["alias_of_item_id"] or []
    if histories and history_field(config) not in aliases:
        config["alias_of_item_id"] = [*aliases, history_field(config)]
    with verbatim_reader(), _one_line(config):
        dataset = create_dataset(config)
    if histories:
        limit, longest = config["MAX_ITEM_LIST_LENGTH"], dataset.field2seqlen[history_field(config)]
        if longest > limit:
            raise DataError(
                f"data set {config['dataset']!r}: found a history of {longest} items, expected at most "
                f"MAX_ITEM_LIST_LENGTH = {limit}; raise the option, or cut the histories "
                f"(dataset_scripts.convert: --max-history {limit})"
            )
        config["MAX_ITEM_LIST_LENGTH"] = longest
    elif config["MODEL_TYPE"] == ModelType.SEQUENTIAL:
        times = dataset.inter_feat[config["TIME_FIELD"]]
        if len(times) > 1 and times.min() == times.max():
            getLogger().warning(f"All interactions have the same time ({config['TIME_FIELD']}), so those of a user are taken in "
                                "the order of the file")
    config["data_fingerprint"] = fingerprint(dataset)
    return dataset


def fingerprint(dataset):
    """sha256 of the item and user vocabularies in their order: what ids in a checkpoint mean."""
    digest = hashlib.sha256()
    for field in (dataset.iid_field, dataset.uid_field):
        digest.update("\0".join(dataset.field2id_token[field]).encode("utf-8", "surrogatepass"))
    return digest.hexdigest()


def split(config, dataset):
    """RecBole's train, valid and test loaders. `train_rows`, `valid_rows` and `test_rows` may ask for a sample of the rows.

    Raises:
        DataError: the options or the data are not what RecBole can split.
    """
    sizes = [config[name] for name in ("train_rows", "valid_rows", "test_rows")]
    build = dataset.build

    def build_checked():
        parts = build()
        if not len(parts[0]):
            cause = "" if config["benchmark_filename"] or config["MODEL_TYPE"] != ModelType.SEQUENTIAL else (
                ". A row of a sequential model is a target and the items before it, and the last two targets of a user are for "
                "validation and test, so some users need at least four interactions; found fewer. Is the user in the column "
                f"{config['USER_ID_FIELD']!r} (USER_ID_FIELD)?"
            )
            raise DataError(f"data set {config['dataset']!r}: there are no training rows{cause}")
        return [part if size is None else sample_rows(part, size, config["rows_seed"]) for part, size in zip(parts, sizes)]

    dataset.build = build_checked  # RecBole's data_preparation calls it
    with _one_line(config):
        return data_preparation(config, dataset)


@contextmanager
def _one_line(config):
    """Inside the block, an error of RecBole's about files or options is a DataError. The log has its traceback."""
    try:
        yield
    except (ValueError, KeyError, TypeError, AttributeError, IndexError, AssertionError, NotImplementedError, RuntimeError,
            OverflowError, ZeroDivisionError) as error:
        getLogger().debug("RecBole cannot read or split the data set", exc_info=True)
        kind = "" if isinstance(error, ValueError) else f"{type(error).__name__}: "
        raise DataError(f"data set {config['dataset']!r} in {config['data_path']}: RecBole cannot read or split it with these "
                        f"options ({kind}{first_line(error)})") from error


def sample_rows(dataset, size, seed):
    """A RecBole dataset with at most `size` of its rows, drawn at random with a seed, in their order."""
    rows = len(dataset.inter_feat)
    if size >= rows:
        return dataset
    drawn = torch.randperm(rows, generator=torch.Generator().manual_seed(seed))[:size].sort().values
    return dataset.copy(dataset.inter_feat[drawn])


def item_file(config):
    """Path of the data set's `.item` file."""
    return Path(config["data_path"]) / f"{config['dataset']}.item"


def find_field(config, columns, option, candidates):
    """The column that an option names; if the option is null, the first of `candidates` that is a column, else None.

    Args:
        config: with the option.
        columns: list of the names of all columns of the `.item` file.
        option: `TITLE_FIELD` or `DUPLICATE_FIELD`.
        candidates: names that are tried, in this order.

    Raises:
        DataError: the option names a column that does not exist.
    """
    name = config[option]
    if name is None:
        return next((field for field in candidates if field in columns), None)
    if name not in columns:
        raise DataError(
            f"{option}: found {name!r}, which is no column of {item_file(config)}; its columns are {', '.join(columns)}"
        )
    return name


def read_titles(config, dataset):
    """Titles of all items, exactly as they stand in the `.item` file.

    RecBole's own reader is not used: it drops text behind a leading quote, reads a film called "None" as a missing value, and
    joins double blanks. An item without a title gets its id as title, and a warning in the log gives the number of such items.
    If the file has an item twice, the first row counts, as in RecBole.

    Args:
        config: options `TITLE_FIELD` and `DUPLICATE_FIELD` (names of columns; null means that they are searched for) and
            `title_escapes`.
        dataset: RecBole dataset, for its item vocabulary.

    Returns:
        titles, list of n_items str, index = internal item id ("" for the padding, item 0); and extras, a list of the same
        length from the column `DUPLICATE_FIELD`, or None if there is no such column.

    Raises:
        DataError: there is no `.item` file, it has no column with titles, or an option names a column that does not exist.
    """
    path, id_field = item_file(config), dataset.iid_field
    if not path.is_file():
        raise DataError(
            f"found no {path}; a text model needs the items' titles there: a tab-separated file with the header "
            f"'{id_field}:token<TAB>title:token'"
        )
    encoding = config["encoding"] or "utf-8"
    columns = list(header(path, config["field_separator"], encoding))
    title_field = find_field(config, columns, "TITLE_FIELD", TITLE_FIELDS)
    if title_field is None:
        raise DataError(
            f"found no title among the columns of {path} ({', '.join(columns)}); name the column that holds the "
            "items' text with --TITLE_FIELD=..."
        )
    extra_field = find_field(config, columns, "DUPLICATE_FIELD", SUFFIX_FIELDS)
    wanted = [id_field, title_field] + ([extra_field] if extra_field else [])
    table = read_columns(path, wanted, config["field_separator"], encoding)
    plain = unescape if config["title_escapes"] else str
    row_of = {}
    for row, token in enumerate(table[id_field]):
        row_of.setdefault(token, row)
    tokens = dataset.field2id_token[id_field]
    rows = [row_of.get(token) for token in tokens]
    titles = [plain(table[title_field][row]) if row is not None else "" for row in rows]
    titles[0] = ""
    missing = [item for item in range(1, len(titles)) if not titles[item].strip()]
    for item in missing:
        titles[item] = str(tokens[item])
    if missing:
        getLogger().warning(
            f"{len(missing)} of {len(titles) - 1} items have no title in {path}: their id is used as text"
        )
    extras = [plain(table[extra_field][row]) if row is not None else "" for row in rows] if extra_field else None
    return titles, extras


def title_groups(titles):
    """Numbers of the distinct titles: two items have the same number if their titles are equal.

    Args:
        titles: list of n_items str; index 0 is the padding and ignored.

    Returns:
        int64 [n_items]: 0 for the padding, then 1, 2, ... in the order in which the titles first occur.
    """
    number = {}
    groups = [0] + [number.setdefault(title, len(number) + 1) for title in titles[1:]]
    return torch.tensor(groups, dtype=torch.long)
