"""What a run leaves for later: `result.json` (what was run, on what, with which result) and `ranks.npz` (the ranks behind it).

A model that writes its reasoning also leaves `thoughts.jsonl`, the texts of the test rows. All are written when a run ends, for
RecBole's own models as well. `docs/output.md` describes every field.
"""

import importlib.metadata
import json
import math
import os
import platform
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import torch

from recbole_flr.distributed import size
from recbole_flr.files import new_file

RESULT, RANKS, EXAMPLES, THOUGHTS = "result.json", "ranks.npz", "examples.json", "thoughts.jsonl"
PACKAGES = ("recbole_flr", "recbole", "torch", "transformers", "peft", "numpy", "pandas", "scipy")
COMPUTED = ("data_path", "load_col", "train_neg_sample_args", "eval_args", "tokenizer", "gpu_id", "valid_metric_bigger")  # by RecBole
FORMAT = 1  # of result.json; a reader refuses what it does not know


class PeakMemory:
    """The most memory that this process used at a time since :meth:`start`, in bytes.

    On a CPU that is the resident memory of the process, with the libraries that it loaded. On CUDA it is the memory that torch
    allocated on the device. Where the system does not allow to reset the peak (Windows, macOS), it counts from the start of the
    process.
    """

    def __init__(self, device):
        self.on_gpu = torch.device(device).type == "cuda"
        self._before = 0

    def start(self):
        """Forget the peak so far."""
        if self.on_gpu:
            torch.cuda.reset_peak_memory_stats()
            return
        try:
            Path("/proc/self/clear_refs").write_text("5")
        except OSError:
            pass

    def at_least(self, peak):
        """Take over the peak of an earlier process, whose work this one goes on with."""
        self._before = max(self._before, peak or 0)

    def read(self):
        """The peak; None if the system does not tell."""
        if self.on_gpu:
            return max(self._before, torch.cuda.max_memory_allocated())
        try:
            found = re.search(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text())
            return max(self._before, int(found[1]) * 1024)
        except (OSError, TypeError):
            pass
        try:
            import resource
        except ImportError:  # Windows
            return None
        return max(self._before, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024))


def commit_of(folder):
    """The git commit of the checkout that holds a folder, with `+` behind it if tracked files were changed since; else None."""
    def git(*words):
        return subprocess.run(["git", "-C", str(folder), "--no-optional-locks", *words], capture_output=True, text=True)

    try:
        found = git("rev-parse", "HEAD")
        if found.returncode:
            return None
        tracked = git("ls-files", "--error-unmatch", str(Path(__file__).name))
        if tracked.returncode:  # an installed package in somebody else's checkout
            return None
        changed = git("status", "--porcelain", "--untracked-files=no").stdout.strip()
        return found.stdout.strip() + ("+" if changed else "")
    except OSError:  # no git
        return None


def versions(packages=PACKAGES):
    """Versions of Python and of packages: name -> version, None for a package that is not installed."""
    found = {"python": platform.python_version()}
    for name in packages:
        found[name] = next((each.version for each in importlib.metadata.distributions(name=name)), None)
    if "recbole_flr" in found and found["recbole_flr"] is None:  # run from a checkout
        import recbole_flr

        found["recbole_flr"] = recbole_flr.__version__
    return found


def hardware(device):
    """What the times depend on: processor, memory, threads and, if it is used, the GPU."""
    def first(path, pattern):
        try:
            found = re.search(pattern, Path(path).read_text())
        except OSError:
            return None
        return found and found[1]

    memory = first("/proc/meminfo", r"MemTotal:\s+(\d+) kB")
    on_gpu = torch.device(device).type == "cuda"
    return {
        "cpu": first("/proc/cpuinfo", r"model name\s*: (.*)") or platform.processor(), "cpus": os.cpu_count(),
        "processes": size(), "threads": torch.get_num_threads(), "memory_bytes": memory and int(memory) * 1024,
        "gpu": torch.cuda.get_device_name(device) if on_gpu else None, "system": platform.platform(),
    }


def differing_options(config):
    """The options that a user set to something other than their default: name -> value."""
    continued = config["resume"] or config["checkpoint"]  # such a run gets every option of the earlier one
    skipped = {"model", "dataset", *(COMPUTED if continued else ())}
    given, defaults = config.external_config_dict, config.internal_config_dict
    return {name: value for name, value in given.items() if name not in skipped and value != defaults.get(name)}


def describe_run(config, model, dataset, loaders):
    """What was run, and on what: the part of result.json that is known before the training.

    Args:
        config: :class:`recbole_flr.config.Config`.
        model: of the run.
        dataset: RecBole's whole data set.
        loaders: train, valid, test.
    """
    rows = {part: len(loader._dataset.inter_feat) for part, loader in zip(("train", "valid", "test"), loaders)}
    return {
        "format": FORMAT, "model": config["model"], "dataset": config["dataset"], "command": [Path(sys.argv[0]).name, *sys.argv[1:]],
        "options": differing_options(config), "seed": config["seed"], "commit": commit_of(Path(__file__).parent), "versions": versions(),
        "hardware": hardware(config["device"]),
        "data": {
            "fingerprint": config["data_fingerprint"], "users": dataset.user_num - 1, "items": dataset.item_num - 1, "rows": rows,
        },
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
    }


def describe_result(trainer, tests, kept):
    """What came out: the part of result.json that is known at the end.

    Args:
        trainer: with `results` and `records` of the stages.
        tests: name of a stage -> {test_result, seconds}.
        kept: name of the stage whose weights are `best.safetensors`.
    """
    stages = []
    of_other_runs = [name for name in trainer.results if name not in trainer.records]
    for name in [*of_other_runs, *trainer.records]:
        score, valid = trainer.results.get(name, (None, None))
        test = tests.get(name, {})
        stages.append({
            "name": name, **trainer.records.get(name, {}), "best_valid_score": score, "best_valid_result": valid,
            "test_result": test.get("test_result"), "test_seconds": test.get("seconds"),
        })
    score, valid = trainer.results[kept]
    return finite({
        "stages": stages, "kept": kept, "best_valid_score": score, "best_valid_result": valid,
        "test_result": tests[kept]["test_result"],
    })


def finite(value):
    """A value for JSON: what is infinite or NaN becomes None, as JSON has neither."""
    if isinstance(value, dict):
        return {name: finite(each) for name, each in value.items()}
    if isinstance(value, list):
        return [finite(each) for each in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def ranks_file(stage, kept):
    """Name of the file with the ranks of a stage: `ranks.npz` for the stage that a run keeps, `ranks-STAGE.npz` for another."""
    return RANKS if stage == kept else f"ranks-{stage}.npz"


def write_ranks(folder, valid, test, name=RANKS):
    """Write `ranks.npz`: the arrays of :meth:`recbole_flr.evaluation.RankCollector.take_ranks` and of
    :func:`recbole_flr.rows.describe_rows`, as `valid_...` and `test_...`."""
    arrays = {f"{part}_{name}": value for part, ranks in (("valid", valid), ("test", test)) for name, value in ranks.items()}
    with new_file(Path(folder) / name) as temporary, open(temporary, "wb") as file:
        np.savez_compressed(file, **arrays)


def write_thoughts(folder, texts):
    """Write `thoughts.jsonl`: one line of JSON for each test row whose reasoning the model wrote; no file if there is none."""
    if texts:
        with new_file(Path(folder) / THOUGHTS) as temporary:
            temporary.write_text("".join(json.dumps(text, ensure_ascii=False) + "\n" for text in texts), encoding="utf-8")


def read_ranks(folder, name=RANKS):
    """`ranks.npz` of a run, or another file of ranks -> dict of arrays. Pickles are refused."""
    with np.load(Path(folder) / name, allow_pickle=False) as file:
        return {name: file[name] for name in file.files}


def duration(seconds):
    """Seconds as text: `0.5 s`, `12 s`, `3 min 5 s`, `2 h 4 min`."""
    if seconds < 10:
        return f"{seconds:.1f} s"
    seconds = round(seconds)
    if seconds < 60:
        return f"{seconds} s"
    if seconds < 3600:
        return f"{seconds // 60} min {seconds % 60} s"
    return f"{seconds // 3600} h {seconds % 3600 // 60} min"
