"""The benchmark of the reinforcement stage at tiny sizes: its comparison notices errors; what it prints and writes."""

import json
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import torch

from benchmarks import grpo as benchmark
from recbole_flr.model.generative import GenerativeRecommender
from recbole_flr.training import grpo

TINY = ["--hidden=32", "--layers=1", "--prompt=20", "--target=4", "--group-size=3", "--batch=2", "--repeats=1", "--items=5",
        "--vocabulary=60"]


def test_versions_agree():
    assert benchmark.check_equal(benchmark.parse(TINY)) < 1e-10


def with_members(change):
    """A break of the members' pass: change(reading, seeds) -> reading, seeds."""
    whole = GenerativeRecommender.member_hidden
    broken = lambda self, reading, seeds, titles: whole(self, *change(reading, seeds), titles)
    return lambda patch: patch.setattr(GenerativeRecommender, "member_hidden", broken)


def with_shared(change):
    """A break of the whole version: change(policy, interaction) before it runs."""
    return lambda patch: patch.setitem(
        benchmark.VERSIONS, "shared", lambda policy, batch: (change(policy, batch), benchmark.shared(policy, batch))[1]
    )


def with_repeated(name, change):
    """A break of one function of the obvious version."""
    whole = getattr(benchmark, name)
    return lambda patch: patch.setattr(benchmark, name, lambda *args: change(whole, *args))


def _worst_children(best_children, logits, *rest):
    return best_children(-logits, *rest)


def _once(reasoner):
    reasoner.num_refinements = 1
    return reasoner


BREAKS = {
    "positions of the members": with_members(lambda reading, seeds: (replace(reading, length=reading.length + 1), seeds)),
    "padding is seen": with_members(lambda reading, seeds: (replace(reading, mask=reading.mask | True), seeds)),
    "no gradient through the members": with_members(lambda reading, seeds: (reading, seeds.detach())),
    "members without noise": with_members(lambda reading, seeds: (reading, seeds[:, :1].expand_as(seeds))),
    "exact match": lambda patch: patch.setattr(grpo, "best_children", partial(_worst_children, grpo.best_children)),
    "other noise": with_shared(lambda policy, batch: torch.manual_seed(25)),
    "no reference": with_shared(lambda policy, batch: setattr(policy, "reference", policy.model.reasoner)),
    "one refinement": with_repeated("think", lambda think, lm, reasoner, *text: think(lm, _once(reasoner), *text)),
    "mask of the prompts": with_repeated("continued", lambda whole, prompt, mask, new: whole(prompt, mask | True, new)),
}


@pytest.mark.parametrize("name", BREAKS)
def test_a_wrong_version_is_not_timed(monkeypatch, name):
    BREAKS[name](monkeypatch)
    monkeypatch.setattr(benchmark, "times", lambda given: pytest.fail("timed"))
    with pytest.raises(AssertionError, match="'shared'"):
        benchmark.main(TINY)


def test_table_and_json(one_process, capsys):
    report = benchmark.main([*TINY, "--repeats=2", "--threads=1", "--json=figures.json"])
    lines = [line for line in capsys.readouterr().out.splitlines() if not line.isdecimal()]  # those of --memory-of
    assert lines[0].startswith("Loss and gradients agree")
    head, rule, *rows = lines[1:]
    assert head.split("  ")[0] == "grpo_ratio" and "time ms (min..max)" in head and "peak memory MB" in head
    assert [row.split()[0] for row in rows] == ["token"] * 3 + ["latent"] * 3
    assert all(version in row for version, row in zip([*benchmark.VERSIONS] * 2, rows))

    assert report == json.loads(Path("figures.json").read_text())
    assert report["settings"]["group_size"] == 3 and report["settings"]["prompt"] == 20
    assert report["threads"] == 1 and report["torch"] == torch.__version__ and report["cpu"] and report["device"] == "cpu"
    assert len(report["commit"]) == 40 or report["commit"] == "unknown"
    assert report["largest_difference"] < benchmark.TOLERANCE
    found = [(one["grpo_ratio"], one["version"]) for one in report["results"]]
    assert found == [(ratio, version) for ratio in benchmark.RATIOS for version in benchmark.VERSIONS]
    for one, words in zip(report["results"], one_process):
        assert words[-3:] == ["--memory-of", one["grpo_ratio"], one["version"]]
        assert len(one["seconds"]) == 2 and min(one["seconds"]) <= one["median"] <= max(one["seconds"])
        assert one["peak_bytes"] >= 0
    assert report["results"][0]["time_ratio"] == report["results"][3]["time_ratio"] == 1
    assert [path.name for path in Path().iterdir()] == ["figures.json"]  # nothing else is left behind


@pytest.mark.parametrize("word", ["--prompt=8", "--group-size=1", "--target=1", "--repeats=0", "--device=cuda"])
def test_sizes_without_meaning_are_refused(word, capsys):
    with pytest.raises(SystemExit):
        benchmark.main([*TINY, word])
    assert f"{word.split('=')[0]}: found" in capsys.readouterr().err
