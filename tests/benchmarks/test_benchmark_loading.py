"""The benchmark of loading: both versions load the same rows, and the report has the figures."""

import json

from benchmarks import loading


def test_both_versions_load_the_same(tmp_path):
    out = tmp_path / "loading.json"
    report = loading.main(["--rows", "300", "--items", "40", "--folder", str(tmp_path), "--json", str(out)])
    (ours,), (plain,) = report["runs"]["ours"], report["runs"]["plain"]
    assert ours["sha256"] == plain["sha256"] and ours["users"] <= 75 and ours["items"] == 40
    assert all(run[key] > 0 for run in (ours, plain) for key in ("seconds", "load_seconds", "peak_bytes"))
    assert ours["load_seconds"] < ours["seconds"]
    assert json.loads(out.read_text())["rows"] == 300
    assert [path.name for path in tmp_path.iterdir()] == ["loading.json"]


def test_the_made_up_set_has_the_asked_sizes(tmp_path):
    loading.write_set(tmp_path, 50, 7)
    rows = {part: (tmp_path / "made" / f"made.{part}.inter").read_text().splitlines() for part in loading.PARTS}
    assert [len(lines) - 1 for lines in rows.values()] == [40, 5, 5]
    histories = [line.split("\t")[1].split(" ") for lines in rows.values() for line in lines[1:]]
    assert {len(history) for history in histories} == set(range(1, 11))
    assert len((tmp_path / "made" / "made.item").read_text().splitlines()) == 8
