"""The readers of benchmarks.readers against hand-counted lines."""

import json

import pytest

from benchmarks import readers


@pytest.mark.parametrize("name", readers.READERS)
def test_readers(tmp_path, name):
    if "polars" in name:
        pytest.importorskip("polars")
    rows = [{"overall": 5.0, "style": {"a": ["}\\"]}, "reviewerID": "A" * (number + 1), "asin": "B1", "unixReviewTime": 10 * number}
            for number in range(4)]  # fmt: skip
    (tmp_path / "reviews.json").write_text("".join(json.dumps(row) + "\n" for row in rows))
    found = getattr(readers, f"read_{name}")(str(tmp_path / "reviews.json"))
    assert found == [4, 60, 1 + 2 + 3 + 4 + 4 * 2]


def test_small_run(tmp_path, capsys):
    report = readers.main(["--reviews", "2000", "--repeats", "1", "--json", str(tmp_path / "readers.json")])
    assert {"json", "duckdb"} <= report["runs"].keys()
    assert all(run["report"][0] == 2000 and run["peak_bytes"] > 0 for each in report["runs"].values() for run in each)
    assert json.loads((tmp_path / "readers.json").read_text())["seed"] == report["seed"]
    assert "duckdb" in capsys.readouterr().out
