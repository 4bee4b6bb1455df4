"""RecBole's datasets with histories as integers, against RecBole's own classes on the same files."""

import numpy as np
import pytest
import torch
from helpers_data import BENCHMARK, HISTORY_HEADER, make_config, write, write_set, write_split
from hypothesis import given, settings
from hypothesis import strategies as st
from recbole.data import create_dataset
from recbole.data.dataset import Dataset, SequentialDataset

from recbole_flr.data import table
from recbole_flr.data.datasets import LeanDataset, LeanSequentialDataset, read_slowly, reader, verbatim_reader
from recbole_flr.data.loading import load_dataset
from recbole_flr.errors import DataError

IDS = st.sampled_from(["a", "b", "c", "NA", "nan", "é", "秘密", '"', "\\", "x" * 40, "[PAD"])
ROWS = st.lists(st.tuples(IDS, st.lists(IDS, max_size=4), IDS, st.integers(0, 10**9)), min_size=1, max_size=8)


@pytest.fixture(params=[0, 1 << 20], ids=["DuckDB", "plain"])
def both_readers(request, monkeypatch):
    monkeypatch.setattr(table, "SMALLEST", request.param)


def loaded(root, ours, model="SASRec", **options):
    """A dataset as it is after loading and after `build`: its own attributes, and the tensors of its parts."""
    def slowly(path, delimiter, usecols, dtype, encoding, **_):
        wanted = {field.split(":")[0]: str if dtype[field] is str else float for field in usecols}
        return read_slowly(path, wanted, delimiter, encoding)[0].set_axis(usecols, axis=1)

    options = {"alias_of_item_id": ["item_id_list"], **BENCHMARK, **options}
    with verbatim_reader() if ours else reader(slowly):
        dataset = create_dataset(make_config(root, model=model, **options))
    assert isinstance(dataset, (LeanDataset, LeanSequentialDataset)) == ours
    facts = {
        "columns": list(dataset.inter_feat.columns), "types": dict(dataset.field2type), "sources": dict(dataset.field2source),
        "lengths": dict(dataset.field2seqlen), "tokens": {name: names.tolist() for name, names in dataset.field2id_token.items()},
        "ids": dict(dataset.field2token_id), "numbers": (dataset.user_num, dataset.item_num, len(dataset)),
    }  # fmt: skip
    return facts, [part.inter_feat.interaction for part in dataset.build()]


def assert_same(root, **options):
    (facts, parts), (wanted, wanted_parts) = (loaded(root, ours, **options) for ours in (True, False))
    assert facts == wanted
    for part, other in zip(parts, wanted_parts, strict=True):
        assert list(part) == list(other)
        for name, values in part.items():
            assert values.dtype == other[name].dtype and torch.equal(values, other[name]), name


@settings(max_examples=15, deadline=None)
@given(st.tuples(ROWS, ROWS, ROWS), st.sampled_from(["SASRec", "BPR"]), st.sampled_from([0, 1 << 20]))
def test_random_split_files_are_loaded_as_recbole_loads_them(tmp_path_factory, rows, model, smallest):
    root = tmp_path_factory.mktemp("set")
    write_split(root, dict(zip(("train", "valid", "test"), rows)))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(table, "SMALLEST", smallest)
        assert_same(root, model=model)


PARTS = {
    "train": [("u1", ["a"], "b", 1), ("u2", ["c", "a"], "b", 2), ("u1", ["a", "b"], "c", 3)],
    "valid": [("u1", ["a", "b", "c", "z"], "d", 4)], "test": [("u2", ["q", "b"], "e", 5)],
}  # fmt: skip
OPTIONS = {
    "no alias": {"alias_of_item_id": None}, "cut by RecBole": {"seq_len": {"item_id_list": 2}},
    "some columns": {"load_col": {"inter": ["user_id", "item_id", "item_id_list"]}},
    "all but one column": {"load_col": None, "unload_col": {"inter": ["timestamp"]}}, "all columns": {"load_col": None},
    "without the history": {"load_col": {"inter": ["user_id", "item_id"]}, "model": "BPR", "alias_of_item_id": None},
}  # fmt: skip


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS.keys())
def test_options_of_columns_mean_the_same(tmp_path, both_readers, options):
    write_split(tmp_path, PARTS, items=["e\tE", "a\tA", "new\tN"])
    assert_same(tmp_path, **options)


def test_more_lists_than_the_history_and_a_history_in_the_middle(tmp_path, both_readers):
    header = "item_id_list:token_seq\tuser_id:token\ttags:token_seq\tratings:float_seq\titem_id:token\ttimestamp:float"
    for part, size in (("train", 5), ("valid", 2), ("test", 3)):
        rows = [f"i{n} i{n + 1}\tu{n % 2}\tt{size}  x\t{n}.5 2\ti{n + 2}\t{n or ''}" for n in range(size)]
        write(tmp_path / "mini", f"mini.{part}.inter", [header, *rows])
    assert_same(tmp_path, load_col=None)
    assert_same(tmp_path, load_col=None, alias_of_item_id=["item_id_list", "tags"])


def test_a_column_of_lists_in_some_files_only_is_refused(tmp_path, both_readers):
    write_split(tmp_path, PARTS)
    write(tmp_path / "mini", "mini.valid.inter", [HISTORY_HEADER + "\ttags:token_seq", "u1\ta\t4\tb\tx y"])
    with pytest.raises(DataError, match="'tags' is a token_seq in some split files only"):
        load_dataset(make_config(tmp_path, load_col=None, **BENCHMARK))


def test_files_without_split_are_read_as_before(tmp_path, both_readers):
    sequences = {f"u{user}": [f"i{(user + step) % 6}" for step in range(6)] for user in range(3)}
    write_set(tmp_path, sequences, [f"i{item}\tx y" for item in range(6)], "item_id:token\ttags:token_seq")
    split = {"split": {"LS": "valid_and_test"}, "order": "TO", "group_by": "user", "mode": "full"}
    assert_same(tmp_path, benchmark_filename=None, alias_of_item_id=None, load_col=None, eval_args=split)


def test_the_history_is_given_free_when_tensors_are_made(tmp_path):
    write_split(tmp_path, PARTS)
    with verbatim_reader():
        dataset = create_dataset(make_config(tmp_path, **BENCHMARK))
    assert isinstance(dataset.inter_feat["item_id_list"][0], range)
    assert dataset.inter_feat["item_length"].tolist() == [1, 2, 2, 4, 2]
    dataset.build()
    assert not dataset._lists and not dataset._distinct


def test_recboles_classes_are_its_own_again_afterwards():
    import recbole.data.dataset as package

    with pytest.raises(RuntimeError), verbatim_reader():
        assert package.SequentialDataset is LeanSequentialDataset and package.Dataset is LeanDataset
        raise RuntimeError
    assert package.SequentialDataset is SequentialDataset and package.Dataset is Dataset


def test_history_ids_have_the_order_of_first_occurrence(tmp_path, both_readers):
    """Worked by hand: targets of all files first, then the histories."""
    write_split(tmp_path, PARTS)
    facts, parts = loaded(tmp_path, ours=True)
    assert facts["tokens"]["item_id"] == ["[PAD]", "b", "c", "d", "e", "a", "z", "q"]
    assert np.concatenate([part["item_id_list"] for part in parts]).tolist() == [
        [5, 0, 0, 0], [2, 5, 0, 0], [5, 1, 0, 0], [5, 1, 2, 6], [7, 1, 0, 0]]  # fmt: skip
