"""The benchmark of exact search: it counts right on made-up lists, and its command works on a run made here."""

import json
import math
from pathlib import Path

import pytest
import torch

from benchmarks import exact
from recbole_flr.decoding import Beams


def beams(*rows):
    """Beams from rows of (node, score), padded."""
    width = max(map(len, rows))
    nodes, scores = torch.full((len(rows), width), -1), torch.full((len(rows), width), -math.inf)
    for at, row in enumerate(rows):
        for place, (node, score) in enumerate(row):
            nodes[at, place], scores[at, place] = node, score
    return Beams(nodes, scores)


BEST = [(5, -1.0), (3, -2.0), (9, -3.0)]


@pytest.mark.parametrize("row, missed, best", [
    (BEST, 0, False), (BEST[:2] + [(7, -3.5)], 1, False), (BEST[:2] + [(7, -3.5), (9, -3.0)][::-1], 0, False),
    ([(3, -2.0), (9, -3.0), (7, -4.0)], 1, True), (BEST[:1], 2, False), ([(7, -4.0), (8, -5.0), (1, -6.0)], 3, True),
    (BEST[:2] + [(7, -3.0)], 0, False),  # a tie with the last title is no miss
    ([(3, -2.0), (9, -3.0), (1, -3.1), (5, -1.0)][:3], 1, True),
])  # fmt: skip
def test_what_counts_as_missed(row, missed, best):
    other = [(7, -8.0), (2, -9.0), (4, -10.0), (6, -11.0)]
    counts, firsts = exact.compare(beams(BEST, other[:3]), beams(row, other), 3)
    assert counts.tolist() == [missed, 0] and firsts.tolist() == [best, False]


@pytest.mark.parametrize("row, message", [
    ([(5, -1.1), (3, -2.0)], "differ by"), ([(5, -1.0), (7, -2.9)], "should have kept"),
    ([(5, -1.0), (3, -2.0), (9, -3.0), (7, -2.9)], "should have kept"),
])  # fmt: skip
def test_a_contradiction_is_an_error(row, message):
    with pytest.raises(AssertionError, match=message):
        exact.compare(beams(BEST), beams(row), 3)


def test_a_catalogue_of_fewer_titles():
    assert exact.compare(beams(BEST), beams(BEST[1:]), 10)[0].tolist() == [1]
    with pytest.raises(AssertionError, match="which has all"):
        exact.compare(beams(BEST), beams([(7, -4.0)]), 10)


def test_the_command_on_a_run(trained, capsys):
    run = str(trained("FLR")[0])
    capsys.readouterr()
    words = [run, "--beams", "1,2,50", "--top", "4", "--users", "7", "--batch", "3", "--repeats", "1", "--json", "out.json"]
    report = exact.main(words)
    printed = capsys.readouterr().out
    assert json.loads(Path("out.json").read_text()) == json.loads(json.dumps(report))
    assert report["settings"]["users"] == 7 and report["command"].endswith("--json out.json") and report["commit"]
    results = report["results"]
    assert list(results) == ["exact", "1", "2", "50"]
    for name in ("exact", "50"):  # with more beams than titles nothing is missed
        assert results[name]["users_differ"] == results[name]["titles_missed"] == results[name]["best_missed"] == 0
    assert results["1"]["users_differ"] > 0 and 0 < results["1"]["titles_missed"] <= 4
    assert results["1"]["titles_missed"] >= results["2"]["titles_missed"]
    for one in results.values():
        assert one["tokens_per_user"] > 0 and len(one["seconds_per_user"]) == 1 and one["time_ratio"] > 0
    assert results["exact"]["tokens_per_user"] <= results["50"]["tokens_per_user"]
    assert report["settings"]["score"] == "full"
    trie = exact.main([run, "--beams", "50", "--score", "trie", "--repeats", "1"])
    assert trie["settings"]["score"] == "trie" and trie["settings"]["users"] > 7
    assert trie["results"]["exact"]["tokens_per_user"] < results["exact"]["tokens_per_user"]
    lines = printed.splitlines()
    assert "users whose top 4 differs" in lines[0] and [line.split("  ")[0] for line in lines[2:]] == [
        "exact", "beam 1", "beam 2", "beam 50"
    ]


def test_a_run_of_a_model_without_titles_is_refused(trained, capsys):
    with pytest.raises(SystemExit):
        exact.main(["nowhere"])
    assert "nowhere" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        exact.main(["nowhere", "--beams", "0"])
    assert "--beams: found 0" in capsys.readouterr().err
    folder, _ = trained("GRU4Rec", epochs=1)
    with pytest.raises(SystemExit):
        exact.main([str(folder)])
    assert "which writes no titles" in capsys.readouterr().err
