"""Downloads from a small local server that misbehaves on request. No test needs a network."""

import errno
import gzip
import io
import json
import os
import random
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from helpers_data import make_config

from dataset_scripts import amazon
from dataset_scripts import download as download_module
from dataset_scripts import fetch as fetch_module
from dataset_scripts.convert import KINDS
from dataset_scripts.download import CATEGORIES, NAMES, addresses, download, main, prepare
from dataset_scripts.fetch import fetch
from recbole_flr.data.loading import expected_files, load_dataset, prepare_files
from recbole_flr.errors import ConfigError, DataError

ROOT = Path(__file__).resolve().parents[2]
BODY = gzip.compress(random.Random(0).randbytes(300_000), mtime=0)
OTHER = gzip.compress(random.Random(1).randbytes(280_000), mtime=0)
HALF = len(BODY) // 2
HTML = b"<!DOCTYPE html><title>Please log in</title>" + b" " * 5000
DATE = "Wed, 21 Oct 2015 07:28:00 GMT"


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self):
        server = self.server
        behaviour = server.script.pop(0) if server.script else "whole"
        asked, condition = self.headers["Range"], self.headers["If-Range"]
        assert self.headers["Accept-Encoding"] == "identity"
        server.requests.append((self.path, asked, condition))
        server.sent.append(0)
        self.number = len(server.sent) - 1  # the next request may come while this one is still being answered
        if isinstance(behaviour, int):
            return self.answer(behaviour, b"sorry", {"Content-Range": "bytes */0"}, length=True)
        if isinstance(behaviour, tuple):  # a redirect
            return self.answer(302, b"", {"Location": behaviour[1]}, length=True)
        if behaviour == "html":
            return self.answer(200, HTML, {"Content-Type": "text/html"}, length=True)
        if behaviour == "silent":
            return server.released.wait(20)
        if behaviour == "changed":
            server.body, server.etag = server.other
        body = server.files.get(self.path, server.body)
        headers = {"ETag": server.etag, "Last-Modified": server.date}
        begin = int(re.fullmatch(r"bytes=(\d+)-", asked)[1]) if asked and server.ranges else 0
        if begin and server.conditions and condition not in (server.etag, server.date):
            begin = 0
        if begin and begin >= len(body):
            return self.answer(416, b"", {"Content-Range": f"bytes */{len(body)}"}, length=True)
        if begin:
            headers["Content-Range"] = f"bytes {begin + server.shift}-{len(body) - 1}/{len(body)}"
        headers["Transfer-Encoding" if server.chunked else "Content-Length"] = (
            "chunked" if server.chunked else None if server.no_length else str(len(body) - begin + server.lie))
        self.answer(206 if begin else 200, b"", headers)
        rest = body[begin:]
        cut = {"half": len(rest) // 2, "stall": len(rest) // 2, "byte": 1, "nothing": 0}.get(behaviour, len(rest))
        self.send(rest[:cut], last=cut == len(rest))
        if behaviour == "stall":
            server.released.wait(20)
        if cut < len(rest) or server.no_length or server.lie:
            self.close_connection = True

    def answer(self, status, body, headers=(), length=False):
        self.send_response(status)
        for name, value in {**dict(headers), **({"Content-Length": str(len(body))} if length else {})}.items():
            if value is not None:
                self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)

    def send(self, data, last):
        for start in range(0, len(data), 50_000):
            block = data[start:start + 50_000]
            self.server.sent[self.number] += len(block)  # before it is sent: the client may end its test right after it
            self.wfile.write(b"%x\r\n%s\r\n" % (len(block), block) if self.server.chunked else block)
            self.server.appeared |= bool(self.server.watched) and self.server.watched.exists()
        if last and self.server.chunked:
            self.wfile.write(b"0\r\n\r\n")
        self.wfile.flush()

    def log_message(self, *_):
        pass


class Server(ThreadingHTTPServer):
    """A server for one file.

    Attributes:
        script: what to do with the next requests, in this order; all later requests are served well.
        requests: (path, Range, If-Range) of each request.
        sent: bytes of the file sent for each request.
        watched: a path; `appeared` becomes True if it exists while bytes are sent.
    """

    daemon_threads = True

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.body, self.files, self.etag, self.date = BODY, {}, '"one"', DATE
        self.other = OTHER, '"other"'
        self.ranges = self.conditions = True
        self.chunked = self.no_length = False
        self.lie = self.shift = 0
        self.script, self.requests, self.sent = [], [], []
        self.watched, self.appeared, self.released = None, False, threading.Event()

    @property
    def url(self):
        return f"http://127.0.0.1:{self.server_port}"

    def handle_error(self, *_):  # the client has gone
        pass


@pytest.fixture
def server(monkeypatch):
    for name in ("http_proxy", "https_proxy", "all_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)
    monkeypatch.setattr(fetch_module, "PAUSE", 0)
    server = Server()
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    yield server
    server.released.set()
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.fixture
def file(tmp_path, server):
    server.watched = tmp_path / "raw" / "file.json.gz"
    return server.watched


def get(server, file, **options):
    return fetch(f"{server.url}/file.json.gz", file, show_progress=False, timeout=10, **options)


def refused(message, server, file, error=DataError, **options):
    with pytest.raises(error, match=message) as caught:
        get(server, file, **options)
    assert not file.exists() and "\n" not in str(caught.value)
    return str(caught.value)


def part_of(file):
    return file.with_name(file.name + ".part")


def whole(server, file, body=BODY):
    """Checks that the file is complete, never was there incomplete, and that nothing else is left."""
    assert file.read_bytes() == body
    assert not server.appeared
    assert os.listdir(file.parent) == [file.name]


# One process


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


# Several processes


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


def wait_until(condition):
    end = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.01)


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


# Names and addresses


def test_the_published_addresses():
    base = "https://mcauleylab.ucsd.edu/public_datasets/data"
    assert addresses("toys") == (f"{base}/amazon_v2/categoryFilesSmall/Toys_and_Games_5.json.gz",
                                 f"{base}/amazon_v2/metaFiles2/meta_Toys_and_Games.json.gz")
    assert addresses("cds", full=True)[0] == f"{base}/amazon_v2/categoryFiles/CDs_and_Vinyl.json.gz"
    for full in (False, True):
        assert addresses("games-2023", full=full) == (
            f"{base}/amazon_2023/raw/review_categories/Video_Games.jsonl.gz",
            f"{base}/amazon_2023/raw/meta_categories/meta_Video_Games.jsonl.gz")
    mirrored = "http://host/data/amazon_v2/metaFiles2/meta_Musical_Instruments.json.gz"
    assert addresses("instruments", mirror="http://host/data/")[1] == mirrored
    assert list(NAMES) == [*CATEGORIES, *(f"{name}-2023" for name in CATEGORIES)]


@pytest.mark.parametrize("name, nearest", [
    ("toy", "toys"), ("game-2023", "games-2023"), ("CDs", "cds"), ("../toys", "toys"),
])
def test_an_unknown_name(name, nearest, tmp_path):
    for function in (download, prepare):
        with pytest.raises(ConfigError, match=re.escape(repr(name))) as caught:
            function(name, tmp_path)
        assert f"the nearest is {nearest!r}" in str(caught.value) and ", ".join(NAMES) in str(caught.value)
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("words, fetched", [
    (["toys"], [("toys", "categoryFilesSmall/Toys_and_Games_5.json.gz"),
                ("toys", "metaFiles2/meta_Toys_and_Games.json.gz")]),
    (["cds", "--full"], [("cds", "categoryFiles/CDs_and_Vinyl.json.gz"), ("cds", "metaFiles2/meta_CDs_and_Vinyl.json.gz")]),
    (["games-2023"], [("games-2023", "review_categories/Video_Games.jsonl.gz"),
                      ("games-2023", "meta_categories/meta_Video_Games.jsonl.gz")]),
    (["games", "movies-2023", "--release", "2023"], [
        ("games-2023", "review_categories/Video_Games.jsonl.gz"),
        ("games-2023", "meta_categories/meta_Video_Games.jsonl.gz"),
        ("movies-2023", "review_categories/Movies_and_TV.jsonl.gz"),
        ("movies-2023", "meta_categories/meta_Movies_and_TV.jsonl.gz")]),
], ids=["2018", "full", "2023", "--release"])
def test_the_command_fetches_what_was_named(words, fetched, server, tmp_path, capsys):
    assert main([*words, "--out", str(tmp_path), "--mirror", server.url]) == 0
    paths = [tmp_path / name / "raw" / address.split("/")[1] for name, address in fetched]
    assert capsys.readouterr().out.splitlines() == [str(path) for path in paths]
    assert all(path.read_bytes() == BODY for path in paths)
    asked = [request[0].split("/", 2)[2].removeprefix("raw/") for request in server.requests]
    assert asked == [address for _, address in fetched]


@pytest.mark.parametrize("words, said", [
    (["toys", "toyz"], "'toyz' cannot be downloaded"), (["toys-2023", "--release", "2018"], "belongs to the release 2023"),
    (["toys-2018"], "the nearest is 'toys"), (["toys", "--mirror", "file:///data"], "file:///data/amazon_v2"),
])
def test_a_mistake_gets_one_line(words, said, tmp_path, capsys):
    assert main([*words, "--out", str(tmp_path / "data")]) == 2
    out, err = capsys.readouterr()
    assert out == "" and err.startswith("error: ") and err.count("\n") == 1 and said in err
    assert not (tmp_path / "data").exists()


# On to RecBole


def raw(release):
    """Reviews and metadata of six users and six items, in the schema of a release, as gzip."""
    if release == "2018":
        user, item, rating, stamp, unit = "reviewerID", "asin", "overall", "unixReviewTime", 1
    else:
        user, item, rating, stamp, unit = "user_id", "parent_asin", "rating", "timestamp", 1000
    reviews = [{user: f"u{u}", "asin": f"a{i}", item: f"a{i}", rating: 5.0, stamp: (1510000000 + 86400 * i + u) * unit}
               for u in range(6) for i in range(6)]
    meta = [{item: f"a{i}", "title": f"Thing {i}"} for i in range(6)]
    return [gzip.compress("".join(json.dumps(row) + "\n" for row in rows).encode(), mtime=0) for rows in (reviews, meta)]


def serve(server, name):
    for url, body in zip(addresses(name, mirror=server.url), raw(NAMES[name][0])):
        server.files[url.removeprefix(server.url)] = body


@pytest.fixture
def converter(monkeypatch):
    """Replaces the converter: remembers the calls and writes empty files."""
    calls = []

    def convert(reviews, name, out="dataset", **options):
        calls.append((Path(reviews), name, Path(out), options))
        for kind in KINDS:
            (Path(out) / name / f"{name}.{kind}").touch()

    monkeypatch.setattr("dataset_scripts.convert.convert", convert)
    return calls


@pytest.mark.parametrize("name", ["toys", "movies", "toys-2023", "movies-2023"])
def test_prepare_downloads_and_converts_once(name, server, tmp_path, converter):
    folder = tmp_path / name
    assert prepare(name, tmp_path, server.url, show_progress=False) == folder
    files = [folder / "raw" / url.rsplit("/", 1)[1] for url in addresses(name)]
    (reviews, called, out, options), = converter
    assert (reviews, called, out) == (files[0], name, tmp_path) and options.pop("meta") == files[1]
    assert options.pop("show_progress") is False
    assert options == ({"min_items": 0} if name == "movies" else {})
    assert len(server.requests) == 2
    prepare(name, tmp_path, server.url)
    assert len(server.requests) == 2 and len(converter) == 1
    (folder / f"{name}.item").unlink()  # the raw files are there: they are converted again, but not downloaded again
    prepare(name, tmp_path, server.url)
    assert len(server.requests) == 2 and len(converter) == 2


def test_loading_without_the_option_fetches_nothing(server, tmp_path, monkeypatch):
    monkeypatch.setattr(download_module, "BASE", server.url)
    with pytest.raises(DataError, match=r"1\. download and convert Amazon's Toys_and_Games of 2023:  --download=true"):
        prepare_files(make_config(tmp_path, name="toys-2023"))
    assert server.requests == [] and os.listdir(tmp_path) == []


def test_loading_with_the_option(server, tmp_path, monkeypatch, converter):
    monkeypatch.setattr(download_module, "BASE", server.url)
    config = make_config(tmp_path, name="toys", download="true", show_progress=False)
    prepare_files(config)
    assert all(path.is_file() for path in expected_files(config)) and len(server.requests) == 2
    prepare_files(config)
    assert len(server.requests) == 2 and len(converter) == 1


def test_loading_with_the_option_what_has_no_address(tmp_path):
    with pytest.raises(ConfigError, match="'mini' cannot be downloaded; expected one of toys, cds, games, .*toys-2023"):
        prepare_files(make_config(tmp_path, name="mini", download=True))


@pytest.mark.parametrize("name", ["movies", "toys-2023"])
def test_from_the_server_to_a_data_set(name, server, tmp_path, monkeypatch):
    """`--dataset=NAME --download=true` on an empty folder, with the real converter. The split is that of the files."""
    monkeypatch.setattr(download_module, "BASE", server.url)
    monkeypatch.setitem(amazon.PUBLISHED, "min_items", 0 if name == "toys-2023" else 5000)
    serve(server, name)
    dataset = load_dataset(make_config(tmp_path, name=name, download="true", show_progress=False))
    assert dataset.item_num == 7 and dataset.file_size_list == [24, 3, 3]
    assert sorted(os.listdir(tmp_path / name / "raw")) == [url.rsplit("/", 1)[1] for url in addresses(name)]
    assert {f"{name}.{kind}" for kind in KINDS} < set(os.listdir(tmp_path / name))


def test_the_command_converts(server, tmp_path, capsys):
    serve(server, "movies")
    assert main(["movies", "--convert", "--out", str(tmp_path), "--mirror", server.url]) == 0
    assert capsys.readouterr().out.splitlines()[-1] == str(tmp_path / "movies")
    assert {f"movies.{kind}" for kind in KINDS} < set(os.listdir(tmp_path / "movies"))


def test_what_the_converter_refuses_is_one_line_and_the_download_stays(server, tmp_path, capsys):
    serve(server, "toys")
    for _ in range(2):
        assert main(["toys", "--convert", "--out", str(tmp_path), "--mirror", server.url]) == 2
        err = capsys.readouterr().err
        assert err.splitlines()[-1].startswith("error: 6 items remain") and "Traceback" not in err
    assert len(server.requests) == 2 and os.listdir(tmp_path / "toys") == ["raw"]
