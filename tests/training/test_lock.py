"""A run's folder has one writer."""

import subprocess
import sys

import pytest

import recbole_flr
from recbole_flr.errors import CheckpointError
from recbole_flr.training.lock import FolderLock, is_in_progress

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="no locks there")


def test_one_writer(tmp_path):
    (tmp_path / "run.json").write_text("{}")
    lock, other = FolderLock(), FolderLock()
    lock.take(tmp_path)  # without effect outside of a block
    assert not is_in_progress(tmp_path)
    with lock, other:
        lock.take(tmp_path)
        lock.take(tmp_path)  # it has it already
        assert is_in_progress(tmp_path)
        with pytest.raises(CheckpointError, match="in progress in another process"):
            other.take(tmp_path)
    assert not is_in_progress(tmp_path)
    with other:
        other.take(tmp_path)
        assert is_in_progress(tmp_path)
    assert not is_in_progress(tmp_path)


def test_a_process_that_is_killed_gives_it_back(tmp_path):
    (tmp_path / "run.json").write_text("{}")
    code = (
        "import sys, time; from recbole_flr.training.lock import FolderLock; lock = FolderLock(); lock.__enter__(); "
        "lock.take(sys.argv[1]); print('ready', flush=True); time.sleep(60)"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", code, str(tmp_path)], stdout=subprocess.PIPE, env={"PYTHONPATH": ":".join(filter(None, sys.path))}
    )
    assert process.stdout.readline() == b"ready\n" and is_in_progress(tmp_path)
    process.kill()
    process.wait()
    process.stdout.close()
    assert not is_in_progress(tmp_path)


def test_a_run_in_progress_is_not_resumed(trained):
    folder, _ = trained("SASRec", epochs=2)
    assert not is_in_progress(folder)
    with FolderLock() as lock:
        lock.take(folder)
        with pytest.raises(CheckpointError, match="in progress"):
            recbole_flr.run_recbole_flr(config_dict={"resume": str(folder), "epochs": 3})
    recbole_flr.run_recbole_flr(config_dict={"resume": str(folder), "epochs": 3})
    assert not is_in_progress(folder)
