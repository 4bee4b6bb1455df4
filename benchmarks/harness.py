"""What the benchmarks share: versions in turn, peaks of memory, what the figures depend on, spreads.

A benchmark compares versions of one computation in one run. Times: after one call each that does not count, the versions
take turns in one process (:func:`in_turns`). Memory: how far a call raises the resident memory of a process of its own
(:func:`start_peak`, :func:`peak`, :func:`in_fresh_process`); on CUDA, the memory that torch has allocated.
"""

import argparse
import importlib.metadata
import json
import os
import platform
import re
import resource
import statistics
import subprocess
import sys
from pathlib import Path
from time import perf_counter

import psutil

ROOT = Path(__file__).resolve().parents[1]
_CODE = ("recbole_flr", "dataset_scripts", "properties", "benchmarks")


def in_turns(versions, repeats, device="cpu"):
    """Seconds of each call.

    Args:
        versions (dict): name -> function without arguments.
        repeats: calls of each that count.
        device: `cpu`, or `cuda`, whose work is waited for.

    Returns:
        dict: name -> list of `repeats` numbers.
    """
    for version in versions.values():
        version()
    seconds = {name: [] for name in versions}
    for _ in range(repeats):
        for name, version in versions.items():
            synchronize(device)
            start = perf_counter()
            version()
            synchronize(device)
            seconds[name].append(perf_counter() - start)
    return seconds


def synchronize(device):
    """Wait for the device."""
    if device == "cuda":
        import torch

        torch.cuda.synchronize()


def start_peak(device="cpu"):
    """Forget the peak so far. Returns the bytes that are in use now."""
    if device == "cuda":
        import torch

        torch.cuda.reset_peak_memory_stats()
        return torch.cuda.memory_allocated()
    if Path("/proc/self/clear_refs").exists():
        Path("/proc/self/clear_refs").write_text("5")
    return psutil.Process().memory_info().rss


def peak(device="cpu"):
    """Bytes that were in use at most."""
    if device == "cuda":
        import torch

        return torch.cuda.max_memory_allocated()
    status = Path("/proc/self/status")
    found = re.search(r"VmHWM:\s+(\d+) kB", status.read_text()) if status.exists() else None
    if found:  # ru_maxrss of a process on Linux begins with that of the process that started it
        return int(found[1]) * 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def in_fresh_process(module, arguments):
    """The last word, a number, that `python -m module` prints."""
    command = [sys.executable, "-m", module, *arguments]
    return int(subprocess.run(command, cwd=ROOT, check=True, stdout=subprocess.PIPE, text=True).stdout.split()[-1])


def surroundings(packages=("torch", "transformers"), device="cpu"):
    """What the figures depend on beside the options: commit, machine, versions."""
    git = lambda *words: subprocess.run(["git", "--no-optional-locks", *words], cwd=ROOT, capture_output=True, text=True)
    commit = git("rev-parse", "HEAD")
    read = lambda path, pattern: re.findall(pattern, Path(path).read_text()) if Path(path).exists() else []
    memory = read("/proc/meminfo", r"MemTotal:\s+(\d+) kB")
    found = {
        "commit": commit.stdout.strip() if commit.returncode == 0 else "unknown",
        "changed_since": bool(git("status", "--porcelain", "--", *_CODE).stdout.strip()),
        "cpu": (read("/proc/cpuinfo", r"model name\s*: (.*)") or [platform.processor()])[0], "cpus": os.cpu_count(),
        "memory_bytes": int(memory[0]) * 1024 if memory else None, "system": platform.platform(),
        "python": platform.python_version(), "device": "cpu",
        **{name: next((found.version for found in importlib.metadata.distributions(name=name)), None) for name in packages},
    }  # fmt: skip
    if "torch" in packages:
        import torch

        found.update(threads=torch.get_num_threads())
        found.update(device=torch.cuda.get_device_name() if device == "cuda" else "cpu")
    return found


def parser(module, description, numbers):
    """An argparse parser of whole-number options.

    Args:
        module: name, as `benchmarks.grpo`.
        description: text, of which the first paragraph is shown.
        numbers (dict): option -> (default or None, least value, meaning).
    """
    found = argparse.ArgumentParser(f"python -m {module}", description=description.split("\n\n")[0])
    for name, (default, least, meaning) in numbers.items():
        found.add_argument(f"--{name}", type=at_least(least), default=default,
                           help=meaning + (f" ({default})" if default is not None else ""))  # fmt: skip
    found.add_argument("--json", type=Path, help="file to be written with all figures")
    return found


def at_least(least):
    """What makes a whole number of that size at least of a word, for argparse."""

    def number(word):
        if int(word) < least:
            raise argparse.ArgumentTypeError(f"found {word}, expected at least {least}")
        return int(word)

    return number


def add_device(parser):
    """The option `--device`."""
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")


def check_device(parser, device):
    """Ends the program if there is no such device."""
    if device == "cuda":
        import torch

        if not torch.cuda.is_available():
            parser.error("argument --device: found cuda, but torch sees no GPU")


def spread(values, scale=1, digits=1):
    """Median, least and greatest: `12.3 (11.9..13.0)`, each times `scale`."""
    middle, low, high = (f"{scale * value:.{digits}f}" for value in (statistics.median(values), min(values), max(values)))
    return f"{middle} ({low}..{high})"


def write_json(path, report):
    """Write what a benchmark found, if `path` is not None."""
    if path:
        Path(path).write_text(json.dumps(report, indent=1) + "\n")
