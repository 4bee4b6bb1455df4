import ast
import math
import re
from pathlib import Path

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

import recbole_flr
from recbole_flr.config import Config
from recbole_flr.errors import ConfigError
from recbole_flr.options import (
    TYPES, Option, check, help_text, nearest, option_files, options_for, parse_text, parse_value, properties_folder, read_options,
)

PACKAGE = Path(recbole_flr.__file__).parent
FILES = sorted(properties_folder().rglob("*.yaml"))
LOADER = Config._build_yaml_loader(object.__new__(Config))


def load(path):
    return yaml.load(path.read_text(encoding="utf-8"), Loader=LOADER)


def test_the_files_asked_for_are_there():
    names = {str(path.relative_to(properties_folder()).with_suffix("")) for path in FILES}
    datasets = {"toys", "cds", "games", "instruments", "movies", "toys_demo", "ml-100k"}
    models = {"FLR", "LatentR3", "BIGRec", "SASRec", "GRU4Rec", "Caser"}
    assert names == {"overall", "generative", "latent", *(f"model/{name}" for name in models),
                     *(f"dataset/{name}" for name in datasets)}


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_every_line_declares_an_option(path):
    """Each key has allowed values that are understood, a meaning, and a default that is itself allowed."""
    values, options = load(path), read_options(path)
    assert list(options) == list(values)
    for name, option in options.items():
        words = re.sub(r"\s*(>=|>)\s*[\d.]+(?= or |$)|\s+in \[.*\]$", "", option.allowed).replace(" or ", " | ").split(" | ")
        if words[0] in TYPES:
            assert set(words) <= {*TYPES, "auto"}, name
        else:
            assert all(re.fullmatch(r"\w+", word) for word in words), name
        assert option.accepts(values[name]), name
        assert len(option.meaning) > 8 and option.meaning.endswith("."), name
        assert not option.accepts(object()), name


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_no_key_stands_twice_in_a_file(path):
    keys = re.findall(r"^(\w+):", path.read_text(encoding="utf-8"), re.MULTILINE)
    assert len(keys) == len(set(keys)) == len(load(path))


def test_every_option_that_the_package_reads_is_declared():
    """config["x"] of a mistyped x would silently be None."""
    source = "\n".join(path.read_text(encoding="utf-8") for path in PACKAGE.rglob("*.py"))
    read = set(re.findall(r"config\[[\"'](\w+)[\"']\]", source))
    written = set(re.findall(r"config\[\"(\w+)\"\] = ", source))
    declared = {*options_for("FLR", "toys_demo"), *options_for("BIGRec"), *Config("SASRec", "toys_demo").internal_config_dict}
    at_run_time = {"model", "dataset", "device", "local_rank", "single_spec"}  # put there by RecBole
    assert len(read) > 40 and read - declared - at_run_time - written == set()


def test_every_option_of_flr_is_read():
    """An option without an effect would be a promise that is not kept."""
    source = "\n".join(path.read_text(encoding="utf-8") for path in PACKAGE.rglob("*.py"))
    ours = read_options(properties_folder() / "model" / "FLR.yaml")
    recbole = Config("SASRec", "toys_demo").internal_config_dict
    by_pattern = {name for name in ours if re.fullmatch(r"(orthogonality|diversity|sparsity)_(loss|weight)", name)}
    assert len(by_pattern) == 6
    assert [name for name in ours if name not in recbole and name not in by_pattern and f'"{name}"' not in source] == []


ACCEPTS = [  # allowed, values that are, values that are not
    ("int >= 1", [1, 20, 10**400], [0, -1, 1.0, 1.5, True, False, "1", None, [1], math.nan]),
    ("int", [-3, 0, 7], [False, 2.0, "7", None]),
    ("int in [0, 10]", [0, 10], [-1, 11, True]),
    ("float > 0", [1e-9, 1, 3.5], [0, 0.0, -1, True, "1", math.nan, math.inf, None]),
    ("float >= 0", [0, 0.0, 2], [-1e-9, -math.inf, math.inf, False]),
    ("float in [0, 1]", [0, 1, 0.5, 1.0], [-0.01, 1.01, math.nan, True, "0.5"]),
    ("float", [-1, 0, 2.5], [math.nan, math.inf, True, "x", None]),
    ("bool", [True, False], [0, 1, "True", None]),
    ("str", ["", "123", "full"], [123, None, True, ["x"]]),
    ("str or null", ["x", None], [0, False, {}]),
    ("list", [[], [1], ("a",)], ["[]", None, {}]),
    ("list or int", [5, [5, 10]], [True, 5.0, "5", None]),
    ("dict or null", [{}, {"a": 1}, None], [[], "x", 5]),
    ("dict or null or auto", [{}, None, "auto"], ["automatic", True, []]),
    ("full | trie", ["full", "trie"], ["fulll", "Full", "", None, True, ["full"], 0]),
    ("compact | paper | null", ["compact", "paper", None], ["null", "papers", 0]),
]


@pytest.mark.parametrize("allowed, good, bad", ACCEPTS, ids=[row[0] for row in ACCEPTS])
def test_accepts(allowed, good, bad):
    option = Option("name", "", allowed, "")
    assert [value for value in good if not option.accepts(value)] == []
    assert [value for value in bad if option.accepts(value)] == []


@given(st.integers() | st.floats())
def test_accepts_bounds_like_arithmetic(value):
    finite = math.isfinite(value) if isinstance(value, float) else True
    assert Option("", "", "float >= 0", "").accepts(value) == (finite and value >= 0)
    assert Option("", "", "float in [0, 0.5]", "").accepts(value) == (finite and 0 <= value <= 0.5)


LITERALS = [  # RecBole evaluates the command line as Python; for these words yaml means the same
    "1", "-1", "+3", "0", "1.5", "-0.5", "1e-3", "1E-3", "5e-05", "1e3", "-2.5e+4", ".5", "1.",
    "True", "False", "None", "[5, 10]", "[5,10]", "[]", "['Hit', 'NDCG']", '["a=b", "c:d"]', "{'valid': 'full'}",
    "{'valid':'full','test':'full'}", "{'split':{'RS':[0.8,0.1,0.1]}}", "{}", "[0.1, 1e-3]", "'toy'", '"toy"', "[[1, 2], [3]]",
]


@pytest.mark.parametrize("text", LITERALS)
def test_parse_value_agrees_with_recbole(text):
    value, expected = parse_value(text, LOADER), ast.literal_eval(text)
    assert value == expected and type(value) is type(expected)


@pytest.mark.parametrize("text", [
    "full", "a=b", "a=b=c:d", "NDCG@10", "[0,inf)", "(3, 5]", "Qwen/Qwen2.5-1.5B", "C:\\models", "{", "[x", "a: b: c", "*x", "@x",
    "!!python/object/apply:os.system ['true']", "%x", "2021-13-99", "__import__('os').getcwd()", "1 + 1",
])
def test_parse_value_leaves_other_text_alone(text):
    assert parse_value(text, LOADER) == text


@given(st.text())
def test_parse_value_never_raises(text):
    parse_value(text, LOADER)
    parse_text(text, LOADER)


@given(st.floats(allow_nan=False, allow_infinity=False) | st.integers())
def test_parse_value_reads_numbers_as_python_writes_them(number):
    value = parse_value(repr(number), LOADER)
    assert value == number and type(value) is type(number)


@pytest.mark.parametrize("text, meant", [
    ("123", "123"), ("1e-3", "1e-3"), ("on", "on"), ("a: b", "a: b"), ("#1", "#1"), ("a #b", "a #b"), (" ", " "), ("", ""),
    ("[x]", "[x]"), ("2021-01-01", "2021-01-01"), ("'123'", "123"), ('"a\\tb"', "a\tb"), ("'a' or 'b'", "'a' or 'b'"), ("'", "'"),
    ("None", None), ("null", None), ("~", None), ("'None'", "None"),
])
def test_parse_text(text, meant):
    assert parse_text(text, LOADER) in (meant,) if meant == "None" else parse_text(text, LOADER) == meant


def test_text_options():
    options = options_for("FLR", "toys_demo")
    assert {name for name, option in options.items() if option.is_text} == {
        "backbone", "tokenizer", "item_noun", "TITLE_FIELD", "DUPLICATE_FIELD", "resume", "checkpoint", "encoding",
        "valid_metric",
    }


@pytest.mark.parametrize("name, expected", [
    ("num_beam", "num_beams"), ("NUM_BEAMS", "num_beams"), ("num-beams", "num_beams"), ("beams", "num_beams"), ("epoch", "epochs"),
    ("learning_rat", "learning_rate"), ("learningrate", "learning_rate"), ("max_item_list_length", "MAX_ITEM_LIST_LENGTH"),
    ("metric", "metrics"), ("top_k", "topk"), ("backbon", "backbone"), ("use_gpus", "use_gpu"), ("dataset_path", "data_path"),
])
def test_nearest(name, expected):
    known = {*Config("FLR", "toys_demo").internal_config_dict, "model", "dataset"}
    if name == "dataset_path":
        known -= {"dataset_save_path"}
    assert nearest(name, known) == expected


def test_check_names_the_nearest_option():
    with pytest.raises(ConfigError, match=r"'wigth'.*nearest is 'width'"):
        check({"wigth": 3}, {"width", "height"}, {}, {})


@pytest.mark.parametrize("default, good, bad", [
    (3, [5], ["5", 2.5, True, None]),
    (0.5, [1, 2.5], ["x", False, None]),
    (True, [False], [1, "yes", None]),
    ("text", ["other", "", None], [5, True, 0.5, ["a"], {}]),
    (None, ["x", 5, None, True], []),
])
def test_check_measures_by_recboles_default(default, good, bad):
    for value in good:
        check({"width": value}, {"width"}, {}, {"width": default})
    for value in bad:
        with pytest.raises(ConfigError) as caught:
            check({"width": value}, {"width"}, {}, {"width": default})
        message = str(caught.value)
        assert message.startswith("width: ") and f"found {value!r}" in message and repr(default) in message


def test_the_more_special_file_wins():
    assert options_for("FLR", "toys")["item_noun"].default == "toy"
    assert options_for("FLR", "nosuch")["item_noun"].default == "item"
    assert [path.stem for path in option_files("FLR", "toys")] == ["overall", "generative", "latent", "FLR", "toys"]
    assert option_files("FLR", "toys-2023") == option_files("FLR", "toys")
    assert [path.stem for path in option_files("BIGRec", "nosuch")] == ["overall", "generative", "BIGRec"]
    assert [path.stem for path in option_files("NARM", "nosuch")] == ["overall"]


def test_help_lists_every_option_with_its_meaning():
    text = help_text()
    options = options_for("FLR")
    assert len(options) > 50
    for option in options.values():
        assert f"--{option.name}=" in text and option.meaning in text and f"({option.allowed})" in text
