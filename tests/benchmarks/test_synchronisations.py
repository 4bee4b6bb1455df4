"""The count of the places that wait for a GPU, on a CPU: known operators, and those of a step and a search."""

import json
from pathlib import Path

import pytest
import torch

from benchmarks import synchronisations as benchmark

NUMBERS, MASK = torch.arange(6.0), torch.arange(6) % 2 == 0


@pytest.mark.parametrize("function, waits", [
    (lambda: NUMBERS.sum().item(), 1), (lambda: bool(MASK.any()), 1), (lambda: NUMBERS[MASK], 1), (lambda: MASK.nonzero(), 1),
    (lambda: NUMBERS.clone().index_put_((MASK,), NUMBERS[:3]), 1), (lambda: NUMBERS[MASK.nonzero()[:, 0]], 1),
    (lambda: torch.arange(3).repeat_interleave(torch.tensor([1, 2, 0])), 1), (lambda: NUMBERS.unique(), 1),
    (lambda: NUMBERS.masked_fill(MASK, 0.0), 0), (lambda: torch.where(MASK, NUMBERS, 0.0), 0),
    (lambda: NUMBERS[torch.tensor([0, 2])], 0),
    (lambda: NUMBERS.clone().__setitem__(MASK, 0.5), 0), (lambda: NUMBERS.sort(), 0),
    (lambda: torch.arange(3).repeat_interleave(torch.tensor([1, 2, 0]), output_size=3), 0),
])
def test_operators(function, waits):
    with benchmark.counted("cpu") as places:
        function()
    assert sum(places.values()) == waits
    assert all(place.startswith("tests/benchmarks/test_synchronisations.py:") for place in places)


def test_a_step_and_a_search(small_cache, capsys):
    """Nothing waits for each factor, member or user. A refinement waits once, where transformers looks at the mask."""
    words = ["--titles=60", "--users=2", "--beams=4", "--backbone=tiny"]
    report = benchmark.main([*words, "--profile=tables", "--json=figures.json"])
    assert report == json.loads(Path("figures.json").read_text())
    found = report["results"]
    assert found["supervised step"]["larger"]["waits"] == found["supervised step"]["waits"] + 1
    assert found["supervised step"]["larger"]["passes"] == found["supervised step"]["passes"] + 1
    for name in ("grpo step", "read prompts", "think", "scores of items"):
        assert found[name]["larger"]["waits"] == found[name]["waits"], name
    search = found["search"]
    assert search["waits"] < 9 * search["passes"] + 5
    assert any("backbone.py" in place for place, _ in found["think"]["places"])
    assert found["think"]["waits"] == found["think"]["passes"]
    assert len(list(Path("tables").glob("*.txt"))) == len(found) and "aten::" in Path("tables/search.txt").read_text()
    assert "one more refinement" in capsys.readouterr().out
