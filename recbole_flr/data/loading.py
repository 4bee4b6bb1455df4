"""RecBole's datasets and loaders, with files read verbatim and no pickle opened.

RecBole reads atomic files with pandas' quoting and its words for missing values: an item whose brand begins with a
quote swallows the rows behind it, and a user called "NA" is dropped. Here the reader that RecBole calls is told not to.
"""

import csv
import types
from contextlib import contextmanager
from pathlib import Path
from unittest import mock

import pandas as pd
from pandas._libs.parsers import STR_NA_VALUES
from recbole.data import create_dataset, data_preparation
from recbole.data.dataset import dataset as recbole_dataset

from recbole_flr.errors import DataError

AMAZON = ("toys", "cds", "games", "instruments", "movies")


@contextmanager
def verbatim_reader():
    """While this is open, RecBole's dataset module reads csv files without quoting; text is missing only if empty."""

    def read_csv(path, *args, dtype, **kwargs):
        missing = {name: [""] if kind is str else sorted(STR_NA_VALUES) for name, kind in dtype.items()}
        return pd.read_csv(
            path, *args, dtype=dtype, quoting=csv.QUOTE_NONE, keep_default_na=False, na_values=missing, **kwargs
        )

    pandas = types.ModuleType("pandas")
    pandas.__dict__.update(vars(pd), read_csv=read_csv)
    with mock.patch.object(recbole_dataset, "pd", pandas):
        yield


def expected_files(config):
    """Paths of the interaction files that RecBole will read."""
    folder = Path(config["data_path"])
    parts = config["benchmark_filename"]
    names = [f"{config['dataset']}.{part}.inter" for part in parts] if parts else [f"{config['dataset']}.inter"]
    return [folder / name for name in names]


def prepare_files(config):
    """Make sure that the data set's files are there.

    Raises:
        DataError: saying where it looked and the three ways to get the files.
    """
    name, folder = config["dataset"], Path(config["data_path"])
    missing = [path for path in expected_files(config) if not path.is_file()]
    if not missing:
        return
    if name == "toys_demo":
        from dataset_scripts import toys_demo

        toys_demo.prepare(folder.parent)
        return
    where = ("the Amazon-2018 files (Ni et al., EMNLP 2019) of its category" if name in AMAZON
             else "the data set's atomic files (RecBole's data page lists many)")
    raise DataError(
        f"data set {name!r}: found no {missing[0]} (looked in {folder.resolve()}). Three ways to get it:\n"
        f"  1. convert raw Amazon files:  python -m dataset_scripts.amazon --reviews REVIEWS --meta META --name {name} "
        f"--out {folder.parent}\n"
        f"  2. download {where} and put them there, or say --data_path=FOLDER where FOLDER/{name} holds them\n"
        "  3. try the made-up demo, which needs no files:  --dataset=toys_demo"
    )


def load_dataset(config):
    """RecBole's ``create_dataset`` on files read verbatim.

    Histories in split files longer than MAX_ITEM_LIST_LENGTH are refused (RecBole would keep their oldest items);
    where all are shorter, MAX_ITEM_LIST_LENGTH becomes the longest, as Caser's filters need.

    Raises:
        DataError: if files are missing or are not what RecBole can read.
    """
    prepare_files(config)
    config["dataset_save_path"] = str(Path(config["checkpoint_dir"]) / "no-pickle")  # else RecBole opens one it finds
    config["dataloaders_save_path"] = config["dataset_save_path"]
    try:
        with verbatim_reader():
            dataset = create_dataset(config)
    except (ValueError, KeyError, pd.errors.ParserError) as error:
        raise DataError(f"data set {config['dataset']!r} in {config['data_path']}: {error}") from error
    if config["benchmark_filename"]:
        limit, longest = config["MAX_ITEM_LIST_LENGTH"], dataset.field2seqlen[dataset.item_id_list_field]
        if longest > limit:
            raise DataError(
                f"data set {config['dataset']!r}: found a history of {longest} items, expected at most "
                f"MAX_ITEM_LIST_LENGTH = {limit}; convert again with --max-history {limit}, or raise the option"
            )
        config["MAX_ITEM_LIST_LENGTH"] = longest
    return dataset


def split(config, dataset):
    """RecBole's train, valid and test loaders."""
    return data_preparation(config, dataset)
