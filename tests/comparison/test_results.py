"""Folders of runs: what is read from them, how they are grouped, and what is refused."""

import json

import numpy as np
import pytest
from helpers_comparison import FACTORS, ROWS, draw_rows, write_run, write_runs

from recbole_flr.comparison.results import check_same_data, read_run, rows_of
from recbole_flr.errors import CheckpointError, DataError
from recbole_flr.result import write_ranks


def test_a_run_is_read(tmp_path):
    run = read_run(write_run(tmp_path / "a", seed=2021))
    assert (run.model, run.dataset, run.seed, run.main_metric, run.stage) == ("SASRec", "tiny", 2021, "ndcg@10", "train")
    costs = run.costs()
    assert costs == {"train_seconds": 10.0 + 2021 % 7, "peak_memory_bytes": 3e8, "user_seconds": 0.6 / ROWS, "parameters": 1000}
    assert run.has_ranks and len(run.ranks["test_item_rank"]) == ROWS and run.examples[0]["user"] == "u1"


def test_costs_add_up_over_stages(tmp_path):
    stages = [
        {"name": "warmup", "seconds": 5.0, "peak_memory_bytes": 7, "epochs": 1, "test_result": None, "best_valid_result": None},
        {
            "name": "sft",
            "seconds": 2.5,
            "peak_memory_bytes": 3,
            "epochs": 1,
            "test_result": {"ndcg@10": 0.5},
            "test_seconds": 1.2,
            "best_valid_result": None,
        },
        {
            "name": "grpo",
            "seconds": 1.0,
            "peak_memory_bytes": 4,
            "epochs": 1,
            "test_result": {"ndcg@10": 0.4},
            "test_seconds": None,
            "best_valid_result": None,
        },
    ]
    folder = write_run(tmp_path / "a", stages=stages, kept="sft")
    run = read_run(folder)
    assert run.costs() == {"train_seconds": 8.5, "peak_memory_bytes": 7, "user_seconds": 1.2 / ROWS, "parameters": 1000}
    other = read_run(folder, "grpo")
    assert other.test == {"ndcg@10": 0.4} and not other.is_kept and other.costs()["user_seconds"] is None
    assert not other.has_ranks and (other.ranks["test_item_rank"] == run.ranks["test_item_rank"]).all()
    write_ranks(folder, {}, {name: np.arange(3) for name in ("row", "target", "item_rank")}, "ranks-grpo.npz")
    other = read_run(folder, "grpo")
    assert other.has_ranks and other.ranks["test_item_rank"].tolist() == [0, 1, 2]
    with pytest.raises(CheckpointError, match="no stage 'warm'"):
        read_run(folder, "warm")
    with pytest.raises(CheckpointError, match="no test result"):
        read_run(folder, "warmup")


def test_folders_that_are_no_finished_run(tmp_path):
    with pytest.raises(CheckpointError, match="which does not exist"):
        read_run(tmp_path / "none")
    with pytest.raises(CheckpointError, match="which is no folder of a run"):
        read_run(tmp_path)
    (tmp_path / "run.json").write_text("{}")
    with pytest.raises(CheckpointError, match="has not finished"):
        read_run(tmp_path)


@pytest.mark.parametrize("content", ["", "[1, 2]", "null", "{}", '{"format": 1}', '{"format": 2}', '"text"'])
def test_damaged_results(tmp_path, content):
    folder = write_run(tmp_path / "a")
    (folder / "result.json").write_text(content)
    with pytest.raises(CheckpointError, match="result.json"):
        read_run(folder)


def test_randomly_damaged_results(tmp_path):
    """A field that is gone or has another type: the run is read, or refused with one error."""
    folder = write_run(tmp_path / "a", factors=FACTORS)
    whole, rng = json.loads((folder / "result.json").read_text()), np.random.default_rng(0)
    refused = 0
    for _ in range(300):
        changed = json.loads(json.dumps(whole))
        place, key = changed, rng.choice(list(changed))
        while isinstance(place[key], (dict, list)) and place[key] and rng.random() < 0.6:
            place = place[key]
            key = int(rng.integers(len(place))) if isinstance(place, list) else rng.choice(list(place))
        if rng.random() < 0.5:
            del place[key]
        else:
            place[key] = [None, [], {}, "text", -1][rng.integers(5)]
        (folder / "result.json").write_text(json.dumps(changed))
        try:
            read_run(folder)
        except CheckpointError as error:
            refused += 1
            assert "\n" not in str(error)
    assert 50 < refused < 300


@pytest.mark.parametrize("content", [b"", b"PK", b"PK\x03\x04 damaged", b"text"])
def test_damaged_ranks(tmp_path, content):
    folder = write_run(tmp_path / "a")
    (folder / "ranks.npz").write_bytes(content)
    with pytest.raises(CheckpointError, match="ranks.npz cannot be read"):
        read_run(folder)


def test_a_run_without_ranks(tmp_path):
    folder = write_run(tmp_path / "a")
    (folder / "ranks.npz").write_bytes(b"damaged")
    with pytest.raises(CheckpointError, match="ranks.npz cannot be read"):
        read_run(folder)
    (folder / "ranks.npz").unlink()
    with pytest.raises(CheckpointError, match="found no ranks.npz"):
        read_run(folder)


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"dataset": "other"}, "data set is tiny in .* and other in"),
        ({"fingerprint": "0" * 64}, "fingerprint.*ffffffffffff... in"),
        ({"options": {"valid_metric": "Hit@5"}}, "validation metric is ndcg@10"),
        ({"options": {"eval_args": {"mode": {"valid": "full", "test": "uni100"}}}}, "evaluation mode"),
        ({"rows": {**draw_rows(), "target": np.ones(ROWS)}}, "targets of the test rows"),
    ],
)
def test_runs_on_different_data_are_refused(tmp_path, changes, message):
    runs = [read_run(write_run(tmp_path / "a")), read_run(write_run(tmp_path / "b", **changes))]
    with pytest.raises(DataError, match=f"found runs on different data: .*{message}"):
        check_same_data(runs)
    check_same_data(runs[:1])


def test_runs_are_grouped_by_what_differs(tmp_path):
    folders = write_runs(tmp_path, ("FLR", "SASRec"), (3, 1, 2))
    folders += [
        write_run(tmp_path / f"K{seed}", "FLR", seed, options={"num_factors": 2, "show_progress": False}) for seed in (1, 2)
    ]
    rows = rows_of([read_run(folder) for folder in folders])
    assert [(row.label, row.seeds) for row in rows] == [
        ("FLR, num_factors=4", [1, 2, 3]),
        ("SASRec", [1, 2, 3]),
        ("FLR, num_factors=2", [1, 2]),
    ]


def test_options_without_effect_do_not_separate_runs(tmp_path):
    folders = [
        write_run(tmp_path / str(seed), seed=seed, options={"data_path": f"place{seed}", "gpu_id": str(seed)}) for seed in (1, 2)
    ]
    (row,) = rows_of([read_run(folder) for folder in folders])
    assert row.label == "SASRec" and row.seeds == [1, 2]


def test_a_seed_twice_is_refused(tmp_path):
    runs = [read_run(write_run(tmp_path / name, seed=5)) for name in "ab"]
    with pytest.raises(DataError, match="two runs of SASRec with the seed 5"):
        rows_of(runs)


def test_examples_may_be_missing(tmp_path):
    folder = write_run(tmp_path / "a")
    (folder / "examples.json").unlink()
    assert read_run(folder).examples == []
    assert json.loads((folder / "run.json").read_text())["seed"] == 2020
