"""The benchmark of the supervised stage at tiny sizes: its comparison notices every error, and its report is complete."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from benchmarks import training as benchmark
from benchmarks.throughput import flops_of
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
    assert [line.split("  ")[0] for line in lines[3:-1]] == list(benchmark.VERSIONS)
    assert lines[-1].startswith("2 rows: ") and "tokens a second" in lines[-1]

    assert report == json.loads(Path("figures.json").read_text())
    assert report["threads"] == 1 and report["torch"] == torch.__version__ and report["settings"]["prompt"] == 20
    assert report["command"].startswith("python -m benchmarks.training --hidden=32")
    for one in report["results"].values():
        assert len(one["seconds"]) == 2 and min(one["seconds"]) <= one["median"] <= max(one["seconds"])
        assert one["peak_bytes"] >= 0
    speed = report["throughput"]
    assert speed["rows"] == 2 and speed["tokens_a_second"] == pytest.approx(speed["rows_a_second"] * (20 + 1 + 4))
    assert speed["largest_batch"] is speed["at_largest"] is speed["share_of_peak"] is None
    ours, other = report["results"]["ours"], report["results"]["obvious"]
    assert ours["time_ratios"] == [1, 1]
    assert other["time_ratios"] == [slow / fast for slow, fast in zip(other["seconds"], ours["seconds"])]


def test_another_backbone_and_precision(one_process, small_cache, capsys):
    words = ["--backbone=tiny", "--dtype=bfloat16", "--trainable=lora", "--largest-batch=5", "--memory-limit=64", "--peak-tflops=1"]
    report = benchmark.main([*TINY, *words])
    assert list(report["results"]) == ["ours"] and [words[-1] for words in one_process] == ["ours"]
    speed, most = report["throughput"], report["throughput"]["at_largest"]
    assert (speed["rows"], speed["largest_batch"], most["rows"]) == (2, 5, 5)
    assert most["flops"] == pytest.approx(2.5 * speed["flops"], rel=0.05)
    assert speed["share_of_peak"] == speed["tflops_a_second"] > 0
    assert "The largest batch that fits: 5 rows." in capsys.readouterr().out


def test_flops_of_a_step(small_cache):
    """Full training needs 6 FLOPs for a weight and a token: 2 forward, 4 backward. LoRA spares the gradients of the weights."""
    sizes = ["--prompt=200", "--target=12", "--batch=2", "--items=5", "--vocabulary=500", "--backbone=tiny"]
    found = {}
    for trainable in ("full", "lora"):
        given = benchmark.parse([*sizes, f"--trainable={trainable}"])
        model, step, batch_of = benchmark.step_maker(given, "ours")
        found[trainable] = flops_of(lambda: step(batch_of(2)))
        named = [(name, p.numel()) for name, p in model.backbone.lm.named_parameters() if "proj" in name and "bias" not in name]
        weights, lora = (sum(size for name, size in named if ("lora" in name) == wanted) for wanted in (False, True))
    head = model.backbone.lm.get_output_embeddings().weight.numel()
    tokens = 2 * (200 + 1 + 12)
    products = tokens * weights + 2 * 12 * head  # a logit for the tokens of the title only
    attention = 2 * 2 * 2 * 200 * 200 * 32  # layers, rows, two products
    assert 6 * products + 5 * attention < found["full"] < 1.3 * (6 * products + 7 * attention)
    products = 4 * products + 6 * tokens * lora
    assert products + 5 * attention < found["lora"] < 1.3 * (products + 7 * attention)


@pytest.mark.parametrize("words", [["--largest-batch=4"], ["--trainable=lora"]])
def test_options_that_do_not_fit_each_other_are_refused(words, capsys):
    with pytest.raises(SystemExit):
        benchmark.main([*TINY, *words])
    assert f"{words[0].split('=')[0]}: found" in capsys.readouterr().err


@pytest.mark.parametrize("word", ["--prompt=8", "--target=1", "--repeats=0", "--device=cuda"])
def test_sizes_without_meaning_are_refused(word, capsys):
    with pytest.raises(SystemExit):
        benchmark.main([*TINY, word])
    assert f"{word.split('=')[0]}: found" in capsys.readouterr().err
