"""Options as the yaml files of properties/ declare them: reading, checking, --help and docs/options.md."""

import ast
import inspect
import re
import subprocess
import sys
from pathlib import Path

import pytest
import recbole.config
import yaml
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

import recbole_flr
from recbole_flr import options as options_module
from recbole_flr.config import Config
from recbole_flr.errors import ConfigError, nearest
from recbole_flr.options import (
    FORM, Loader, Option, check, declaring_files, document, help_text, option_files, options_for, parse_text, parse_value,
    properties_folder, read_options,
)
from recbole_flr.registry import MODELS
from recbole_flr.training.reinforcement import LatentGRPO
from recbole_flr.training.warmup import WarmUp

PACKAGE = Path(recbole_flr.__file__).parent
FILES = declaring_files()
DOCUMENT = PACKAGE.parent / "docs" / "options.md"
SHARED = MODELS["FLR"].shared_options


def load(path):
    """The file as RecBole reads it."""
    return yaml.load(path.read_text(encoding="utf-8"), Loader=recboles_loader())


def recboles_loader():
    return recbole.config.Config._build_yaml_loader(object.__new__(Config))


# the files in properties/

def test_the_files_asked_for_are_there():
    names = {str(path.relative_to(properties_folder()).with_suffix("")) for path in FILES}
    datasets = {"toys", "cds", "games", "instruments", "movies", "toys_demo", "ml-100k"}
    models = {*MODELS, "SASRec", "GRU4Rec", "Caser"}
    assert names == {"overall", "generative", "latent", "split_files", *(f"model/{name}" for name in models),
                     *(f"dataset/{name}" for name in datasets)}


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_every_key_declares_an_option(path):
    """Its default is RecBole's reading of the file, and is allowed; its meaning is one line of plain text."""
    values, options = load(path), read_options(path)
    assert list(options) == list(values) != []
    for name, option in options.items():
        assert option.name == name and option.value == values[name] and type(option.value) is type(values[name])
        assert option.accepts(values[name]) and not option.accepts(object())
        assert yaml.load(option.default, Loader=recboles_loader()) == values[name], name
        assert 8 < len(option.meaning) <= 120 and option.meaning.endswith("."), (name, len(option.meaning))


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_every_file_begins_with_what_it_is_for(path):
    assert re.match(r"# [A-Z].*", path.read_text(encoding="utf-8"))


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_no_key_stands_twice_in_a_file(path):
    keys = re.findall(r"^(\w+):", path.read_text(encoding="utf-8"), re.MULTILINE)
    assert len(keys) == len(set(keys)) == len(load(path))


def test_data_sets_that_set_the_same_option_allow_the_same_values():
    files = [path for path in FILES if path.parent.name == "dataset"]
    seen = {}
    for option in [option for path in files for option in read_options(path).values()]:
        seen.setdefault(option.name, set()).add(option.allowed)
    assert len(seen) >= 7 and {name: kinds for name, kinds in seen.items() if len(kinds) > 1} == {}


def test_every_option_that_the_package_reads_is_declared():
    """config["x"] of a mistyped x would silently be None."""
    source = "\n".join(path.read_text(encoding="utf-8") for path in PACKAGE.rglob("*.py"))
    read = set(re.findall(r"config\[[\"'](\w+)[\"']\]", source))
    written = set(re.findall(r"config\[\"(\w+)\"\] = ", source))
    declared = {"reranker_CAN_NUM", "selected_features", "num_clusters",  # RecBole's options of single models
                *(name for model, entry in MODELS.items() for name in options_for(model, "toys_demo", entry.shared_options)),
                *Config("SASRec", "toys_demo").internal_config_dict}
    at_run_time = {"model", "dataset", "device", "local_rank", "single_spec", "eval_type"}  # put there by RecBole
    assert len(read) > 40 and read - declared - at_run_time - written == set()


def test_every_option_of_ours_is_read():
    """Otherwise the documentation would describe an option that has no effect."""
    source = "\n".join(path.read_text(encoding="utf-8") for path in PACKAGE.rglob("*.py"))
    names = ("overall", "generative", "latent", "split_files", *(f"model/{model}" for model in MODELS))
    ours = {name for file in names for name in read_options(properties_folder() / f"{file}.yaml")}
    folder = Path(recbole.config.__file__).parents[1] / "properties"
    recboles = {name for file in ("overall", "dataset/sample") for name in load(folder / f"{file}.yaml")}
    by_pattern = {name for name in ours if re.fullmatch(r"(orthogonality|diversity|sparsity)_(loss|weight)", name)}
    assert len(by_pattern) == 6
    for stage in (WarmUp, LatentGRPO):  # a stage reads its options as self.option("epochs")
        read = set(re.findall(r'option\("(\w+)"\)', "".join(inspect.getsource(part) for part in stage.__mro__[:-1])))
        by_pattern |= {stage.prefix + name for name in read}
    ours -= recboles | by_pattern
    assert len(ours) > 40 and [name for name in sorted(ours) if f'"{name}"' not in source] == []


# declarations

def declare(tmp_path, content):
    path = tmp_path / "my.yaml"
    path.write_text(content, encoding="utf-8")
    return read_options(path)


@pytest.mark.parametrize("line, default, value, allowed", [
    ("width: 3  # (int >= 1) Width of it.", "3", 3, "int >= 1"),
    ("width: 1e-4# (float > 0) Width of it.", None, None, None),  # yaml takes a # without a blank for a part of the text
    ("width: 1e-4 # (float > 0) Width of it.", "1e-4", 1e-4, "float > 0"),
    ("width: # (str or null) Width of it.", "null", None, "str or null"),
    ("width: ~   # (str or null)   Width (see there) # of it.  ", "~", None, "str or null"),
    ("width: 'a # (b) c'  # (str) Width of it.", "'a # (b) c'", "a # (b) c", "str"),
    ("width: [1, 2]  # (list) Width of it.", "[1, 2]", [1, 2], "list"),
    ("width: {a: 1}  # (dict or null) Width of it.", "{a: 1}", {"a": 1}, "dict or null"),
    ("width:  # (dict) Width of it.\n    b: 1  # one\n    a: {c: [2]}", "{b: 1, a: {c: [2]}}", {"b": 1, "a": {"c": [2]}},
     "dict"),
    ("width:  # (list) Width of it.\n- 1\n- 2", "[1, 2]", [1, 2], "list"),
])
def test_a_declaration(line, default, value, allowed, tmp_path):
    text = f"# Some file\n\n{line}\n"
    if default is None:
        with pytest.raises(ConfigError, match="my.yaml, line 3"):
            declare(tmp_path, text)
        return
    option, = declare(tmp_path, text).values()
    assert (option.name, option.default, option.value, option.allowed) == ("width", default, value, allowed)
    assert option.meaning.startswith("Width") and option.meaning.endswith("of it.")


@pytest.mark.parametrize("line, reason", [
    ("width: 3", "expected the form"), ("width: 3  # Width of it.", "expected the form"),
    ("width: 3  # (int)", "expected the form"),
    ("width: 3  # (int)Width of it.", "expected the form"), ("width: 3  # (int Width of it.", "expected the form"),
    ("width:  # Width of it.\n    a: 1  # (int) Part of it.", "expected the form"),
    ("width:\n    a: 1  # (dict) Part of it.", "expected the form"),
    ("width: [1,\n  2]  # (list) Width of it.", "expected the form"),
    ("? width\n: 3  # (int) Width of it.", "expected the form"), ("on: 3  # (int) Width of it.", "expected the form"),
    ("5: 3  # (int) Width of it.", "expected the form"), ("wi-dth: 3  # (int) Width of it.", "wi-dth"),
    ("width: 3  # () Width of it.", "width: found ''"), ("width: 3  # (integer) Width of it.", "width: found 'integer'"),
    ("width: 3  # (int => 1) Width of it.", "found 'int => 1'"), ("width: x  # (x) Width of it.", "two words or more"),
    ("width: 3  # (int) Width", "a sentence that ends with a full stop"),
    ("width: 3  # (int) Width of the thing", "ends with a full stop"),
    ("width: 0  # (int >= 1) Width of it.", "found the default 0, expected int >= 1"),
    ("width: 1.0  # (int) Width of it.", "found the default 1.0, expected int"),
    ("width: True  # (int) Width of it.", "default True"),
    ("width: '5'  # (int) Width of it.", "default '5'"), ("width: .nan  # (float) Width of it.", "default nan"),
    ("width: .inf  # (float >= 0) Width of it.", "default inf"), ("width: ~  # (str) Width of it.", "default None"),
    ("width: ful  # (full | trie) Width of it.", "default 'ful', expected full | trie"),
    ("a: 1  # (int) Width of it.\na: 2  # (int) Width of it.", "found 'a' a second time"),
])
def test_an_incomplete_declaration_is_refused(line, reason, tmp_path):
    """With the file, the line and what is expected: no key of a file goes unchecked."""
    number = 4 if "second time" in reason else 3
    with pytest.raises(ConfigError, match=re.escape(reason)) as caught:
        declare(tmp_path, f"good: 1  # (int) Fine as it is.\n\n{line}\n")
    assert str(caught.value).startswith(f"{tmp_path / 'my.yaml'}, line {number}: ")
    assert reason != "expected the form" or FORM in str(caught.value)


@pytest.mark.parametrize("content, reason", [
    ("- width\n", "found a list, expected lines of the form"), ("width", "found a str"), ("width: [1", "is not yaml"),
    ("width: !!python/object/apply:os.getpid []  # (int) Width of it.", "is not yaml"),
    ("width: 2021-13-99  # (str) Width of it.", "is not yaml"),
])
def test_a_file_that_declares_nothing_is_refused(content, reason, tmp_path):
    with pytest.raises(ConfigError, match=reason):
        declare(tmp_path, content)


def test_a_file_of_comments_declares_no_option(tmp_path):
    assert declare(tmp_path, "# nothing\n") == {}


def test_a_changed_file_is_read_again(tmp_path):
    assert declare(tmp_path, "width: 3  # (int) Width of it.\n")["width"].value == 3
    assert declare(tmp_path, "width: 4  # (int) Width of it.\n")["width"].value == 4


def test_a_model_with_a_wrong_declaration_gets_no_configuration(tmp_path, monkeypatch):
    for path in FILES:
        target = tmp_path / "properties" / path.relative_to(properties_folder())
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(path.read_bytes())
    monkeypatch.setattr(options_module, "properties_folder", lambda: tmp_path / "properties")
    assert Config("NARM", "toys_demo")["item_noun"] == "toy"
    (tmp_path / "properties" / "model" / "NARM.yaml").write_text("# A model\nhidden_size: 128\n")
    with pytest.raises(ConfigError, match=r"NARM.yaml, line 2: found 'hidden_size: 128', expected the form"):
        Config("NARM", "toys_demo")
    (tmp_path / "properties" / "model" / "NARM.yaml").write_text("# A model\nhidden_size: 96  # (int >= 1) Width of the GRU.\n")
    assert Config("NARM", "toys_demo")["hidden_size"] == 96  # a model needs no more than such a file
    with pytest.raises(ConfigError, match="hidden_size: found 0, expected int >= 1. Width of the GRU."):
        Config("NARM", "toys_demo", config_dict={"hidden_size": "0"})


def test_an_option_without_a_type_cannot_exist():
    fields = {"name": "width", "default": "3", "value": 3, "allowed": "int", "meaning": "Width of it."}
    option = Option(**fields)
    assert option.accepts(5) and not option.accepts("5") and not option.is_text
    for name in fields:
        with pytest.raises(ValidationError, match=name):
            Option(**{key: value for key, value in fields.items() if key != name})
    for wrong in ({"allowed": "integer"}, {"allowed": None}, {"value": "3"}, {"meaning": ""}, {"name": "a b"}, {"more": 1}):
        with pytest.raises(ValidationError):
            Option(**{**fields, **wrong})
    with pytest.raises(ValidationError):
        option.allowed = "str"


# words of the command line

LITERALS = [  # RecBole evaluates the command line as Python; for these words yaml means the same
    "1", "-1", "+3", "0", "1.5", "-0.5", "1e-3", "1E-3", "5e-05", "1e3", "-2.5e+4", ".5", "1.",
    "True", "False", "None", "[5, 10]", "[5,10]", "[]", "['Hit', 'NDCG']", '["a=b", "c:d"]', "{'valid': 'full'}",
    "{'valid':'full','test':'full'}", "{'split':{'RS':[0.8,0.1,0.1]}}", "{}", "[0.1, 1e-3]", "'toy'", '"toy"', "[[1, 2], [3]]",
]


@pytest.mark.parametrize("text", LITERALS)
def test_parse_value_agrees_with_recbole(text):
    value, expected = parse_value(text), ast.literal_eval(text)
    assert value == expected and type(value) is type(expected)


@pytest.mark.parametrize("text", [
    "full", "a=b", "a=b=c:d", "NDCG@10", "[0,inf)", "(3, 5]", "Qwen/Qwen2.5-1.5B", "C:\\models", "{", "[x", "a: b: c", "*x", "@x",
    "!!python/object/apply:os.system ['true']", "%x", "2021-13-99", "__import__('os').getcwd()", "1 + 1",
])
def test_parse_value_leaves_other_text_alone(text):
    assert parse_value(text) == text


@given(st.text())
def test_parse_value_never_raises(text):
    parse_value(text)
    parse_text(text)


@given(st.floats(allow_nan=False, allow_infinity=False) | st.integers())
def test_parse_value_reads_numbers_as_python_writes_them(number):
    value = parse_value(repr(number))
    assert value == number and type(value) is type(number)


@pytest.mark.parametrize("text, meant", [
    ("123", "123"), ("1e-3", "1e-3"), ("on", "on"), ("a: b", "a: b"), ("#1", "#1"), ("a #b", "a #b"), (" ", " "), ("", ""),
    ("[x]", "[x]"), ("2021-01-01", "2021-01-01"), ("'123'", "123"), ('"a\\tb"', "a\tb"), ("'a' or 'b'", "'a' or 'b'"), ("'", "'"),
    ("None", None), ("null", None), ("~", None), ("'None'", "None"),
])
def test_parse_text(text, meant):
    assert parse_text(text) in (meant,) if meant == "None" else parse_text(text) == meant


def test_text_options():
    options = options_for("FLR", "toys_demo", SHARED)
    assert {name for name, option in options.items() if option.is_text} == {
        "backbone", "tokenizer", "item_noun", "TITLE_FIELD", "DUPLICATE_FIELD", "resume", "checkpoint", "encoding", "ip",
        "valid_metric",
    }


@pytest.mark.parametrize("name, expected", [
    ("num_beam", "num_beams"), ("NUM_BEAMS", "num_beams"), ("num-beams", "num_beams"), ("beams", "num_beams"),
    ("epoch", "epochs"),
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


@pytest.mark.parametrize("text", [
    *LITERALS, "1e-3x", "1_000", "1e", "e5", ".5e+3", ".5e3", "1:30.5", "-.inf", ".NaN", "12:30", "0x1f", "010",
])
def test_numbers_are_read_as_recbole_reads_them_in_files(text):
    assert repr(yaml.load(text, Loader=Loader)) == repr(yaml.load(text, Loader=recboles_loader()))


def test_check_names_allowed_values_and_meaning():
    option = Option(name="num_beams", default="20", value=20, allowed="int >= 1", meaning="Beams of the search.")
    with pytest.raises(ConfigError, match=r"^num_beams: found 'x', expected int >= 1. Beams of the search.$"):
        check({"num_beams": "x"}, {"num_beams"}, {"num_beams": option}, {"num_beams": "text"})
    check({"num_beams": 5}, {"num_beams"}, {"num_beams": option}, {"num_beams": "text"})  # not the default's type


# the files of a model and a data set

def stems(*arguments, **others):
    return [path.stem for path in option_files(*arguments, **others)]


def test_the_more_special_file_wins():
    assert options_for("FLR", "toys", SHARED)["item_noun"].default == "toy"
    assert options_for("FLR", "nosuch", SHARED)["item_noun"].default == "item"
    assert stems("FLR", "toys", SHARED) == ["overall", "generative", "latent", "FLR", "split_files", "toys"]
    assert option_files("FLR", "toys-2023", SHARED) == option_files("FLR", "toys", SHARED)
    assert stems("BIGRec", "nosuch", ("generative",)) == ["overall", "generative", "BIGRec"]
    assert stems("NARM", "nosuch") == stems("NARM") == ["overall"]


def test_split_files_have_options_of_their_own():
    assert stems("NARM", "nosuch", split_files=True) == ["overall", "split_files"]
    assert stems("NARM", "toys", split_files=True) == stems("NARM", "toys") == ["overall", "split_files", "toys"]
    assert stems("NARM", "ml-100k", split_files=True) == ["overall", "ml-100k"]  # which says that RecBole splits it
    options = options_for("NARM", "nosuch", split_files=True)
    assert options["benchmark_filename"].value == ["train", "valid", "test"] and options["title_escapes"].value is False
    assert options["eval_args"].value["split"] == {"LS": "valid_and_test"}
    assert options["alias_of_item_id"].value == ["item_id_list"]


def test_the_published_data_sets_differ_in_one_word_only():
    options = [options_for("FLR", name, SHARED) for name in ("toys", "cds", "games", "instruments", "movies")]
    nouns = [found.pop("item_noun").value for found in options]
    assert nouns == ["toy", "album", "game", "instrument", "movie"] and all(found == options[0] for found in options)
    assert options[0]["title_escapes"].value is True


def test_options_and_registry_do_not_import_each_other():
    for name, other in (("options", "registry"), ("registry", "options")):
        tree = ast.parse((PACKAGE / f"{name}.py").read_text(encoding="utf-8"))
        imports = [node for node in ast.walk(tree) if isinstance(node, (ast.Import, ast.ImportFrom))]
        words = {part for node in imports for part in [*(getattr(node, "module", None) or "").split("."),
                                                       *(word for alias in node.names for word in alias.name.split("."))]}
        assert "errors" in words and other not in words


def test_options_are_read_without_torch_and_recbole():
    """So that --help can be quick."""
    code = "import sys, recbole_flr.options; sys.exit(any(name in sys.modules for name in ('torch', 'recbole')))"
    assert subprocess.run([sys.executable, "-c", code], cwd=PACKAGE.parent).returncode == 0


# help and documentation

def test_help_lists_every_option_with_its_meaning():
    text = help_text("FLR", SHARED)
    options = options_for("FLR", shared=SHARED)
    assert len(options) > 50
    for option in options.values():
        assert f"--{option.name}=" in text and option.meaning in text and f"({option.allowed})" in text
    assert "--nv=" not in text and "--nv=4" in help_text("Caser") and "--num_beams=" not in help_text("Caser")


def test_the_documentation_is_generated_from_the_declarations():
    assert DOCUMENT.read_text(encoding="utf-8") == document(), "write it anew: python -m recbole_flr.options > docs/options.md"


def test_the_documentation_has_every_option_of_every_file():
    """Its tables, read back, are the declarations."""
    sections = re.split(r"^## properties/(.+)$", document(), flags=re.MULTILINE)[1:]
    assert dict(zip(sections[::2], sections[1::2])).keys() == {path.relative_to(properties_folder()).as_posix() for path in FILES}
    for name, section in zip(sections[::2], sections[1::2]):
        rows = [re.split(r" (?<!\\)\| ", line[2:-2]) for line in section.splitlines() if line.startswith("| `")]
        found = [[re.sub(r"\\(.)", r"\1", cell).strip("`") for cell in row] for row in rows]
        options = read_options(properties_folder() / name).values()
        assert found == [[option.name, option.default, option.allowed, option.meaning] for option in options]


def test_the_documentation_is_printed_and_names_no_path_of_this_machine():
    done = subprocess.run([sys.executable, "-m", "recbole_flr.options"], cwd=PACKAGE.parent, capture_output=True, text=True)
    assert done.returncode == 0 and done.stderr == "" and done.stdout == document()
    assert str(PACKAGE.parent) not in done.stdout and str(Path.home()) not in done.stdout
