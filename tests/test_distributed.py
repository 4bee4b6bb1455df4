"""Two processes are one: the same losses, gradients, weights and metrics as one process with the whole batch. All over gloo."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers_distributed import CASES, run_case, two_ranks, work
from helpers_training import only_run

from recbole_flr.result import read_ranks
from recbole_flr.training import checkpoint


@pytest.fixture(scope="module")
def pairs(session_data, tmp_path_factory):
    """Case -> folder of one process, folder of two. Two processes make all cases one after another."""
    root = tmp_path_factory.mktemp("pairs")
    more = {"data_path": str(session_data), "state": "WARNING"}
    two_ranks(work, list(CASES), str(root / "two"), more)
    return lambda name: (root / "one" / name, root / "two" / name, more)


@pytest.mark.parametrize("name", CASES)
def test_two_processes_are_one(pairs, name):
    one, two, more = pairs(name)
    run_case(name, one, more)
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
    _, two, _ = pairs("FLR")
    assert len(list((two / "saved").iterdir())) == len(list((two / "log_tensorboard").iterdir())) == 1
    assert len(list(two.glob("log/*/*.log"))) == 1
    assert Path(two / "result").is_file()
