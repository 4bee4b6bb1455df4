"""The configuration of a run: defaults, yaml files, given options, and the errors for wrong ones."""

import importlib.util
import json
import os
import re
import sys

import numpy as np
import pytest
import torch
from recbole.model.sequential_recommender import SASRec
from recbole.utils import EvaluatorType

from recbole_flr import config as config_module
from recbole_flr.config import NUMPY_ALIASES, PICKLES, Config, own_gpu
from recbole_flr.errors import ConfigError
from recbole_flr.registry import model_names

DATASETS = ["toys", "cds", "games", "instruments", "movies", "toys_demo", "ml-100k"]
FOUR = ["FLR", "SASRec", "GRU4Rec", "Caser"]


def refused(message, model="FLR", dataset="toys_demo", files=None, **options):
    with pytest.raises(ConfigError, match=message) as caught:
        Config(model, dataset, files, options)
    return str(caught.value)


def values(config):
    """The final options in a form that can be compared."""
    return {name: str(value) if name in ("device", "MODEL_TYPE", "MODEL_INPUT_TYPE", "eval_type") else value
            for name, value in config.final_config_dict.items()}


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


# values

@pytest.mark.parametrize("name, text, value", [
    ("learning_rate", "1e-3", 0.001), ("learning_rate", "5E-4", 0.0005), ("weight_decay", "0", 0), ("length_penalty", "-1", -1),
    ("topk", "[5, 10, 20]", [5, 10, 20]), ("topk", "10", [10]), ("metrics", "[Hit, NDCG, MRR]", ["Hit", "NDCG", "MRR"]),
    ("clip_grad_norm", "{'max_norm': 5, 'norm_type': 2}", {"max_norm": 5, "norm_type": 2}), ("clip_grad_norm", "None", None),
    ("attend_thought", "false", False), ("attend_thought", "True", True), ("prompt", "None", None), ("prompt", "paper", "paper"),
    ("user_inter_num_interval", "[0,inf)", "[0,inf)"), ("val_interval", "{'rating': '[3,inf)'}", {"rating": "[3,inf)"}),
    ("backbone", "123", "123"), ("backbone", "1e-3", "1e-3"), ("backbone", "a=b:c=d", "a=b:c=d"), ("backbone", "on", "on"),
    ("item_noun", "a: b", "a: b"), ("item_noun", "#1", "#1"), ("item_noun", "'yes'", "yes"), ("item_noun", "積み木", "積み木"),
    ("tokenizer", "None", None), ("tokenizer", "~", None), ("tokenizer", "0", "0"), ("checkpoint_dir", "2024", "2024"),
    ("checkpoint_dir", "a=b/c=d", "a=b/c=d"), ("gpu_id", "", ""), ("gpu_id", "0,1", "0,1"), ("gpu_id", 1, "1"),
    ("gpu_id", "3", "3"),
    ("additional_feat_suffix", "ent", ["ent"]), ("additional_feat_suffix", "[ent, kg]", ["ent", "kg"]),
    ("seq_separator", " ", " "),
    ("field_separator", "\t", "\t"), ("field_separator", "'\t'", "\t"), ("title_metrics", "no", False),
    ("state", "DEBUG", "DEBUG"),
    ("tail_ratio", "0.2", 0.2), ("valid_metric", "hit@5", "hit@5"), ("valid_metric", "title_ndcg@10", "title_ndcg@10"),
])
def test_values(name, text, value):
    found = Config("FLR", "toys_demo", config_dict={name: text})[name]
    assert found == value and type(found) is type(value)


def test_values_of_a_file_win_over_defaults_and_lose_to_options(tmp_path):
    (tmp_path / "a.yaml").write_text("epochs: 7\nnum_beams: 30\nbackbone: '123'\n")
    (tmp_path / "b.yaml").write_text("num_beams: 40\nlearning_rate: 1e-4\n")
    config = Config("FLR", "toys_demo", [tmp_path / "a.yaml", str(tmp_path / "b.yaml")], {"epochs": "9"})
    assert (config["epochs"], config["num_beams"], config["learning_rate"], config["backbone"]) == (9, 40, 1e-4, "123")


@pytest.mark.parametrize("name, value, said", [
    ("num_beams", "0", ["found 0", "int >= 1"]), ("score", "fulll", ["'fulll'", "full | trie"]),
    ("epochs", "abc", ["'abc'", "int >= 0"]),
    ("epochs", "-1", ["-1", "int >= 0"]), ("epochs", "1e1", ["10.0", "int >= 0"]),
    ("learning_rate", "fast", ["'fast'", "float > 0"]),
    ("learning_rate", "0", ["found 0", "float > 0"]), ("learning_rate", ".nan", ["nan", "float > 0"]),
    ("attend_thought", "3", ["found 3", "bool"]), ("compact_dropout", "1.5", ["1.5", "float in [0, 1)"]),
    ("backbone", "None", ["None", "str"]),
    ("train_batch_size", "True", ["True", "int >= 1"]), ("duplicate_titles", "both", ["'both'", "suffix | share"]),
    ("clip_grad_norm", "5", ["found 5", "dict or null"]), ("load_col", "all", ["'all'", "auto"]),
    ("num_beams", "", ["None", "int >= 1"]),
    ("learner", "adamm", ["'adamm'", "adam | adamw"]), ("seed", "-1", ["-1", "int in [0,"]), ("worker", "-1", ["-1", "int >= 0"]),
    ("use_gpu", "3", ["found 3", "bool"]), ("eval_step", "1.5", ["1.5", "int"]), ("state", 3, ["found 3", "INFO | WARNING"]),
    ("checkpoint_dir", ["a"], ["found ['a']", "text", "'saved'"]),
    ("metrics", "Hitt", ["Hitt", "hit", "ndcg", "mrr"]), ("metrics", "[1]", ["[1]", "hit"]), ("metrics", "[]", ["[]", "hit"]),
    ("topk", "0", ["found 0", "positive integer"]), ("topk", "[5, a]", ["[5, 'a']", "positive integer"]),
    ("topk", "[]", ["[]", "positive"]),
    ("topk", "[5, True]", ["True", "positive integer"]), ("valid_metric", "NDCG@7", ["'NDCG@7'", "ndcg@5", "ndcg@10", "hit@5"]),
    ("valid_metric", "NDCG", ["'NDCG'", "ndcg@10"]), ("eval_args", "full", ["'full'", "dict"]),
    ("eval_args", "{'splitt': {'RS': [8, 1, 1]}}", ["'splitt'", "nearest is 'split'"]),
    ("eval_args", "{mode:full}", ["'mode:full'", "'mode'"]),
    ("eval_args", "{'order': 'RO'}", ["'RO'", "expected TO"]), ("eval_args", "{'mode': 'unix'}", ["'unix'", "uniN"]),
    ("eval_args", "{'mode': {'valid': 'full', 'test': 3}}", ["found mode 3", "labeled"]),
    ("repeatable", "False", ["repeatable"]),
])
def test_a_wrong_value_is_refused(name, value, said):
    message = refused(f"^(.*\\b)?{name}\\b", **{name: value})
    assert [part for part in said if part not in message] == []


def test_value_metrics_are_refused_beside_full_ranking():
    refused("Full sort evaluation", metrics="[AUC]", valid_metric="AUC")
    refused("can not be used at the same time", metrics="[AUC, Hit]", valid_metric="AUC")


def test_valid_metric_must_be_among_the_cut_offs():
    """RecBole would raise a KeyError after the first epoch of training."""
    refused(r"found 'NDCG@10', expected one of hit@20, ndcg@20", topk="20")
    assert Config("SASRec", "toys_demo", config_dict={"topk": "20", "valid_metric": "ndcg@20"})["topk"] == [20]
    refused("title_hit@5", valid_metric="title_hit@5", title_metrics="False")
    assert Config("FLR", "toys_demo", config_dict={"metrics": "[Hit, GAUC]", "valid_metric": "gauc"})["valid_metric"] == "gauc"


@pytest.mark.parametrize("given, nearest", [
    ("num_beam", "num_beams"), ("epoch", "epochs"), ("learning_rat", "learning_rate"), ("Epochs", "epochs"),
    ("num-factors", "num_factors"),
    ("metric", "metrics"), ("valid_metrics", "valid_metric"), ("max_item_list_length", "MAX_ITEM_LIST_LENGTH"),
])
def test_a_mistyped_option_is_refused_with_the_nearest(given, nearest, tmp_path):
    refused(f"found option '{given}'.*nearest is '{nearest}'", **{given: "1"})
    (tmp_path / "my.yaml").write_text(f"{given}: 1\n")
    refused(f"found option '{given}'.*nearest is '{nearest}'", files=["my.yaml"])


@pytest.mark.parametrize("name", ["", "MODEL_TYPE", "config_file", "config_files", "nonsense"])
def test_names_that_mean_nothing_are_refused(name):
    refused(f"found option '{name}'", **{name: "1"})


def test_an_option_of_another_model_is_refused():
    refused("'num_beams', which does not exist for this model", "SASRec", num_beams="5")
    refused("'loss_type', which does not exist for this model", "FLR", loss_type="CE")


def test_options_that_recbole_reads_but_does_not_declare():
    assert Config("FEARec", "toys_demo", config_dict={"contrast": "us_x", "global_ratio": "0.6"})["global_ratio"] == 0.6
    assert Config("AutoInt", "ml-100k", config_dict={"has_residual": "True"})["has_residual"] is True


# nothing is executed

@pytest.mark.parametrize("name", [
    "backbone", "metrics", "seed", "eval_args", "load_col", "checkpoint_dir", "nosuch", "transform",
])
@pytest.mark.parametrize("text", [
    "__import__('os').mkdir('trace')", "[__import__('os').mkdir('trace')]", "!!python/object/apply:os.mkdir ['trace']",
    "exec(\"import os; os.mkdir('trace')\")", "!!python/name:os.mkdir", "{'a': !!python/object/apply:os.mkdir ['trace']}",
])
def test_nothing_is_executed(name, text, tmp_path):
    (tmp_path / "my.yaml").write_text(f"{name}: {text}\n")
    for files, options in ((None, {name: text}), (["my.yaml"], {})):
        try:
            assert "mkdir" in str(Config("FLR", "toys_demo", files, options)[name])  # still there as text
        except ConfigError:
            pass
    assert sorted(os.listdir()) == ["my.yaml"]


def test_python_in_a_file_is_refused(tmp_path):
    (tmp_path / "my.yaml").write_text("seed: !!python/object/apply:os.getpid []\n")
    refused("my.yaml is not yaml", files=["my.yaml"])


def test_the_command_line_is_not_read(monkeypatch):
    before = values(Config("FLR", "toys_demo"))
    monkeypatch.setattr(sys, "argv", ["x", "--epochs=77", "--model=SASRec", "--nosuch=1", "rubbish"])
    assert values(Config("FLR", "toys_demo")) == before


# files

@pytest.mark.parametrize("content, message", [
    (None, "cannot read my.yaml .No such file"), ("epochs: [1", "my.yaml is not yaml"), ("a\tb: {", "my.yaml is not yaml"),
    ("- epochs\n- 3\n", "found a list in my.yaml"), ("epochs=3", "found a str in my.yaml"), ("5", "found a int in my.yaml"),
    (b"\xff\xfe\x00", "my.yaml is not yaml"), ("1: 2\n", "found option 1"), ("epochs: abc\n", "epochs: found 'abc'"),
    ("backbone: 123\n", "backbone: found 123, expected str"), ("data_path: 5\n", "data_path: found 5, expected text"),
])
def test_wrong_files_are_refused(content, message, tmp_path):
    if content is not None:
        (tmp_path / "my.yaml").write_bytes(content if isinstance(content, bytes) else content.encode())
    refused(message, files=["my.yaml"])


def test_a_folder_is_no_file(tmp_path):
    refused("config_files: cannot read", files=[str(tmp_path)])


@pytest.mark.parametrize("content", ["", "# nothing\n", "{}\n"])
def test_an_empty_file_changes_nothing(content, tmp_path):
    (tmp_path / "my.yaml").write_text(content)
    assert values(Config("FLR", "toys_demo", ["my.yaml"])) == values(Config("FLR", "toys_demo"))


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


# split files

def split_data_set(folder, name="mine", parts=("train", "valid", "test"), options=None):
    """Make empty split files, and the data set's own yaml file if `options` has its text. Returns the data_path."""
    (folder / name).mkdir(parents=True)
    for part in parts:
        (folder / name / f"{name}.{part}.inter").touch()
    if options is not None:
        (folder / name / f"{name}.yaml").write_text(options)
    return str(folder)


def test_split_files_are_recognised(tmp_path):
    path = split_data_set(tmp_path / "data")
    for model in FOUR + ["BPR"]:
        config = Config(model, "mine", config_dict={"data_path": path})
        assert config["benchmark_filename"] == ["train", "valid", "test"] and config["alias_of_item_id"] == ["item_id_list"]
        assert config["eval_args"]["split"] == {"LS": "valid_and_test"} and config["eval_args"]["order"] == "TO"
        assert config["title_escapes"] is False  # only the files of dataset_scripts have escapes
        assert values(round_trip(config)) == values(config)
    assert Config("FLR", "mine", config_dict={"data_path": path})["load_col"]["inter"][-1] == "item_id_list"
    assert Config("FLR", "mine", config_dict={"data_path": path, "eval_args": "{'mode': 'uni5'}"})["benchmark_filename"]


@pytest.mark.parametrize("parts", [(), ("train", "valid"), ("train", "test"), ("valid", "test")])
def test_all_three_split_files_are_needed(parts, tmp_path):
    config = Config("BPR", "mine", config_dict={"data_path": split_data_set(tmp_path / "data", parts=parts)})
    assert config["benchmark_filename"] is None and config["eval_args"]["split"] == {"RS": [0.8, 0.1, 0.1]}
    assert config["alias_of_item_id"] is None


@pytest.mark.parametrize("given", [
    {"benchmark_filename": None}, {"benchmark_filename": ["a", "b", "c"]},
    {"eval_args": {"split": {"LS": "valid_and_test"}, "order": "TO", "group_by": "user", "mode": "full"}},
])
def test_a_split_that_the_user_gives_wins(given, tmp_path):
    path = split_data_set(tmp_path / "data")
    config = Config("BPR", "mine", config_dict={"data_path": path, **given})
    assert config["benchmark_filename"] == given.get("benchmark_filename") and config["alias_of_item_id"] is None
    (tmp_path / "my.yaml").write_text(json.dumps({**given, "data_path": path}))
    assert values(Config("BPR", "mine", ["my.yaml"])) == values(config)


def test_a_published_data_set_needs_no_files_to_be_known_as_split(tmp_path):
    """The download or the demo makes the files after the Config was made."""
    path = split_data_set(tmp_path / "data", "cds")
    for name in ("cds", "cds-2023"):
        assert values(Config("FLR", name)) == {**values(Config("FLR", "cds")), "dataset": name,
                                               "data_path": os.path.join("dataset", name)}
    there = Config("FLR", "cds", config_dict={"data_path": path})
    assert values(there) == {**values(Config("FLR", "cds")), "data_path": os.path.join(path, "cds")}
    assert there["title_escapes"] is True and there["item_noun"] == "album" and there["benchmark_filename"]


def test_split_files_leave_ml_100k_to_recbole(tmp_path):
    """RecBole reads it from its own folder, whatever is in data_path."""
    path = split_data_set(tmp_path / "data", "ml-100k")
    assert Config("FLR", "ml-100k", config_dict={"data_path": path})["benchmark_filename"] is None


# the yaml file in the data set's own folder

def test_the_file_in_the_data_sets_folder_comes_last_of_the_defaults(tmp_path):
    options = "item_noun: song\nnum_beams: 15\ntopk: [3]\nvalid_metric: NDCG@3\nmade_up: 3\nnv: x\n"
    path = split_data_set(tmp_path / "data", "toys", options=options)
    config = Config("FLR", "toys", config_dict={"data_path": path})
    assert (config["item_noun"], config["num_beams"], config["topk"]) == ("song", 15, [3])
    assert config["nv"] == "x"  # an option of another model (Caser) is not checked
    assert Config("FLR", "toys", config_dict={"data_path": path, "item_noun": "toy"})["item_noun"] == "toy"
    with pytest.raises(ConfigError, match="nv: found 'x', expected int >= 1"):
        Config("Caser", "toys", config_dict={"data_path": path})


@pytest.mark.parametrize("options, message", [
    ("title_escapes: 1", "title_escapes: found 1, expected bool"),
    ("num_beams: 0", "num_beams: found 0, expected int >= 1. Beams"),
    ("benchmark_filename: train", "benchmark_filename: found 'train', expected list or null"),
    ("item_noun: 5", "item_noun: found 5, expected str"), ("use_gpu: 3", "use_gpu: found 3, expected bool"),
    ("LIST_SUFFIX: 3", "LIST_SUFFIX: found 3, expected text"), ("5: 3", "found option 5, expected a name"),
    ("item_noun: [", "toys.yaml is not yaml"), ("- item_noun", "found a list in .*toys.yaml"),
    ("seed: !!python/object/apply:os.getpid []", "toys.yaml is not yaml"),
])
def test_a_wrong_file_in_the_data_sets_folder_is_refused(options, message, tmp_path):
    path = split_data_set(tmp_path / "data", "toys", options=options)
    assert "toys.yaml" in refused(message, "FLR", "toys", data_path=path)


# snapshot

def round_trip(config):
    return Config(config_dict=json.loads(json.dumps(config.snapshot(), allow_nan=False)))


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


def test_no_eval_on_data():
    source = importlib.util.find_spec(config_module.__name__).origin
    folder = os.path.dirname(source)
    for root, _, files in os.walk(folder):
        for file in files:
            if file.endswith(".py"):
                with open(os.path.join(root, file), encoding="utf-8") as f:
                    assert not re.search(r"(?<![.\w])(eval|exec)\(|pickle\.load|FullLoader|UnsafeLoader", f.read()), file


def test_a_converted_data_set_brings_its_own_options(tmp_path):
    """A data set of any name uses the split in its files."""
    import gzip
    import json as json_

    from dataset_scripts.convert import convert
    from recbole_flr.data.catalog import Catalog
    from recbole_flr.data.loading import load_dataset

    reviews = [{"reviewerID": f"u{u}", "asin": f"a{i}", "overall": 5.0, "unixReviewTime": 1510000000 + 86400 * i + u}
               for u in range(6) for i in range(6)]
    meta = [{"asin": f"a{i}", "title": f"Book {i}" if i else "A\\tB \\ C"} for i in range(6)]
    for name, rows in (("reviews", reviews), ("meta", meta)):
        with gzip.open(tmp_path / f"{name}.gz", "wt") as file:
            file.writelines(json_.dumps(row) + "\n" for row in rows)
    convert(tmp_path / "reviews.gz", "books", tmp_path / "data", meta=tmp_path / "meta.gz", min_items=0)
    config = Config("FLR", "books", config_dict={"data_path": str(tmp_path / "data"), "state": "ERROR"})
    assert config["benchmark_filename"] == ["train", "valid", "test"] and config["title_escapes"] is True
    dataset = load_dataset(config)
    assert dataset.file_size_list == [24, 3, 3]
    titles = Catalog.from_dataset(config, dataset).titles
    assert titles[dataset.token2id("item_id", "a0")] == "A\\tB \\ C"
    Config("FLR", "books", config_dict=config.snapshot())


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
