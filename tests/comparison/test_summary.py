"""The figures of a comparison, its sentences, and how its tables look in each format."""

import csv
import io
import math
import re

import numpy as np
import pytest
from helpers_comparison import FACTORS, ROWS, write_run, write_runs

from recbole_flr.comparison.formats import for_csv, for_latex, for_markdown, for_terminal
from recbole_flr.comparison.results import read_run, rows_of
from recbole_flr.comparison.slices import metric_of_rows, slices
from recbole_flr.comparison.summary import decimal, metric_name, milliseconds, percent, probability, sentences, size, summarise
from recbole_flr.comparison.table import Cell, Table, mark, tables
from recbole_flr.errors import ConfigError


def summary_of(folders, **more):
    return summarise(rows_of([read_run(folder) for folder in folders]), **more)


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """FLR (clearly ahead), SASRec and GRU4Rec with three seeds each."""
    return write_runs(tmp_path_factory.mktemp("runs"), ("FLR", "SASRec", "GRU4Rec"), gain=20, factors=FACTORS)


@pytest.fixture(scope="module")
def summary(folders):
    return summary_of(folders)


def test_means_by_loop(summary, folders):
    for row in summary.rows:
        ranks = [[int(rank) for rank in run.ranks["test_item_rank"]] for run in row.runs]
        values = [sum(1 / math.log2(rank + 1) for rank in each if rank <= 10) / len(each) for each in ranks]  # not rounded
        mean = sum(values) / 3
        deviation = (sum((value - mean) ** 2 for value in values) / 2) ** 0.5
        assert summary.means[row.label]["ndcg@10"] == pytest.approx((mean, deviation))


def test_the_reference_is_the_best_baseline(summary):
    best = max(("SASRec", "GRU4Rec"), key=lambda label: summary.means[label]["ndcg@10"][0])
    assert summary.reference == best and "FLR" in [each.label for each in summary.comparisons]
    assert {each.reference for each in summary.comparisons} == {best} and len(summary.comparisons) == 2
    assert summary.ranking[0] == "FLR"


def test_a_given_reference(folders):
    assert summary_of(folders, reference="FLR").reference == "FLR"
    with pytest.raises(ConfigError, match="reference: found 'X'"):
        summary_of(folders, reference="X")


def test_slices_by_loop(summary):
    for name, share, found in summary.slices:
        for row in summary.rows:
            values = []
            for run in row.runs:
                mask = slices(run.ranks)[name]
                metric = metric_of_rows(run.ranks, "ndcg@10")
                values.append(sum(value for value, chosen in zip(metric, mask) if chosen) / mask.sum())
                assert share == pytest.approx(mask.sum() / ROWS)
            assert found[row.label][0] == pytest.approx(np.mean(values))


def test_three_sentences(summary):
    first, second, third = sentences(summary)
    assert first.startswith("FLR is ahead on tiny, with a test NDCG@10 of .") and "(mean of 3 seeds)" in first
    assert re.match(
        rf"That is [\d.]+% above {summary.reference}, the best baseline; the difference is significant \(paired t-test over 3",
        second,
    )
    assert "of training" in third and "300 MB" in third and "10 ms for each ranked user" in third and summary.reference in third


def test_sentences_where_a_baseline_is_ahead(tmp_path):
    second = sentences(summary_of(write_runs(tmp_path, ("SASRec", "FLR"), (1, 2), gain=15)))[1]
    assert re.match(r"FLR is next, [\d.]+% below it; the difference is", second)


def test_one_seed_claims_nothing(tmp_path):
    summary = summary_of(write_runs(tmp_path, ("FLR", "SASRec"), (1,), gain=15))
    assert "not known, because that needs several seeds" in sentences(summary)[1]
    assert any("one seed only" in warning for warning in summary.warnings)
    assert not [cell for row in tables(summary)[0].rows for cell in row if "±" in cell.text]


def test_one_model(tmp_path):
    summary = summary_of(write_runs(tmp_path, ("FLR",), (1, 2)))
    assert summary.reference is None and summary.comparisons == []
    assert sentences(summary)[1] == "There is no other model to compare it with."
    assert [table.name for table in tables(summary)] == ["metrics", "slices", "costs"]


def test_warnings(tmp_path):
    folders = write_runs(tmp_path, ("FLR", "SASRec"), (1, 2))
    folders.append(write_run(tmp_path / "more", "SASRec", 3, cpu="another", commit="1234"))
    said = " ".join(summary_of(folders).warnings)
    assert "Only 2 seeds" in said and "Not all rows have the same seeds" in said and "differ in hardware" in said
    assert "differ in the commit" in said


def test_a_stage_that_was_not_kept_has_no_test_over_rows(tmp_path):
    stages = [
        {
            "name": name,
            "seconds": 1.0,
            "test_result": {"ndcg@10": value},
            "best_valid_result": {"ndcg@10": value},
            "test_seconds": 1.0,
        }
        for name, value in (("sft", 0.5), ("grpo", 0.4))
    ]
    rows = rows_of(
        [
            read_run(write_run(tmp_path / "a", "FLR", 1, stages=stages, kept="sft"), "grpo"),
            read_run(write_run(tmp_path / "b", seed=1)),
        ]
    )
    summary = summarise(rows)
    assert summary.means["FLR"]["ndcg@10"][0] == 0.4 and summary.comparisons[0].p_rows is None
    assert "FLR" not in summary.slices[0][2] and any("no test over rows" in warning for warning in summary.warnings)


@pytest.fixture(scope="module")
def unequal(tmp_path_factory):
    """Runs whose validation chose by the Gini index, of which less is better. The item coverage, of which more is better, is
    0.1 where the index is 0.4: the worst model by one is the best by the other.
    """
    folder, folders = tmp_path_factory.mktemp("runs"), []
    for model, first in (("GRU4Rec", 0.8), ("FLR", 0.4), ("SASRec", 0.5)):
        for number in range(3):
            gini = first + 0.01 * number
            found = {"giniindex@10": gini, "itemcoverage@10": gini - 0.3}
            stage = {"name": "train", "test_result": found, "best_valid_result": found}
            run = write_run(folder / f"{model}-{number}", model, number, stages=[stage], options={"valid_metric": "GiniIndex@10"})
            folders.append(run)
    return summary_of(folders)


def test_less_is_better_in_the_ranking_and_in_the_improvements(unequal):
    assert unequal.ranking == ["FLR", "SASRec", "GRU4Rec"] and unequal.reference == "SASRec"
    found = {each.label: each for each in unequal.comparisons}
    assert found["FLR"].difference == pytest.approx(0.41 - 0.51) and found["FLR"].improvement == pytest.approx(0.10 / 0.51)
    assert found["GRU4Rec"].difference == pytest.approx(0.30) and found["GRU4Rec"].improvement == pytest.approx(-0.30 / 0.51)
    covered = {each.label: each for each in unequal.other_metrics["itemcoverage@10"]}
    assert covered["FLR"].improvement == pytest.approx(-0.10 / 0.21)


def test_less_is_better_in_the_sentences(unequal, tmp_path):
    first, second, _ = sentences(unequal)
    assert first == "FLR is ahead on tiny, with a test giniindex@10 of .4100 (mean of 3 seeds, smaller is better)."
    assert second.startswith("That is 19.6% below SASRec, the best baseline; ")
    baselines = [row for row in unequal.rows if row.label != "FLR"]
    assert sentences(summarise(baselines))[1].startswith("GRU4Rec is next, 58.8% above it; ")


def test_less_is_better_in_the_tables(unequal):
    metrics, statistics, tests = tables(unequal)[:3]
    assert [row[0].text for row in metrics.rows] == ["GRU4Rec", "FLR", "SASRec"]
    assert metrics.columns[1:5] == ["giniindex@10", "improvement", "itemcoverage@10", "valid giniindex@10"]
    places = [[row[column].place for row in metrics.rows] for column in (1, 3, 4)]
    assert places == [[0, 1, 2], [1, 0, 2], [0, 1, 2]]  # the coverage has its own order
    note = "Smaller is better for giniindex@10: a decrease is an improvement above 0."
    assert all(table.notes[-1] == note for table in (metrics, statistics, tests))
    assert [row[2].text for row in metrics.rows] == ["-58.8%", "+19.6%", "-"]
    assert [row[1].text.split()[0] for row in tests.rows] == ["-58.8%", "+19.6%"]


def test_without_such_a_metric_no_table_speaks_of_it(summary):
    assert not [note for table in tables(summary) for note in table.notes if "Smaller is better" in note]


# tables


def test_marks_of_best_and_second():
    rows = [[Cell("a"), Cell(str(value), value)] for value in (3, 1, 3, 2)]
    mark(rows, 1)
    assert [row[1].place for row in rows] == [1, 0, 1, 0]  # two best, so there is no second
    rows = [[Cell(str(value), value)] for value in (1, 5, 4)] + [[Cell("-")]]
    mark(rows, 0)
    assert [row[0].place for row in rows] == [0, 1, 2, 0]
    equal = [[Cell("0", 0.0)], [Cell("0", 0.0)]]
    mark(equal, 0)
    assert [row[0].place for row in equal] == [0, 0]
    mark(rows, 0, largest=False)
    assert rows[0][0].place == 1
    counted = [[Cell(".4", 0.4)], [Cell(".4 ± .0", 0.40001)], [Cell(".3 ± .1", 0.3)], [Cell(".3", 0.3)]]
    mark(counted, 0)
    assert [row[0].place for row in counted] == [1, 1, 0, 0]  # a deviation makes no difference


def odd_table():
    """A table with all that has to be escaped."""
    return Table(
        "t",
        "100% of A_B",
        ["model", "x|y"],
        [[Cell("a_b|<script>\x1b[31m"), Cell(".5 ± .1", 0.5, 1)], [Cell("c&d"), Cell(".4", 0.4, 2)]],
        ["p < .05"],
    )


def test_terminal():
    text = for_terminal(odd_table())
    assert "\033[1m.5 ± .1\033[0m" in text and "\033[4m.4\033[0m" in text and "\x1b[31m" not in text and "\\x1b[31m" in text
    plain = for_terminal(odd_table(), colours=False)
    assert ".5 ± .1 ^1" in plain and ".4 ^2" in plain and "\033" not in plain


def test_markdown():
    text = for_markdown(odd_table())
    assert "| model | x\\|y |" in text and "**.5 ± .1**" in text and "<u>.4</u>" in text and "a\\_b\\|\\<script\\>" in text


def test_latex():
    text = for_latex(odd_table(), "ml_100k")
    assert r"\label{tab:ml-100k-t}" in text
    assert r"\textbf{.5 $\pm$ .1}" in text and r"\underline{.4}" in text and r"c\&d" in text and r"100\% of A\_B" in text
    for rule in (r"\toprule", r"\midrule", r"\bottomrule", r"\begin{tabular}{lr}"):
        assert text.count(rule) == 1
    body = text[text.index(r"\midrule") : text.index(r"\bottomrule")].splitlines()[1:]
    assert all(line.endswith(r"\\") and len(re.findall(r"(?<!\\)&", line)) == 1 for line in body if line)


def test_csv_has_every_figure(summary):
    lines = list(csv.DictReader(io.StringIO(for_csv([summary]))))
    value = {(line["part"], line["slice"], line["model"], line["measure"]): line["mean"] for line in lines}
    for label in summary.labels:
        for metric in summary.metrics:
            assert float(value["test", "all rows", label, metric]) == summary.means[label][metric][0]
        assert float(value["test", "new items", label, "ndcg@10"]) == summary.slices[1][2][label][0]
        assert float(value["cost", "", label, "parameters"]) == 1000
    assert value[f"beside {summary.reference}", "all rows", "FLR", "significant"] == "1"


def test_all_tables_are_there(summary):
    assert [table.name for table in tables(summary)] == ["metrics", "statistics", "tests", "slices", "costs", "factors"]
    for table in tables(summary):
        assert all(len(row) == len(table.columns) for row in table.rows)


@pytest.mark.parametrize(
    "shown, text",
    [
        (decimal(0.14123), ".1412"),
        (decimal(-0.5), "-.5000"),
        (decimal(1.0), "1.0000"),
        (decimal(None), "-"),
        (decimal(10.05, 2), "10.05"),
        (percent(0.0315), "+3.1%"),
        (percent(None), "-"),
        (probability(0.0001), "< .001"),
        (probability(0.0315), ".032"),
        (milliseconds(0.0021), "2.1 ms"),
        (size(3e8), "300 MB"),
        (size(2.5e9), "2.50 GB"),
        (size(None), "-"),
        (metric_name("title_ndcg@10"), "title NDCG@10"),
        (metric_name("hit@5"), "Hit@5"),
    ],
)
def test_figures_as_text(shown, text):
    assert shown == text
