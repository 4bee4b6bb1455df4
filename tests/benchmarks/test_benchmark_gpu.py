"""The command that measures all of a GPU, on a CPU with tiny sizes: it goes on after a failure and can be given again."""

import importlib
import json
import subprocess
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from types import SimpleNamespace

import pytest

from benchmarks import gpu as benchmark

WORDS = ["--out=figures", "--device=cpu", "--tiny", "--only", "training-lora", "decoding-4", "synchronisations"]
NAMES = ["training-lora-bfloat16-tiny", "decoding-4-tiny", "synchronisations-tiny"]


@pytest.fixture
def here(monkeypatch, small_cache):
    """Runs the parts in this process. Returns the list of their command lines, and a dict, module -> error that it has."""
    started, errors = [], {}

    def run(command, stdout, **_):
        name, words = command[2].removeprefix("benchmarks."), command[3:]
        started.append([name, *words])
        if name in errors:
            stdout.write(errors[name] + "\n")
            return subprocess.CompletedProcess(command, 1)
        module = importlib.import_module(command[2])
        if name == "training":  # it would start a process to measure the memory
            monkeypatch.setattr(module, "in_fresh_process", lambda *_: 1)
        with redirect_stdout(stdout), redirect_stderr(stdout):
            module.main(words)
        return subprocess.CompletedProcess(command, 0)

    monkeypatch.setattr(benchmark, "subprocess", SimpleNamespace(run=run, STDOUT=subprocess.STDOUT))
    monkeypatch.setattr(benchmark, "surroundings", lambda **_: {
        "commit": "a" * 40, "changed_since": False, "gpu": None, "cpu": "x", "cpus": 2, "python": "3", "torch": "2",
        "transformers": "5",
    })
    return started, errors


def test_a_failure_and_another_call(here, capsys):
    started, errors = here
    errors["decoding"] = "Traceback\ntorch.OutOfMemoryError: CUDA out of memory"
    assert benchmark.main(WORDS) == 1
    assert [each[0] for each in started] == ["training", "decoding", "decoding", "synchronisations"]
    assert "--users=2" in started[1] and started[2][-2].startswith("--users=1")  # half of the rows, then no smaller number
    page = Path("figures/gpu.md").read_text()
    assert "figures mean nothing" in page and "failed: torch.OutOfMemoryError" in page and "twice as many users" in page
    parts = json.loads(Path("figures/gpu.json").read_text())["parts"]
    assert list(parts) == NAMES and [one["error"] is None for one in parts.values()] == [True, False, True]
    assert parts[NAMES[0]]["report"]["throughput"]["largest_batch"] >= 1

    errors.clear()
    started.clear()
    assert benchmark.main(WORDS) == 0
    assert [each[0] for each in started] == ["decoding"]  # the others are finished
    page = Path("figures/gpu.md").read_text()
    assert "failed" not in page and all(page.count(f"| {name}") >= 1 for name in NAMES)
    assert not list(Path("figures").glob("*.tmp")) and not list(Path("figures").glob("*.report.json"))


def test_parts_of_a_gpu():
    """Both backbones have all parts; each command line is one that its benchmark takes."""
    given = type("Given", (), {"device": "cpu", "tiny": False, "peak_tflops": 500.0})
    parts = benchmark.parts(given)
    assert len(parts) == 2 * 9 and {module for module, _ in parts.values()} == set(benchmark.ROWS)
    for module, words in parts.values():
        parse = importlib.import_module(f"benchmarks.{module}").parse
        parse([*words, "--memory-limit=8"] if any("largest" in word for word in words) else words)


@pytest.mark.parametrize("words, said", [
    (["--device=cuda"], "torch sees no GPU"), ([], "torch sees no GPU"), (["--device=cpu"], "expected --tiny"),
    (["--device=cpu", "--tiny", "--only", "nothing"], "--only: found nothing"),
])
def test_what_is_refused(words, said, capsys):
    with pytest.raises(SystemExit):
        benchmark.main(["--out=figures", *words])
    assert said in capsys.readouterr().err and not Path("figures").exists()
