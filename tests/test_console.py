"""The log of a run: each run has its own file, and the console shows only what a person needs."""

import logging
import sys
import subprocess
import warnings
from pathlib import Path

from conftest import TINY

import recbole_flr
from recbole_flr import console
from recbole_flr.config import Config
from recbole_flr.console import FILE_ONLY, no_foreign_warnings

ROOT = Path(__file__).resolve().parents[1]


def logs():
    return sorted(Path("log").rglob("*.log"), key=lambda path: path.stat().st_mtime_ns)


def test_two_runs_in_one_process_have_their_own_files(session_data):
    options = {**TINY, "state": "INFO", "epochs": 1, "data_path": str(session_data)}
    for seed in (1, 2):
        recbole_flr.run_recbole_flr("SASRec", "tiny", config_dict={**options, "seed": seed})
    one, two = (path.read_text(encoding="utf-8") for path in logs())
    assert "seed 1." in one and "seed 2." not in one and one.count("Result") == 1
    assert "seed 2." in two and "seed 1." not in two and two.count("Result") == 1


def test_equal_runs_in_the_same_second_have_their_own_files(session_data, monkeypatch):
    monkeypatch.setattr("recbole.utils.logger.get_local_time", lambda: "now")
    options = {**TINY, "state": "INFO", "epochs": 0, "data_path": str(session_data)}
    for _ in range(3):
        recbole_flr.run_recbole_flr("SASRec", "tiny", config_dict=options)
    assert [path.read_text(encoding="utf-8").count("Finished in") for path in logs()] == [1, 1, 1]


def test_handlers_of_others_stay(session_data, caplog):
    handler = logging.NullHandler()
    logging.getLogger().addHandler(handler)
    options = {**TINY, "state": "INFO", "epochs": 0, "data_path": str(session_data)}
    recbole_flr.run_recbole_flr("SASRec", "tiny", config_dict=options)
    assert handler in logging.getLogger().handlers
    assert "Finished in" in caplog.text


def test_the_console_of_a_run(session_data):
    """In a process of its own, whose terminal is tested: which lines appear, in which order, and how often."""
    words = ["--model=SASRec", "--dataset=tiny", "--epochs=2", "--seed=7", f"--data_path={session_data}", "--show_progress=False",
             "--benchmark_filename=[train,valid,test]", "--alias_of_item_id=[item_id_list]"]
    done = subprocess.run([sys.executable, str(ROOT / "run_recbole_flr.py"), *words], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    text = done.stdout + done.stderr
    first = text.splitlines()[0]
    assert "SASRec on tiny, seed 7" in first and "epochs=2" in first and "seed=7" in first and "hidden_size" not in first
    assert "Warning" not in text and "OrderedDict" not in text and "Environment" not in text
    assert len(text.splitlines()) < 45
    assert text.count("Result") == 1 and text.count("Validation took") == 2 and text.count("ndcg@10") == 2 * 2 + 2
    assert "Finished in" in text.splitlines()[-1] and "result.json" in text.splitlines()[-1]
    log, = logs()
    everything = log.read_text(encoding="utf-8")
    assert "hidden_size" in everything and "Environment" in everything and "item_embedding" in everything


def test_records_for_the_file_do_not_reach_the_console(session_data, capsys):
    options = {**TINY, "state": "INFO", "epochs": 0, "data_path": str(session_data)}
    recbole_flr.run_recbole_flr("SASRec", "tiny", config_dict=options)
    capsys.readouterr()
    logging.getLogger().info("for the file", extra=FILE_ONLY)
    logging.getLogger().info("for both")
    printed = capsys.readouterr().err
    assert "for both" in printed and "for the file" not in printed
    assert "for the file" in logs()[-1].read_text(encoding="utf-8")


def test_only_foreign_warnings_are_hidden():
    with warnings.catch_warnings(record=True) as shown:
        warnings.simplefilter("always")
        with no_foreign_warnings():
            for category in (UserWarning, FutureWarning, DeprecationWarning):
                warnings.warn_explicit("RecBole's own", category, "f.py", 1, module="recbole.data.dataset")
                warnings.warn_explicit("our own", category, "g.py", 1, module="recbole_flr.config")
    assert [(str(each.message), each.category) for each in shown] == [
        ("our own", UserWarning), ("our own", FutureWarning), ("our own", DeprecationWarning)
    ]


def test_control_characters_in_the_log_are_escapes_and_colours_stay(tmp_path, capsys):
    from recbole.utils import set_color

    config = Config("SASRec", "tiny", config_dict={"state": "INFO"})
    console.open_log(config)
    logging.getLogger().info(set_color("Result", "yellow") + ": a title \x1b[2J\x07 of a %s", "shop\x00")
    out, err = capsys.readouterr()
    text = Path(console.log_file()).read_text(encoding="utf-8")
    for shown in (out + err, text):
        assert r"a title \x1b[2J\x07 of a shop\x00" in shown and "\x07" not in shown and "\x1b[2J" not in shown
