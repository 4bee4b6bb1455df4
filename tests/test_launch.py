"""The processes that the option `nproc` starts: Ctrl-C that reaches the first process alone stops all of them."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
SLEEPERS = """
import os, time
from recbole_flr.exit_status import one_line
from recbole_flr.launch import launch
def work(seconds):
    open(f"works-{os.environ['RANK']}", "w").close()
    time.sleep(seconds)
if __name__ == "__main__":
    with one_line("run_recbole_flr") as status:
        launch({"nproc": 2, "world_size": None, "ip": "localhost", "port": None, "group_offset": 0}, work, 600)
    raise SystemExit(status.code)
"""


def children(pid):
    """Process ids of the processes that a process has started and that run Python code of a run."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            parent = int((folder / "stat").read_text().rpartition(")")[2].split()[1])
            if parent == pid and b"spawn_main" in (folder / "cmdline").read_bytes():
                found.append(int(folder.name))
        except (OSError, ValueError):  # it has ended
            pass
    return found


@pytest.mark.skipif(not Path("/proc").is_dir(), reason="the processes are found in /proc")
@pytest.mark.parametrize("works", [False, True], ids=["while they start", "while they work"])
def test_ctrl_c_for_the_first_process_alone(tmp_path, works):
    (tmp_path / "sleepers.py").write_text(SLEEPERS)
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    first = subprocess.Popen(  # a shell lets what it starts in the background ignore Ctrl-C; here it counts
        [sys.executable, "sleepers.py"], cwd=tmp_path, env=environment, stderr=subprocess.PIPE, text=True, start_new_session=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL))
    try:
        end = time.monotonic() + 120
        while (len(started := children(first.pid)) < 2 or works and len(list(tmp_path.glob("works-*"))) < 2) and (
            first.poll() is None and time.monotonic() < end):
            time.sleep(0.05)
        assert len(started) == 2
        first.send_signal(signal.SIGINT)
        _, said = first.communicate(timeout=120)
    finally:
        if first.poll() is None:
            os.killpg(first.pid, signal.SIGKILL)
    assert first.returncode == 130
    assert [line for line in said.splitlines() if line] == ["run_recbole_flr: interrupted; nothing was saved"], said
    assert not any(Path(f"/proc/{pid}").exists() for pid in started)
