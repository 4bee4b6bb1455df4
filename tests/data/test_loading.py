"""Data sets from atomic files: values that stay as they are written, missing and wrong files, the split, and no pickles."""

import pickle
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from helpers_data import BENCHMARK, HISTORY_HEADER, INTER_HEADER, make_config, write, write_set, write_split
from recbole.data import create_dataset, data_preparation

from recbole_flr.data.loading import expected_files, load_dataset, prepare_files, split, verbatim_reader
from recbole_flr.errors import DataError

PLAIN = [f"i{item}\tTitle {item}" for item in range(6)]
SEQUENCES = {f"u{user}": [f"i{(user + step) % 6}" for step in range(6)] for user in range(3)}
PARTS = {
    "train": [("u1", ["a"], "b", 1), ("u2", ["c", "a"], "b", 2), ("u1", ["a", "b"], "c", 3)],
    "valid": [("u1", ["a", "b", "c"], "d", 4)],
    "test": [("u2", ["a", "b"], "e", 5)],
}


def items_of(dataset):
    return set(dataset.field2id_token["item_id"][1:].tolist())


def load(root, model="SASRec", **options):
    return load_dataset(make_config(root, model=model, **options))


# Verbatim reading

DAMAGING = {  # rows, and what RecBole's own reader makes of them: the items that are left, or an error
    "a quote that another item closes": (
        ["i0\tA\tx", 'i1\t"open\tx', "i2\tB\tx", 'i3\tclosed"\tx', "i4\tD\tx", "i5\tE\tx"],
        ["i0", "i1", "i4", "i5"],
    ),
    "a brand, which is not even loaded, with such a quote": (
        ["i0\tA\tx", 'i1\tB\t"open', "i2\tC\tx", "i3\tD\tx", 'i4\tE\tclosed"', "i5\tF\tx"],
        ["i0", "i1", "i5"],
    ),
    "a quote that nothing closes": (["i0\tA\tx", 'i1\t"open\tx', "i2\tB\tx", "i3\tC\tx", "i4\tD\tx", "i5\tE\tx"], None),
    "a quoted word in front": (["i0\tA\tx", 'i1\t"Big" Bang\tx', "i2\tB\tx", "i3\tC\tx", "i4\tD\tx", "i5\tE\tx"], None),
    "a lone CR": (
        ["i0\tA\tx", "i1\tB\rbut\tx", "i2\tC\tx", "i3\tD\tx", "i4\tE\tx", "i5\tF\tx"],
        ["but", "i0", "i1", "i2", "i3", "i4", "i5"],
    ),
}


@pytest.mark.parametrize("kind", ["token", "token_seq"])
@pytest.mark.parametrize("rows, plain", DAMAGING.values(), ids=DAMAGING.keys())
def test_what_damages_a_plain_read_leaves_all_items(tmp_path, rows, plain, kind):
    write_set(tmp_path, {"u1": ["i0", "i5"], "u2": ["i5", "i0"]}, rows, f"item_id:token\ttitle:{kind}\tbrand:token")
    dataset = load(tmp_path)
    assert items_of(dataset) == {f"i{item}" for item in range(6)}
    assert len(dataset.item_feat) == dataset.item_num == 7
    # The control: RecBole's own reader on the same file.
    if plain is None:
        with pytest.raises(pd.errors.ParserError):
            create_dataset(make_config(tmp_path))
    else:
        assert items_of(create_dataset(make_config(tmp_path))) == set(plain)


WORDS = ['"open', "None", "NA", "nan", "NULL", "double  blanks", "🚒", "秘密", "a\\tb",
         '"quoted"', "''", " x ", "<|Thought|>"]


def test_texts_that_recbole_loads_itself_are_verbatim(tmp_path):
    """With `load_col: null`, RecBole also reads the titles, for its own models."""
    rows = [f"i{item}\t{word}\t{word}" for item, word in enumerate(WORDS)]
    header = "item_id:token\ttitle:token\twords:token_seq"
    write_set(tmp_path, {"u1": [f"i{item}" for item in range(len(WORDS))]}, rows, header)
    dataset = load(tmp_path, load_col=None)
    for item, row in enumerate(dataset.field2id_token["item_id"]):
        if item:
            word = WORDS[int(row[1:])]
            assert dataset.field2id_token["title"][int(dataset.item_feat["title"][item])] == word
            sequence = dataset.field2id_token["words"][dataset.item_feat["words"][item].tolist()]
            assert [w for w in sequence if w != "[PAD]"] == [w for w in word.split(" ") if w]
    # The control: RecBole's own reader stops at the open quote, and without that row it loses some words.
    write_set(tmp_path / "plain", {"u1": ["i1", "i2"]}, rows[1:], header)
    plain = create_dataset(make_config(tmp_path / "plain", load_col=None))
    assert set(WORDS[1:]) - set(plain.field2id_token["title"].tolist()) == {"None", "NA", "nan", "NULL", '"quoted"'}


def test_a_user_and_an_item_called_na_stay(tmp_path):
    write_set(tmp_path, {"NA": ["i0", "nan", "i2", "i3"], "None": ["i0", "i2", "nan"], "u": ["i3", "i0"]})
    dataset = load(tmp_path)
    assert set(dataset.field2id_token["user_id"][1:].tolist()) == {"NA", "None", "u"}
    assert items_of(dataset) == {"i0", "i2", "i3", "nan"}
    assert len(dataset.inter_feat) == 9
    plain = create_dataset(make_config(tmp_path))  # the control: RecBole's own reader
    assert set(plain.field2id_token["user_id"][1:].tolist()) == {"u"}


def test_numbers_are_numbers_and_missing_ones_the_mean(tmp_path):
    rows = [f"i{item}\t{number}" for item, number in enumerate(["1.5", "NA", "", "2.5e0", "-7", "nan"])]
    write_set(tmp_path, SEQUENCES, rows, "item_id:token\tprice:float")
    dataset = load(tmp_path, load_col=None)
    prices = dict(zip(dataset.field2id_token["item_id"].tolist(), dataset.item_feat["price"].tolist()))
    assert [prices[f"i{item}"] for item in range(6)] == [1.5, -1.0, -1.0, 2.5, -7.0, -1.0]


def test_missing_tokens_are_recboles_padding(tmp_path):
    rows = ["i0\t", *(f"i{item}\tx" for item in range(1, 6))]
    write_set(tmp_path, SEQUENCES, rows, "item_id:token\tbrand:token")
    dataset = load(tmp_path, load_col=None)
    brands = dict(zip(dataset.field2id_token["item_id"].tolist(), dataset.item_feat["brand"].tolist()))
    assert [brands[f"i{item}"] for item in range(6)] == [0, 1, 1, 1, 1, 1]


def test_the_reader_is_recboles_own_again_afterwards():
    from recbole.data.dataset import dataset as module

    before = module.pd
    with pytest.raises(RuntimeError), verbatim_reader():
        assert module.pd is not before
        raise RuntimeError
    assert module.pd is before


def test_ml_100k_reads_as_recbole_reads_it(tmp_path):
    """Both readers read a clean data set alike, and number its users and items alike."""
    ours = load_dataset(make_config(tmp_path, name="ml-100k", load_col=None))
    config = make_config(tmp_path, name="ml-100k", load_col=None)
    plain = create_dataset(config)
    for feature in ("inter_feat", "item_feat", "user_feat"):
        a, b = getattr(ours, feature), getattr(plain, feature)
        assert list(a.columns) == list(b.columns)
        for column in a.columns:
            assert all(np.array_equal(x, y) for x, y in zip(a[column].tolist(), b[column].tolist(), strict=True))
    for field, names in plain.field2id_token.items():
        assert ours.field2id_token[field].tolist() == names.tolist()


# Files that are missing or wrong


@pytest.mark.parametrize("name", ["mini", "toys"])
def test_missing_files_are_named_with_the_ways_to_get_them(tmp_path, name, monkeypatch):
    monkeypatch.chdir(tmp_path)
    config = make_config(Path("data"), name=name)
    with pytest.raises(DataError) as caught:
        load_dataset(config)
    message = str(caught.value)
    first = "toys.train.inter" if name == "toys" else "mini.inter"
    assert f"found no {Path('data') / name / first}" in message
    assert str(tmp_path / "data" / name) in message  # the whole path: where did it look?
    way = 2 if name == "toys" else 1
    assert f"{way}. convert raw files:  python -m dataset_scripts.convert --reviews REVIEWS --meta META --name {name}" in message
    assert f"--name {name} --out data" in message
    assert f"{way + 1}. download" in message and f"--data_path=FOLDER where FOLDER/{name} holds them" in message
    assert f"{way + 2}. try the made-up demo, which needs no files:  --dataset=toys_demo" in message
    easiest = "1. download and convert Amazon's Toys_and_Games of 2018:  --download=true, or beforehand "
    easiest += "python -m dataset_scripts.download toys --convert --out data"
    assert (easiest in message) == (name == "toys")
    assert not (tmp_path / "data").exists()


@pytest.mark.parametrize("part", ["train", "valid", "test"])
def test_a_missing_split_file_is_named(tmp_path, part):
    write_split(tmp_path, PARTS)
    (tmp_path / "mini" / f"mini.{part}.inter").unlink()
    with pytest.raises(DataError, match=rf"found no .*mini\.{part}\.inter"):
        load(tmp_path, **BENCHMARK)


def test_expected_files_are_those_that_recbole_reads(tmp_path):
    folder = tmp_path / "mini"
    assert expected_files(make_config(tmp_path)) == [folder / "mini.inter"]
    split_files = [folder / f"mini.{part}.inter" for part in ("train", "valid", "test")]
    assert expected_files(make_config(tmp_path, **BENCHMARK)) == split_files


WRONG = {
    "no user": ("uid:token\titem_id:token\ttimestamp:float", r"mini\.inter has no column 'user_id' \(USER_ID_FIELD\)"),
    "no item": ("user_id:token\tiid:token\ttimestamp:float",
                r"no column 'item_id' \(ITEM_ID_FIELD\).*user_id, iid, timestamp"),
    "no time": ("user_id:token\titem_id:token\twhen:float", r"no column 'timestamp' \(TIME_FIELD\)"),
    "no time at all": ("user_id:token\titem_id:token\tstars:float", r"add a column with the numbers of the lines, timestamp:float"),
    "commas": ("user_id:token,item_id:token,timestamp:float", r"separated by ',': say --field_separator=','"),
    "no types": ("user_id\titem_id\ttimestamp", "name:type"),
    "no such type": ("user_id:token\titem_id:token\ttimestamp:date", "date"),
}


@pytest.mark.parametrize("header, message", WRONG.values(), ids=WRONG.keys())
def test_a_wrong_header_is_a_data_error(tmp_path, header, message):
    write(tmp_path / "mini", "mini.inter", [header, *(f"u\ti{item}\t{item}" for item in range(5))])
    with pytest.raises(DataError, match=message):
        load(tmp_path)


def test_a_wrong_row_is_a_data_error_with_its_number(tmp_path):
    write(tmp_path / "mini", "mini.inter", [INTER_HEADER, "u\ti0\t0", "u\ti1", "u\ti2\t2"])
    with pytest.raises(DataError, match=r"mini\.inter, line 3: 2 columns"):
        load(tmp_path)


def test_a_time_that_is_no_number_is_a_data_error(tmp_path):
    write(tmp_path / "mini", "mini.inter", [INTER_HEADER, "u\ti0\t0", "u\ti1\tyesterday", "u\ti2\t2"])
    with pytest.raises(DataError, match="yesterday"):
        load(tmp_path)


def test_a_split_file_without_history_is_a_data_error(tmp_path):
    write_split(tmp_path, PARTS, header=HISTORY_HEADER.replace("item_id_list", "history"))
    with pytest.raises(DataError, match=r"no column 'item_id_list' \(the history.*one row for each target, and the items before it"):
        load(tmp_path, **BENCHMARK)


def test_users_with_one_interaction_each_are_a_data_error(tmp_path):
    write_set(tmp_path, {f"u{user}": [f"i{user % 3}"] for user in range(9)})
    config = make_config(tmp_path)
    with pytest.raises(DataError, match="no training rows.*some users need at least four interactions"):
        split(config, load_dataset(config))


@pytest.mark.parametrize("times, warned", [([7, 7, 7, 7, 7], True), ([7, 7, 7, 7, 8], False)])
def test_equal_times_are_said(tmp_path, caplog, times, warned):
    lines = [f"u{user}\ti{(user + place) % 6}\t{time}" for user in range(3) for place, time in enumerate(times)]
    write(tmp_path / "mini", "mini.inter", [INTER_HEADER, *lines])
    caplog.set_level("WARNING")
    load(tmp_path)
    assert ("the order of the file" in caplog.text) == warned


def test_no_rows_is_a_data_error(tmp_path):
    write(tmp_path / "mini", "mini.inter", [INTER_HEADER])
    with pytest.raises(DataError, match="empty"):
        load(tmp_path)


# Split files


def test_a_history_that_is_too_long_is_a_data_error(tmp_path):
    write_split(tmp_path, PARTS)
    with pytest.raises(DataError, match=r"history of 3 items, .* MAX_ITEM_LIST_LENGTH = 2.*--max-history 2"):
        load(tmp_path, MAX_ITEM_LIST_LENGTH=2, **BENCHMARK)


@pytest.mark.parametrize("limit", [3, 10])
def test_the_limit_becomes_the_longest_history(tmp_path, limit):
    write_split(tmp_path, PARTS)
    config = make_config(tmp_path, MAX_ITEM_LIST_LENGTH=limit, **BENCHMARK)
    dataset = load_dataset(config)
    assert config["MAX_ITEM_LIST_LENGTH"] == 3
    assert config.snapshot()["MAX_ITEM_LIST_LENGTH"] == limit
    for loader in split(config, dataset):
        assert loader._dataset.inter_feat["item_id_list"].shape[1] == 3


def test_without_split_files_the_limit_stays(tmp_path):
    write_set(tmp_path, SEQUENCES)
    config = make_config(tmp_path, MAX_ITEM_LIST_LENGTH=7)
    load_dataset(config)
    assert config["MAX_ITEM_LIST_LENGTH"] == 7


@pytest.mark.parametrize("alias", [None, ["item_id_list"]])
def test_split_files_are_split_as_they_say(tmp_path, alias):
    """History and target use the same item ids, with the alias and without it."""
    write_split(tmp_path, PARTS)
    config = make_config(tmp_path, **BENCHMARK, **({"alias_of_item_id": alias} if alias else {}))
    dataset = load_dataset(config)
    names = {field: dataset.field2id_token[field] for field in ("user_id", "item_id")}
    for part, loader in zip(("train", "valid", "test"), split(config, dataset)):
        inter = loader._dataset.inter_feat
        rows = [
            (names["user_id"][user], [names["item_id"][past] for past in history[:length]], names["item_id"][item], time)
            for user, history, length, item, time in zip(*(inter[field].tolist() for field in (
                "user_id", "item_id_list", "item_length", "item_id", "timestamp")))
        ]
        assert rows == PARTS[part]


@pytest.mark.parametrize("model", ["SASRec", "BPR"])
def test_a_sample_of_rows_does_not_depend_on_model_or_seed(tmp_path, model):
    """The sample is the rows that the seed of the sample draws, in their order. More rows than there are mean all."""
    many = {part: [(f"u{n % 5}", ["a", "b"], f"i{n}", n) for n in range(size)]
            for part, size in (("train", 40), ("valid", 12), ("test", 9))}
    write_split(tmp_path, many)

    def times(**options):
        config = make_config(tmp_path, model=model, **BENCHMARK, **options)
        found = [loader._dataset.inter_feat["timestamp"].int().tolist() for loader in split(config, load_dataset(config))]
        return [sorted(part) for part in found] if model == "BPR" else found  # whose evaluation goes by user

    train, valid, test = times(train_rows=15, valid_rows=4, seed=1)
    assert len(train) == 15 and len(valid) == 4 and test == list(range(9))
    assert train == sorted(torch.randperm(40, generator=torch.Generator().manual_seed(0))[:15].tolist())
    assert times(train_rows=15, valid_rows=4, seed=2) == [train, valid, test]
    assert times(train_rows=15, rows_seed=3)[0] != train
    assert times(train_rows=41)[0] == list(range(40))


def test_other_models_of_recbole_read_split_files_too(tmp_path):
    write_split(tmp_path, PARTS)
    config = make_config(tmp_path, model="BPR", **BENCHMARK)
    dataset = load_dataset(config)
    assert [len(loader._dataset) for loader in split(config, dataset)] == [3, 1, 1]


def test_the_demo_is_made_on_first_use(tmp_path):
    config = make_config(tmp_path, name="toys_demo")
    prepare_files(config)
    assert all(path.is_file() for path in expected_files(config))
    stamps = {path: path.stat().st_mtime_ns for path in (tmp_path / "toys_demo").iterdir()}
    dataset = load_dataset(config)
    assert dataset.item_num > 300 and config["MAX_ITEM_LIST_LENGTH"] <= 10
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "toys_demo").iterdir()} == stamps


# Pickles


class Poison:
    """An object whose pickle creates a file when it is loaded."""

    def __init__(self, marker):
        self.marker = str(marker)

    def __reduce__(self):
        return open, (self.marker, "w")


@pytest.fixture
def poisoned(tmp_path):
    """A data set, and pickles wherever RecBole may look for one. Returns the file that appears if one is opened."""
    write_set(tmp_path, SEQUENCES, PLAIN)
    marker, saved = tmp_path / "opened", tmp_path / "saved"
    saved.mkdir()
    for name in ("mini-SequentialDataset.pth", "mini-for-SASRec-dataloader.pth", "no-pickle"):
        (saved / name).write_bytes(pickle.dumps(Poison(marker)))
    return marker


def test_no_pickle_is_opened(tmp_path, poisoned):
    config = make_config(tmp_path)
    loaders = split(config, load_dataset(config))
    assert [len(loader._dataset) for loader in loaders] == [9, 3, 3]
    assert not poisoned.exists()


def test_recbole_itself_would_open_both(tmp_path, poisoned):
    """Check of the test itself: RecBole does load these pickles, and loading them creates the file."""
    with pytest.raises(AttributeError):
        create_dataset(make_config(tmp_path))
    assert poisoned.exists()
    poisoned.unlink()
    (tmp_path / "saved" / "mini-SequentialDataset.pth").unlink()
    config = make_config(tmp_path)
    dataset = create_dataset(config)
    with pytest.raises(Exception):
        data_preparation(config, dataset)
    assert poisoned.exists()


def test_loading_writes_nothing(tmp_path):
    write_set(tmp_path, SEQUENCES, PLAIN)
    before = sorted(tmp_path.rglob("*"))
    config = make_config(tmp_path)
    split(config, load_dataset(config))
    assert sorted(tmp_path.rglob("*")) == before
