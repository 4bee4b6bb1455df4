"""Files are whole or not there, and a full disk gets one clear error."""

import errno
import logging
import os
from pathlib import Path

import pytest
import torch
from conftest import TINY, TINY_FLR

import recbole_flr
from recbole_flr import console
from recbole_flr.command import main
from recbole_flr.errors import DiskError
from recbole_flr.files import link, new_file, new_folder, size_text, write_json, writing
from recbole_flr.training import checkpoint


def full(*args, **kwargs):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_a_new_file_takes_the_place_of_the_old_one(tmp_path):
    path = tmp_path / "x.json"
    write_json(path, {"a": 1})
    write_json(path, {"a": "ü"})
    assert path.read_text(encoding="utf-8") == '{\n "a": "ü"\n}' and [each.name for each in tmp_path.iterdir()] == ["x.json"]


@pytest.mark.parametrize("error", [OSError(errno.ENOSPC, "No space left on device"), KeyboardInterrupt(), ValueError("x")])
def test_a_block_that_fails_leaves_the_old_file_alone(tmp_path, error):
    path = tmp_path / "x"
    path.write_text("old")
    with pytest.raises(DiskError if isinstance(error, OSError) else type(error)), new_file(path, 2_500_000) as temporary:
        temporary.write_text("half")
        raise error
    assert path.read_text() == "old" and [each.name for each in tmp_path.iterdir()] == ["x"]


def test_the_error_says_path_space_needed_and_free(tmp_path):
    with pytest.raises(
        DiskError, match=r"cannot write .*/new/x: No space left on device; it needs 2.5 MB, [\d.]+ .B are free there"
    ):
        with writing(tmp_path / "new" / "x", 2_500_000):
            full()


def contents(folder):
    return {path.relative_to(folder).as_posix(): path.read_text() for path in folder.rglob("*") if path.is_file()}


def test_a_new_folder_takes_the_place_of_the_old_one(tmp_path):
    path = tmp_path / "a" / "x"
    for text in "one", "two":
        with new_folder(path, "about") as temporary:
            assert not any(temporary.iterdir())
            (temporary / "about").write_text(text)
            (temporary / text).write_text("")
        assert contents(tmp_path) == {"a/x/about": text, f"a/x/{text}": ""}


@pytest.mark.parametrize("error", [OSError(errno.ENOSPC, "No space left on device"), KeyboardInterrupt()])
@pytest.mark.parametrize("where", ["in the block", "when it gets its name"])
def test_a_new_folder_that_fails_leaves_the_old_one_alone(tmp_path, monkeypatch, error, where):
    path = tmp_path / "x"
    path.mkdir()
    (path / "about").write_text("old")
    rename = os.rename

    def fails(source, target):
        if target == path and not str(source).endswith(".old") and Path(source, "half").exists():
            raise error
        rename(source, target)

    monkeypatch.setattr(os, "rename", fails)
    with pytest.raises(type(error)), new_folder(path, "about") as temporary:
        (temporary / "half").write_text("")
        if where == "in the block":
            raise error
    assert contents(tmp_path) == {"x/about": "old"} and [each.name for each in tmp_path.iterdir()] == ["x"]


def test_of_two_processes_that_make_a_folder_one_wins(tmp_path, monkeypatch):
    path, rename = tmp_path / "x", os.rename

    def slow(source, target):
        if target == path and not path.exists():  # the other process is faster
            path.mkdir()
            (path / "about").write_text("theirs")
        rename(source, target)

    monkeypatch.setattr(os, "rename", slow)
    with new_folder(path, "about") as temporary:
        (temporary / "about").write_text("ours")
    assert contents(tmp_path) == {"x/about": "theirs"}


@pytest.mark.parametrize("mask", [0o022, 0o077, 0o002])
def test_the_umask_decides_the_modes(tmp_path, mask):
    before = os.umask(mask)
    try:
        write_json(tmp_path / "run.json", {})
        checkpoint.write(tmp_path / "x.safetensors", {"a": torch.ones(2)}, {})
        link(tmp_path / "x.safetensors", tmp_path / "y.safetensors")
        with new_folder(tmp_path / "folder", "about"):
            pass
    finally:
        os.umask(before)
    assert {oct(path.stat().st_mode & 0o777) for path in tmp_path.iterdir() if path.is_file()} == {oct(0o666 & ~mask)}
    assert oct((tmp_path / "folder").stat().st_mode & 0o777) == oct(0o777 & ~mask)


def test_a_link_is_the_same_file(tmp_path):
    (tmp_path / "a").write_text("x")
    for _ in range(2):
        link(tmp_path / "a", tmp_path / "b")
        assert (tmp_path / "b").read_text() == "x" and len(list(tmp_path.iterdir())) == 2


@pytest.mark.parametrize("number, text", [(12, "12 bytes"), (1500, "1.5 kB"), (2_340_000, "2.3 MB"), (7e9, "7.0 GB")])
def test_size_text(number, text):
    assert size_text(number) == text


def fails_from(monkeypatch, count):
    """From the save number `count` on, the disk is full."""
    save, calls = checkpoint.save_file, []

    def limited(tensors, path, meta):
        calls.append(path)
        if len(calls) >= count:
            Path(path).write_bytes(b"half")
            full()
        save(tensors, path, meta)

    monkeypatch.setattr(checkpoint, "save_file", limited)


def words(model, data, base):
    return [f"--model={model}", "--dataset=tiny", f"--data_path={data}", *(f"--{name}={value}" for name, value in base.items())]


def test_a_disk_that_is_full_from_the_start_leaves_no_folder(session_data, monkeypatch, capsys):
    fails_from(monkeypatch, 1)
    assert main(words("SASRec", session_data, {**TINY, "epochs": 2})) == 2
    err = capsys.readouterr().err
    assert err.count("\n") == 1 and "last.safetensors: No space left on device; it needs " in err and "are free there" in err
    assert "start it again with the same command" in err and not list(Path("saved").iterdir())


def test_a_disk_that_fills_up_leaves_whole_checkpoints_to_go_on_from(trained, session_data, monkeypatch, capsys):
    _, whole = trained("FLR")
    with monkeypatch.context() as patch:
        fails_from(patch, 6)
        assert main(words("FLR", session_data, {**TINY_FLR, "checkpoint_dir": "cut"})) == 2
    (folder,) = Path("cut").iterdir()
    assert f"--resume={folder}" in capsys.readouterr().err
    for path in folder.glob("*.safetensors"):
        checkpoint.read(path)
    assert not list(folder.glob("*.tmp"))
    assert recbole_flr.run_recbole_flr(config_dict={"resume": str(folder)}) == whole


def test_a_disk_without_room_for_the_log(session_data, monkeypatch, capsys):
    def emit(handler, record):
        try:
            full()
        except OSError:
            handler.handleError(record)

    monkeypatch.setattr(logging.FileHandler, "emit", emit)
    assert main(words("SASRec", session_data, {**TINY, "epochs": 1, "state": "INFO"})) == 2
    last = capsys.readouterr().err.splitlines()[-1]
    assert "cannot write" in last and "/log/SASRec/" in last and "No space left on device" in last


def test_a_disk_without_room_for_tensorboard(session_data, monkeypatch, capsys):
    from tensorboard.summary.writer.record_writer import RecordWriter

    before, calls = RecordWriter.write, []
    monkeypatch.setattr(
        RecordWriter, "write", lambda self, data: (calls.append(data), full() if len(calls) > 3 else before(self, data))[1]
    )
    assert main(words("SASRec", session_data, {**TINY, "epochs": 3})) == 2
    err = capsys.readouterr().err
    assert (
        err.count("\n") == 1
        and "cannot write log_tensorboard/" in err
        and "No space left on device" in err
        and "--resume=" in err
    )


def test_hundreds_of_runs_in_one_process(session_data, capsys):
    """RecBole wraps the streams for colours with each run; a thousand wrappers are a RecursionError."""
    import sys

    from recbole_flr.config import Config

    config = Config("SASRec", "tiny", config_dict={**TINY, "data_path": str(session_data)})
    for _ in range(3):
        console.open_log(config)
        wrapped = sys.stderr
    assert wrapped is sys.stderr and not isinstance(vars(wrapped).get("_StreamWrapper__wrapped"), type(wrapped))
