"""The benchmark of decoding at a tiny size: its comparison notices every error, and its report is complete."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from benchmarks import decoding as benchmark
from recbole_flr.decoding import Beams
from recbole_flr.model.tree import TreeDecoder
from recbole_flr.model.writer import Writer

TINY = ["--titles=60", "--users=3", "--beams=3", "--warmup=2", "--repeats=2", "--threads=1"]


def test_table_and_json(capsys):
    report = benchmark.main([*TINY, "--json=figures.json"])
    said = capsys.readouterr().out
    assert "textbook ranks as generate" in said and "users a second" in said and "trie" in said
    assert report == json.loads(Path("figures.json").read_text())
    assert list(report["results"]) == ["ours", "textbook", "generate", "no thought"]
    for one in report["results"].values():
        assert len(one["seconds"]) == len(one["ratios"]) == 2 and one["users_a_second"] > 0
    assert report["results"]["ours"]["ratios"] == [1, 1]
    assert report["equality"]["largest_difference"] < benchmark.TOLERANCE and report["equality"]["gain"] >= -1e-4
    for part in ("language model", "trie"):
        assert len(report["parts"][part]) == 2 and all(0 < share < 1 for share in report["parts"][part])
    assert report["settings"]["titles"] == 60 and report["threads"] == 1
    assert report["throughput"]["rows"] == 3 and report["throughput"]["tokens_a_second"] is None


def test_another_backbone_and_precision(small_cache, capsys):
    report = benchmark.main([*TINY, "--backbone=tiny", "--dtype=bfloat16"])
    assert list(report["results"]) == ["ours"] and report["throughput"]["flops"] > 0
    assert report["equality"]["largest_difference"] < benchmark.TOLERANCES["bfloat16"]


def worse(whole, model, thought, top=None):
    """Find the second best titles and those after them."""
    beams = whole(model, thought, 2 * (top or model.top_texts))
    return Beams(beams.nodes[:, 1:4], beams.scores[:, 1:4])


def shifted(whole, model, thought, top=None):
    beams = whole(model, thought, top)
    return replace(beams, scores=beams.scores + 0.1)


def other_tokens(whole, tree, tokens, *args, **kwargs):
    return whole(tree, (tokens + 7) % 50, *args, **kwargs)


BREAKS = {
    "titles": (Writer, "decode", worse, "worse than generate's"),
    "scores": (Writer, "decode", shifted, "the score of a title differs"),
    "tokens": (TreeDecoder, "extend", other_tokens, "the ranking of textbook is not that of generate"),
}


@pytest.mark.parametrize("name", BREAKS)
def test_a_wrong_version_is_not_timed(monkeypatch, name):
    owner, method, change, message = BREAKS[name]
    whole = getattr(owner, method)
    monkeypatch.setattr(owner, method, lambda self, *args, **kwargs: change(whole, self, *args, **kwargs))
    monkeypatch.setattr(benchmark, "in_turns", lambda *_: pytest.fail("timed"))
    with pytest.raises(AssertionError, match=message):
        benchmark.main(TINY)


def test_lists_are_the_same_but_for_ties():
    nodes, scores = torch.tensor([[4, 7, 9]]), torch.tensor([[-1.0, -2.0, -2.0]])
    benchmark.check_same(Beams(nodes, scores), nodes[:, [0, 2, 1]], scores)
    for other, other_scores in ((nodes + 1, scores), (nodes, scores - 0.1)):
        with pytest.raises(AssertionError, match="1 scores|3 scores|3 titles"):
            benchmark.check_same(Beams(nodes, scores), other, other_scores)
