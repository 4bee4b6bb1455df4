"""Ranges of a search: reading both kinds of files, their errors, and the fit to the options of a model."""

import math

import pytest

from recbole_flr.config import Config
from recbole_flr.errors import ConfigError
from recbole_flr.options import properties_folder
from recbole_flr.search_space import Choice, Range, fit_space, read_space

optuna = pytest.importorskip("optuna")
FILES = sorted((properties_folder() / "search").glob("*.yaml"))


def write(tmp_path, text, name="ranges.yaml"):
    path = tmp_path / name
    path.write_text(text, encoding="utf-8")
    return path


def test_a_yaml_file_has_ranges_choices_and_fixed_values(tmp_path):
    text = ("a: {low: 0.1, high: 0.6}\nb: [32, 64]\nc: {low: 1e-4, high: 1e-2, log: true}\nd: CE\ne: null\n"
            "f: {low: 1, high: 9, step: 2}\n")
    ranges, fixed = read_space(write(tmp_path, text))
    assert ranges == {"a": Range(0.1, 0.6), "b": Choice((32, 64)), "c": Range(1e-4, 1e-2, True), "f": Range(1, 9, False, 2)}
    assert fixed == {"d": "CE", "e": None}


def test_a_file_of_recbole_means_the_same_as_for_hyperopt(tmp_path):
    text = ("learning_rate loguniform -8,0\n\n# widths\nhidden_size choice [64, 128]\nloss_type choice ['BPR', 'CE']\n"
            "hidden_dropout_prob uniform 0.0,0.5\ninner_size quniform 100,1000,50\n")
    ranges, fixed = read_space(write(tmp_path, text, "a.hyper"))
    assert fixed == {} and ranges == {
        "learning_rate": Range(math.exp(-8), 1.0, True), "hidden_size": Choice((64, 128)), "loss_type": Choice(("BPR", "CE")),
        "hidden_dropout_prob": Range(0, 0.5), "inner_size": Range(100, 1000, False, 50),
    }
    fitted = fit_space(ranges, Config("SASRec", "toys_demo"))
    assert fitted["hidden_dropout_prob"] == Range(0.0, 0.5) and isinstance(fitted["hidden_dropout_prob"].low, float)
    assert isinstance(fitted["inner_size"].low, int)


def test_whole_numbers_are_those_of_options_that_take_no_others():
    given = {"n_layers": Range(1, 3), "dropout": Range(0, 0.9), "num_factors": Range(1, 8), "weight_decay": Range(0, 1)}
    fitted = fit_space(given, Config("FLRMix", "toys_demo"))
    assert {name: type(each.low) for name, each in fitted.items()} == {
        "n_layers": int, "dropout": float, "num_factors": int, "weight_decay": float,
    }
    draws = optuna.create_study().ask()
    values = {name: each.suggest(draws, name) for name, each in fitted.items()}
    assert all(values[name] in each for name, each in fitted.items())
    Config("FLRMix", "toys_demo", config_dict=values)


def test_choices_may_be_of_any_kind():
    """Optuna stores numbers and text only, and takes True for 1."""
    for values in ([{"max_norm": 1.0}, None, {"max_norm": 5.0}], [[1, 2], [3]], [True, False], [1, True], ["a", None, 0.5]):
        choice, study, found = Choice(tuple(values)), optuna.create_study(sampler=optuna.samplers.RandomSampler(0)), []
        for _ in range(40):
            found.append(choice.suggest(study.ask(), "a"))
        assert {repr(value) for value in found} == {repr(value) for value in values}
        study.enqueue_trial({"a": choice.stored(values[1])})
        assert repr(choice.suggest(study.ask(), "a")) == repr(values[1])


@pytest.mark.parametrize("low, high, step, inside, outside", [
    (1, 9, 2, [1, 3, 9], [0, 2, 11, True, None, "3"]), (0.0, 1.0, None, [0, 0.5, 1], [-0.1, 1.01]),
    (0.1, 0.7, 0.2, [0.1, 0.3, 0.7], [0.2]),
])
def test_what_is_in_a_range(low, high, step, inside, outside):
    each = Range(low, high, False, step)
    assert all(value in each for value in inside) and not any(value in each for value in outside)


@pytest.mark.parametrize("line, message", [
    ("dropout: {low: 0.6, high: 0.1}", "dropout .*found low 0.6 and high 0.1, expected low below high"),
    ("dropout: {low: 0.6, high: 0.6}", "low below high"),
    ("dropout: []", "found an empty list"),
    ("dropout: [0.1, 0.1]", "a value is repeated"),
    ("dropout: {low: 0.1}", "found high: None, expected a number"),
    ("dropout: {low: a, high: 1}", "found low: 'a'"),
    ("dropout: {low: 0, high: .inf}", "found high: inf"),
    ("dropout: {low: 0.0, high: 0.5, log: true}", "found low 0.0 with log: true"),
    ("dropout: {low: 0.1, high: 0.5, log: 3}", "found log: 3"),
    ("dropout: {low: 0.1, high: 0.5, step: 0}", "found step 0"),
    ("dropout: {low: 0.1, high: 0.5, log: true, step: 0.1}", "found step 0.1"),
    ("dropout: {low: 0.1, higt: 0.5}", "found 'higt' in a range.*nearest is 'high'"),
    ("dropout: {low: 0.1, high: 0.5}\ndropout: [0.1]", "dropout twice"),
    ("dropout: 0.5", "found no range"), ("", "found no range"), ("- 3", "found a list"), ("a: [", "is not yaml"),
    ("3: [1]", "option 3"),
    ("seed: [1, 2]", "found seed .*--seed=VALUE"), ("valid_rows: [50, 400]", "found valid_rows"), ("rows_seed: [1, 2]", "found rows_seed"),
])
def test_wrong_ranges_are_refused(tmp_path, line, message):
    with pytest.raises(ConfigError, match=f"(?s)search: .*{message}"):
        read_space(write(tmp_path, line))


@pytest.mark.parametrize("line, message", [
    ("dropout uniform 0.1", "line 1: found '0.1', expected"), ("dropout normal 0,1", "found 'dropout normal 0,1'"),
    ("dropout", "expected name"),
    ("dropout choice 3", "found '3'"), ("dropout choice __import__('os').getcwd()", "found \"__import__"),
    ("dropout uniform 0.5,0.1", "low below high"), ("dropout quniform 0,1,0", "found '0,1,0'"),
    ("dropout uniform 0,1\ndropout uniform 0,1", "line 2: found dropout a second time"), ("dropout choice []", "empty list"),
])
def test_wrong_lines_of_recboles_file_are_refused(tmp_path, line, message):
    with pytest.raises(ConfigError) as caught:
        read_space(write(tmp_path, line, "a.hyper"))
    assert message in str(caught.value)


def test_a_missing_file():
    for name in ("no.yaml", "no.hyper"):
        with pytest.raises(ConfigError, match=f"search: cannot read {name}"):
            read_space(name)


@pytest.mark.parametrize("ranges, message", [
    ({"droput": Range(0.1, 0.2)}, "found option 'droput', which does not exist.*nearest is 'dropout'"),
    ({"dropout": Range(0.5, 1.5)}, r"dropout: found 1.5, expected float in \[0, 1\)"),
    ({"n_layers": Range(0.5, 2)}, "n_layers: found 0.5, expected int"),
    ({"hidden_size": Choice((32, "wide"))}, "hidden_size: found 'wide'"),
])
def test_ranges_must_fit_the_options(ranges, message):
    with pytest.raises(ConfigError, match=f"search: .*{message}"):
        fit_space(ranges, Config("FLRMix", "toys_demo"))


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_the_files_of_the_plug_in_fit_their_models(path):
    model = path.stem.partition("-")[0]  # FLRMix-text: more ranges for FLRMix
    ranges, fixed = read_space(path)
    config = Config(model, "toys_demo", config_dict=fixed)
    fitted = fit_space(ranges, config)
    assert all(config[name] in each for name, each in fitted.items()), "a default is outside its range"
    assert f"--model={model} " in path.read_text(encoding="utf-8")
    Config(model, "toys_demo", config_dict={**fixed, **{name: each.ends()[0] for name, each in fitted.items()}})


def test_there_is_a_file_for_each_model_that_is_compared():
    assert {path.stem for path in FILES} >= {
        "FLRMix", "LatentR3", "BIGRec", "AlphaRec", "LARES", "ReaRec", "SASRec", "GRU4Rec",
        "Caser", "SASRecCPR", "LightSANs", "BERT4Rec", "SequentialRules", "VSKNN", "FLR",
    }
