"""For the tests of downloads: a small local server of one file that misbehaves on request, and a client for that file.

conftest.py has the fixtures: `server`, which runs, and `file`, where its file goes.
"""

import gzip
import os
import random
import re
import threading
import time
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from dataset_scripts.fetch import fetch
from recbole_flr.errors import DataError

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


@contextmanager
def serving():
    """Runs a Server on a free port, in a thread of its own, until the end of the `with` block."""
    server = Server()
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    try:
        yield server
    finally:
        server.released.set()
        server.shutdown()
        thread.join()
        server.server_close()


def get(server, file, **options):
    """Downloads the server's file."""
    return fetch(f"{server.url}/file.json.gz", file, show_progress=False, timeout=10, **options)


def refused(message, server, file, error=DataError, **options):
    """Checks that the download fails with an error of one line and leaves no file. Returns the message."""
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


def wait_until(condition):
    end = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.01)
