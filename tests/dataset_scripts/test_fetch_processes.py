"""Several processes download one file, one after another or at once: a part that a process has left, an interruption, a lock."""

import json
import os
import re
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from helpers_server import BODY, HALF, OTHER, get, part_of, refused, wait_until, whole

from dataset_scripts import fetch as fetch_module

ROOT = Path(__file__).resolve().parents[2]


# What an earlier process has left


def test_a_part_of_unknown_version_is_not_resumed(server, file):
    file.parent.mkdir()
    part_of(file).write_bytes(OTHER[:1000])
    note = part_of(file).with_name(part_of(file).name + ".json")
    notes = [{"validator": None, "size": None}, {"size": len(BODY)}, {"validator": '"one"', "size": 9}, []]
    for text in [None, "", "{", *map(json.dumps, notes)]:
        if text is not None:
            note.write_text(text)
        get(server, file)
        whole(server, file)
        assert server.requests[-1][1] is None
        file.rename(part_of(file))


def test_all_had_arrived_before_the_end(server, file):
    """A process was killed before its last rename: nothing is downloaded again, whether or not the size was known."""
    for size, requests in ((len(BODY), 0), (None, 1)):
        file.parent.mkdir(exist_ok=True)
        part_of(file).write_bytes(BODY)
        Path(f"{part_of(file)}.json").write_text(json.dumps({"validator": '"one"', "size": size}))
        get(server, file)
        whole(server, file)
        assert len(server.requests) == requests and sum(server.sent) == 0
        file.unlink()


def test_a_file_that_has_become_shorter(server, file):
    """The server cannot satisfy the range, and the part is not complete: the download starts again."""
    file.parent.mkdir()
    part_of(file).write_bytes(BODY + b"more")
    Path(f"{part_of(file)}.json").write_text(json.dumps({"validator": '"one"', "size": len(BODY) + 9}))
    get(server, file)
    whole(server, file)
    assert [request[1] for request in server.requests] == [f"bytes={len(BODY) + 4}-", None]


# Processes that are killed, interrupted, or at work at the same time


def start(*words):
    """Starts another Python that reacts to Ctrl-C, even if the tests run in the background and ignore it."""
    return subprocess.Popen(
        [sys.executable, *map(str, words)], env={**os.environ, "PYTHONPATH": str(ROOT)}, text=True, stdout=subprocess.PIPE,
        stderr=subprocess.PIPE, preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL))


def test_a_killed_process_is_resumed_by_another(server, file):
    server.script = ["stall"]
    code = f"from dataset_scripts.fetch import fetch; fetch({server.url + '/file.json.gz'!r}, {str(file)!r})"
    with start("-c", code) as process:
        wait_until(lambda: part_of(file).exists() and part_of(file).stat().st_size == HALF)
        process.kill()
    get(server, file)
    whole(server, file)
    assert server.sent == [HALF, len(BODY) - HALF]


def test_the_command_tells_of_an_interruption_and_goes_on(server, tmp_path):
    server.script = ["stall"]
    words = ["-m", "dataset_scripts.download", "toys", "--out", tmp_path / "my data", "--mirror", server.url]
    folder = tmp_path / "my data" / "toys" / "raw"
    part = folder / "Toys_and_Games_5.json.gz.part"
    with start(*words) as process:
        wait_until(lambda: part.exists() and part.stat().st_size == HALF)
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=20)
    assert process.returncode == 130 and out == "" and "Traceback" not in err
    assert err.splitlines()[-1].startswith("interrupted; the bytes so far are kept (") and str(tmp_path / "my data") in err
    with start(*words) as process:
        out, err = process.communicate(timeout=20)
    assert process.returncode == 0
    names = ["Toys_and_Games_5.json.gz", "meta_Toys_and_Games.json.gz"]
    assert out.splitlines() == [str(folder / name) for name in names] and sorted(os.listdir(folder)) == names
    assert server.sent == [HALF, len(BODY) - HALF, len(BODY)]
    bars = err.replace("\r", "\n")  # the progress bar starts where the last process stopped
    assert re.search(r"Toys_and_Games_5\.json\.gz: +50%[^\n]*\n.*\bToys_and_Games_5\.json\.gz: 100%", bars, re.DOTALL)
    assert re.search(r"meta_Toys_and_Games\.json\.gz: 100%", bars)


@pytest.mark.skipif(fetch_module.fcntl is None, reason="no locks")
def test_two_processes_do_not_write_one_file(server, file):
    server.script = ["stall"]
    thread = threading.Thread(target=get, args=(server, file))
    thread.start()
    wait_until(lambda: part_of(file).exists() and part_of(file).stat().st_size == HALF)
    refused("another process is writing", server, file)
    server.released.set()
    thread.join()
    whole(server, file)


@pytest.mark.skipif(fetch_module.fcntl is None, reason="no locks")
def test_another_process_may_just_have_finished(server, file, monkeypatch):
    """The other process finishes between the first look and the lock."""

    def finish(*_):
        part_of(file).rename(file)
        file.write_bytes(BODY)

    monkeypatch.setattr(fetch_module.fcntl, "flock", finish)
    get(server, file)
    whole(server, file)
    assert server.requests == []
