"""The report as a table."""

import re

from helpers_convert import DROPPED, START, meta_of, reviews_of, sha256, write

from dataset_scripts.convert import convert
from dataset_scripts.report import print_report


def test_the_table_has_all_that_was_counted(tmp_path, capsys):
    reviews = [dict(row) for row in reviews_of(8, 8)] * 20
    first = reviews[0]
    odd = (
        [{**first, "overall": None}] * 3
        + [{**first, "asin": "NA"}] * 4
        + [{**first, "unixReviewTime": 0}] * 5
        + [{**first, "asin": "no title"}] * 6
    )
    odd += (
        [{**first, "overall": 1}] * 7
        + [{**first, "unixReviewTime": START - 1}] * 8
        + [{**first, "reviewerID": "once more"}] * 9
    )
    files = (
        write(tmp_path / "reviews.json", odd + reviews),
        write(tmp_path / "meta.json", [*meta_of(8)[:6], *[{"asin": f"B{n}", "title": "Same"} for n in (6, 7)], {}]),
    )
    report = convert(
        files[0],
        "s",
        tmp_path / "out",
        meta=files[1],
        min_items=8,
        min_rating=2,
        drop_repeats=True,
        start="2017-10-05",
        step_months=1,
    )
    print_report(report)
    found = capsys.readouterr().out
    rows = {}
    for line in found.splitlines():
        label, *rest = re.split(r"  +", line.strip())
        rows.setdefault(label, []).append(rest)
    counts = [report[key] for key in DROPPED]
    # Repeated: 8 more reviews of the first pair, too. Below the core: one review of `once more` is left.
    assert counts == [3, 4, 5, 6, 7, 0, 19 * 64 + 8 + 8, 1]
    labels = [label for label in rows if label.startswith("- ")]
    assert [int(rows[label][0][0].replace(",", "")) for label in labels] == counts
    assert rows["lines"] == [["1,322"]] and sum(counts) + report["kept"] == 1322
    assert rows["- malformed"][0][1] == "first in lines 1, 2, 3"
    assert rows["- outside the window"][0][1] == f"{report['start']} to 2018-11-01"
    assert rows["= kept"] == [[f"{report['kept']:,}", f"{report['first']} to {report['last']}"]]
    assert rows["users"] == [["8"]] and rows["items"] == [["8", "2 share a title; 7 titles"]]
    assert rows["density"] == [[f"{report['density']:.2e}"]] and rows["ids percent-encoded"] == [["0"]]
    assert [rows[part][0] for part in ("train", "valid", "test")] == [
        [f"{report[part]:,}", "rows"] for part in ("train", "valid", "test")
    ]
    assert rows["metadata lines"] == [["9", "1 malformed; 8 items with a title"]]
    assert (
        rows["window from"] == [[start, f"{items} items"] for start, items in report["windows"]]
        and len(report["windows"]) == 2
    )
    assert {tuple(line.split()) for line in found.splitlines() if line.startswith(("input ", "output"))} == {
        *(("input", sha256(path), path.name) for path in files),
        *(("output", digest, name) for name, digest in report["outputs"].items()),
    }  # fmt: skip
    assert found.splitlines()[-1] == f"written to {tmp_path / 'out' / 's'}"
    by_round = ", ".join(map(str, report["k_core_rounds"]))
    assert report["k_core_rounds"] and rows["- below the k-core"][0][1] == f"by round: {by_round}"


def test_a_short_table(tmp_path, capsys):
    """There are no notes on what did not happen, and no line for a single window."""
    files = write(tmp_path / "reviews.json", reviews_of()), write(tmp_path / "meta.json", meta_of())
    print_report(convert(files[0], "s", tmp_path / "out", meta=files[1], min_items=0))
    found = capsys.readouterr().out
    assert "window from" not in found and "first in lines" not in found and "by round" not in found
    assert "units: s 36" in found
