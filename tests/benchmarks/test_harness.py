"""What the benchmarks share."""

import json
import time

import pytest
import torch

from benchmarks import harness
from benchmarks.made_up import shop_titles


def test_versions_take_turns():
    calls = []
    versions = {"a": lambda: calls.append("a"), "b": lambda: (calls.append("b"), time.sleep(0.01))}
    seconds = harness.in_turns(versions, 3)
    assert "".join(calls) == "ab" * 4  # the first of each does not count
    assert [len(each) for each in seconds.values()] == [3, 3] and min(seconds["b"]) >= 0.01


def test_memory_of_a_fresh_process_is_its_own():
    """128 MiB here before it starts, and its growth is that of a tiny step."""
    ballast = torch.ones(2**25)
    words = ["--hidden=32", "--layers=1", "--prompt=20", "--target=4", "--batch=2", "--items=5", "--vocabulary=60"]
    assert 0 <= harness.in_fresh_process("benchmarks.training", [*words, "--memory-of", "ours"]) < ballast.nbytes / 4


def test_peak_is_what_was_in_use_in_between():
    torch.ones(2**25)
    before = harness.start_peak()
    torch.ones(2**24)
    assert 2**26 <= harness.peak() - before + 2**20 < 2**26 + 2**24


def test_surroundings():
    found = harness.surroundings()
    assert len(found["commit"]) == 40 or found["commit"] == "unknown"
    assert found["torch"] == torch.__version__ and found["cpu"] and found["device"] == "cpu" and found["cpus"] >= 1
    assert "threads" not in harness.surroundings(("numpy", "no-such-package"))
    assert harness.surroundings(("no-such-package",))["no-such-package"] is None


def test_spread_and_json(tmp_path):
    assert harness.spread([0.003, 0.001, 0.002], 1e3) == "2.0 (1.0..3.0)"
    harness.write_json(None, {})
    harness.write_json(tmp_path / "x.json", {"a": [1]})
    assert json.loads((tmp_path / "x.json").read_text()) == {"a": [1]}


def test_options(capsys):
    command = harness.parser("benchmarks.x", "What it does.\n\nMore.", {"big-size": (3, 2, "how big")})
    assert vars(command.parse_args([])) == {"big_size": 3, "json": None} and "how big (3)" in command.format_help()
    for word in ("1", "x"):
        with pytest.raises(SystemExit):
            command.parse_args(["--big-size", word])
    assert "--big-size: found 1, expected at least 2" in capsys.readouterr().err


def test_shop_titles():
    """Distinct, the same for a seed, and many share a beginning as brands and lines do."""
    titles = shop_titles(3000, seed=1)
    assert titles == shop_titles(3000, seed=1) != shop_titles(3000, seed=2)
    assert len(set(titles)) == 3000 and all(2 <= len(title.split()) <= 16 for title in titles)
    brands = [title.split()[0] for title in titles]
    assert brands.count(max(set(brands), key=brands.count)) > 100 and len(set(brands)) > 300
