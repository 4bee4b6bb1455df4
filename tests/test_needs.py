"""A run that cannot work is refused before anything is written, with the option that gives what is missing."""

import re
from pathlib import Path
from types import SimpleNamespace

import pytest
from benchmarks.recbole_models import GIVEN, METRICS, try_model, write_dataset
from helpers_data import write_set

from recbole_flr.command import main
from recbole_flr.errors import ConfigError
from recbole_flr.needs import check_processes, check_sizes


@pytest.fixture(scope="module")
def every(tmp_path_factory):
    """A data set with ratings, features and a knowledge graph."""
    return write_dataset(tmp_path_factory.mktemp("every") / "data")


@pytest.mark.parametrize(
    "options, environment",
    [
        ({"nproc": 2}, {}),
        ({"world_size": 2}, {}),
        ({"world_size": "2"}, {}),
        ({"nproc": "two"}, {}),
        ({}, {"WORLD_SIZE": "2"}),
    ],
)
def test_several_processes_are_refused(options, environment):
    with pytest.raises(ConfigError, match=r"expected 1: a run has one process.*start it without torchrun"):
        check_processes(options, environment)


def test_one_process_is_fine():
    check_processes({"nproc": 1, "world_size": 1}, {"WORLD_SIZE": "1"})
    check_processes({"nproc": None}, {})


def test_torchrun_is_refused_before_anything_is_written(monkeypatch, capsys, session_data):
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert main(["--model=SASRec", "--dataset=tiny", f"--data_path={session_data}"]) == 2
    err = capsys.readouterr().err
    assert err.count("\n") == 1 and "WORLD_SIZE (torchrun sets it): found '2', expected 1" in err
    assert not list(Path().iterdir())


@pytest.mark.parametrize(
    "model, said",
    [
        ("DeepFM", r"predicts a label.*--threshold=\"\{'rating': 4\}\" --load_col=\"\{'inter': \[.*'rating'\].*--LABEL_FIELD"),
        ("CKE", r"load_col: found no columns of the .kg file.*'kg': \['head_id', 'relation_id', 'tail_id'\]"),
        ("FDSA", r"selected_features: found 'class', which load_col does not load.*'item': \['item_id', 'class'\]"),
        ("RaCT", "stages that hand on pickles"),
        ("S3Rec", "stages that hand on pickles"),
        ("KGAT", "needs the package dgl"),
        ("KSR", "load_col: found no columns of the .kg file"),
    ],
)
def test_what_is_missing_is_named(every, model, said):
    assert re.search(said, try_model(model, every, {}))
    assert not Path("saved").exists()


@pytest.mark.parametrize(
    "model, need",
    [  # each ended in a traceback: by scipy, by a missing label, by a module in other_parameter
        ("LightGCN", None),
        ("NGCF", None),
        ("GCMC", None),
        ("SpectralCF", None),
        ("DeepFM", "a label"),
        ("FDSA", "features of items"),
        ("DIN", None),
        ("RippleNet", "a knowledge graph"),
        ("KSR", "a knowledge graph with vectors"),
    ],
)
def test_models_that_ended_in_a_traceback(every, model, need):
    assert try_model(model, every, {**GIVEN.get(need, {}), **METRICS.get(need, {})}) == ""


def test_scipy_is_left_as_it_was():
    from scipy.sparse import dok_matrix

    from recbole_flr.registry import old_scipy

    before = "_update" in dir(dok_matrix)
    with old_scipy():
        matrix = dok_matrix((2, 2))
        matrix._update({(0, 1): 3.0})
        assert matrix.toarray().tolist() == [[0, 3], [0, 0]]
    assert ("_update" in dir(dok_matrix)) == before


@pytest.mark.parametrize(
    "model, option", [("ConvNCF", "pre_model_path"), ("NeuMF", "mf_pretrain_path"), ("NAIS", "pretrain_path")]
)
def test_pickled_weights_are_refused(every, model, option):
    assert f"{option}: found 'x.pth', the weights of another run of RecBole; they are pickles" in try_model(
        model, every, {option: "x.pth"}
    )


def test_a_data_set_with_one_item_is_refused_before_the_training(tmp_path, capsys):
    write_set(tmp_path / "data", {f"u{user}": ["i1"] * 5 for user in range(5)}, ["i1\tRobot"])
    assert main(["--model=SASRec", "--dataset=mini", f"--data_path={tmp_path / 'data'}", "--state=ERROR"]) == 2
    assert "found 1 item, expected at least 2: there is nothing to rank" in capsys.readouterr().err
    assert not Path("saved").exists()


@pytest.mark.parametrize(
    "options, said",
    [
        ({"topk": [5, 12]}, "topk: found 12, expected at most 11"),
        ({"model": "NCL", "num_clusters": 9}, "num_clusters: found 9, expected at most 8"),
        ({"model": "SASRecCPR", "reranker_CAN_NUM": "100,20"}, "reranker_CAN_NUM: found 100, expected at most 11"),
    ],
)
def test_lists_that_are_longer_than_the_data(options, said):
    config = {"model": "SASRec", "dataset": "x", "topk": 5, "metrics": ["Hit"], **options}
    with pytest.raises(ConfigError, match=said):
        check_sizes(config, SimpleNamespace(item_num=12, user_num=9))


def test_a_run_without_ranking_has_no_cutoff():
    check_sizes({"model": "LR", "dataset": "x", "topk": 50, "metrics": ["AUC"]}, SimpleNamespace(item_num=12, user_num=9))
