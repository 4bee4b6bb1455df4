"""One process downloads a file from a server that misbehaves: the file is complete, or one error says what to do."""

import errno
import io
import os
import re
import socket
import time

import pytest
from helpers_server import BODY, DATE, HALF, HTML, OTHER, get, part_of, refused, whole

from dataset_scripts import fetch as fetch_module
from dataset_scripts.download import download
from dataset_scripts.fetch import fetch
from recbole_flr.errors import ConfigError, DataError

# The file arrives


def test_a_file_in_one_go(server, file):
    assert get(server, file) == file
    whole(server, file)
    assert server.requests == [("/file.json.gz", None, None)] and server.sent == [len(BODY)]


def test_a_file_that_is_there_is_not_fetched_again(server, file):
    part_of(file).mkdir(parents=True)  # this would fail if it was opened
    file.write_bytes(b"by hand")
    assert get(server, file) == file
    assert server.requests == [] and file.read_bytes() == b"by hand"


@pytest.mark.parametrize("etag, date, sent", [('"one"', DATE, '"one"'), (None, DATE, DATE), ('W/"weak"', DATE, DATE)])
def test_a_dropped_connection_is_resumed(server, file, etag, date, sent):
    server.etag, server.date, server.script = etag, date, ["half", "half"]
    get(server, file)
    whole(server, file)
    quarter = (len(BODY) - HALF) // 2
    assert server.requests[1:] == [("/file.json.gz", f"bytes={start}-", sent) for start in (HALF, HALF + quarter)]
    assert server.sent == [HALF, quarter, len(BODY) - HALF - quarter]  # no byte is sent twice


def test_without_a_version_nothing_is_resumed(server, file):
    server.etag, server.date, server.script = 'W/"weak"', None, ["half"]
    get(server, file)
    whole(server, file)
    assert server.requests[1] == ("/file.json.gz", None, None) and server.sent == [HALF, len(BODY)]
    file.unlink()
    server.script = ["half"]
    assert "nothing is kept" in refused("could not download", server, file, attempts=1)
    assert os.listdir(file.parent) == []


def test_a_server_that_ignores_ranges_sends_all_again(server, file):
    server.ranges, server.script = False, ["half"]
    get(server, file)
    whole(server, file)
    assert server.sent == [HALF, len(BODY)]


@pytest.mark.parametrize("body, etag", [(OTHER, '"other"'), (OTHER, '"one"'), (OTHER + BODY[len(OTHER):], '"other"')],
                         ids=["both differ", "the size differs", "the version differs"])
@pytest.mark.parametrize("conditions", [True, False])
def test_another_version_starts_from_its_beginning(server, file, body, etag, conditions):
    """Even if the server would send the rest of the new version after the beginning of the old one."""
    server.other, server.conditions, server.script = (body, etag), conditions, ["half", "changed"]
    get(server, file)
    whole(server, file, body)
    at_once = conditions and etag == '"other"'
    # the server may notice last that a connection was closed before its end, so the order of the later two is open
    assert server.sent[0] == HALF and len(body) in server.sent[1:] and len(server.sent) == (2 if at_once else 3)


def test_a_range_from_another_place_is_not_appended(server, file):
    server.shift, server.script = 1, ["half"]
    get(server, file)
    whole(server, file)
    assert server.sent[-1] == len(BODY)


@pytest.mark.parametrize("status", [500, 503, 429, 408])
def test_a_busy_server_is_asked_again(server, file, status):
    server.script = [status, "half", status]
    get(server, file)
    whole(server, file)
    assert server.sent == [0, HALF, 0, len(BODY) - HALF]


@pytest.mark.parametrize("behaviour", ["nothing", "byte"])
def test_a_connection_that_ends_at_once(server, file, behaviour):
    server.script = [behaviour]
    get(server, file)
    whole(server, file)


@pytest.mark.parametrize("behaviour, kept", [("stall", HALF), ("silent", 0)])
def test_a_server_that_stalls_is_asked_again(server, file, behaviour, kept):
    server.script = [behaviour]
    begin = time.monotonic()
    fetch(f"{server.url}/file.json.gz", file, show_progress=False, timeout=0.3)
    assert time.monotonic() - begin < 4
    whole(server, file)
    assert server.sent == [kept, len(BODY) - kept]


def test_the_pauses_double(server, file, monkeypatch):
    pauses = []
    monkeypatch.setattr(fetch_module, "PAUSE", 1.0)
    monkeypatch.setattr(fetch_module.time, "sleep", pauses.append)
    server.script = [503] * 4
    get(server, file)
    assert pauses == [1, 2, 4, 8]


def test_attempts_that_bring_something_are_not_counted(server, file):
    server.script = ["half"] * 8
    get(server, file, attempts=2)
    whole(server, file)
    assert sum(server.sent) == len(BODY)


def test_a_chunked_answer(server, file):
    server.chunked, server.script = True, ["half"]
    get(server, file)
    whole(server, file)
    assert sum(server.sent) == len(BODY)


def test_a_redirect_keeps_the_range(server, file):
    server.script = ["half", ("to", "/moved.json.gz")]
    get(server, file)
    whole(server, file)
    assert server.requests[-1] == ("/moved.json.gz", f"bytes={HALF}-", '"one"')


# What is given up


def test_the_message_says_what_was_tried_and_what_to_do(server, file):
    server.script = ["half"] + [503] * 9
    message = refused("could not download", server, file, attempts=3, advice="; or ask a friend")
    assert f"could not download {server.url}/file.json.gz (attempts: 3; the last error: the server answers 503" in message
    assert f"{HALF:,} bytes are kept in {part_of(file)}" in message
    assert "Run the same command again later, it continues from there;" in message
    assert f"save it as {file}; or ask a friend" in message
    assert part_of(file).read_bytes() == BODY[:HALF]
    server.script = []
    get(server, file)
    whole(server, file)
    assert server.sent[-1] == len(BODY) - HALF


@pytest.mark.parametrize("status", [404, 403, 410, 416])
def test_what_is_not_there_is_not_asked_for_again(server, file, status):
    server.script = [status]
    message = refused(f"the server answers {status}", server, file)
    assert "attempts: 1;" in message and "nothing is kept" in message and len(server.requests) == 1
    assert os.listdir(file.parent) == []


def test_a_server_that_is_gone(tmp_path, server):
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{closed.getsockname()[1]}"
    with pytest.raises(DataError) as caught:
        download("toys", tmp_path, mirror=url, show_progress=False)
    message = str(caught.value)
    assert "attempts: 5; the last error: " in message and "refused" in message and "nothing is kept" in message
    assert f"save it as {tmp_path / 'toys' / 'raw' / 'Toys_and_Games_5.json.gz'}" in message
    assert "python -m dataset_scripts.download toys --mirror URL" in message


@pytest.mark.parametrize("length", [True, False])
def test_a_page_instead_of_the_file(server, file, length):
    server.script = ["html"]
    if not length:
        server.chunked, server.body, server.script = True, HTML, []
    message = refused("not a gzip file", server, file)
    assert "attempts: 1;" in message and ("text/html" in message) == length
    assert os.listdir(file.parent) == []


def test_a_page_in_between_costs_nothing_of_what_has_arrived(server, file):
    server.script = ["half", "html"]
    refused("text/html", server, file)
    get(server, file)
    whole(server, file)
    assert sum(server.sent) == len(BODY)


@pytest.mark.parametrize("body", [b"", b"\x1f"])
def test_an_empty_file_is_no_gzip_file(server, file, body):
    server.body = body
    refused("not a gzip file", server, file)
    assert os.listdir(file.parent) == []


@pytest.mark.parametrize("body", [b"", b"x", b"plain text"])
def test_other_files_may_hold_anything(server, tmp_path, body):
    server.body = body
    assert fetch(f"{server.url}/notes.txt", tmp_path / "notes.txt", show_progress=False).read_bytes() == body


def test_a_server_that_announces_too_many_bytes(server, file):
    server.lie = 1000
    refused("attempts: 5", server, file)


def test_a_server_that_does_not_say_how_many_bytes(server, file):
    server.no_length = True
    refused("does not say how long the file is", server, file)
    assert os.listdir(file.parent) == []


@pytest.mark.parametrize("target", ["file:///etc/passwd", "ftp://127.0.0.1/file.json.gz", "data:,x"])
def test_a_redirect_to_another_scheme_is_refused(server, file, target):
    server.script = [("to", target)]
    message = refused("302", server, file)
    assert target in message and len(server.requests) == 1


@pytest.mark.parametrize("url", ["file:///etc/passwd", "ftp://host/file.gz", "data:,x", "dataset/file.gz", ""])
def test_other_schemes_are_refused(file, url):
    with pytest.raises(ConfigError, match=re.escape(repr(url)) + ".*http://"):
        fetch(url, file)
    assert not file.parent.exists()


# The disk


def test_no_space_is_told_before_the_first_byte(server, file, monkeypatch):
    usage = fetch_module.shutil.disk_usage(".")
    monkeypatch.setattr(fetch_module.shutil, "disk_usage", lambda _: usage._replace(free=HALF))
    message = refused("no space", server, file)
    assert f"{len(BODY) - 2:,} more bytes are needed, {HALF:,} bytes are free" in message and len(server.requests) == 1


def test_what_has_arrived_needs_no_more_space(server, file, monkeypatch):
    server.script = ["half", 404]
    refused("404", server, file)
    usage = fetch_module.shutil.disk_usage(".")
    monkeypatch.setattr(fetch_module.shutil, "disk_usage", lambda _: usage._replace(free=len(BODY) - HALF))
    get(server, file)
    whole(server, file)


def test_a_disk_that_fills_up(server, file, monkeypatch):
    class Full(io.FileIO):
        def write(self, block):
            if self.tell() >= HALF:
                raise OSError(errno.ENOSPC, "No space left on device")
            return super().write(bytes(block[:HALF - self.tell()]))  # writes a part of the block, as a full disk does

    with monkeypatch.context() as patch:
        patch.setattr(fetch_module, "open", lambda path, *_, **__: Full(path, "a"), raising=False)
        message = refused("no space", server, file)
    assert f"{len(BODY) - HALF:,} more bytes are needed" in message and f"{HALF:,} bytes that are there" in message
    assert len(server.requests) == 1 and part_of(file).read_bytes() == BODY[:HALF]
    get(server, file)
    whole(server, file)
    assert server.requests[1][1] == f"bytes={HALF}-"


def test_a_folder_that_cannot_be_written(server, tmp_path):
    (tmp_path / "raw").write_text("a file")
    with pytest.raises(DataError, match=f"cannot write {re.escape(str(tmp_path / 'raw'))}: "):
        get(server, tmp_path / "raw" / "file.json.gz")
