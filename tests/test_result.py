"""What a run leaves on disk: result.json and ranks.npz, from which the printed metrics can be computed again."""

import json
import mmap
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from conftest import TINY, TINY_FLR

import recbole_flr
from recbole_flr.errors import DiskError
from recbole_flr.result import (
    RANKS, RESULT, PeakMemory, commit_of, describe_result, differing_options, duration, finite, read_ranks, write_ranks,
)  # fmt: skip


def metrics_of(ranks, part):
    """RecBole's and the title-level metrics, recomputed with numpy from the saved ranks of a part."""
    found = {}
    for kind, prefix in (("item", ""), ("title", "title_")):
        rank = ranks[f"{part}_{kind}_rank"].astype(float)
        for k in (5, 10):
            hit = rank <= k
            found[f"{prefix}hit@{k}"] = round(hit.mean(), 4)
            found[f"{prefix}ndcg@{k}"] = round((hit / np.log2(rank + 1)).mean(), 4)
    return found


@pytest.mark.parametrize("model, options", [
    ("FLR", {}), ("FLR", {"stages": "sft,grpo"}), ("SASRec", {"epochs": 2}), ("Caser", {"epochs": 1}),
    ("FLR", {"duplicate_titles": "share", "score": "trie"}),
])
def test_the_metrics_follow_from_the_ranks(trained, model, options):
    folder, result = trained(model, **options)
    ranks, written = read_ranks(folder), json.loads((folder / RESULT).read_text(encoding="utf-8"))
    assert metrics_of(ranks, "test") == pytest.approx(dict(result["test_result"]), abs=1.01e-4)  # both are rounded
    assert metrics_of(ranks, "valid") == pytest.approx(dict(result["best_valid_result"]), abs=1.01e-4)
    assert written["test_result"] == result["test_result"] and written["best_valid_result"] == result["best_valid_result"]
    assert written["kept"] == result.get("kept", written["stages"][-1]["name"])
    for name, other in result.get("stages", {}).items():
        if name != written["kept"]:
            found = metrics_of(read_ranks(folder, f"ranks-{name}.npz"), "test")
            assert found == pytest.approx(dict(other["test_result"]), abs=1.01e-4)


def test_the_ranks_are_those_of_the_loaded_model(trained):
    folder, _ = trained("SASRec", epochs=2)
    ranks = read_ranks(folder)
    _, model, dataset, _, valid_data, test_data = recbole_flr.load_data_and_model(folder)
    for part, loader in (("valid", valid_data), ("test", test_data)):
        scores, targets = [], []
        for interaction, _, _, positive in loader:
            found = model.full_sort_predict(interaction).view(len(interaction), -1).detach().numpy()
            found[:, 0] = -np.inf
            scores.append(found)
            targets += positive.tolist()
        scores = np.concatenate(scores)
        assert ranks[f"{part}_target"].tolist() == targets and ranks[f"{part}_row"].tolist() == list(range(len(targets)))
        best = np.argsort(-scores, axis=1)[:, :10]
        assert (ranks[f"{part}_top_items"] == best).all()
        np.testing.assert_allclose(ranks[f"{part}_top_scores"], np.take_along_axis(scores, best, 1), rtol=1e-5)
        assert ranks[f"{part}_item_rank"].tolist() == [1 + sum(row > row[target]) for row, target in zip(scores, targets)]


def test_what_result_json_says(trained):
    folder, result = trained("FLR", stages="sft,grpo")
    written = json.loads((folder / RESULT).read_text(encoding="utf-8"))
    assert written["model"] == "FLR" and written["dataset"] == "tiny" and written["seed"] == 2020 and written["format"] == 1
    assert written["command"] and written["versions"]["torch"] and written["hardware"]["threads"] == 1
    assert written["options"]["num_factors"] == 3 and written["options"]["group_size"] == 3
    assert "learning_rate" not in written["options"]  # as it is by default
    config, model, dataset, *loaders = recbole_flr.load_data_and_model(folder)
    assert written["data"]["fingerprint"] == config["data_fingerprint"]
    assert written["data"]["rows"] == {part: len(loader._dataset) for part, loader in zip(("train", "valid", "test"), loaders)}
    assert written["data"]["items"] == model.n_items - 1 and written["parameters"] == sum(p.numel() for p in model.parameters())
    assert [stage["name"] for stage in written["stages"]] == ["warmup", "sft", "grpo"]
    for stage in written["stages"]:
        assert stage["seconds"] > 0 and stage["peak_memory_bytes"] > 10**7
        assert stage["epochs"] == {"warmup": 2, "sft": 2, "grpo": 2}[stage["name"]]
    for stage in written["stages"][1:]:
        assert 0 <= stage["best_epoch"] < stage["epochs"] and stage["test_seconds"] > 0
        assert stage["test_result"] == result["stages"][stage["name"]]["test_result"]
    assert written["seconds"] >= max(stage["seconds"] for stage in written["stages"])
    assert not list(folder.glob("*.tmp"))


def test_general_models_have_a_rank_for_each_target(tmp_path):
    """A row of a general model is a user with several targets."""
    options = {"epochs": 1, "state": "ERROR", "show_progress": False, "user_inter_num_interval": "[20,24]"}
    result = recbole_flr.run_recbole_flr("BPR", "ml-100k", config_dict=options)
    ranks = read_ranks(next(Path("saved").iterdir()))
    rows = ranks["test_row"].max() + 1
    assert len(ranks["test_item_rank"]) == len(ranks["test_target"]) >= rows == len(ranks["test_top_items"])
    assert "test_title_rank" not in ranks
    hit = {row for row, rank in zip(ranks["test_row"], ranks["test_item_rank"]) if rank <= 10}
    assert len(hit) / rows == pytest.approx(result["test_result"]["hit@10"], abs=1e-4)


def test_a_run_without_validation_has_test_ranks(trained):
    folder, result = trained("SASRec", epochs=1, eval_step=0)
    ranks = read_ranks(folder)
    assert metrics_of(ranks, "test") == pytest.approx(dict(result["test_result"]), abs=1.01e-4)
    assert not [name for name in ranks if name.startswith("valid")]
    written = json.loads((folder / RESULT).read_text(encoding="utf-8"))
    assert written["best_valid_score"] is None and "Infinity" not in (folder / RESULT).read_text(encoding="utf-8")


def test_a_resumed_run_adds_up_its_seconds(trained):
    folder, _ = trained("SASRec", epochs=2)
    before = json.loads((folder / RESULT).read_text(encoding="utf-8"))
    recbole_flr.run_recbole_flr(config_dict={"resume": str(folder), "epochs": 3})
    after = json.loads((folder / RESULT).read_text(encoding="utf-8"))
    assert after["stages"][0]["epochs"] == 3 and after["stages"][0]["seconds"] > before["stages"][0]["seconds"]
    assert after["options"]["epochs"] == 3 and "load_col" not in after["options"]


def test_without_saving_there_is_no_result(session_data):
    options = {**TINY, "epochs": 1, "data_path": str(session_data)}
    recbole_flr.run_recbole_flr("SASRec", "tiny", config_dict=options, saved=False)
    assert not Path("saved").exists() or not list(Path("saved").iterdir())


# parts


def test_options_that_differ(session_data):
    config = recbole_flr.Config("FLR", "tiny", config_dict={**TINY_FLR, "data_path": str(session_data), "epochs": "30"})
    found = differing_options(config)
    assert found["num_factors"] == 3 and "epochs" not in found and "model" not in found  # 30 is the default


def test_a_write_that_fails_leaves_the_old_file(tmp_path, monkeypatch):
    write_ranks(tmp_path, {}, {"item_rank": np.array([1, 2])})
    monkeypatch.setattr(np, "savez_compressed", lambda *args, **kwargs: (_ for _ in ()).throw(OSError("disk full")))
    with pytest.raises(DiskError, match="cannot write .*ranks.npz: disk full; .* are free there"):
        write_ranks(tmp_path, {}, {"item_rank": np.array([3])})
    assert read_ranks(tmp_path)["test_item_rank"].tolist() == [1, 2]


def test_ranks_are_never_unpickled(tmp_path):
    np.savez(tmp_path / RANKS, bad=np.array([{}], dtype=object))
    with pytest.raises(ValueError, match="allow_pickle"):
        read_ranks(tmp_path)


@pytest.mark.parametrize("seconds, text", [
    (0.04, "0.0 s"), (9.94, "9.9 s"), (12.4, "12 s"), (59.6, "1 min 0 s"), (185, "3 min 5 s"), (7442, "2 h 4 min"),
])
def test_durations(seconds, text):
    assert duration(seconds) == text


def test_json_has_no_infinity():
    value = {"a": float("-inf"), "b": [1.5, float("nan")], "c": {"d": "x"}}
    assert finite(value) == {"a": None, "b": [1.5, None], "c": {"d": "x"}}


def test_the_commit_of_a_checkout(tmp_path):
    def git(*words):
        identity = ["-c", "user.name=x", "-c", "user.email=x@x"]
        subprocess.run(["git", "-C", tmp_path, *identity, *words], check=True, capture_output=True)

    assert commit_of(tmp_path) is None
    git("init")
    (tmp_path / "result.py").write_text("1")
    git("add", "."), git("commit", "-m", "x")
    clean = commit_of(tmp_path)
    assert len(clean) == 40
    (tmp_path / "result.py").write_text("2")
    assert commit_of(tmp_path) == clean + "+"
    (tmp_path / "sub").mkdir()  # an installed package inside of a checkout
    (tmp_path / "sub" / "result.py").write_text("1")
    assert commit_of(tmp_path / "sub") is None


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux can forget a peak")
def test_peak_memory_of_a_stage():
    memory = PeakMemory("cpu")
    memory.start()
    before = memory.read()
    with mmap.mmap(-1, 200_000_000) as block:  # new pages, whatever the process has at hand
        block.write(b"1" * len(block))
        after = memory.read()
    assert after >= before + 150_000_000
    memory.at_least(10**15)
    assert memory.read() == 10**15


def test_what_is_not_known_is_null():
    class Trainer:
        results, records = {"sft": (0.5, {"hit@1": 0.5})}, {}

    described = describe_result(Trainer(), {"sft": {"test_result": {"hit@1": 0.25}, "seconds": 1.0}}, "sft")
    assert described["test_result"] == {"hit@1": 0.25} and described["best_valid_score"] == 0.5
    assert described["stages"] == [{"name": "sft", "best_valid_score": 0.5, "best_valid_result": {"hit@1": 0.5},
                                    "test_result": {"hit@1": 0.25}, "test_seconds": 1.0}]
