"""What the benchmarks share: calls in turns, peaks of memory, the machine and its software, options, spreads.

A benchmark compares versions of one computation in one run.

- Times: each version is called once without being timed. Then the versions take turns in one process (:func:`in_turns`).
- Memory: how far a call raises the resident memory of a process of its own (:func:`start_peak`, :func:`peak`,
  :func:`in_fresh_process`). On CUDA it is the memory that torch has allocated.

The functions that need torch import it when they are called: some benchmarks run without torch.
"""

import argparse
import json
import signal
import statistics
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path
from time import perf_counter

import psutil

ROOT = Path(__file__).resolve().parents[1]


def in_turns(versions, repeats, device="cpu"):
    """Time several functions, which take turns.

    Args:
        versions (dict): name -> function without arguments.
        repeats: timed calls of each function.
        device: `cpu` or `cuda`. On `cuda`, a call ends when the device has finished its work.

    Returns:
        dict: name -> list of `repeats` seconds.
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
    """Wait until the device has finished its work."""
    if device == "cuda":
        import torch

        torch.cuda.synchronize()


def start_peak(device="cpu"):
    """Forget the peak so far. Returns the bytes in use now."""
    import torch

    from recbole_flr.result import PeakMemory

    PeakMemory(device).start()
    return torch.cuda.memory_allocated() if device == "cuda" else psutil.Process().memory_info().rss


def peak(device="cpu"):
    """The most bytes in use at a time since :func:`start_peak`."""
    from recbole_flr.result import PeakMemory

    return PeakMemory(device).read()


def in_fresh_process(module, arguments):
    """Run `python -m module` with these arguments. Returns the last word that it prints, which must be a whole number."""
    command = [sys.executable, "-m", module, *arguments]
    return int(subprocess.run(command, cwd=ROOT, check=True, stdout=subprocess.PIPE, text=True).stdout.split()[-1])


def surroundings(packages=("torch", "transformers"), device="cpu"):
    """What the results depend on besides the options.

    Args:
        packages: names of packages whose versions are wanted.
        device: `cpu` or `cuda`.

    Returns:
        dict with `commit` (40 hex digits or `unknown`), `changed_since` (whether tracked files were changed since the commit),
        the fields of :func:`recbole_flr.result.hardware`, `python`, and the version of each package. `threads` and `gpu`
        describe torch, so they are left out where torch is not among the packages. On CUDA there are also `gpu_memory_bytes` and
        `cuda`, the version that torch was built with.
    """
    from recbole_flr.result import commit_of, hardware, versions

    commit = commit_of(ROOT / "recbole_flr") or "unknown"
    machine = hardware(device)
    if "torch" not in packages:
        del machine["threads"], machine["gpu"]
    elif device == "cuda":
        import torch

        machine.update(gpu_memory_bytes=torch.cuda.get_device_properties(0).total_memory, cuda=torch.version.cuda)
    return {"commit": commit.rstrip("+"), "changed_since": commit.endswith("+"), **machine, **versions(packages)}


@contextmanager
def time_limit(seconds):
    """Inside the block, a TimeoutError after so many whole seconds. For the main thread, where the system has alarms."""
    def stop(*_):
        raise TimeoutError(f"it took more than {seconds} s")

    before = signal.signal(signal.SIGALRM, stop)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def parser(module, description, numbers):
    """An argparse parser of whole-number options, with `--json`.

    Args:
        module: name, such as `benchmarks.grpo`.
        description: text, of which the first paragraph is shown.
        numbers (dict): option -> (default or None, least value, meaning).
    """
    found = argparse.ArgumentParser(f"python -m {module}", description=description.split("\n\n")[0])
    for name, (default, least, meaning) in numbers.items():
        shown = "" if default is None else f" (default: {default})"
        found.add_argument(f"--{name}", type=at_least(least), default=default, help=meaning + shown)
    found.add_argument("--json", type=Path, help="file to write all results to")
    return found


def at_least(least):
    """A type for argparse: whole numbers that are not less than `least`."""

    def number(word):
        if int(word) < least:
            raise argparse.ArgumentTypeError(f"found {word}, expected at least {least}")
        return int(word)

    return number


def add_device(parser, default="cpu"):
    """Add the option `--device`."""
    parser.add_argument("--device", choices=("cpu", "cuda"), default=default, help=f"where the models run (default: {default})")


def check_device(parser, device):
    """End the program with an error if `device` is cuda and there is no GPU."""
    if device == "cuda":
        import torch

        if not torch.cuda.is_available():
            parser.error("argument --device: found cuda, but torch sees no GPU; expected --device=cpu here")


def spread(values, scale=1, digits=1):
    """Median, least and greatest value, each times `scale`, as text: `12.3 (11.9..13.0)`."""
    middle, low, high = (f"{scale * value:.{digits}f}" for value in (statistics.median(values), min(values), max(values)))
    return f"{middle} ({low}..{high})"


def write_json(path, report):
    """Write the results of a benchmark to a file. Without a path, nothing is written."""
    if path:
        Path(path).write_text(json.dumps(report, indent=1) + "\n")
