"""The benchmark of the reinforcement stage at tiny sizes: its comparison notices every error, and its report is complete."""

import json
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import torch

from benchmarks import grpo as benchmark
from recbole_flr.model import title_scores, writer

TINY = ["--hidden=32", "--layers=1", "--prompt=20", "--target=4", "--group-size=3", "--batch=2", "--repeats=1", "--items=5",
        "--vocabulary=60"]


def test_versions_agree():
    assert benchmark.check_equal(benchmark.parse(TINY)) < 1e-10


def with_members(change):
    """Break the pass over the members: change(context, thoughts) -> context, thoughts."""
    whole = writer.Writer.branch_states
    broken = lambda self, context, thoughts, titles: whole(self, *change(context, thoughts), titles)
    return lambda patch: patch.setattr(writer.Writer, "branch_states", broken)


def with_shared(change):
    """Break the whole version: change(stage, interaction) is called before it runs."""
    return lambda patch: patch.setitem(
        benchmark.VERSIONS, "shared", lambda stage, batch: (change(stage, batch), benchmark.shared(stage, batch))[1]
    )


def with_repeated(name, change):
    """Break one function of the obvious version."""
    whole = getattr(benchmark, name)
    return lambda patch: patch.setattr(benchmark, name, lambda *args: change(whole, *args))


def _worst_children(best_children, logits, *rest):
    return best_children(-logits, *rest)


def _once(reasoner):
    reasoner.num_refinements = 1
    return reasoner


BREAKS = {
    "positions of the members": with_members(lambda context, thoughts: (replace(context, length=context.length + 1), thoughts)),
    "padding is seen": with_members(lambda context, thoughts: (replace(context, mask=context.mask | True), thoughts)),
    "no gradient through the members": with_members(lambda context, thoughts: (context, thoughts.detach())),
    "members without noise": with_members(lambda context, thoughts: (context, thoughts[:, :1].expand_as(thoughts))),
    "exact match": lambda patch: patch.setattr(title_scores, "best_children", partial(_worst_children, title_scores.best_children)),
    "other noise": with_shared(lambda stage, batch: torch.manual_seed(25)),
    "no reference": with_shared(lambda stage, batch: setattr(stage, "reference", stage.model.reasoner)),
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
    lines = [line for line in capsys.readouterr().out.splitlines() if not line.isdecimal()]  # --memory-of prints numbers
    assert lines[0].startswith("Loss and gradients agree")
    head, rule, *rows = lines[1:-2]
    assert [line.split()[:3] for line in lines[-2:]] == [["token:", "2", "prompts:"], ["latent:", "2", "prompts:"]]
    assert head.split("  ")[0] == "grpo_ratio" and "time ms (min..max)" in head and "peak memory MB" in head
    assert [row.split()[0] for row in rows] == ["token"] * 3 + ["latent"] * 3
    assert all(version in row for version, row in zip([*benchmark.VERSIONS] * 2, rows))

    assert report == json.loads(Path("figures.json").read_text())
    assert report["settings"]["group_size"] == 3 and report["settings"]["prompt"] == 20
    assert report["threads"] == 1 and report["torch"] == torch.__version__ and report["cpu"] and report["gpu"] is None
    assert len(report["commit"]) == 40 or report["commit"] == "unknown"
    assert report["largest_difference"] < benchmark.TOLERANCE
    found = [(one["grpo_ratio"], one["version"]) for one in report["results"]]
    assert found == [(ratio, version) for ratio in benchmark.RATIOS for version in benchmark.VERSIONS]
    for one, words in zip(report["results"], one_process):
        assert words[-3:] == ["--memory-of", one["grpo_ratio"], one["version"]]
        assert len(one["seconds"]) == 2 and min(one["seconds"]) <= one["median"] <= max(one["seconds"])
        assert one["peak_bytes"] >= 0
    assert report["results"][0]["time_ratio"] == report["results"][3]["time_ratio"] == 1
    assert [path.name for path in Path().iterdir()] == ["figures.json"]  # no other file is left behind


@pytest.mark.parametrize("word", ["--prompt=8", "--group-size=1", "--target=1", "--repeats=0", "--device=cuda"])
def test_sizes_without_meaning_are_refused(word, capsys):
    with pytest.raises(SystemExit):
        benchmark.main([*TINY, word])
    assert f"{word.split('=')[0]}: found" in capsys.readouterr().err
