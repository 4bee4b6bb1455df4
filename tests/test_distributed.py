"""Two processes are one: the same losses, gradients, weights and metrics as one process with the whole batch. All over gloo."""

import json
import os
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from filelock import FileLock
from helpers_distributed import CASES, WITHOUT_DROPOUT, resume, run_case, stop, tell, two_ranks, work
from helpers_training import only_run

import recbole_flr
from recbole_flr.errors import AlreadySaid
from recbole_flr.result import read_ranks
from recbole_flr.training import checkpoint


def everything(names, root, more):
    """What each rank does for all tests here: starting processes takes seconds."""
    tell(root)
    work(names, str(root / "two"), more)
    (root / "resumed").mkdir(exist_ok=True)
    resume(root / "resumed", {key: value for key, value in more.items() if key != "shard"})


@pytest.fixture(scope="module")
def pairs(session_data, saved_models, tmp_path_factory):
    """Case -> folder of one process, folder of two. Two processes make all cases one after another, once for all workers of xdist."""
    together = os.environ.get("PYTEST_XDIST_WORKER")
    root = tmp_path_factory.getbasetemp().parent / "pairs" if together else tmp_path_factory.mktemp("pairs")
    root.mkdir(exist_ok=True)
    more = {"data_path": str(session_data), "state": "WARNING"}
    os.environ["TINY_QWEN2"] = str(saved_models["qwen2"])
    with FileLock(root.with_suffix(".lock")):
        if not (root / "made").exists():
            two_ranks(everything, list(CASES), root, more)
            (root / "made").touch()
    return SimpleNamespace(root=root, more=more, of=lambda name: (root / "one" / name, root / "two" / name))


@pytest.mark.parametrize("name", CASES)
def test_two_processes_are_one(pairs, name):
    one, two = pairs.of(name)
    run_case(name, one, pairs.more)
    expected, found = (json.loads((folder / "result").read_text()) for folder in (one, two))
    assert found == expected
    gradients = [torch.load(folder / "gradients.pt", weights_only=True) for folder in (one, two)]
    assert len(gradients[0]) == len(gradients[1])
    for mine, other in zip(*gradients):
        assert (mine.abs().max() > 1e-4 or name in ("Pop", "VSKNN")) and torch.allclose(mine, other, rtol=1e-9, atol=1e-11)
    runs = [only_run(folder / "saved") for folder in (one, two)]
    for file in ("best.safetensors", "last.safetensors"):
        (mine, _), (other, _) = (checkpoint.read(run / file) for run in runs)
        for key in mine:
            if not key.startswith("random."):
                assert torch.allclose(mine[key].double(), other[key].double(), rtol=1e-8, atol=1e-10), key
    mine, other = (read_ranks(run) for run in runs)
    assert mine.keys() == other.keys()
    for key in mine:
        if "scores" in key:
            assert abs(mine[key] - other[key]).max() < 1e-5
        else:
            assert np.array_equal(mine[key], other[key], equal_nan=mine[key].dtype.kind == "f"), key


def test_one_process_writes(pairs):
    _, two = pairs.of("FLR")
    assert len(list((two / "saved").iterdir())) == len(list((two / "log_tensorboard").iterdir())) == 1
    assert len(list(two.glob("log/*/*.log"))) == 1
    assert Path(two / "result").is_file()


def test_what_processes_tell_each_other(pairs):
    """Rank 0 has the rows 0, 1 and rank 1 the rows 0, 1, 2. The gradient of each row is the sum of what both say about it."""
    for rank in (0, 1):
        told = json.loads((pairs.root / f"told-{rank}.json").read_text())
        assert told["rows"] == [0, 1, 0, 1, 2] and told["gradient"] == [[0, 3], [6, 9, 12]][rank]
        assert told["json"] == [{"rank": 0}, {"rank": 1}] and told["first"] == 0 and told["total"] == 3
        assert told["turns"] == [0, 0, 10, 10, 1, 1] and told["none"] == [[1, 1]]


def test_rank_0_computes_what_is_stored(pairs):
    """The others wait for it, also for longer than they wait for each other otherwise (`wait_long`), and read."""
    assert sorted(path.name for path in pairs.root.glob("computed-*")) == ["computed-0"]
    assert sorted(path.name for path in pairs.root.glob("o*.safetensors*")) == ["one.safetensors", "other.safetensors"]


def outcome(folder):
    """Result of each stage, and all weights, of the only run in a folder."""
    run = only_run(folder)
    result = json.loads((run / "result.json").read_text())
    weights = {name: tensor for name, tensor in checkpoint.read(run / "last.safetensors")[0].items() if name.startswith("model.")}
    return [(each["name"], each["epochs"], each["best_valid_result"], each["test_result"]) for each in result["stages"]], weights


def test_two_processes_resume_exactly(pairs):
    """With dropout: the random states of both are kept."""
    whole, again = (outcome(pairs.root / "resumed" / name) for name in ("whole", "again"))
    assert whole[0] == again[0] and all(torch.equal(whole[1][name], again[1][name]) for name in whole[1])


def test_one_process_resumes_what_two_have_saved(pairs, capsys):
    """It has the batches and moments of two processes. So without dropout the weights become the same."""
    cut = only_run(pairs.root / "resumed" / "cut")
    tensors, before = checkpoint.read(cut / "last.safetensors")
    recbole_flr.run_recbole_flr(config_dict={"resume": str(cut), "state": "INFO", **WITHOUT_DROPOUT})
    assert "The run had 2 processes and goes on with 1: batches and steps stay the same" in capsys.readouterr().err
    (_, found), (_, expected) = (outcome(pairs.root / "resumed" / name) for name in ("cut", "still"))
    stages = json.loads((cut / "result.json").read_text())["stages"]
    assert [(stage["name"], stage["epochs"]) for stage in stages] == [("warmup", 1), ("sft", 2)]
    assert before["stage"] == "sft" and before["next_epoch"] == 1 and stages[1]["curve"][:1] == before["record"]["curve"]

    def distance(one, two):
        return max((one[name] - two[name]).abs().max() for name in expected)

    assert distance(found, tensors) > 0.01  # the epoch has moved them
    assert distance(found, expected) < 1e-4


def test_an_error_of_one_process_stops_all(tmp_path, capfd):
    with pytest.raises(AlreadySaid, match="which it has printed") as caught:
        two_ranks(stop, str(tmp_path))
    said = [line for line in capfd.readouterr().err.splitlines() if line.startswith("run_recbole_flr:")]
    assert said == ["run_recbole_flr: rank 1 found no rows"] and caught.value.status == 2
