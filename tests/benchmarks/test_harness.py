"""The helpers that the benchmarks share: turns, memory, descriptions of the machine, options, made-up titles."""

import json
import mmap
import platform
import time

import numpy as np
import pytest
import torch

from benchmarks import harness
from benchmarks.made_up import shop_titles
from recbole_flr import result


def test_versions_take_turns():
    calls = []
    versions = {"a": lambda: calls.append("a"), "b": lambda: (calls.append("b"), time.sleep(0.01))}
    seconds = harness.in_turns(versions, 3)
    assert "".join(calls) == "ab" * 4  # the first of each does not count
    assert [len(each) for each in seconds.values()] == [3, 3] and min(seconds["b"]) >= 0.01


def test_memory_of_a_fresh_process_is_its_own():
    """This process holds 128 MiB when the other one starts. The other one reports the growth of its own tiny step."""
    ballast = torch.ones(2**25)
    words = ["--hidden=32", "--layers=1", "--prompt=20", "--target=4", "--batch=2", "--items=5", "--vocabulary=60"]
    assert 0 <= harness.in_fresh_process("benchmarks.training", [*words, "--memory-of", "ours"]) < ballast.nbytes / 4


def use_and_free(size):
    """Fill some bytes that come from the system, not from memory that the process has already, and give them back."""
    with mmap.mmap(-1, size) as block:
        for _ in range(size // 2**20):
            block.write(bytes(2**20))


def test_peak_counts_memory_that_is_free_again_but_not_what_was_used_before():
    use_and_free(2**27)
    before = harness.start_peak()
    use_and_free(2**26)
    assert 2**26 <= harness.peak() - before + 2**20 < 2**26 + 2**24


def test_surroundings():
    found = harness.surroundings()
    assert len(found["commit"]) == 40 or found["commit"] == "unknown"
    assert found["changed_since"] in (True, False)
    assert found["torch"] == torch.__version__ and found["cpu"] and found["gpu"] is None and found["cpus"] >= 1
    assert found["threads"] == 1 and found["memory_bytes"] > 2**28 and found["python"] == platform.python_version()
    without_torch = harness.surroundings(("numpy", "no-such-package"))
    assert without_torch["no-such-package"] is None and without_torch["numpy"] == np.__version__
    assert not {"threads", "gpu", "torch", "transformers"} & set(without_torch)


@pytest.mark.parametrize("found, commit, changed", [("a" * 40, "a" * 40, False), ("a" * 40 + "+", "a" * 40, True),
                                                    (None, "unknown", False)])
def test_the_commit_and_whether_files_were_changed(monkeypatch, found, commit, changed):
    monkeypatch.setattr(result, "commit_of", lambda folder: found)
    described = harness.surroundings()
    assert (described["commit"], described["changed_since"]) == (commit, changed)


def test_spread_and_json(tmp_path):
    assert harness.spread([0.003, 0.001, 0.002], 1e3) == "2.0 (1.0..3.0)"
    harness.write_json(None, {})
    harness.write_json(tmp_path / "x.json", {"a": [1]})
    assert json.loads((tmp_path / "x.json").read_text()) == {"a": [1]}


def test_options(capsys):
    command = harness.parser("benchmarks.x", "What it does.\n\nMore.", {"big-size": (3, 2, "how big")})
    assert vars(command.parse_args([])) == {"big_size": 3, "json": None} and "how big (default: 3)" in command.format_help()
    for word in ("1", "x"):
        with pytest.raises(SystemExit):
            command.parse_args(["--big-size", word])
    assert "--big-size: found 1, expected at least 2" in capsys.readouterr().err


def test_shop_titles():
    """Titles are distinct and the same for the same seed. Many begin with the same brand."""
    titles = shop_titles(3000, seed=1)
    assert titles == shop_titles(3000, seed=1) != shop_titles(3000, seed=2)
    assert len(set(titles)) == 3000 and all(2 <= len(title.split()) <= 16 for title in titles)
    brands = [title.split()[0] for title in titles]
    assert brands.count(max(set(brands), key=brands.count)) > 100 and len(set(brands)) > 300
