"""The benchmark of the catalogue's size, at tiny sizes: it refuses wrong results before it times them. Its report is complete."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from benchmarks import scale as benchmark
from benchmarks.checks import TOLERANCE
from recbole_flr.decoding import Beams, Trie
from recbole_flr.model.flr import FLR
from recbole_flr.model.tree import TreeDecoder

TINY = ["--sizes=20,40", "--users=3", "--beams=4", "--repeats=1", "--warmup=1"]


def _other_score(decode):
    def decoded(self, reading):
        beams = decode(self, reading)
        return Beams(beams.nodes, beams.scores * 1.001)

    return decoded


def _one_title(decode):
    def decoded(self, reading):
        beams = decode(self, reading)
        return Beams(beams.nodes[:, :1], beams.scores[:, :1])

    return decoded


def _first_twice(decode):
    def decoded(self, reading):
        beams = decode(self, reading)
        return Beams(beams.nodes[:, :1].expand(-1, 9), beams.scores[:, :1].expand(-1, 9))

    return decoded


def _flat(extend):
    return lambda self, tokens, parents, *others: extend(self, tokens, torch.full_like(parents, -1), *others)


BREAKS = {
    "scores": (FLR, "decode", _other_score, "score"), "a title only": (FLR, "decode", _one_title, "fewer than 4"),
    "a title again and again": (FLR, "decode", _first_twice, "fewer than 4"),
    "tokens without their predecessors": (TreeDecoder, "extend", _flat, "score"),
}  # fmt: skip


@pytest.mark.parametrize("name", BREAKS)
def test_wrong_decoding_is_not_timed(monkeypatch, one_process, name):
    where, method, change, message = BREAKS[name]
    monkeypatch.setattr(where, method, change(getattr(where, method)))
    monkeypatch.setattr(benchmark, "time_decoding", lambda *given: pytest.fail("timed"))
    with pytest.raises(AssertionError, match=message):
        benchmark.main(TINY)


def test_a_wrong_trie_is_not_used(monkeypatch, one_process):
    build = Trie.build.__func__

    def without_short_tails(cls, *given):
        trie = build(cls, *given)
        return replace(trie, tail_length=trie.tail_length.masked_fill(trie.tail_length == 1, -1))

    monkeypatch.setattr(Trie, "build", classmethod(without_short_tails))
    with pytest.raises(AssertionError, match="tail"):
        benchmark.main(TINY)


def test_tables_and_json(one_process, capsys):
    report = benchmark.main([*TINY, "--repeats=2", "--threads=1", "--json=figures.json"])
    lines = [line for line in capsys.readouterr().out.splitlines() if line and not line.isdecimal()]  # those of --part
    assert lines[0].startswith("The tries hold their titles")
    assert sum("Trie.build" in line for line in lines) == 1 and sum("once a catalogue" in line for line in lines) == 1
    assert [line.split(",")[0] for line in lines if line.startswith("Model")] == ["Model: warmed up", "Model: random"]
    assert [line.split()[0] for line in lines if line.split()[0] in ("20", "40")] == ["20", "40"] * 4

    assert report == json.loads(Path("figures.json").read_text())
    assert report["command"].startswith("python -m benchmarks.scale --sizes=20,40")
    assert report["settings"]["beams"] == 4 and report["settings"]["sizes"] == [20, 40] and report["compared_with"] == 20
    assert report["threads"] == 1 and report["torch"] == torch.__version__ and report["cpu"]
    assert report["cross_entropy_of_a_token"]["warmed up"] < report["cross_entropy_of_a_token"]["random"]
    assert [words[-3] for words in one_process[-2:]] == ["memory"] * 2
    for one, size in zip(report["results"], (20, 40), strict=True):
        assert one["titles"] == one["leaves"] == size
        assert one["nodes"] <= one["tokens"] + 1 and one["branching_nodes"] < one["nodes"] - size
        assert one["trie_bytes"] >= 4 * (5 * one["nodes"] + size) and one["input_bytes"] > 8 * one["tokens"]
        assert len(one["build_seconds"]) == 2 and one["build_peak_bytes"] >= 0
        assert list(one["preparation"]) == ["catalogue", "tokenize", "chunks", "order", "take", "trie"]
        for name in benchmark.MODELS:
            figures = one["decoding"][name]
            assert figures["largest_difference"] < TOLERANCE and figures["passes"] >= 1
            assert len(figures["seconds_a_user"]) == len(figures["item_scores_seconds_a_user"]) == 2
            assert figures["titles_a_user"] >= 4
    assert all(one["ratio"] == 1 for one in report["results"][0]["decoding"].values())
    assert [path.name for path in Path().iterdir()] == ["figures.json"]  # nothing else is left behind


@pytest.mark.parametrize("word", ["--sizes=10", "--users=0", "--beams=0", "--repeats=0", "--warmup=0"])
def test_sizes_without_meaning_are_refused(word, capsys):
    with pytest.raises(SystemExit):
        benchmark.main([*TINY, word])
    assert f"{word.split('=')[0]}: found" in capsys.readouterr().err
