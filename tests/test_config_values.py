"""Values of options: how text is read, which options and files are refused, and that nothing is executed."""

import importlib.util
import os
import re
import sys

import pytest
from helpers_config import refused, values

from recbole_flr import config as config_module
from recbole_flr.config import Config
from recbole_flr.errors import ConfigError

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


def test_no_eval_on_data():
    source = importlib.util.find_spec(config_module.__name__).origin
    folder = os.path.dirname(source)
    for root, _, files in os.walk(folder):
        for file in files:
            if file.endswith(".py"):
                with open(os.path.join(root, file), encoding="utf-8") as f:
                    assert not re.search(r"(?<![.\w])(eval|exec)\(|pickle\.load|FullLoader|UnsafeLoader", f.read()), file


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
