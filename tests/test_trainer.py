"""Training in stages, and runs that are interrupted, killed and resumed, for the plug-in's models and RecBole's."""

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import TINY, TINY_FLR, TINY_LARES, TINY_LATENT, TINY_LM
from helpers_training import interrupt, only_run

from recbole_flr.errors import CheckpointError, FLRError
from recbole_flr.quick_start import build_trainer, load_data_and_model, run_recbole_flr
from recbole_flr.training import checkpoint
from recbole_flr.training.staged import StagedTrainer

ROOT = Path(__file__).resolve().parents[1]
BOTH = {"stages": "sft,grpo", "epochs": 2, "grpo_epochs": 2}
UPDATED_TWICE = {**BOTH, "warmup_epochs": 1, "grpo_updates": 2, "show_progress": True}
OPTIONS = {"FLR": {**TINY_FLR, "epochs": 4}, "LatentR3": {**TINY_LATENT, **BOTH}, "BIGRec": {**TINY_LM, "epochs": 2},
           "SASRec": {**TINY, "epochs": 4}, "GRU4Rec": {**TINY, "epochs": 4},
           "Caser": {**TINY, "epochs": 4}}
LARES = {**TINY_LARES, "stages": "spt,grpo", "epochs": 1, "grpo_epochs": 2, "grpo_learning_rate": 0.01, "kl_coef": 1.0}


@pytest.mark.parametrize("model", OPTIONS)
def test_same_seed_same_metrics_and_no_pickles(trained, tiny_data, model):
    options = {**OPTIONS[model], "data_path": str(tiny_data)}
    _, result = trained(model, **OPTIONS[model])
    assert run_recbole_flr(model, "tiny", config_dict={**options, "checkpoint_dir": "saved0"}) == result
    staged = {"stages", "kept"} if "grpo" in options.get("stages", "") else set()
    assert result.keys() == {"best_valid_score", "valid_score_bigger", "best_valid_result", "test_result"} | staged
    names = {"hit@5", "hit@10", "ndcg@5", "ndcg@10", "title_hit@5", "title_hit@10", "title_ndcg@5", "title_ndcg@10"}
    assert result["test_result"].keys() == names
    run = only_run("saved0")
    assert {"best.safetensors", "last.safetensors", "run.json", "result.json", "ranks.npz"} <= {p.name for p in run.iterdir()}
    for path in Path().rglob("*"):
        assert path.suffix not in {".pth", ".pt", ".pkl", ".bin"} and not path.name.endswith(".tmp")
    assert list(Path("log_tensorboard").rglob("events*"))


@pytest.mark.parametrize("model, cuts, extra", [
    ("FLR", [1], {}),
    ("SASRec", [1, 4], {"epochs": 8, "learning_rate": 0.01, "stopping_step": 2}),  # the third of six epochs is the best
    ("FLR", [1, 2, 3, 4], UPDATED_TWICE),
    ("BIGRec", [3], {"grounding": "embedding"}),
    ("LARES", [2], LARES),  # with dropout, and a reference
])
def test_a_run_cut_short_ends_as_one_that_was_not(trained, tiny_data, model, cuts, extra):
    """Interrupt a run in each of its stages and between them. The resumed run has the results and weights of the whole run."""
    options = {**OPTIONS.get(model, {}), **extra, "data_path": str(tiny_data)}
    folder, whole = trained(model, **{**OPTIONS.get(model, {}), **extra})
    weights = {path.name: checkpoint.read(path)[0] for path in folder.glob("*.safetensors")}
    for cut in cuts:
        config_dict = {**options, "checkpoint_dir": f"cut{cut}"}
        interrupt(lambda: run_recbole_flr(model, "tiny", config_dict=config_dict), epochs=cut)
        resumed = run_recbole_flr(config_dict={"resume": str(only_run(f"cut{cut}"))})
        assert resumed == whole, f"cut after {cut} epochs"
        for name, tensors in weights.items():
            again = checkpoint.read(only_run(f"cut{cut}") / name)[0]
            assert all(torch.equal(tensors[key], again[key]) for key in tensors), name


@pytest.mark.parametrize("model, options", [
    ("FLR", OPTIONS["FLR"]),
    ("SASRec", {"epochs": 1, "metrics": ["GiniIndex", "AveragePopularity", "GAUC"], "valid_metric": "GiniIndex@10"}),  # need training rows
])
def test_resuming_a_finished_run_changes_nothing(trained, model, options):
    _, whole = trained(model, **options)
    before = {p.name: p.read_bytes() for p in only_run().iterdir()}
    assert run_recbole_flr(config_dict={"resume": str(only_run())}) == whole
    assert {p.name: p.read_bytes() for p in only_run().iterdir()} == before


def test_more_epochs_after_the_end(trained, session_data):
    """A finished run can be asked for more: `--resume=RUN --epochs=6`."""
    options = {**OPTIONS["SASRec"], "data_path": str(session_data)}
    folder, _ = trained("SASRec", **OPTIONS["SASRec"])
    longer = run_recbole_flr(config_dict={"resume": str(folder), "epochs": 6})
    whole = run_recbole_flr("SASRec", "tiny", config_dict={**options, "epochs": 6, "checkpoint_dir": "whole"})
    assert longer == whole


def test_a_run_of_an_earlier_version_is_not_resumed(trained):
    """Its saved state lacks a field that resuming needs today. Its weights can still be loaded."""
    folder, _ = trained("SASRec", epochs=1)
    tensors, meta = checkpoint.read(folder / "last.safetensors")
    del meta["record"]
    checkpoint.write(folder / "last.safetensors", tensors, meta)
    with pytest.raises(CheckpointError, match="an earlier version.*--checkpoint"):
        run_recbole_flr(config_dict={"resume": str(folder)})
    load_data_and_model(folder)


def test_kill_9_in_the_middle(tiny_data):
    """A process killed without warning leaves a run that `--resume` takes to the same end."""
    options = {**OPTIONS["FLR"], "data_path": str(tiny_data), "epochs": 6}
    whole = run_recbole_flr("FLR", "tiny", config_dict={**options, "checkpoint_dir": "whole"})
    words = [sys.executable, str(ROOT / "run_recbole_flr.py"), "--model=FLR", "--dataset=tiny", "--checkpoint_dir=killed"]
    words += [f"--{name}={json.dumps(value)}" for name, value in options.items()]
    process = subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    deadline = time.time() + 120
    while time.time() < deadline:  # until the second stage has saved its state at least once
        last = list(Path("killed").glob("*/last.safetensors"))
        if last and checkpoint.read(last[0])[1]["stage"] == "sft" and checkpoint.read(last[0])[1]["next_epoch"] >= 2:
            break
        assert process.poll() is None, "the run ended before it could be killed"
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert checkpoint.read(last[0])[1]["next_epoch"] < 6, "killed too late to show anything"
    assert run_recbole_flr(config_dict={"resume": str(only_run("killed"))}) == whole


@pytest.mark.parametrize("model", OPTIONS)
def test_load_data_and_model_gives_identical_scores(trained, model):
    _, result = trained(model, **OPTIONS[model])
    config, loaded, dataset, train_data, valid_data, test_data = load_data_and_model(only_run())
    trainer = build_trainer(config, loaded)
    trainer.eval_collector.data_collect(train_data)
    test = trainer.evaluate(test_data, load_best_model=False)
    assert {name: result["test_result"][name] for name in test} == test
    again = load_data_and_model(only_run() / "best.safetensors")[1]
    batch = next(iter(test_data))[0]
    with torch.no_grad():
        assert torch.equal(loaded.full_sort_predict(batch), again.full_sort_predict(batch))
        assert torch.equal(loaded.predict(batch), again.predict(batch))


def test_checkpoints_never_unpickle(trained, monkeypatch):
    trained("SASRec", epochs=1)
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
    trainer = build_trainer(config, model)
    again = trainer.evaluate(valid_data, load_best_model=False)
    assert again["ndcg@10"] == result["best_valid_score"]


def test_without_saving_nothing_is_written(tiny_data):
    options = {**OPTIONS["FLR"], "data_path": str(tiny_data), "epochs": 1}
    result = run_recbole_flr("FLR", "tiny", config_dict=options, saved=False)
    assert result["test_result"]["hit@10"] >= 0
    assert not list(Path("saved").glob("*"))


def test_stages_show_in_tensorboard(trained):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    trained("FLR", **OPTIONS["FLR"])
    folder = next(path.parent for path in Path("log_tensorboard").rglob("events*"))
    events = EventAccumulator(str(folder)).Reload()
    for name in ("title", "orthogonality", "orthogonality_weight", "loss"):
        assert len(events.Scalars(f"sft/{name}")) == 4
    assert len(events.Scalars("Loss/Train/warmup")) == 2 and len(events.Scalars("Loss/Train/sft")) == 4
    assert len(events.Scalars("Vaild_score")) == 4  # RecBole's spelling


# supervised, then reinforced


def run(data, model="FLR", **options):
    base = {"FLR": {**TINY_FLR, **BOTH}, "LatentR3": {**TINY_LATENT, **BOTH}, "BIGRec": TINY_LM}[model]
    return run_recbole_flr(model, "tiny", config_dict={**base, "data_path": str(data), **options})


def test_both_stages_are_reported_and_the_better_is_kept(trained):
    _, result = trained("FLR", **BOTH)
    assert result["stages"].keys() == {"sft", "grpo"} and result["kept"] in result["stages"]
    scores = {name: stage["best_valid_score"] for name, stage in result["stages"].items()}
    assert result["best_valid_score"] == max(scores.values()) == scores[result["kept"]]
    kept = result["stages"][result["kept"]]
    assert (result["best_valid_result"], result["test_result"]) == (kept["best_valid_result"], kept["test_result"])
    weights = {name: checkpoint.read(only_run() / f"{name}.safetensors")[0] for name in ("best", "sft", "grpo")}
    assert all(torch.equal(weights["best"][name], weights[result["kept"]][name]) for name in weights["best"])
    moved = {name for name in weights["sft"] if not torch.equal(weights["sft"][name], weights["grpo"][name])}
    assert moved and not any(name.startswith("model.backbone.") for name in moved)


@pytest.mark.parametrize("better, metric, best", [
    ("sft", "NDCG", 2.0), ("grpo", "NDCG", 2.0),
    ("sft", "GiniIndex", 1.0), ("grpo", "GiniIndex", 1.0),  # less inequality is better
])
def test_reinforcement_never_makes_a_run_worse(tiny_data, better, metric, best, monkeypatch):
    """The run keeps the weights of the stage with the better validation score, whichever stage that is."""
    own = StagedTrainer._valid_epoch

    def judged(self, *args, **kwargs):
        score, result = own(self, *args, **kwargs)
        return (best if self.stage_name == better else 3.0 - best), result

    monkeypatch.setattr(StagedTrainer, "_valid_epoch", judged)
    result = run(tiny_data, metrics=[metric], valid_metric=f"{metric}@10", epochs=1, grpo_epochs=1, warmup_epochs=1)
    assert result["kept"] == better and result["best_valid_score"] == best
    weights = {name: checkpoint.read(only_run() / f"{name}.safetensors")[0] for name in ("best", better)}
    assert all(torch.equal(weights["best"][name], weights[better][name]) for name in weights["best"])


@pytest.mark.parametrize("model", ["FLR", "LatentR3"])
def test_grpo_alone_goes_on_from_a_trained_model(trained, model):
    """It reports the supervised stage with that run's results, and leaves that run's folder as it is."""
    folder, first = trained(model)
    before = {p.name: p.read_bytes() for p in folder.iterdir()}
    options = {"checkpoint": str(folder), "stages": "grpo", "checkpoint_dir": "second"}
    result = run_recbole_flr(config_dict=options)
    assert result["stages"]["sft"]["best_valid_result"] == first["best_valid_result"]
    assert result["stages"]["sft"]["test_result"] == first["test_result"]
    assert {p.name: p.read_bytes() for p in folder.iterdir()} == before
    start, end = (checkpoint.read(only_run("second") / f"{name}.safetensors")[0] for name in ("sft", "grpo"))
    given = checkpoint.read(folder / "best.safetensors")[0]
    assert all(torch.equal(given[name], start[name]) for name in given)
    assert any(not torch.equal(given[name], end[name]) for name in given)
    assert run_recbole_flr(config_dict={"resume": str(only_run("second"))}) == result
    loaded = load_data_and_model(only_run("second"))
    assert torch.equal(loaded[1].state_dict()["backbone.lm.model.norm.weight"], given["model.backbone.lm.model.norm.weight"])


def test_no_epoch_of_reinforcement_leaves_the_model_as_it_was(tiny_data):
    result = run(tiny_data, grpo_epochs=0)
    assert result["kept"] == "sft" and result["stages"]["grpo"]["test_result"] == result["stages"]["sft"]["test_result"]
    stages = {stage["name"]: stage for stage in json.loads((only_run() / "result.json").read_text())["stages"]}
    assert stages["grpo"]["epochs"] == 0 and stages["grpo"]["curve"] == [] and stages["sft"]["curve"]


def test_without_validation_the_last_stage_is_kept(tiny_data):
    result = run(tiny_data, eval_step=0)
    assert result["kept"] == "grpo"
    best, grpo = (checkpoint.read(only_run() / f"{name}.safetensors")[0] for name in ("best", "grpo"))
    assert all(torch.equal(best[name], grpo[name]) for name in best)


@pytest.mark.parametrize("trainable", ["full", "lora", "frozen"])
def test_a_pretrained_backbone_survives_both_stages(tiny_data, saved_models, trainable):
    """The checkpoint of the second stage holds the backbone that the first stage trained, although the second stage froze it."""
    result = run(tiny_data, backbone=str(saved_models["qwen2"]), prompt="compact", trainable=trainable)
    trainer_config, model, *_, test_data = load_data_and_model(only_run())
    trainer = build_trainer(trainer_config, model)
    trainer.eval_collector.data_collect(test_data)
    test = trainer.evaluate(test_data, load_best_model=False)
    assert {name: result["test_result"][name] for name in test} == test


def test_every_part_of_the_loss_shows_in_tensorboard(trained):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    trained("FLR", **OPTIONS["FLR"] | UPDATED_TWICE)
    folder = next(path.parent for path in Path("log_tensorboard").rglob("events*"))
    events = EventAccumulator(str(folder)).Reload()
    names = ["reward", "confidence", "match", "advantage_std", "ratio", "clip_fraction", "kl", "noise", "orthogonality",
             "diversity", "sparsity", "orthogonality_weight", "diversity_weight", "sparsity_weight", "surrogate", "kl_weight"]
    for name in names:
        values = [event.value for event in events.Scalars(f"grpo/{name}")]
        assert len(values) == 2 and all(np.isfinite(values)), name
    assert events.Scalars("grpo/noise")[0].value == pytest.approx(0.3, rel=0.2)
    trained_at, validated_at = ([event.step for event in events.Scalars(name)] for name in ("Loss/Train/grpo", "Valid/grpo"))
    assert trained_at == validated_at == [0, 1]


def test_a_trained_backbone_that_is_now_frozen_keeps_its_place(tiny_data, saved_models):
    """A backbone that one run trained and the next run freezes is in the checkpoints of the next run too.

    Its weights are no longer those of the pretrained model, so they could not be loaded from there.
    """
    run(tiny_data, backbone=str(saved_models["llama"]), prompt="compact", stages="sft", checkpoint_dir="first")
    options = {"checkpoint": str(only_run("first")), "stages": "grpo", "trainable": "frozen", "checkpoint_dir": "second"}
    run_recbole_flr(config_dict=options)
    given, kept = (checkpoint.read(only_run(run_) / "best.safetensors")[0] for run_ in ("first", "second"))
    backbone = [name for name in given if name.startswith("model.backbone.")]
    assert backbone and all(torch.equal(given[name], kept[name]) for name in backbone)


@pytest.mark.parametrize("change", [{"stages": "sft"}, {"warmup_epochs": 0, "stages": "sft"}])
def test_a_run_is_not_resumed_in_a_stage_that_it_no_longer_has(trained, change):
    folder, _ = trained("FLR", **BOTH)
    with pytest.raises(CheckpointError, match="stopped in its stage grpo, found stages .*--checkpoint"):
        run_recbole_flr(config_dict={"resume": str(folder), **change})


def test_stages_can_be_added_to_a_finished_run(trained):
    folder, _ = trained("FLR")
    result = run_recbole_flr(config_dict={"resume": str(folder), "stages": "sft,grpo"})
    assert result["stages"].keys() == {"sft", "grpo"}


def test_what_was_not_trained_here_is_validated_before_it_is_reinforced(trained):
    folder, first = trained("FLR")
    result = run_recbole_flr(config_dict={"checkpoint": str(folder), "stages": "sft,grpo", "epochs": 0})
    assert result["stages"]["sft"]["best_valid_result"] == first["best_valid_result"]


def test_reinforcement_with_a_backbone_in_bfloat16(tiny_data):
    """Small changes of the thought have an effect, although the backbone computes in bfloat16."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    run(tiny_data, torch_dtype="bfloat16", grpo_updates=2, grpo_learning_rate=1e-5)
    folder = next(path.parent for path in Path("log_tensorboard").rglob("events*"))
    events = EventAccumulator(str(folder)).Reload()
    assert 0 < events.Scalars("grpo/kl")[0].value < 1e-2 and events.Scalars("grpo/ratio")[0].value != 1


@pytest.mark.parametrize("model, options, message", [
    ("FLR", {"stages": "grpo"}, "stages: found grpo alone.*--checkpoint=PATH"),
    ("FLR", {"stages": "grpo,sft"}, "stages: found 'grpo,sft', expected one or more of sft, grpo, in this order"),
    ("FLR", {"stages": "sft, gpro"}, "stages: found 'sft, gpro'"), ("FLR", {"stages": []}, r"stages: found \[\]"),
    ("FLR", {"stages": ["sft", "sft"]}, "stages: found"),
    ("BIGRec", {"stages": "sft,grpo"}, "found 'sft,grpo', expected sft: these are the stages of BIGRec"),
    ("FLR", {"group_size": 1}, "group_size: found 1, expected int >= 2"),
    ("FLR", {"checkpoint": "nowhere"}, "found no nowhere"),
])
def test_wrong_stages_are_refused(tiny_data, model, options, message):
    with pytest.raises(FLRError, match=message):
        run(tiny_data, model, **options)
    assert not list(Path("saved").glob("*/*"))


def test_two_runs_in_one_second_have_their_own_folders(build):
    config, model, _ = build()
    trainers = [build_trainer(config, model) for _ in range(3)]
    assert len({trainer.open_folder() for trainer in trainers}) == 3
