"""The benchmark of growth: sizes, shares and a report of a small conversion."""

import csv
import json

import pytest

from benchmarks import conversion
from benchmarks.raw_reviews import write_ratings


def test_a_small_size(tmp_path, capsys):
    out = tmp_path / "report.json"
    report = conversion.main(["--sizes", "20000,40000", "--folder", str(tmp_path), "--json", str(out)])
    first, second = report["results"]
    assert [one["lines"] for one in (first, second)] == [20_000, 40_000] and 0 < first["kept"] < second["kept"] < 40_000
    assert first["raw_bytes"] * 1.9 < second["raw_bytes"] < first["raw_bytes"] * 2.1
    assert all(one["peak_own_bytes"] > 0 and one["peak_disk_bytes"] >= one["disk_output"] * 0.5 for one in (first, second))
    assert "20,000" in capsys.readouterr().out and json.loads(out.read_text())["settings"]["engine"] == "duckdb"
    assert [path.name for path in tmp_path.iterdir()] == ["report.json"]


@pytest.mark.parametrize("window", ["window", "everything"])
def test_ibis_writes_the_same_files(tmp_path, window):
    pytest.importorskip("ibis")
    pytest.importorskip("pyarrow")
    found = [conversion.measure_size(tmp_path, 20_000, window, "200MB", engine) for engine in ("duckdb", "ibis")]
    assert found[0]["outputs"] == found[1]["outputs"] and found[0]["kept"] == found[1]["kept"]


def test_made_up_ratings(tmp_path):
    reviews, meta = write_ratings(tmp_path, 3000, 50, chunk=1000)
    with open(reviews, newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 3000 and {row["rating"] for row in rows} == {f"{n}.0" for n in range(1, 6)}
    titles = {row["parent_asin"]: row["title"] for row in map(json.loads, meta.read_text().splitlines())}
    assert len(titles) == len(set(titles.values())) == 50 and {row["parent_asin"] for row in rows} <= set(titles)
    assert 60 < len({row["user_id"] for row in rows}) <= 100
