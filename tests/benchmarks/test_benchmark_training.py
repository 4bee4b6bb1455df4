"""The benchmark of the supervised stage at tiny sizes: its comparison notices every error, and its report is complete."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from benchmarks import training as benchmark
from recbole_flr.model.flr import FLR
from recbole_flr.model.reasoner import Reasoner
from recbole_flr.model.writer import Writer

TINY = ["--hidden=32", "--layers=1", "--prompt=20", "--target=4", "--batch=2", "--repeats=1", "--items=5", "--vocabulary=60"]


def test_versions_agree():
    assert benchmark.check_equal(benchmark.parse(TINY)) < 1e-10


def changed(owner, name, change):
    """Break a method: change(whole method, *args) takes its place."""
    whole = getattr(owner, name)
    return lambda patch: patch.setattr(owner, name, lambda *args: change(whole, *args))


def with_title(change):
    """Break the pass over the title: change(thought) -> thought."""
    return changed(Writer, "title_states", lambda whole, model, thought, titles: whole(model, change(thought), titles))


def once(whole, reasoner, *args):
    """Think with one refinement."""
    reasoner.num_refinements, wanted = 1, reasoner.num_refinements
    thought = whole(reasoner, *args)
    reasoner.num_refinements = wanted
    return thought


def with_context(thought, **changes):
    return replace(thought, context=replace(thought.context, **changes))


BREAKS = {
    "positions of the title": with_title(lambda thought: with_context(thought, length=thought.context.length + 1)),
    "padding is seen": with_title(lambda thought: with_context(thought, mask=thought.context.mask | True)),
    "no gradient through the thought": with_title(lambda thought: replace(thought, embedding=thought.embedding.detach())),
    "one refinement": changed(Reasoner, "think", once),
    "no regularisers": changed(FLR, "own_losses", lambda whole, *args: {}),
}


@pytest.mark.parametrize("name", BREAKS)
def test_a_wrong_version_is_not_timed(monkeypatch, name):
    BREAKS[name](monkeypatch)
    monkeypatch.setattr(benchmark, "in_turns", lambda *_: pytest.fail("timed"))
    with pytest.raises(AssertionError, match="differs from that of"):
        benchmark.main(TINY)


def test_table_and_json(one_process, capsys):
    report = benchmark.main([*TINY, "--repeats=2", "--threads=1", "--json=figures.json"])
    started = [(words[0], *words[-2:]) for words in one_process]
    assert started == [("benchmarks.training", "--memory-of", version) for version in benchmark.VERSIONS]
    lines = [line for line in capsys.readouterr().out.splitlines() if not line.isdecimal()]  # --memory-of prints numbers
    assert lines[0].startswith("Loss and gradients agree")
    assert [line.split("  ")[0] for line in lines[3:]] == list(benchmark.VERSIONS)

    assert report == json.loads(Path("figures.json").read_text())
    assert report["threads"] == 1 and report["torch"] == torch.__version__ and report["settings"]["prompt"] == 20
    assert report["command"].startswith("python -m benchmarks.training --hidden=32")
    for one in report["results"].values():
        assert len(one["seconds"]) == 2 and min(one["seconds"]) <= one["median"] <= max(one["seconds"])
        assert one["peak_bytes"] >= 0
    ours, other = report["results"]["ours"], report["results"]["obvious"]
    assert ours["time_ratios"] == [1, 1]
    assert other["time_ratios"] == [slow / fast for slow, fast in zip(other["seconds"], ours["seconds"])]


@pytest.mark.parametrize("word", ["--prompt=8", "--target=1", "--repeats=0", "--device=cuda"])
def test_sizes_without_meaning_are_refused(word, capsys):
    with pytest.raises(SystemExit):
        benchmark.main([*TINY, word])
    assert f"{word.split('=')[0]}: found" in capsys.readouterr().err
