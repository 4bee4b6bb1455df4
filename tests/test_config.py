"""The configuration of a run: the protocol that all models share, the model and the data set, the snapshot, and the devices."""

import json

import numpy as np
import pytest
import torch
from helpers_config import FOUR, refused, round_trip, values
from recbole.model.sequential_recommender import SASRec
from recbole.utils import EvaluatorType

from recbole_flr.config import NUMPY_ALIASES, PICKLES, Config, own_gpu
from recbole_flr.registry import model_names

DATASETS = ["toys", "cds", "games", "instruments", "movies", "toys_demo", "ml-100k"]


# protocol

@pytest.mark.parametrize("dataset", DATASETS)
def test_all_models_of_a_data_set_get_the_same_protocol(dataset):
    names = ["eval_args", "metrics", "topk", "valid_metric", "valid_metric_bigger", "MAX_ITEM_LIST_LENGTH", "load_col",
             "repeatable", "benchmark_filename", "alias_of_item_id", "data_path", "filter_inter_by_user_or_item",
             "user_inter_num_interval", "item_inter_num_interval", "val_interval", "rm_dup_inter", "seed",
             "title_metrics", "metric_decimal_place"]
    configs = [Config(model, dataset) for model in FOUR]
    first = {name: configs[0][name] for name in names}
    for config in configs[1:]:
        assert {name: config[name] for name in names} == first
    assert first["eval_args"] == {"split": {"LS": "valid_and_test"}, "order": "TO", "group_by": "user",
                                  "mode": {"valid": "full", "test": "full"}}
    assert first["metrics"] == ["Hit", "NDCG"] and first["topk"] == [5, 10] and first["valid_metric"] == "NDCG@10"
    assert first["MAX_ITEM_LIST_LENGTH"] == 10 and first["repeatable"] is True
    history = ["item_id_list"] if dataset != "ml-100k" else []
    assert first["load_col"] == {"inter": ["user_id", "item_id", "timestamp", *history], "item": ["item_id"]}
    assert first["benchmark_filename"] == (["train", "valid", "test"] if history else None)
    for config in configs:
        assert config["eval_type"] == EvaluatorType.RANKING
        assert config["train_neg_sample_args"]["distribution"] == "none"


@pytest.mark.parametrize("name", sorted(set(model_names()) - {"FLR", "lightgbm", "xgboost"}))
def test_every_model_of_recbole_gets_a_configuration(name):
    config = Config(name, "ml-100k")
    assert config["model"] == name and config["metrics"] == ["Hit", "NDCG"] and config["MAX_ITEM_LIST_LENGTH"] == 10
    assert config["eval_args"]["split"] == {"LS": "valid_and_test"} and config["eval_args"]["mode"]["test"] == "full"
    assert values(Config(config_dict=json.loads(json.dumps(config.snapshot())))) == values(config)


def test_general_models_may_not_repeat():
    assert Config("BPR", "ml-100k")["repeatable"] is False
    assert Config("BPR", "ml-100k")["train_neg_sample_args"]["distribution"] == "uniform"


def test_model_as_a_class():
    assert values(Config(SASRec, "toys_demo")) == values(Config("SASRec", "toys_demo"))


def test_loss_brings_the_negatives_it_needs():
    assert Config("NARM", "toys_demo")["train_neg_sample_args"]["distribution"] == "none"  # RecBole raises a ValueError here
    drawn = {"distribution": "uniform", "sample_num": 1, "alpha": 1.0, "dynamic": False, "candidate_num": 0}
    assert Config("SASRec", "toys_demo", config_dict={"loss_type": "BPR"})["train_neg_sample_args"] == drawn
    refused("train_neg_sample_args", "SASRec", loss_type="BPR", train_neg_sample_args="None")
    refused("should be None when the loss_type is CE", "SASRec", train_neg_sample_args="{'distribution': 'uniform'}")


@pytest.mark.parametrize("model", ["FLR", "FLRMix", "LARES", "AlphaRec", "VSKNN"])
def test_negative_items_would_be_taken_for_targets(model):
    refused("expected null: .* would take them for targets", model, train_neg_sample_args={"distribution": "uniform"})


def test_load_col_follows_the_field_names():
    config = Config("FLR", "toys", config_dict={"USER_ID_FIELD": "who", "ITEM_ID_FIELD": "what", "TIME_FIELD": "when"})
    assert config["load_col"] == {"inter": ["who", "what", "when", "what_list"], "item": ["what"]}
    assert Config("FLR", "toys", config_dict={"load_col": "None"})["load_col"] is None


def test_a_part_of_eval_args_keeps_the_rest():
    """RecBole would take the missing parts from its own random split, which sequential models cannot use."""
    config = Config("SASRec", "ml-100k", config_dict={"eval_args": "{'mode': 'uni100'}"})
    assert config["eval_args"] == {"split": {"LS": "valid_and_test"}, "order": "TO", "group_by": "user",
                                   "mode": {"valid": "uni100", "test": "uni100"}}


# model and data set

def test_model_and_data_set_from_a_file(tmp_path):
    (tmp_path / "my.yaml").write_text("model: SASRec\ndataset: cds\n")
    assert values(Config(config_file_list=["my.yaml"])) == values(Config("SASRec", "cds"))
    given = Config("FLR", "toys", ["my.yaml"])  # what is given wins
    assert (given["model"], given["dataset"], given["item_noun"]) == ("FLR", "toys", "toy")
    assert (given.snapshot()["model"], given.snapshot()["dataset"]) == ("FLR", "toys")


def test_a_data_set_may_be_called_by_a_number():
    config = Config(config_dict={"model": "SASRec", "dataset": "2018"})
    assert config["dataset"] == "2018" and config["data_path"].endswith("2018")


@pytest.mark.parametrize("model, dataset, message", [
    (None, "cds", "model: found None"), ("FLR", None, "dataset: found None"), ("", "cds", "model: found ''"),
    (5, "cds", "model: found 5"), ("FLR", 5, "dataset: found 5"), ("SASRecc", "cds", "nearest is 'SASRec'"),
    ("flr", "cds", "nearest is 'FLR'"),
])
def test_a_missing_or_unknown_model_or_data_set_is_refused(model, dataset, message):
    refused(message, model, dataset)


# snapshot

@pytest.mark.parametrize("dataset", ["toys_demo", "ml-100k"])
@pytest.mark.parametrize("model", FOUR + ["Pop", "BPR"])
def test_snapshot(model, dataset):
    config = Config(model, dataset, config_dict={
        "epochs": "3", "data_path": "some/where", "checkpoint_dir": "123", "seed": 7, "use_gpu": False, "topk": "10",
        "eval_args": {"mode": {"valid": "uni10", "test": "full"}}, "val_interval": {"rating": "[3,inf)"}, "weight_decay": 1e-7,
    })
    snapshot = config.snapshot()
    assert values(Config(config_dict=snapshot)) == values(config) == values(round_trip(config))
    assert round_trip(config).snapshot() == snapshot


@pytest.mark.parametrize("options", [
    {"backbone": "123", "tokenizer": "on", "item_noun": "a: b"},
    {"backbone": "1e-3", "trainable": "lora", "lora_target_modules": "[q_proj]"},
    {"TITLE_FIELD": "2018", "prompt": "compact"}, {"seq_separator": "  ", "gpu_id": "0,1"},
])
def test_snapshot_keeps_text(options):
    config = Config("FLR", "toys", config_dict=options)
    assert values(round_trip(config)) == values(config)
    texts = {name: text for name, text in options.items() if text[0] != "["}
    assert {name: config[name] for name in texts} == texts


def test_snapshot_is_a_copy_and_later_changes_stay_out():
    config = Config("FLR", "toys_demo")
    before = config.snapshot()
    config.snapshot()["topk"].append(99)
    config["topk"].append(98)
    config["MAX_ITEM_LIST_LENGTH"] = 3
    assert config.snapshot() == before and before["topk"] == [5, 10]


def test_snapshot_of_a_run_on_the_cpu_can_go_to_another_device():
    snapshot = Config("FLR", "toys_demo", config_dict={"use_gpu": False, "gpu_id": "2"}).snapshot()
    assert Config(config_dict={**snapshot, "use_gpu": True})["gpu_id"] == "2"


def test_the_given_dict_is_left_alone():
    given = {"train_neg_sample_args": {"distribution": "uniform"}, "epochs": "3", "eval_args": {"mode": "full"}}
    before = json.dumps(given)
    Config("BPR", "ml-100k", config_dict=given)
    assert json.dumps(given) == before


# the rest

@pytest.mark.parametrize("name, value", [("save_dataset", True), ("save_dataloaders", "True"), ("dataset_save_path", "x.pth"),
                                         ("dataloaders_save_path", "x.pth")])
def test_pickles_are_refused(name, value):
    assert name in PICKLES
    refused(f"{name}: found .*pickles", "SASRec", **{name: value})
    assert not Config("SASRec", "toys_demo", config_dict={name: False if name.startswith("save") else None})[name]


def test_use_gpu_false_is_the_cpu(monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert Config("FLR", "toys_demo", config_dict={"use_gpu": "False", "gpu_id": "0"})["device"] == torch.device("cpu")
    assert Config("FLR", "toys_demo", config_dict={"gpu_id": "0"})["device"] == torch.device("cuda")


def test_numpy_aliases(monkeypatch):
    for name in NUMPY_ALIASES:
        if np.__version__ < "2" or name not in ("bool", "long"):
            monkeypatch.delattr(np, name, raising=False)
    if np.__version__ < "2":
        with pytest.raises(AttributeError):
            np.float
    Config("SASRec", "toys_demo")
    assert np.float is np.float64 and np.object is np.object_ and np.str is np.str_ and np.unicode is np.str_
    for kind in (np.bool, np.int, np.long, np.float, np.complex):
        assert issubclass(kind, np.generic)
    assert np.zeros(1, dtype=np.long).dtype.kind == "i" and np.ones(1, dtype=np.bool).dtype == bool


def test_numpy_aliases_of_numpy_2(monkeypatch):
    """Names that numpy 2 has stay as they are, and names that it no longer has (float_, complex_, unicode_) are not read."""
    marker = type("marker", (), {})
    monkeypatch.setattr(np, "bool", marker, raising=False)
    for name in ("float_", "complex_", "unicode_"):
        monkeypatch.delattr(np, name, raising=False)
    Config.compatibility_settings(object.__new__(Config))
    assert np.bool is marker


@pytest.mark.parametrize("gpu_id, found", [("3", "3, which names 1"), (3, "3, which names 1"), ("0,1", "0,1, which names 2")])
def test_each_process_needs_a_gpu_of_its_own(monkeypatch, gpu_id, found):
    refused(rf"gpu_id: found {found} for the 3 processes of this machine; expected one for each, such as --gpu_id=0,1,2, or ",
            "FLR", gpu_id=gpu_id, nproc=3)
    for options in ({"gpu_id": "4,5,6"}, {"gpu_id": ""}, {"use_gpu": False, "gpu_id": "3"}, {}):
        Config("FLR", "toys_demo", config_dict={**options, "nproc": 3})
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")  # as torchrun says
    refused("gpu_id: found 3, which names 1 for the 2 processes", "FLR", gpu_id="3")
    monkeypatch.setenv("LOCAL_RANK", "1")
    assert own_gpu("4,5", True) == "5"
