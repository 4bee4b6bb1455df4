"""Names and folders are checked before anything is read or written."""

from pathlib import Path

import pytest

from recbole_flr.command import main, recommend_main
from recbole_flr.errors import CheckpointError, ConfigError
from recbole_flr.paths import check_folder, check_name, check_run


@pytest.mark.parametrize("name", ["", ".", "..", "../x", "/etc/x", "a b", "a\tb", "a\0b", "a\\b"])
def test_a_name_that_is_no_name_of_a_file(name):
    with pytest.raises(ConfigError, match="expected a file name without blanks and slashes"):
        check_name(name, "dataset")


@pytest.mark.parametrize("name", ["toys", "toys-2023", "ml-100k", "a.b", "積み木"])
def test_a_name(name):
    check_name(name, "dataset")


def test_a_folder_that_is_a_file_or_below_one(tmp_path):
    (tmp_path / "file").write_text("x")
    for folder in (tmp_path / "file", tmp_path / "file" / "new"):
        with pytest.raises(ConfigError, match=r"checkpoint_dir: found '.*', but .*file is a file; expected a folder"):
            check_folder(folder, "checkpoint_dir")


def test_a_folder_in_which_nothing_can_be_made():
    if not Path("/proc").is_dir():
        pytest.skip("there is no /proc")
    with pytest.raises(ConfigError, match=r"found '/proc/x', but /proc is not writable"):
        check_folder("/proc/x", "checkpoint_dir")


def test_a_new_folder_is_fine_and_nothing_is_made(tmp_path):
    check_folder(tmp_path / "a" / "b", "checkpoint_dir")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("path", ["x\0y", "x" * 5000])
def test_what_cannot_be_a_path(path):
    with pytest.raises(CheckpointError, match="resume: found .*"):
        check_run(path, "resume")
    with pytest.raises(ConfigError, match="checkpoint_dir: found .*"):
        check_folder(path, "checkpoint_dir")


@pytest.mark.parametrize("words, said", [
    (["--dataset=../x"], "dataset is '../x'"), (["--dataset=/etc/x"], "dataset is '/etc/x'"),
    (["--checkpoint_dir=file"], "checkpoint_dir: found 'file', but"), (["--checkpoint=file"], "checkpoint: found the file file"),
    (["--resume=file"], "resume: found the file file"), (["--resume=file/x"], "expected the folder of a run"),
])
def test_paths_are_checked_first(words, said, session_data, capsys):
    Path("file").write_text("x")
    base = ["--model=SASRec", f"--data_path={session_data}"] if "checkpoint=" not in words[0] and "resume" not in words[0] else []
    base += ["--dataset=tiny"] if base and "dataset" not in words[0] else []
    assert main([*base, *words]) == 2
    err = capsys.readouterr().err
    assert said in err and err.count("\n") == 1
    assert [path.name for path in Path().iterdir()] == ["file"]  # no log, no folder of a run


def test_a_log_folder_that_is_a_file(session_data, capsys):
    Path("log").write_text("x")
    assert main(["--model=SASRec", "--dataset=tiny", f"--data_path={session_data}"]) == 2
    assert "the folder of the logs: found 'log', but" in capsys.readouterr().err


def test_loading_never_makes_data(trained, tmp_path, capsys):
    folder, _ = trained("SASRec", epochs=1)
    for words in (["--data_path", "nope"], ["--data_path", str(tmp_path / "elsewhere")]):
        assert recommend_main(["--checkpoint", str(folder), "--history", "Robot", *words]) == 2
        assert "which the trained model needs; name the folder of the data sets with --data_path" in capsys.readouterr().err
    text = (folder / "run.json").read_text().replace('"tiny"', '"toys_demo"')
    (folder / "run.json").write_text(text)
    assert recommend_main(["--checkpoint", str(folder), "--history", "Robot", "--data_path", "nope"]) == 2
    assert not Path("nope").exists() and not Path("dataset").exists()
