"""The trainer of models without training: no batch is read, and validation, checkpoints and resuming work as for every model."""

import json
from pathlib import Path

import pytest
import recbole_flr
import torch
from conftest import TINY
from helpers_training import only_run
from recbole.data.dataloader import TrainDataLoader

from recbole_flr.result import read_ranks
from recbole_flr.quick_start import build_trainer
from recbole_flr.trainer import SafeCheckpoints
from recbole_flr.training import checkpoint


def run(data, saved=True, **given):
    options = {**TINY, "data_path": str(data), **given}
    return recbole_flr.run_recbole_flr("SequentialRules", "tiny", config_dict=options, saved=saved)


def test_no_batch_is_read_and_the_run_is_whole(tiny_data, monkeypatch):
    monkeypatch.setattr(TrainDataLoader, "__iter__", lambda self: pytest.fail("a training batch was asked for"))
    result = run(tiny_data, state="INFO")
    assert result["best_valid_result"]["ndcg@10"] == result["best_valid_score"] > 0.2
    folder = only_run()
    written = json.loads((folder / "result.json").read_text(encoding="utf-8"))
    assert written["test_result"] == result["test_result"] and written["parameters"] == 0
    assert {name: written["stages"][0][name] for name in ("epochs", "best_epoch")} == {"epochs": 1, "best_epoch": 0}
    ranks = read_ranks(folder)
    for part, metrics in (("valid", result["best_valid_result"]), ("test", result["test_result"])):
        assert (ranks[f"{part}_item_rank"] <= 10).mean() == pytest.approx(metrics["hit@10"], abs=1e-4)
    log, = Path("log").rglob("*.log")
    text = log.read_text(encoding="utf-8")
    assert "No training: the model is complete" in text and "train loss" not in text


@pytest.mark.parametrize("method", ["_valid_epoch", "_leave_stage"])
def test_a_run_cut_short_ends_as_one_that_was_not(tiny_data, method, monkeypatch):
    whole = run(tiny_data, checkpoint_dir="whole")

    def interrupted(*args, **kwargs):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(SafeCheckpoints, method, interrupted)
        with pytest.raises(KeyboardInterrupt):
            run(tiny_data)
    assert recbole_flr.run_recbole_flr(config_dict={"resume": str(only_run())}) == whole


def test_epochs_have_no_effect(tiny_data):
    assert run(tiny_data, epochs=0) == run(tiny_data, epochs=7)


def test_a_run_from_a_checkpoint_and_one_that_is_not_saved(tiny_data):
    result = run(tiny_data)
    again = recbole_flr.run_recbole_flr(config_dict={"checkpoint": str(only_run()), "checkpoint_dir": "again"})
    assert again == result == run(tiny_data, saved=False)


def test_a_checkpoint_holds_no_tables(tiny_data):
    run(tiny_data)
    tensors, meta = checkpoint.read(only_run() / "best.safetensors")
    assert {name.split(".")[0] for name in tensors} == {"ranks"}
    assert list(meta["other"]) == ["rows_fingerprint"] and len(meta["other"]["rows_fingerprint"]["json"]) == 64


def test_there_is_nothing_to_optimise(build):
    config, model, _ = build("SequentialRules")
    trainer = build_trainer(config, model)
    assert isinstance(trainer, SafeCheckpoints) and not list(model.parameters())
    assert all(torch.numel(parameter) == 0 for group in trainer.optimizer.param_groups for parameter in group["params"])
