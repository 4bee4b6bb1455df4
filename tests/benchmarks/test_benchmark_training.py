"""The benchmark of the supervised stage at tiny sizes: its comparison notices errors; what it prints and writes."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from benchmarks import training as benchmark
from recbole_flr.model.generative import GenerativeRecommender
from recbole_flr.model.reasoner import Context, Reasoner

TINY = ["--hidden=32", "--layers=1", "--prompt=20", "--target=4", "--batch=2", "--repeats=1", "--items=5", "--vocabulary=60"]


def test_versions_agree():
    assert benchmark.check_equal(benchmark.parse(TINY)) < 1e-10


def changed(owner, name, change):
    """A break of one method: change(whole, *args) in its place."""
    whole = getattr(owner, name)
    return lambda patch: patch.setattr(owner, name, lambda *args: change(whole, *args))


def once(whole, reasoner, *args):
    reasoner.num_refinements, wanted = 1, reasoner.num_refinements
    reading = whole(reasoner, *args)
    reasoner.num_refinements = wanted
    return reading


BREAKS = {
    "positions of the title": changed(
        GenerativeRecommender, "title_hidden",
        lambda whole, model, reading, titles: whole(model, replace(reading, length=reading.length + 1), titles),
    ),
    "padding is seen": changed(
        GenerativeRecommender, "title_hidden",
        lambda whole, model, reading, titles: whole(model, replace(reading, mask=reading.mask | True), titles),
    ),
    "no gradient through the thought": changed(
        Context, "reading", lambda whole, context, thought, state: whole(context, thought.detach(), state)
    ),
    "one refinement": changed(Reasoner, "forward", once),
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
    lines = [line for line in capsys.readouterr().out.splitlines() if not line.isdecimal()]  # those of --memory-of
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
