"""A run that cannot work is refused before anything is written, with the option that gives what is missing."""

import importlib.util
import re
from pathlib import Path
from types import SimpleNamespace

import pytest
from benchmarks.recbole_models import GIVEN, METRICS, try_model, write_dataset
from helpers_data import write_set

from recbole_flr.command import backbone_main, export_main, main, recommend_main
from recbole_flr.comparison.command import report_main
from recbole_flr.errors import ConfigError
from recbole_flr.needs import check_processes, check_sizes

ONE_PROCESS = {"nproc": 1, "world_size": None, "ip": "localhost", "port": None, "group_offset": 0}


@pytest.fixture(scope="module")
def every(tmp_path_factory):
    """A data set with ratings, features and a knowledge graph."""
    return write_dataset(tmp_path_factory.mktemp("every") / "data")


@pytest.mark.parametrize(
    "options, started, said",
    [
        ({"nproc": 2}, 3, r"nproc, world_size: found 2 and 2, but a launcher such as torchrun has started 3 processes already"),
        ({"world_size": 2}, 4, "nproc, world_size: found 1 and 2"),
        ({"nproc": 2, "world_size": 3, "group_offset": 2}, 1, r"world_size: found 3, expected at least group_offset \+ nproc = 4"),
        ({"nproc": 2, "world_size": 4, "port": 29500}, 1, "ip, port: found the defaults with several machines"),
        ({"nproc": 2, "world_size": 4, "ip": "10.0.0.1"}, 1, "ip, port: found the defaults with several machines"),
    ],
)
def test_processes_that_do_not_fit_each_other(monkeypatch, options, started, said):
    monkeypatch.setenv("WORLD_SIZE", str(started))
    with pytest.raises(ConfigError, match=said):
        check_processes({**ONE_PROCESS, **options})


def test_processes_that_fit(monkeypatch):
    check_processes({**ONE_PROCESS, "nproc": 2})
    check_processes({**ONE_PROCESS, "nproc": 2, "world_size": -1})  # RecBole's own default
    check_processes({**ONE_PROCESS, "nproc": 2, "world_size": 4, "group_offset": 2, "ip": "10.0.0.1", "port": 29500})
    monkeypatch.setenv("WORLD_SIZE", "2")
    check_processes(ONE_PROCESS)
    check_processes({**ONE_PROCESS, "nproc": 2})  # the processes that this option has started


@pytest.mark.parametrize("call, words, what", [
    (main, ["--model=SASRec,BPR", "--dataset=tiny"], "a comparison"), (main, ["--dataset=tiny", "--search=default"], "a search"),
    (recommend_main, ["--checkpoint=x", "--history", "Robot"], "a recommendation"), (report_main, ["x"], "a report"),
    (export_main, ["--checkpoint=x", "--out=y"], "an export"), (backbone_main, ["smollm2-135m"], "the conversion of a backbone"),
])
def test_other_commands_refuse_several_processes(monkeypatch, capsys, call, words, what):
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert call(words) == 2
    err = capsys.readouterr().err
    assert err.count("\n") == 1 and f"WORLD_SIZE: found 2, so a launcher such as torchrun started several processes, but {what} runs in one" in err
    assert not list(Path().iterdir())


@pytest.mark.parametrize("option, value, said", [
    ("learner", "sparse_adam", "learner: found sparse_adam, which takes sparse gradients only"),
    ("numerical_features", ["timestamp"], "numerical_features: found 'timestamp' (TIME_FIELD), which gives the order"),
    ("log_wandb", True, "log_wandb: found True, which needs the package wandb, which is not installed; run  pip install wandb"),
])
def test_options_that_ended_in_a_traceback(every, monkeypatch, option, value, said):
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *package: None if name == "wandb" else find(name, *package))
    assert said in try_model("SASRec", every, {option: value})


def test_labels_are_asked_for_where_scores_are_compared_with_them(every):
    options = {"metrics": ["AUC"], "valid_metric": "AUC", "title_metrics": False,
               "eval_args": {"split": {"LS": "valid_and_test"}, "order": "TO", "mode": "labeled"}}
    found = try_model("SASRec", every, options)
    assert "eval_args: found mode labeled, which compares scores with labels, and the options give none" in found


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
        ({"topk": [5, 12]}, r"topk: found 12, expected at most 11, .*--topk=11 --valid_metric=NDCG@11$"),
        ({"model": "NCL", "num_clusters": 9}, "num_clusters: found 9, expected at most 8"),
        ({"model": "SASRecCPR", "reranker_CAN_NUM": "100,20"}, "reranker_CAN_NUM: found 100, expected at most 11"),
    ],
)
def test_lists_that_are_longer_than_the_data(options, said):
    config = {"model": "SASRec", "dataset": "x", "topk": 5, "metrics": ["Hit"], "valid_metric": "NDCG@10", **options}
    with pytest.raises(ConfigError, match=said):
        check_sizes(config, SimpleNamespace(item_num=12, user_num=9))


def test_a_run_without_ranking_has_no_cutoff():
    check_sizes({"model": "LR", "dataset": "x", "topk": 50, "metrics": ["AUC"]}, SimpleNamespace(item_num=12, user_num=9))
