"""`num_factors: auto` chooses by validation, and the run that follows is that of the chosen number."""

import json
from pathlib import Path
from types import SimpleNamespace

import pytest
from conftest import TINY_OPTIONS

import recbole_flr
from recbole_flr import factor_choice
from recbole_flr.console import Silent
from recbole_flr.quick_start import run_recbole_flr
from recbole_flr.training.mixture import MixtureTraining
from recbole_flr.training.supervised import Supervised


def test_the_run_equals_one_with_the_chosen_number(trained, session_data, monkeypatch):
    monkeypatch.setattr(factor_choice, "CHOICES", (1, 2))
    folder, result = trained("FLRMix", num_factors="auto", auto_epochs=1, state="INFO")
    chosen = json.loads((folder / "run.json").read_text())["num_factors"]
    log = next(Path("log").rglob("*.log")).read_text(encoding="utf-8")
    alone = {number: run_recbole_flr("FLRMix", "tiny", config_dict={
        **TINY_OPTIONS["FLRMix"], "data_path": str(session_data), "num_factors": number, "epochs": 1}, saved=False)
        for number in (1, 2)}
    scores = {number: run["best_valid_score"] for number, run in alone.items()}
    assert chosen == max((1, 2), key=scores.get)
    assert f"{chosen} is the best by validation" in log and all(f"{score:.4f}" in log for score in scores.values())
    options = {**TINY_OPTIONS["FLRMix"], "data_path": str(session_data), "num_factors": chosen}
    assert run_recbole_flr("FLRMix", "tiny", config_dict=options) == result


def test_a_trial_is_the_beginning_of_the_run(trained, monkeypatch):
    """The gate is asked to decide in the second half of the run's epochs, not of the trial's."""
    begin, seen = MixtureTraining.begin_epoch, []

    def begin_epoch(self, epoch):
        begin(self, epoch)
        seen.append((epoch, self.model.sharpness))

    monkeypatch.setattr(MixtureTraining, "begin_epoch", begin_epoch)
    monkeypatch.setattr(factor_choice, "CHOICES", (1, 2))
    trained("FLRMix", num_factors="auto", auto_epochs=2, epochs=3, stopping_step=5)
    assert seen == [(0, 0.0), (1, 0.0)] * 2 + [(0, 0.0), (1, 0.0), (2, pytest.approx(1 / 3))]


@pytest.mark.parametrize("metric, chosen", [("NDCG@10", 1), ("GiniIndex@10", 2)])
def test_the_best_score_is_the_largest_or_the_smallest(build, metric, chosen):
    """Of equal scores the smaller number is kept. The trials are not trained here; their scores are given."""
    config, _, loaders = build("FLRMix", metrics=[metric[:-3]], valid_metric=metric)
    config["num_factors"], scores = "auto", {1: 0.3, 2: 0.1, 4: 0.3, 8: 0.1}

    def build_trainer(trial, model):
        return SimpleNamespace(
            stages={"sft": SimpleNamespace()}, tensorboard=Silent(), records={"sft": {"seconds": 1.0}},
            fit=lambda *_, **__: (scores[trial["num_factors"]], None),
        )

    factor_choice.choose_num_factors(config, loaders, lambda trial: SimpleNamespace(stages=[Supervised]), build_trainer)
    assert config["num_factors"] == chosen


def test_the_trials_leave_no_files(trained, monkeypatch):
    monkeypatch.setattr(factor_choice, "CHOICES", (1, 2))
    trained("FLRMix", num_factors="auto", auto_epochs=1, state="INFO")
    assert len(list(Path("saved").iterdir())) == 1


def test_flr_has_it_too(session_data, monkeypatch):
    monkeypatch.setattr(factor_choice, "CHOICES", (1, 2))
    options = {**TINY_OPTIONS["FLR"], "data_path": str(session_data), "num_factors": "auto", "auto_epochs": 1, "epochs": 1,
               "warmup_epochs": 1}
    run_recbole_flr("FLR", "tiny", config_dict=options)
    folder, = Path("saved").iterdir()
    assert json.loads((folder / "run.json").read_text())["num_factors"] in (1, 2)
    assert len(recbole_flr.recommend(folder, ["Robot"])["factors"]) in (1, 2)


@pytest.mark.parametrize("value", ["many", 0, 1.5])
def test_other_values_are_refused(value):
    with pytest.raises(recbole_flr.errors.ConfigError, match="num_factors"):
        run_recbole_flr("FLRMix", "tiny", config_dict={"num_factors": value})


def test_it_is_refused_where_weights_are_loaded(trained):
    folder, _ = trained("FLRMix")
    for call in (lambda: recbole_flr.load_data_and_model(folder, {"num_factors": "auto"}),
                 lambda: run_recbole_flr(config_dict={"checkpoint": str(folder), "num_factors": "auto"})):
        with pytest.raises(recbole_flr.errors.ConfigError, match="num_factors: found auto, expected the number of the run"):
            call()


def test_the_best_may_be_chosen_by_a_metric_of_titles(session_data, monkeypatch):
    monkeypatch.setattr(factor_choice, "CHOICES", (1,))
    options = {**TINY_OPTIONS["FLRMix"], "data_path": str(session_data), "num_factors": "auto", "auto_epochs": 1, "epochs": 1,
               "valid_metric": "title_ndcg@10"}
    assert run_recbole_flr("FLRMix", "tiny", config_dict=options, saved=False)["best_valid_score"] > 0
