"""The command line of the conversion."""

import os
import re
import subprocess
import sys

import pytest
from helpers_convert import COLUMNS, COLUMNS_OPTION, ROOT, TABLES, simple, tree, write

from dataset_scripts import convert as module
from dataset_scripts.convert import convert
from recbole_flr.errors import DataError


def cli(*arguments, program="convert", **options):
    command = [sys.executable, "-m", f"dataset_scripts.{program}", *map(str, arguments)]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, **options)


@pytest.mark.parametrize("program", ["convert", "amazon"])
def test_command_line(tmp_path, program):
    reviews, meta = simple(tmp_path)
    shared = ("--reviews", reviews, "--meta", meta, "--name", "s", "--out", tmp_path / "out")
    done = cli(*shared, "--no-sliding", "--max-history", "2", "--k", "6", program=program)
    assert done.returncode == 0, done.stderr
    assert re.search(r"^train +24 +rows$", done.stdout, re.MULTILINE)
    assert re.search(r"^= kept +36 +2017-10-01 to 2017-10-06$", done.stdout, re.MULTILINE)
    convert(reviews, "s", tmp_path / "same", meta=meta, min_items=0, max_history=2, k=6)
    assert tree(tmp_path / "out") == tree(tmp_path / "same")


def test_a_name_that_the_terminal_cannot_show(tmp_path):
    reviews, meta = simple(tmp_path)
    shared = ("--reviews", reviews, "--meta", meta, "--name", "sö", "--out", tmp_path / "out", "--no-sliding", "--k", "6")
    done = cli(*shared, env={**os.environ, "PYTHONIOENCODING": "ascii"})
    assert done.returncode == 0, done.stderr
    assert re.search(r"^written to .*s\\xf6$", done.stdout, re.MULTILINE)
    assert (tmp_path / "out" / "sö" / "sö.report.json").exists()


def test_command_line_of_an_own_log(tmp_path):
    log = write(tmp_path / "log.csv", TABLES["csv"])
    done = cli("--interactions", log, "--columns", COLUMNS_OPTION, "--name", "s", "--out", tmp_path / "out")
    assert done.returncode == 0, done.stderr
    convert(log, "s", tmp_path / "same", columns=COLUMNS)
    assert tree(tmp_path / "out") == tree(tmp_path / "same")


OPTIONS = [  # option, its text, keyword, value
    ("--out", "elsewhere", "out", "elsewhere"), ("--meta", "m", "meta", "m"), ("--items", "m", "meta", "m"),
    ("--columns", "user=u,item=i b,time=t", "columns", {"user": "u", "item": "i b", "time": "t"}),
    ("--meta-columns", "item=i,title=a=b", "meta_columns", {"item": "i", "title": "a=b"}),
           ("--format", "tsv", "format", "tsv"),
    ("--meta-format", "amazon-2023", "meta_format", "amazon-2023"), ("--delimiter", ";", "delimiter", ";"),
           ("--quote", "", "quote", ""), ("--encoding", "latin-1", "encoding", "latin-1"),
    ("--time-unit", "ms", "time_unit", "ms"), ("--time-format", "%Y", "time_format", "%Y"),
           ("--start", "none", "start", "none"),
    ("--end", "2018-01-01", "end", "2018-01-01"), ("--k", "2", "k", 2), ("--min-items", "4", "min_items", 4),
           ("--no-sliding", None, "min_items", 0),
    ("--step-months", "5", "step_months", 5), ("--min-rating", "3.5", "min_rating", 3.5),
           ("--drop-repeats", None, "drop_repeats", True),
    ("--max-title-words", "9", "max_title_words", 9), ("--min-title-chars", "1", "min_title_chars", 1),
    ("--drop-markup-titles", None, "drop_markup_titles", True), ("--max-history", "3", "max_history", 3),
    ("--titles", "first", "titles", "first"),
    ("--split", "leave-one-out", "split", "leave-one-out"), ("--ratios", "0.5,0.25,0.25", "ratios", (0.5, 0.25, 0.25)),
    ("--memory-limit", "500MB", "memory_limit", "500MB"), ("--engine", "spark", "engine", "spark"),
]  # fmt: skip


def given_to_convert(monkeypatch, *words):
    calls = []

    def stand_in(reviews, name, out="dataset", **options):
        calls.append({"reviews": reviews, "name": name, "out": out, **options})
        raise DataError("stop here")

    monkeypatch.setattr(module, "convert", stand_in)
    assert module.main(["--reviews", "r", "--name", "n", *words]) == 2
    return calls[0]


@pytest.mark.parametrize("option, text, keyword, value", OPTIONS)
def test_every_option_reaches_convert(monkeypatch, option, text, keyword, value):
    given = given_to_convert(monkeypatch, option, *([] if text is None else [text]))
    assert given == {**given_to_convert(monkeypatch), keyword: value}
    assert (given["reviews"], given["name"]) == ("r", "n")


def test_every_keyword_of_convert_has_its_option(monkeypatch):
    """The defaults on the command line are those of the function, too."""
    import inspect

    defaults = {name: parameter.default for name, parameter in inspect.signature(convert).parameters.items()}
    given = given_to_convert(monkeypatch)
    assert set(defaults) == set(given) == {keyword for _, _, keyword, _ in OPTIONS} | {"reviews", "name", "show_progress"}
    same = set(defaults) - {"reviews", "name", "show_progress"}
    assert {name: defaults[name] for name in same} == {name: given[name] for name in same}


@pytest.mark.parametrize(
    "words",
    [["--columns", "user"], ["--columns", ""], ["--ratios", "a,b"], ["--k", "x"], ["--split", "x"], ["--format", "x"]],
)
def test_values_that_mean_nothing(words, capsys):
    with pytest.raises(SystemExit) as caught:
        module.main(["--reviews", "r", "--name", "n", *words])
    assert caught.value.code == 2
    assert words[0] in capsys.readouterr().err


def test_progress_bars_change_nothing(tmp_path, capsys):
    reviews, meta = simple(tmp_path)
    for show in (False, True):
        convert(reviews, "s", tmp_path / str(show), meta=meta, min_items=0, show_progress=show)
    assert tree(tmp_path / "False") == tree(tmp_path / "True")
    assert capsys.readouterr().out == ""
