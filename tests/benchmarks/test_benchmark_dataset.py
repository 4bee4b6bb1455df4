"""The benchmark of the converter, at small sizes. tests/dataset_scripts/test_convert_by_hand.py checks the obvious converter."""

import gzip
import json
from pathlib import Path

import helpers_stand_in
import pytest

from benchmarks import dataset as benchmark
from benchmarks.obvious_lines import clean_title
from benchmarks.raw_reviews import write_raw

def with_ours(monkeypatch, function):
    """Puts a stand-in, a function of helpers_stand_in, in the place of the converter."""
    monkeypatch.setenv("PYTHONPATH", str(Path(helpers_stand_in.__file__).parent))
    monkeypatch.setitem(benchmark.VERSIONS, "ours", ("helpers_stand_in", function))


def test_small_size(capsys):
    report = benchmark.main(["--small", "--json=figures.json"])
    out = capsys.readouterr().out.splitlines()
    assert "time ratio" in out[0] and "20,000" in out[2] and out[3].startswith("The files are the same")
    assert report == json.loads(Path("figures.json").read_text())
    assert report["seed"] == 2018 and report["settings"]["reviews"] == 20_000 and report["growth"] == []
    assert len(report["commit"]) == 40 or report["commit"] == "unknown"
    (found,) = report["results"]
    figures = found["figures"]
    assert figures["lines"] == 20_000 and figures["malformed"] == len(figures["malformed_lines"]) == 2
    assert figures["kept"] > 100 and figures["items"] >= 33 and figures["k_core_rounds"] and figures["without_title"] > 500
    assert len(figures["windows"]) > 1  # the start had to move back
    for version in benchmark.VERSIONS:
        (run,) = found["runs"][version]
        assert run["seconds"] > 0 and run["peak_bytes"] >= 2**20 and (run["peak_own_bytes"] or 0) <= run["peak_bytes"]
    assert found["summary"]["ours"]["time_ratio"] == found["summary"]["ours"]["memory_ratio"] == 1
    assert [path.name for path in Path().iterdir()] == ["figures.json"]  # nothing else is left behind


def test_growth_and_repeats(monkeypatch, capsys):
    with_ours(monkeypatch, "same")
    words = ["--reviews=2000", "--items=200", "--repeats=2", "--growth", "--sizes=2000,4000", "--compression=gz", "--out=kept"]
    report = benchmark.main(words)
    small, large = report["growth"]
    assert (small["reviews"], large["reviews"]) == (2000, 4000)
    assert small["seconds_each_ratio"] == 1 and large["peak_bytes_each_ratio"] < 1
    assert all(len(runs) == 2 for runs in report["results"][0]["runs"].values())
    assert "memory each, to first" in capsys.readouterr().out
    assert gzip.decompress(Path("kept/raw-4000/reviews.json.gz").read_bytes()).count(b"\n") == 4000


@pytest.mark.parametrize(
    "function, what", [("wrong_title", "made.item of 'ours', line 1"), ("wrong_report", "bad_times of 'ours'")]
)
def test_a_difference_stops_the_benchmark(monkeypatch, function, what):
    with_ours(monkeypatch, function)
    with pytest.raises(AssertionError, match=what):
        benchmark.main(["--reviews=2000", "--items=200"])


@pytest.mark.parametrize("word", ["--reviews=10", "--items=1", "--repeats=0", "--sizes=many"])
def test_sizes_without_meaning_are_refused(word, capsys):
    with pytest.raises(SystemExit):
        benchmark.main([word])
    assert f"{word.split('=')[0]}: found" in capsys.readouterr().err


def test_raw_files_are_like_amazons(tmp_path):
    reviews, meta = write_raw(tmp_path, 20_000, 2000)
    rows, broken = [], 0
    for line in reviews.read_bytes().removesuffix(b"\n").split(b"\n"):
        try:
            rows.append(json.loads(line.decode()))
        except ValueError:
            broken += 1
    assert (len(rows), broken) == (19_998, 2)
    order = ("image overall vote verified reviewTime reviewerID asin style reviewerName reviewText summary "
             "unixReviewTime").split()  # fmt: skip
    assert {tuple(key for key in order if key in row) for row in rows} == {tuple(row) for row in rows}
    assert {key for row in rows for key in row} == set(order)
    assert 450 < reviews.stat().st_size / 20_000 < 600
    assert 5000 < len({row["reviewerID"] for row in rows}) < 9000 and {len(row["reviewerID"]) for row in rows} == {12, 13, 14}
    assert all(row["asin"].startswith("B0") and len(row["asin"]) == 10 for row in rows)
    assert any("😀" in row["reviewText"] for row in rows)
    described = [json.loads(line) for line in meta.read_text().splitlines()]
    names = [row["asin"] for row in described]
    assert 0 < len(names) - len(set(names)) < 100 and 1900 < len(set(names)) < 2000
    assert 0.03 < sum(clean_title(row["title"]) is None for row in described) / len(described) < 0.08

    plain, packed = (write_raw(tmp_path, 2000, 200, compression)[0] for compression in ("none", "gz"))
    assert gzip.decompress(packed.read_bytes()) == plain.read_bytes()  # the same seed gives the same bytes
