"""Runs of a comparison: made, taken over, resumed, failed; and one in processes of their own, killed and given again."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from conftest import TINY
from helpers_training import interrupt

from recbole_flr.command import main
from recbole_flr.comparison import worker
from recbole_flr.comparison.plan import make_plan
from recbole_flr.comparison.runs import Runner, Slots
from recbole_flr.errors import ConfigError
from recbole_flr.identity import read_key
from recbole_flr.quick_start import run_recbole_flr
from recbole_flr.training.lock import FolderLock

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def words(session_data):
    """Options of the command line for the data set `tiny`, as texts."""
    options = {**TINY, "data_path": str(session_data), "epochs": 1, "dataset": "tiny"}
    return {
        name: value if isinstance(value, str) else json.dumps(value).replace("true", "True").replace("false", "False")
        for name, value in options.items()
    }


@pytest.fixture
def in_process(monkeypatch):
    """Jobs are done in this process, without the seconds that another one takes to start. Returns the list of jobs."""
    made = []

    def work(self, job, name):
        made.append(job)
        outcome = Path("outcome.json").resolve()
        line = json.dumps({**job, "outcome": str(outcome)})
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(worker, "end_with", lambda stream: None)
            patch.setattr(sys, "stdin", type("Input", (), {"readline": lambda self: line})())
            patch.setattr(sys, "argv", sys.argv)
            worker.main()
        return json.loads(outcome.read_text())

    monkeypatch.setattr(Runner, "work", work)
    return made


def run_all(words, **more):
    return Runner(make_plan({**words, **more}), "out", say=lambda line: None).run_all()


def test_runs_are_made_once(words, in_process):
    first = run_all(words, model="VSKNN,SequentialRules", seeds="2")
    assert [(each.planned.label, each.planned.seed, each.reused) for each in first] == [
        (model, seed, False) for model in ("VSKNN", "SequentialRules") for seed in (2020, 2021)
    ]
    assert len({each.folder for each in first}) == 4 == len(in_process)
    for each in first:
        result = json.loads((each.folder / "result.json").read_text())
        assert (result["model"], result["seed"]) == (each.planned.model, each.planned.seed)
        assert result["command"][:2] == ["run_recbole_flr.py", f"--model={each.planned.model}"]

    again = run_all(
        words, model="SequentialRules,VSKNN", seeds="3", state="ERROR", show_progress="False"
    )  # options without effect
    assert [each.reused for each in again] == [True, True, False] * 2 and len(in_process) == 6
    assert {each.folder for each in first} <= {each.folder for each in again}

    other = run_all(words, model="VSKNN", **{"VSKNN.num_neighbors": "5"})
    assert not other[0].reused and read_key(other[0].folder)["options"]["num_neighbors"] == 5
    assert not run_all(words, model="VSKNN", reuse="none", seeds="1")[0].reused


def test_an_ordinary_run_is_taken_over(words, in_process, session_data):
    run_recbole_flr("VSKNN", "tiny", config_dict={**TINY, "data_path": str(session_data)})
    folder = next(Path("saved").iterdir())
    del words["epochs"]
    (done,) = run_all(words, model="VSKNN", seeds="1")
    assert done.reused and done.folder == folder


def test_another_version_or_other_data_is_another_run(words, in_process):
    (done,) = run_all(words, model="VSKNN", seeds="1")
    key = read_key(done.folder)
    (done.folder / "key.json").write_text(json.dumps({**key, "data": "other"}))
    (other,) = run_all(words, model="VSKNN", seeds="1", reuse="any-version")
    assert not other.reused
    (other.folder / "key.json").write_text(json.dumps({**key, "version": {**key["version"], "source": "other"}}))
    assert run_all(words, model="VSKNN", seeds="1", reuse="any-version")[0].folder == other.folder
    assert not run_all(words, model="VSKNN", seeds="1")[0].reused
    (other.folder / "key.json").write_text("[damaged")
    assert run_all(words, model="VSKNN", seeds="1")[0].folder != other.folder


def test_changed_data_is_another_run(words, in_process, tiny_data):
    words["data_path"] = str(tiny_data)
    assert not run_all(words, model="VSKNN", seeds="1")[0].reused
    file = tiny_data / "tiny" / "tiny.item"
    file.write_text(file.read_text(encoding="utf-8").replace("Robot Wars II", "Robot Wars 2"), encoding="utf-8")
    assert not run_all(words, model="VSKNN", seeds="1")[0].reused


def test_a_killed_run_goes_on(words, in_process, session_data):
    """The resumed run has the metrics of one that was never interrupted."""
    options = {**TINY, "data_path": str(session_data), "epochs": 3, "seed": 7}
    interrupt(lambda: run_recbole_flr("SASRec", "tiny", config_dict=options), 2)
    folder = next(Path("saved").iterdir())
    (done,) = run_all(words, model="SASRec", seed="7", seeds="1", epochs="3")
    assert done.folder == folder and in_process[0]["options"] == {"resume": str(folder)}
    (whole,) = run_all(words, model="SASRec", seed="7", seeds="1", epochs="3", reuse="none")
    test = [json.loads((each.folder / "result.json").read_text())["test_result"] for each in (done, whole)]
    assert test[0] == test[1] and whole.folder != folder


@pytest.mark.skipif(sys.platform == "win32", reason="no locks there")
def test_a_run_in_progress_elsewhere_is_left_alone(words, in_process, session_data):
    interrupt(lambda: run_recbole_flr("SASRec", "tiny", config_dict={**TINY, "data_path": str(session_data), "epochs": 3}), 1)
    folder = next(Path("saved").iterdir())
    with FolderLock() as lock:
        lock.take(folder)
        (done,) = run_all(words, model="SASRec", seeds="1", epochs="3")
    assert "in progress in another process" in done.error and in_process == []


def test_a_failure_does_not_stop_the_others(words, in_process):
    """That three heads cannot share a width of ten is noticed only when the model is built."""
    done = run_all(words, model="SASRec,VSKNN", **{"SASRec.hidden_size": "10", "SASRec.n_heads": "3"})
    assert done[0].folder is None and "hidden size (10) is not a multiple" in done[0].error
    assert done[1].error is None and done[1].folder.is_dir()


def test_a_study_that_starts_from_supervised_weights(words, in_process):
    small = {"hidden_size": "8", "group_size": "2", "grpo_epochs": "1", "num_factors": "2"}
    done = run_all(words, study="grpo", model="FLRMix", **small)
    assert [each.error for each in done] == [None] * 3
    supervised, *reinforced = [json.loads((each.folder / "result.json").read_text()) for each in done]
    assert [stage["name"] for stage in supervised["stages"]] == ["sft"]
    for result in reinforced:
        before, after = result["stages"]
        assert before["name"] == "sft" and before["test_result"] == supervised["test_result"] and after["name"] == "grpo"
    assert [each.reused for each in run_all(words, study="grpo", model="FLRMix", **small)] == [True] * 3


@pytest.mark.parametrize(
    "more, message",
    [
        ({"model": "SASRec,Sasrec"}, "Sasrec: model: found 'Sasrec'.*nearest is 'SASRec'"),
        ({"model": "SASRec,FLRMix", "num_factors": "3"}, r"SASRec: found option 'num_factors'.*--SASRec.NAME=VALUE"),
        ({"model": "FLRMix,SASRec", "FLRMix.num_factors": "0"}, "FLRMix: num_factors: found 0"),
        ({"model": "SASRec,BPR"}, "found SASRec, which rank for a history, and BPR"),
    ],
)
def test_mistakes_are_found_before_anything_runs(words, in_process, more, message):
    with pytest.raises(ConfigError, match=message):
        run_all(words, **more)
    assert in_process == [] and not Path("saved").exists()


def test_the_command(words, in_process, capsys):
    line = [f"--{name}={value}" for name, value in words.items()] + ["--model=VSKNN,SequentialRules", "--seeds=2", "--out=out"]
    assert main(line) == 0
    printed = capsys.readouterr().out
    assert "[1/4] VSKNN on tiny, seed 2020: starts" in printed and "Results on tiny" in printed and "is ahead on tiny" in printed
    assert {path.name for path in Path("out").iterdir()} == {"comparison.md", "comparison.csv", "comparison.tex", "report.html"}
    before = {path.name: path.read_bytes() for path in Path("out").iterdir()}
    assert main(line) == 0
    assert "taken over from saved" in capsys.readouterr().out
    assert {path.name: path.read_bytes() for path in Path("out").iterdir()} == before


def test_the_command_after_a_failure(words, in_process, capsys):
    line = [f"--{name}={value}" for name, value in words.items()] + [
        "--model=SASRec,VSKNN",
        "--SASRec.n_heads=3",
        "--SASRec.hidden_size=10",
    ]
    assert main(line) == 1
    printed = capsys.readouterr().out
    assert "SASRec on tiny, seed 2020: FAILED:" in printed and "VSKNN is ahead on tiny" in printed
    folder = next(Path("comparisons").iterdir())
    assert (
        "Failed: SASRec on tiny" in (folder / "comparison.md").read_text()
        and "hidden size (10)" in (folder / "report.html").read_text()
    )
    assert main([word for word in line if "SASRec,VSKNN" not in word] + ["--model=SASRec", "--seeds=1"]) == 2
    assert "no run has finished" in capsys.readouterr().err


def test_a_mistake_leaves_no_folder(words, capsys):
    line = [f"--{name}={value}" for name, value in words.items()]
    assert main([*line, "--model=SASRec,VSKNN", "--num_neighbors=3"]) == 2
    assert "SASRec: found option 'num_neighbors'" in capsys.readouterr().err and not Path("comparisons").exists()


def test_a_mistake_of_the_command_is_one_line(capsys):
    assert main(["--model=FLR,FLR"]) == 2
    assert capsys.readouterr().err.startswith("run_recbole_flr: model: found FLR twice")


def test_slots_share_threads_and_gpus(monkeypatch):
    monkeypatch.setattr(os, "cpu_count", lambda: 8)
    assert Slots(1, {}, []).environment == {} and Slots(3, {}, []).environment == {"OMP_NUM_THREADS": "2"}
    assert Slots(2, {"OMP_NUM_THREADS": "6"}, []).environment == {"OMP_NUM_THREADS": "3"}
    assert Slots(16, {}, []).environment == {"OMP_NUM_THREADS": "1"}
    slots = Slots(3, {}, ["4", "7"])
    assert [slots.options(slots.take()) for _ in range(3)] == [{"gpu_id": "4"}, {"gpu_id": "7"}, {"gpu_id": "4"}]


# processes of their own


@pytest.mark.skipif(sys.platform == "win32", reason="kills with a signal")
def test_killed_and_given_again(words):
    """SIGKILL ends the comparison and its worker; the same command goes on."""
    words.update(model="SASRec", seeds="1", jobs="2", epochs="15", out="out", stopping_step="100")
    line = [f"--{name}={value}" for name, value in words.items()]
    command = [sys.executable, str(ROOT / "run_recbole_flr.py"), *line]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 120
    while not list(Path("saved").glob("*/last.safetensors")) and time.monotonic() < deadline:
        time.sleep(0.05)
    process.send_signal(signal.SIGKILL)
    process.wait()
    logs = list(Path("out/logs").iterdir())
    time.sleep(1.5)
    sizes = [log.stat().st_size for log in logs]
    time.sleep(1)
    assert [log.stat().st_size for log in logs] == sizes  # the worker is gone
    unfinished = [path.parent for path in Path("saved").glob("*/last.safetensors") if not (path.parent / "result.json").is_file()]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert unfinished and all(f"goes on in {folder}" in done.stdout for folder in unfinished)
    assert len(list(Path("saved").glob("*/result.json"))) == 1 and Path("out/report.html").is_file()
