"""Training in stages, killing and resuming, for the plug-in's models and RecBole's."""

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from conftest import TINY, TINY_FLR
from recbole.trainer import Trainer

from recbole_flr.quick_start import load_data_and_model, run_recbole_flr
from recbole_flr.registry import get_trainer
from recbole_flr.training import checkpoint

ROOT = Path(__file__).resolve().parents[1]
OPTIONS = {"FLR": {**TINY_FLR, "epochs": 4}, "SASRec": {**TINY, "epochs": 4}, "GRU4Rec": {**TINY, "epochs": 4},
           "Caser": {**TINY, "epochs": 4}}


def only_run(folder="saved"):
    runs = list(Path(folder).iterdir())
    assert len(runs) == 1
    return runs[0]


@pytest.mark.parametrize("model", OPTIONS)
def test_same_seed_same_metrics_and_no_pickles(tiny_data, model):
    options = {**OPTIONS[model], "data_path": str(tiny_data)}
    results = [run_recbole_flr(model, "tiny", config_dict={**options, "checkpoint_dir": f"saved{n}"}) for n in range(2)]
    assert results[0] == results[1]
    assert results[0].keys() == {"best_valid_score", "valid_score_bigger", "best_valid_result", "test_result"}
    names = {"hit@5", "hit@10", "ndcg@5", "ndcg@10", "title_hit@5", "title_hit@10", "title_ndcg@5", "title_ndcg@10"}
    assert results[0]["test_result"].keys() == names
    run = only_run("saved0")
    assert {"best.safetensors", "last.safetensors", "run.json"} <= {p.name for p in run.iterdir()}
    for path in Path().rglob("*"):
        assert path.suffix not in {".pth", ".pt", ".pkl", ".bin"} and not path.name.endswith(".tmp")
    assert list(Path("log_tensorboard").rglob("events*"))


@pytest.mark.parametrize("model, cuts", [("FLR", [1, 2, 4]), ("SASRec", [1, 3])])
def test_a_run_cut_short_ends_as_one_that_was_not(tiny_data, model, cuts, monkeypatch):
    """Cut in the first stage, between stages and in the second: the results equal those of the whole run."""
    options = {**OPTIONS[model], "data_path": str(tiny_data)}
    whole = run_recbole_flr(model, "tiny", config_dict={**options, "checkpoint_dir": "whole"})
    weights = checkpoint.read(only_run("whole") / "best.safetensors")[0]
    for cut in cuts:
        seen = []
        config_dict = {**options, "checkpoint_dir": f"cut{cut}"}
        own = Trainer._train_epoch

        def interrupted(self, *args, **kwargs):
            if len(seen) == cut:
                raise KeyboardInterrupt
            seen.append(1)
            return own(self, *args, **kwargs)

        with monkeypatch.context() as patch:
            patch.setattr(Trainer, "_train_epoch", interrupted)
            with pytest.raises(KeyboardInterrupt):
                run_recbole_flr(model, "tiny", config_dict=config_dict)
        resumed = run_recbole_flr(config_dict={"resume": str(only_run(f"cut{cut}"))})
        assert resumed == whole, f"cut after {cut} epochs"
        again = checkpoint.read(only_run(f"cut{cut}") / "best.safetensors")[0]
        assert all(torch.equal(weights[name], again[name]) for name in weights)


def test_resuming_a_finished_run_changes_nothing(tiny_data):
    whole = run_recbole_flr("FLR", "tiny", config_dict={**OPTIONS["FLR"], "data_path": str(tiny_data)})
    before = {p.name: p.read_bytes() for p in only_run().iterdir()}
    assert run_recbole_flr(config_dict={"resume": str(only_run())}) == whole
    assert {p.name: p.read_bytes() for p in only_run().iterdir()} == before


def test_more_epochs_after_the_end(tiny_data):
    """A finished run can be asked for more: `--resume=RUN --epochs=6`."""
    options = {**OPTIONS["SASRec"], "data_path": str(tiny_data)}
    run_recbole_flr("SASRec", "tiny", config_dict=options)
    longer = run_recbole_flr(config_dict={"resume": str(only_run()), "epochs": 6})
    whole = run_recbole_flr("SASRec", "tiny", config_dict={**options, "epochs": 6, "checkpoint_dir": "whole"})
    assert longer == whole


def test_kill_9_in_the_middle(tiny_data):
    """A process killed without warning leaves a run that `--resume` takes to the same end."""
    options = {**OPTIONS["FLR"], "data_path": str(tiny_data), "epochs": 8}
    whole = run_recbole_flr("FLR", "tiny", config_dict={**options, "checkpoint_dir": "whole"})
    words = [sys.executable, str(ROOT / "run_recbole_flr.py"), "--model=FLR", "--dataset=tiny", "--checkpoint_dir=killed"]
    words += [f"--{name}={json.dumps(value)}" for name, value in options.items()]
    process = subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    deadline = time.time() + 120
    while time.time() < deadline:  # until the second stage has saved its state at least once
        last = list(Path("killed").glob("*/last.safetensors"))
        if last and checkpoint.read(last[0])[1]["stage"] == 1 and checkpoint.read(last[0])[1]["next_epoch"] >= 2:
            break
        assert process.poll() is None, "the run ended before it could be killed"
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert checkpoint.read(last[0])[1]["next_epoch"] < 8, "killed too late to show anything"
    assert run_recbole_flr(config_dict={"resume": str(only_run("killed"))}) == whole


@pytest.mark.parametrize("model", OPTIONS)
def test_load_data_and_model_gives_identical_scores(tiny_data, model):
    options = {**OPTIONS[model], "data_path": str(tiny_data), "epochs": 2}
    result = run_recbole_flr(model, "tiny", config_dict=options)
    config, loaded, dataset, train_data, valid_data, test_data = load_data_and_model(only_run())
    trainer = get_trainer(config)(config, loaded)
    trainer.eval_collector.data_collect(train_data)
    test = trainer.evaluate(test_data, load_best_model=False)
    assert {name: result["test_result"][name] for name in test} == test
    again = load_data_and_model(only_run() / "best.safetensors")[1]
    batch = next(iter(test_data))[0]
    with torch.no_grad():
        assert torch.equal(loaded.full_sort_predict(batch), again.full_sort_predict(batch))
        assert torch.equal(loaded.predict(batch), again.predict(batch))


def test_checkpoints_never_unpickle(tiny_data, monkeypatch):
    run_recbole_flr("SASRec", "tiny", config_dict={**OPTIONS["SASRec"], "data_path": str(tiny_data), "epochs": 1})
    monkeypatch.setattr("pickle.load", lambda *a, **k: pytest.fail("pickle.load was called"))
    monkeypatch.setattr("torch.load", lambda *a, **k: pytest.fail("torch.load was called"))
    load_data_and_model(only_run())
    run_recbole_flr(config_dict={"resume": str(only_run()), "epochs": 2})


def test_early_stopping_keeps_the_best(tiny_data):
    options = {**OPTIONS["FLR"], "data_path": str(tiny_data), "epochs": 30, "stopping_step": 1, "learning_rate": 0.02}
    result = run_recbole_flr("FLR", "tiny", config_dict=options)
    last = checkpoint.read(only_run() / "last.safetensors")[1]
    assert last["next_epoch"] < 30 and last["cur_step"] == 2 and result["best_valid_score"] == last["best_valid_score"]
    config, model, *_, valid_data, _ = load_data_and_model(only_run())
    trainer = get_trainer(config)(config, model)
    again = trainer.evaluate(valid_data, load_best_model=False)
    assert again["ndcg@10"] == result["best_valid_score"]


def test_without_saving_nothing_is_written(tiny_data):
    options = {**OPTIONS["FLR"], "data_path": str(tiny_data), "epochs": 1}
    result = run_recbole_flr("FLR", "tiny", config_dict=options, saved=False)
    assert result["test_result"]["hit@10"] >= 0
    assert not list(Path("saved").glob("*"))


def test_stages_show_in_tensorboard(tiny_data):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    run_recbole_flr("FLR", "tiny", config_dict={**OPTIONS["FLR"], "data_path": str(tiny_data)})
    folder = next(path.parent for path in Path("log_tensorboard").rglob("events*"))
    events = EventAccumulator(str(folder)).Reload()
    assert len(events.Scalars("Loss/Train/warmup")) == 2 and len(events.Scalars("Loss/Train/sft")) == 4
    assert len(events.Scalars("Vaild_score")) == 4  # RecBole's spelling


def test_two_runs_in_one_second_do_not_meet(build):
    config, model, _ = build()
    trainers = [get_trainer(config)(config, model) for _ in range(3)]
    assert len({trainer.open_folder() for trainer in trainers}) == 3
