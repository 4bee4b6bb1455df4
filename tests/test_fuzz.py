"""Random changes of options, of `run.json` and of safetensors headers: no traceback, no hang, no half-written output.

A short run is part of the tests. The long one is `python -m pytest -s -m slow tests/test_fuzz.py`. FUZZ_CHANGES and FUZZ_SEED
change it; with FUZZ_FIRST several processes can share the work.
"""

import json
import os
import shutil
import sys
from collections import Counter
from pathlib import Path

import pytest
from benchmarks.harness import time_limit
from conftest import TINY_OPTIONS
from helpers_fuzz import changed_header, changed_json, changed_words, seeded

from recbole_flr.command import main, recommend_main
from recbole_flr.config import Config
from recbole_flr.training import checkpoint

SECONDS = 30  # the longest time of one change; most take less than a tenth of a second
SHORT = {"epochs": 1, "warmup_epochs": 1, "state": "ERROR"}
# Options that may make a run long or start other processes, and what the base sets itself
LEFT_ALONE = {
    "epochs",
    "warmup_epochs",
    "grpo_epochs",
    "auto_epochs",
    "worker",
    "download",
    "show_progress",
    "dataset",
    "model",
    "data_path",
    "config_files",
    "resume",
    "checkpoint",
}
MODELS = ("SASRec", "SASRec", "SASRec", "FLRMix", "FLR", "BPR")


def base_words(model, data):
    options = {**TINY_OPTIONS.get(model, TINY_OPTIONS["BIGRec"] if model == "BIGRec" else {}), **SHORT, "data_path": str(data)}
    known = Config(model, "tiny", config_dict={"data_path": str(data)}).internal_config_dict
    return [f"--{name}={value}" for name, value in options.items() if name in known]


def names_of(model, data):
    return sorted(set(Config(model, "tiny", config_dict={"data_path": str(data)}).internal_config_dict) - LEFT_ALONE)


class Fuzz:
    """Makes the changes, one after the other, in a folder of its own.

    Args:
        data: folder of the data set `tiny`.
        runs: model -> folder of a finished run.
        seed: of all changes.
    """

    def __init__(self, data, runs, seed):
        self.data, self.runs, self.seed = data, runs, seed
        self.names = {model: names_of(model, data) for model in set(MODELS)}
        self.base = {model: base_words(model, data) for model in set(MODELS)}
        self.outcomes = Counter()

    def change(self, number, capsys):
        """Make one change and check what comes of it. Returns what was done, for a message."""
        rng = seeded(self.seed, number)
        kind = rng.choice(("options", "options", "run.json", "header"))
        root = Path.cwd() / "case"
        root.mkdir()
        os.chdir(root)
        try:
            if kind == "options":
                model = rng.choice(MODELS)
                words = changed_words(rng, self.names[model])
                given = {word[2:].partition("=")[0] for word in words}
                base = [word for word in self.base[model] if word[2:].partition("=")[0] not in given]
                call, what = (lambda: main([f"--model={model}", "--dataset=tiny", *base, *words])), [model, *words]
            else:
                model = rng.choice(tuple(self.runs))
                run = root / "saved" / "run"
                shutil.copytree(self.runs[model], run)
                if kind == "run.json":
                    path = run / checkpoint.CONFIG
                    text = json.dumps(changed_json(rng, json.loads(path.read_text(encoding="utf-8"))))
                    path.write_text(text[: rng.randrange(len(text))] if rng.random() < 0.05 else text, encoding="utf-8")
                else:
                    path = run / rng.choice((checkpoint.LAST, checkpoint.LAST, checkpoint.BEST))
                    path.write_bytes(changed_header(rng, path.read_bytes()))
                short = [f"--{name}={value}" for name, value in SHORT.items() if model == "FLR" or name != "warmup_epochs"]
                call = rng.choice(
                    (
                        lambda: main([f"--resume={run}", f"--data_path={self.data}", *short]),
                        lambda: recommend_main(
                            ["--checkpoint", str(run), "--history", "Robot", "--k", "2", "--data_path", str(self.data)]
                        ),
                    )
                )
                what = [kind, model, path.name]
            with time_limit(SECONDS):
                try:
                    status = call()
                except SystemExit as end:
                    status = end.code
            out, err = capsys.readouterr()
            assert status in (0, 2), what
            assert "Traceback" not in out + err, (what, err)
            assert status == 0 or err.strip(), what
            self.check_output(status, what)
            self.outcomes[kind, status] += 1
        except Exception as error:
            if isinstance(error, AssertionError):
                raise
            raise AssertionError(f"change {number} of seed {self.seed}: {what}: {type(error).__name__}: {error}") from error
        finally:
            os.chdir(root.parent)
            shutil.rmtree(root)

    @staticmethod
    def check_output(status, what):
        """No temporary file is left, and each run's folder has weights that can be read."""
        assert not [path for path in Path().rglob("*.tmp")], what
        for folder in Path().rglob("run.json"):
            weights = list(folder.parent.glob("*.safetensors"))
            assert weights, what
            for path in weights if status == 0 and folder.parent.name != "run" else ():
                checkpoint.read(path)


@pytest.fixture
def fuzz(trained, session_data, tmp_path):
    runs = {}
    for model in ("SASRec", "FLRMix", "FLR"):
        folder, _ = trained(model, **{name: value for name, value in SHORT.items() if model == "FLR" or name != "warmup_epochs"})
        runs[model] = tmp_path / "originals" / model
        shutil.move(folder, runs[model])
        shutil.rmtree("saved")
    return lambda seed: Fuzz(session_data, runs, seed)


@pytest.mark.skipif(sys.platform == "win32", reason="there is no alarm")
def test_a_few_random_changes(fuzz, capsys):
    changes = fuzz(7)
    for number in range(int(os.environ.get("FUZZ_CHANGES", 120))):
        changes.change(number, capsys)
    assert len(changes.outcomes) >= 5 and min(changes.outcomes.values()) >= 2  # each kind of change is refused and also accepted


@pytest.mark.slow
def test_many_random_changes(fuzz, capsys):
    changes, failed = fuzz(int(os.environ.get("FUZZ_SEED", 2020))), []
    first = int(os.environ.get("FUZZ_FIRST", 0))
    for number in range(first, first + int(os.environ.get("FUZZ_CHANGES", 2000))):
        try:
            changes.change(number, capsys)
        except AssertionError as error:
            failed.append(str(error).split("\n")[0])
    assert not failed, "\n".join(failed)
    with capsys.disabled():
        print(
            f"\n{sum(changes.outcomes.values())} changes, seed {changes.seed}: "
            + ", ".join(f"{kind} with status {status}: {count}" for (kind, status), count in sorted(changes.outcomes.items()))
        )
