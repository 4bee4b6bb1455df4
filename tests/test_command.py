"""The command lines: how words become options, and what a user sees after a mistake."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from recbole_flr import command, quick_start, recommendation
from recbole_flr.command import main, parse_arguments, recommend_main
from recbole_flr.errors import CheckpointError, ConfigError, DataError
from recbole_flr.options import options_for
from recbole_flr.registry import MODELS

ROOT = Path(__file__).resolve().parents[1]


@pytest.mark.parametrize("line, options", [
    ([], {}),
    (["--model=FLR"], {"model": "FLR"}),
    (["--model", "FLR"], {"model": "FLR"}),
    (["-m", "FLR", "-d", "toys"], {"model": "FLR", "dataset": "toys"}),
    (["-m=FLR", "-d=toys"], {"model": "FLR", "dataset": "toys"}),
    (["--length_penalty", "-1"], {"length_penalty": "-1"}),
    (["--length_penalty=-1e-3"], {"length_penalty": "-1e-3"}),
    (["--backbone=a=b=c"], {"backbone": "a=b=c"}),
    (["--backbone", "a=b"], {"backbone": "a=b"}),
    (["--data_path="], {"data_path": ""}),
    (["--data_path", ""], {"data_path": ""}),
    (["--item_noun=board game"], {"item_noun": "board game"}),
    (["--eval_args={'mode': 'full'}"], {"eval_args": "{'mode': 'full'}"}),
    (["--item_noun=--help"], {"item_noun": "--help"}),
    (["--config_files", "a.yaml", "b.yaml", "--epochs", "3"], {"config_files": "a.yaml b.yaml", "epochs": "3"}),
    (["--config_files", "a.yaml", "b.yaml", "-m", "FLR"], {"config_files": "a.yaml b.yaml", "model": "FLR"}),
    (["--config_files=a.yaml,b.yaml"], {"config_files": "a.yaml,b.yaml"}),
    (["--epochs=3", "--epochs", "3"], {"epochs": "3"}),
    (["-m", "FLR", "--model=FLR"], {"model": "FLR"}),
    (["--epochs=3", "--help"], {"epochs": "3", "help": True}),
    (["-h"], {"help": True}),
])
def test_parse_arguments(line, options):
    given = list(line)
    assert parse_arguments(line) == options
    assert line == given


@pytest.mark.parametrize("line, message", [
    (["FLR"], "found 'FLR', expected --key=value"),
    (["--model=FLR", "toys"], "found 'toys', expected"),
    (["-x", "3"], "found '-x', expected"),
    (["model=FLR"], "found 'model=FLR', expected"),
    (["--"], "found '--', expected"),
    (["--epochs"], "--epochs: found no value"),
    (["--epochs", "--model=FLR"], "--epochs: found no value"),
    (["-m"], "--model: found no value"),
    (["--epochs=3", "--epochs=4"], "--epochs: found '3' and '4'; give it once"),
    (["-m", "FLR", "--model=SASRec"], "--model: found 'FLR' and 'SASRec'"),
    (["--item_noun", "board", "game"], "found 'game', expected"),
])
def test_parse_arguments_refuses(line, message):
    with pytest.raises(ConfigError, match=re.escape(message)):
        parse_arguments(line)


def test_help_prints_every_option(capsys):
    assert main(["--help"]) == 0
    text = capsys.readouterr().out
    for option in options_for("FLR", shared=MODELS["FLR"].shared_options).values():
        assert f"--{option.name}=" in text and option.meaning in text
    for word in ("--model", "-m", "--dataset", "-d", "--config_files", "--key=value", "toys_demo", "ml-100k"):
        assert word in text


@pytest.fixture
def calls(monkeypatch):
    """What main would have run."""
    made = []
    monkeypatch.setattr(quick_start, "run_recbole_flr", lambda *arguments: made.append(arguments))
    return made


@pytest.mark.parametrize("line, call", [
    ([], ("FLR", "toys_demo", None, {})),
    (["-m", "SASRec"], ("SASRec", "toys_demo", None, {})),
    (["-d", "cds", "--epochs=3"], ("FLR", "cds", None, {"epochs": "3"})),
    (["--config_files", "a.yaml", "b.yaml"], (None, None, ["a.yaml", "b.yaml"], {})),
    (["--config_files=a.yaml,b.yaml", "-m", "FLR"], ("FLR", None, ["a.yaml", "b.yaml"], {})),
    (["--resume=saved/x"], (None, None, None, {"resume": "saved/x"})),
    (["--checkpoint=saved/x", "--stages=grpo"], (None, None, None, {"checkpoint": "saved/x", "stages": "grpo"})),
    (["--model="], ("", "toys_demo", None, {})),
])
def test_main_hands_on(line, call, calls):
    assert main(line) == 0
    assert calls == [call]


def test_main_takes_the_command_line(monkeypatch, calls):
    monkeypatch.setattr(sys, "argv", ["run_recbole_flr.py", "-m", "Caser", "--seed=1"])
    assert main() == 0 and calls == [("Caser", "toys_demo", None, {"seed": "1"})]


MISTAKES = [  # command line, what the message says
    (["--model=SASRecc"], ["'SASRecc'", "nearest is 'SASRec'"]),
    (["--model=flr"], ["'flr'", "nearest is 'FLR'"]),
    (["--model="], ["model: found ''"]),
    (["--num_beam=5"], ["'num_beam'", "nearest is 'num_beams'"]),
    (["--num_beams=0"], ["num_beams: found 0", "int >= 1"]),
    (["--score=fulll"], ["'fulll'", "full | trie"]),
    (["--epochs=abc"], ["epochs: found 'abc'", "int >= 0"]),
    (["--learning_rate=fast"], ["'fast'", "float > 0"]),
    (["--attend_thought=3"], ["found 3", "bool"]),
    (["--metrics=[Hitt]"], ["Hitt", "ndcg"]),
    (["--topk=0"], ["topk: found 0"]),
    (["--config_files=none.yaml"], ["none.yaml", "No such file"]),
    (["--resume=saved/none"], ["saved/none"]),
    (["--save_dataset=True"], ["save_dataset", "pickles"]),
    (["toys"], ["'toys'", "--key=value"]),
    (["--epochs"], ["--epochs", "no value"]),
]


@pytest.mark.parametrize("line, said", MISTAKES, ids=[" ".join(line) for line, _ in MISTAKES])
def test_a_mistake_gets_one_message_and_no_traceback(line, said, capsys):
    assert main(line) == 2
    out, err = capsys.readouterr()
    assert [part for part in said if part not in err] == []
    assert err.startswith("run_recbole_flr: ") and err.count("\n") == 1 and "Traceback" not in out + err


@pytest.mark.parametrize("model", ["FLR", "SASRec"])
@pytest.mark.parametrize("dataset, file", [("cds", "cds.train.inter"), ("nosuch", "nosuch.inter")])
def test_a_missing_data_set_says_where_it_looked_and_the_three_ways(model, dataset, file, capsys, tmp_path):
    assert main([f"--model={model}", f"--dataset={dataset}", "--data_path=some where", "--state=ERROR"]) == 2
    err = capsys.readouterr().err
    assert err.startswith(f"run_recbole_flr: data set '{dataset}'") and "Traceback" not in err
    assert str(Path("some where") / dataset / file) in err and str(tmp_path / "some where" / dataset) in err
    for part in ("1. ", "dataset_scripts.convert", "2. ", "--data_path", "3. ", "toys_demo"):
        assert part in err, part


def test_a_bug_keeps_its_traceback(monkeypatch):
    def broken(*_):
        raise ValueError("a bug")

    monkeypatch.setattr(quick_start, "run_recbole_flr", broken)
    with pytest.raises(ValueError, match="a bug"):
        main([])


@pytest.mark.parametrize("error", [ConfigError, DataError, CheckpointError])
def test_recommend_reports_a_mistake(error, monkeypatch, capsys):
    def refuse(*_):
        raise error("found nothing")

    monkeypatch.setattr(recommendation, "recommend", refuse)
    assert recommend_main(["--checkpoint", "x", "--history", "a"]) == 2
    assert capsys.readouterr().err == "recommend: found nothing\n"


def test_recommend_prints(monkeypatch, capsys):
    seen = []
    answer = {"items": [{"item": "i1", "title": "積み木", "score": -1.5}],
              "factors": [{"weight": 0.25, "history": [{"item": "i2", "title": "Robot", "attention": 0.75}], "rest": 0.25}]}
    monkeypatch.setattr(recommendation, "recommend", lambda *arguments: seen.append(arguments) or answer)
    line = ["--checkpoint", "saved/x", "--history", "Robot", "Blue Castle", "--k", "1", "--data_path", "there"]
    assert recommend_main(line) == 0
    text = capsys.readouterr().out
    assert "積み木" in text and "-1.5000" in text and "[i1]" in text and "0.250" in text and "0.750  Robot" in text
    assert recommend_main([*line, "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == answer
    assert seen[0] == ("saved/x", ["Robot", "Blue Castle"], 1, {"state": "ERROR", "show_progress": False, "data_path": "there"})


@pytest.mark.parametrize("script", [["run_recbole_flr.py"], ["-m", "recbole_flr", "run"]])
def test_the_scripts_end_with_the_status(script):
    """The exit status of a process. `--help` imports neither torch nor RecBole, so it is quick."""
    done = subprocess.run([sys.executable, *script, "--help"], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0 and done.stdout.strip().startswith(command.USAGE.strip()[:40]) and done.stderr == ""
    done = subprocess.run([sys.executable, *script, "--epochs"], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert done.returncode == 2 and done.stderr == "run_recbole_flr: --epochs: found no value, expected --epochs=value\n"


def test_the_package_as_a_command(capsys):
    """`python -m recbole_flr --help` and `--version`."""
    from recbole_flr import __version__
    from recbole_flr.__main__ import COMMANDS, run_command

    assert run_command(["--help"]) == 0
    text = capsys.readouterr().out
    for name, (_, what) in COMMANDS.items():
        assert name in text and what in text
    assert "dataset_scripts.convert" in text and "--version" in text and len(text.splitlines()) > 10
    for words in (["--version"], ):
        assert run_command(words) == 0 and capsys.readouterr().out == f"recbole_flr {__version__}\n"
    assert main(["--version"]) == 0 and capsys.readouterr().out == f"recbole_flr {__version__}\n"
    for words, said in ([], "found no command"), (["x"], "found 'x'"):
        assert run_command(words) == 2
        assert said in capsys.readouterr().err


NASTY = "Robot\x1b[31m \x07 \x00 \x9b2J \u202eeman"


@pytest.fixture
def nasty_answer(monkeypatch):
    answer = {"items": [{"item": "i\x1b1", "title": NASTY, "score": -1.5, "parts": {"mixture": 1.0},
                         "after": [{"title": NASTY, "share": 0.5}]}],
              "factors": [{"weight": 0.25, "history": [{"item": "i2", "title": NASTY, "attention": 0.75}], "rest": 0.25}]}
    monkeypatch.setattr(recommendation, "recommend", lambda *arguments: answer)
    return answer


@pytest.mark.parametrize("form", [[], ["--json"]])
def test_a_title_cannot_command_the_terminal(form, nasty_answer, capsys):
    assert recommend_main(["--checkpoint", "x", "--history", "Robot", *form]) == 0
    out = capsys.readouterr().out
    assert not [mark for mark in "\x1b\x07\x00\x9b\u202e" if mark in out] and out.count("Robot") == 3
    if form:
        assert json.loads(out) == nasty_answer
    else:
        assert r"Robot\x1b[31m \x07 \x00 \x9b2J \u202eeman" in out


def test_factors_are_explained(monkeypatch, capsys):
    looked = [{"item": "i", "title": "Robot", "attention": 0.75}]
    answer = {"items": [], "factors": [{"weight": 1.0, "history": looked, "rest": 0.25}]}
    monkeypatch.setattr(recommendation, "recommend", lambda *arguments: answer)
    assert recommend_main(["--checkpoint", "x", "--history", "Robot"]) == 0
    out = capsys.readouterr().out
    assert "all weights add up to 1" in out and "each list adds up to 1" in out
    assert "0.250  (what else it read: the thought itself, and text around the titles)" in out


@pytest.mark.parametrize("words, said", [
    (["--state=LOUD"], "state: found 'LOUD', expected DEBUG | INFO"),
    (["--eval_step=-1"], "eval_step: found -1, expected int >= 0"),
    (["--hidden_dropout_prob=1"], "hidden_dropout_prob: found 1, expected float in [0, 1)"),
    (["--model=FLR", "--embedding_dropout=1"], "embedding_dropout: found 1"),
    (["--model=FLR", "--compact_dropout=1"], "compact_dropout: found 1"),
    (["--encoding=utf-99"], "encoding: found 'utf-99', which Python does not know"),
    (["--benchmark_filename=[train]"], "benchmark_filename: found ['train'], expected the names of three parts"),
    (["--benchmark_filename=[train,valid,test]", "--eval_args={'split': {'RS': [0.5, 0.3, 0.2]}}"],
     "does not split again; leave split out"),
    (["--device=cuda"], "use_gpu (True or False) and gpu_id (such as 0) say where"),
    (["--transform=x"], "transform: found 'x', expected mask"),
    (["--unused_col=[1]"], "unused_col: found [1], expected dict or null"),
    (["--alias_of_user_id=3"], "alias_of_user_id: found 3"),
])
def test_what_was_accepted_silently_or_with_a_traceback(words, said, session_data, capsys):
    base = [f"--data_path={session_data}", "--dataset=tiny"] + ([] if "--model=FLR" in words else ["--model=SASRec"])
    assert main([*base, *words]) == 2
    err = capsys.readouterr().err
    assert said in err and err.count("\n") == 1


def test_the_level_of_the_log_may_be_small(session_data):
    from recbole_flr.config import Config

    assert Config("SASRec", "tiny", config_dict={"data_path": str(session_data), "state": "warning"})["state"] == "WARNING"
