"""Recommendations for many users, compared with the ranking of the test and with one user at a time."""

import csv
import json
import re
from collections import defaultdict
from pathlib import Path
from types import SimpleNamespace

import duckdb
import pytest

from recbole_flr import bulk_recommendation as module
from recbole_flr.bulk_recommendation import recommend_many
from recbole_flr.command import recommend_main
from recbole_flr.errors import ConfigError, DataError
from recbole_flr.quick_start import load_data_and_model
from recbole_flr.recommendation import recommend
from recbole_flr.result import read_ranks

QUIET = {"state": "ERROR", "show_progress": False}


def run(folder, users, out="out.csv", **options):
    """recommend_many without a log -> its summary, and the output as a dict, row -> list of the lines' dicts."""
    summary = recommend_many(folder, users, out, config_dict=QUIET, show_progress=False, **options)
    return summary, by_row(read(out))


def read(path):
    """An output -> list of dicts of text."""
    if path.endswith(".parquet"):
        found = duckdb.sql(f"SELECT * FROM '{path}'")
        return [dict(zip(found.columns, map(str, line))) for line in found.fetchall()]
    with open(path, encoding="utf-8", newline="") as file:
        if path.endswith(".jsonl"):
            return [{name: str(value) for name, value in json.loads(line).items()} for line in file]
        return list(csv.DictReader(file, delimiter="\t" if path.endswith(".tsv") else ","))


def by_row(lines):
    found = defaultdict(list)
    for line in lines:
        found[int(line["row"])].append(line)
    for row in found.values():
        assert [int(line["rank"]) for line in row] == list(range(1, len(row) + 1))
    return found


@pytest.mark.parametrize("model", ["FLRMix", "FLR", "SASRec", "SequentialRules"])
def test_the_test_rows_get_what_was_tested(trained, model):
    folder, _ = trained(model, **({"epochs": 1} if model == "SASRec" else {}))
    summary, rows = run(folder, "test", k=10, rows_per_part=6)
    _, _, dataset, *_, test = load_data_and_model(folder, QUIET)
    ranks, users = read_ranks(folder), test._dataset.inter_feat["user_id"]
    assert summary["users"] == len(ranks["test_top_items"]) == len(rows) == 21
    for row, (items, scores, user) in enumerate(zip(ranks["test_top_items"], ranks["test_top_scores"], users), 1):
        reached = scores > -1e30
        assert [line["item_id"] for line in rows[row]] == list(dataset.id2token("item_id", items[reached]))
        assert [float(line["score"]) for line in rows[row]] == pytest.approx(scores[reached].tolist(), rel=1e-5, abs=1e-5)
        assert {line["user_id"] for line in rows[row]} == {dataset.id2token("user_id", int(user))}


def test_all_users_get_the_item_behind_their_whole_sequence(trained, session_data):
    """The sequences are put together from the lines of the files; each user is then ranked alone."""
    folder, _ = trained("FLRMix")
    sequences = {}
    for part in ("train", "valid", "test"):
        for line in (session_data / "tiny" / f"tiny.{part}.inter").read_text(encoding="utf-8").splitlines()[1:]:
            user, history, item, _ = line.split("\t")
            sequences[user] = [*history.split(), item]
    summary, rows = run(folder, "all", k=4)
    assert summary["users"] == len(sequences) == len(rows)
    loaded = load_data_and_model(folder, QUIET)
    for lines in rows.values():
        alone = recommend(loaded, sequences[lines[0]["user_id"]], 4)["items"]
        assert [(line["item_id"], line["title"]) for line in lines] == [(each["item"], each["title"]) for each in alone]
        assert [float(line["score"]) for line in lines] == pytest.approx([each["score"] for each in alone], abs=1e-4)


def write_users(histories, path="users.csv"):
    Path(path).write_text("user_id,history\n" + "".join(f"u{n},{' '.join(items)}\n" for n, items in enumerate(histories)))
    return path


HISTORIES = [["i3", "i4"], ["i1"], [f"i{n % 20}" for n in range(30)], ["i7", "i7", "i8"], ["i19", "i0"]]


@pytest.mark.parametrize("model", ["FLRMix", "FLR", "Caser"])
def test_users_of_a_file_are_ranked_as_one_at_a_time(trained, model):
    """Caser has a vector for each user. A name that the data set does not have gets the one of the padding."""
    folder, _ = trained(model, **({"epochs": 1} if model == "Caser" else {}))
    lines = [f"new{number},{' '.join(items)}\n" for number, items in enumerate(HISTORIES)]
    Path("users.csv").write_text("".join(["user_id,history\n", *lines]))
    summary, rows = run(folder, "users.csv", k=5, rows_per_part=2)
    loaded = load_data_and_model(folder, QUIET)
    assert summary["users"] == len(rows) == 5
    for number, history in enumerate(HISTORIES):
        alone = recommend(loaded, history, 5)["items"]
        assert [line["item_id"] for line in rows[number + 1]] == [each["item"] for each in alone]
        assert {line["user_id"] for line in rows[number + 1]} == {f"new{number}"}


def test_all_formats_hold_the_same(trained):
    folder, _ = trained("FLRMix")
    write_users(HISTORIES)
    outputs = [f"out{ending}" for ending in module.FORMATS]
    for out in outputs:
        run(folder, "users.csv", out, k=20)
        assert not Path(f"{out}.parts").exists()
    first, *others = [[{**line, "score": float(line["score"])} for line in read(out)] for out in outputs]
    assert len(first) == 100
    for other in others:
        assert [line.pop("score") for line in other] == pytest.approx([line["score"] for line in first], rel=1e-5)
        assert other == [{name: value for name, value in line.items() if name != "score"} for line in first]
    assert {line["title"] for line in first} >= {'Space "Puzzle"', "積み木", "<|Thought|>", "🎲 Dice"}


@pytest.mark.parametrize("parts_before", [0, 1, 2])
def test_a_stopped_command_goes_on_with_the_next_part(trained, monkeypatch, parts_before):
    folder, _ = trained("FLRMix")
    write_users(HISTORIES)
    run(folder, "users.csv", "whole.csv", rows_per_part=2)
    rank, ranked = module._Ranker.rank, []

    def stopped(self, users, bar):
        if len(ranked) == parts_before:
            raise KeyboardInterrupt
        ranked.append(users.rows.tolist())
        return rank(self, users, bar)

    with monkeypatch.context() as patch:
        patch.setattr(module._Ranker, "rank", stopped)
        with pytest.raises(KeyboardInterrupt):
            run(folder, "users.csv", rows_per_part=2)
    assert not Path("out.csv").exists()
    with monkeypatch.context() as patch:
        patch.setattr(module._Ranker, "rank", lambda *given: ranked.append(given[1].rows.tolist()) or rank(*given))
        summary, _ = run(folder, "users.csv", rows_per_part=2)
    assert ranked == [[1, 2], [3, 4], [5]] and summary["users"] == 5
    assert Path("out.csv").read_bytes() == Path("whole.csv").read_bytes()


def test_the_parts_of_another_command_are_not_used(trained, monkeypatch):
    folder, _ = trained("FLRMix")
    write_users(HISTORIES)
    with monkeypatch.context() as patch:
        patch.setattr(module._Parts, "join", lambda *_: None)
        run_without_output = recommend_many(folder, "users.csv", "out.csv", 3, config_dict=QUIET, show_progress=False)
    assert run_without_output["users"] == 5 and Path("out.csv.parts").is_dir()
    _, rows = run(folder, "users.csv", k=4)
    assert [len(lines) for lines in rows.values()] == [4] * 5


def test_unknown_items_are_refused_with_their_line(trained):
    folder, _ = trained("FLRMix")
    write_users([["i1"], ["i2", "nosuch"], []])
    with pytest.raises(DataError, match="users.csv, line 3: found the item 'nosuch', which the catalogue .*--skip-unknown"):
        run(folder, "users.csv")
    write_users([["i1"], []])
    with pytest.raises(DataError, match="users.csv, line 3: found an empty history.*--skip-unknown"):
        run(folder, "users.csv")


def test_unknown_items_can_be_left_out(trained):
    folder, _ = trained("FLRMix")
    write_users([["i1"], ["i2", "nosuch"], [], ["no", "[PAD]"], ["i5"]])
    summary, rows = run(folder, "users.csv", skip_unknown=True, rows_per_part=2)
    assert (summary["users"], summary["skipped_users"], summary["unknown_items"]) == (3, 2, 3)
    assert sorted(rows) == [1, 2, 5]
    alone = recommend(load_data_and_model(folder, QUIET), ["i2"], 10)["items"]
    assert [line["item_id"] for line in rows[2]] == [each["item"] for each in alone]
    write_users([[], ["no"]])
    with pytest.raises(DataError, match="found no user with a known item"):
        run(folder, "users.csv", skip_unknown=True)


def test_an_output_that_cannot_be_written_keeps_the_parts(trained, monkeypatch):
    folder, _ = trained("FLRMix")
    write_users(HISTORIES)

    def full(*_):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(module, "os", SimpleNamespace(replace=full))
        with pytest.raises(DataError, match=re.escape("out: cannot write out.csv.parts/000000.parquet ([Errno 28] No space")):
            run(folder, "users.csv")
    assert run(folder, "users.csv")[0]["users"] == 5


def test_the_command(trained, capsys):
    folder, _ = trained("FLRMix")
    line = ["--checkpoint", str(folder), "--users", "test", "--k", "3", "--out", "out.parquet"]
    assert recommend_main(line) == 0
    out, err = capsys.readouterr()
    assert re.fullmatch(r"Recommended to 21 users in .*: out.parquet.\n", out) and "21/21" in err
    assert len(read("out.parquet")) == 63
    assert recommend_main([*line, "--json"]) == 0 and json.loads(capsys.readouterr().out)["users"] == 21


@pytest.mark.parametrize("words, message", [
    (["--users", "all", "--out", "a.xlsx"], "out: found 'a.xlsx', expected a name that ends with .parquet"),
    (["--users", "all", "--out", "no/a.csv"], "out: found no folder no"),
    (["--users", "tests", "--out", "a.csv"], "users: found 'tests', expected test, all, or a file"),
    (["--users", "no.csv", "--out", "a.csv"], "users: found no file no.csv"),
])
def test_wrong_commands(words, message, capsys):
    assert recommend_main(["--checkpoint", "saved/none", *words]) == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize("words", [
    ["--users", "all"], ["--history", "a", "--out", "b.csv"], ["--users", "all", "--history", "a"], [],
])
def test_options_that_belong_together(words, capsys):
    with pytest.raises(SystemExit):
        recommend_main(["--checkpoint", "x", *words])
    assert "--" in capsys.readouterr().err


def test_too_many_items(trained):
    folder, _ = trained("FLRMix")
    with pytest.raises(ConfigError, match="k: found 21, expected 1 to 20"):
        run(folder, "test", k=21)


def test_all_users_of_a_run_that_sampled_its_rows_are_refused(trained):
    """The rows that were left out would be missing from the histories."""
    folder, _ = trained("FLRMix", test_rows=5)
    with pytest.raises(ConfigError, match="users: found all, and test_rows=5 in the run"):
        run(folder, "all")


@pytest.mark.parametrize("words, message", [
    (["--users", "all", "--out", "a.csv", "--as-text"], "argument --as-text: it belongs to --history"),
    (["--history", "Robot", "--skip-unknown"], "argument --skip-unknown: it belongs to --users"),
])
def test_options_that_would_do_nothing_are_refused(words, message, capsys):
    with pytest.raises(SystemExit):
        recommend_main(["--checkpoint", "run", *words])
    assert message in capsys.readouterr().err


@pytest.mark.parametrize("content", ["{", "[]", '{"request": 1}', '{"request": null, "parts": [{"wrong": 1}]}'])
def test_damaged_progress_begins_anew(trained, content):
    folder, _ = trained("FLRMix")
    Path("out.csv.parts").mkdir()
    Path("out.csv.parts/progress.json").write_text(content)
    write_users(HISTORIES)
    assert run(folder, "users.csv")[0]["users"] == 5
