"""Downloads one file by http or https; an interrupted download continues where it stopped.

The file is written to `NAME.part` and renamed when it is complete, so a file with its own name is never incomplete. A later
process can continue the download if the server still has the same version of the file (RFC 9110: Range with If-Range).
`NAME.part.json` says which version that was. Two things are checked: the size that the server states, and that a `.gz` file
begins with gzip's magic number.
"""

import errno
import json
import logging
import os
import re
import shutil
import time
from contextlib import contextmanager
from http.client import HTTPException
from pathlib import Path
from urllib.error import HTTPError, URLError
from urllib.parse import urlsplit
from urllib.request import HTTPRedirectHandler, Request, build_opener

from tqdm import tqdm

from recbole_flr.errors import ConfigError, DataError

try:
    import fcntl
except ImportError:  # Windows has no such locks: two processes that download the same file are not noticed there
    fcntl = None

_log = logging.getLogger(__name__)

PAUSE = 1.0  # seconds before the second attempt; doubled before each further one
BLOCK = 1 << 18  # bytes
GZIP = b"\x1f\x8b"


def fetch(url, path, *, attempts=5, timeout=30, show_progress=True, advice=""):
    """Downloads a file, unless it is there already. The file appears under its name only when it is complete.

    Args:
        url: http or https.
        path: where the file goes; missing folders are made. Until it is complete, its bytes are in `path.part`.
        attempts: give up after this many failures in a row. A failed attempt that brought new bytes counts as the first.
        timeout: seconds without a byte after which an attempt fails.
        show_progress: show a progress bar on stderr, in bytes.
        advice: text for the end of the error message: what else a user can do.

    Returns:
        Path: `path`.

    Raises:
        ConfigError: the address is neither http nor https.
        DataError: the download failed, the content is not what the name says, or the disk is full.
    """
    path = Path(path)
    if urlsplit(url).scheme not in ("http", "https"):
        raise ConfigError(f"found the address {url!r}, expected one that begins with http:// or https://")
    if path.is_file():
        return path
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with _Part(path) as part:
            if not path.is_file():  # else another process has just finished it
                part.load()
                _complete(url, path, part, attempts, timeout, show_progress, advice)
                part.publish(path)
    except OSError as error:  # an error of the disk: errors of the network have become _Failed
        raise DataError(f"cannot write {error.filename or path}: {error.strerror or error}") from error
    return path


class _Failed(Exception):
    """An attempt that did not complete the file. `again`: whether another attempt may help."""

    def __init__(self, why, again=True):
        super().__init__(why)
        self.again = again


class _Part:
    """The bytes of a file that have arrived (`NAME.part`), and their version on the server (`NAME.part.json`).

    Attributes:
        validator (str or None): ETag or date of that version; without one the download cannot be continued.
        size (int or None): bytes of the whole file, if the server has stated it.
    """

    def __init__(self, target):
        self.path, self.note = (target.with_name(target.name + end) for end in (".part", ".part.json"))
        self.validator = self.size = None

    def __enter__(self):
        self.handle = open(self.path, "ab", buffering=0)  # no buffer: every byte that counts as kept survives a kill
        try:
            if fcntl:
                fcntl.flock(self.handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            self.handle.close()
            advice = "run the command again when that process has ended"
            raise DataError(f"another process is writing {self.path}; {advice}") from None
        except OSError:  # a file system without locks
            pass
        return self

    def __exit__(self, *_):
        if not self.handle.closed and not self.have:
            for path in (self.path, self.note):
                path.unlink(missing_ok=True)
        self.handle.close()

    @property
    def have(self):
        """Bytes that have arrived."""
        return os.fstat(self.handle.fileno()).st_size

    def load(self):
        """Continues what an earlier process has left, if its version is known; else forgets it."""
        try:
            note = json.loads(self.note.read_text(encoding="utf-8"))
            self.validator, self.size = note["validator"], note["size"]
        except (OSError, ValueError, KeyError, TypeError):
            pass
        if self.have and not self.validator:
            self.restart(None, None)

    def restart(self, validator, size):
        """Forgets all bytes and notes the version that comes now. In this order: a kill in between must not mix two versions."""
        self.handle.truncate(0)
        self.validator, self.size = validator, size
        self.note.write_text(json.dumps({"validator": validator, "size": size}), encoding="utf-8")

    def write(self, block):
        try:
            while block:
                block = block[self.handle.write(block):]
        except OSError as error:
            if error.errno != errno.ENOSPC:
                raise
            raise self.no_space() from error

    def no_space(self):
        """The DataError for a full disk."""
        wanted = "more" if self.size is None else f"{self.size - self.have:,} more bytes"
        free = shutil.disk_usage(self.path.parent).free
        return DataError(f"no space for {self.path}: {wanted} are needed, {free:,} bytes are free on its disk; free some space "
                         f"and run the same command again, it continues after the {self.have:,} bytes that are there")

    def publish(self, path):
        """Gives the complete file its name."""
        os.fsync(self.handle.fileno())
        self.handle.close()  # Windows renames no open file
        os.replace(self.path, path)
        self.note.unlink(missing_ok=True)


class _Redirects(HTTPRedirectHandler):
    """Follows a redirect only if the scheme stays the same, or changes from http to https."""

    def redirect_request(self, req, fp, code, msg, headers, newurl):
        if urlsplit(newurl).scheme not in (urlsplit(req.full_url).scheme, "https"):
            raise HTTPError(req.full_url, code, f"and redirects to {newurl}, which is refused", headers, fp)
        return super().redirect_request(req, fp, code, msg, headers, newurl)


@contextmanager
def _network():
    """Turns errors of the network and of the server into _Failed."""
    try:
        yield
    except HTTPError as error:
        error.close()
        again = error.code >= 500 or error.code in (408, 429)
        raise _Failed(f"the server answers {error.code} {error.reason}", again) from error
    except URLError as error:
        raise _Failed(str(error.reason)) from error
    except (OSError, HTTPException) as error:
        raise _Failed(str(error) or type(error).__name__) from error


def _complete(url, path, part, attempts, timeout, show_progress, advice):
    """Sends requests until the part is complete. Raises a DataError when another attempt would not help."""
    tried = failed = 0
    most = part.have
    while part.size is None or part.have != part.size:
        tried += 1
        try:
            _request(url, path, part, timeout, show_progress)
        except _Failed as error:
            if part.have and not part.validator:  # these bytes cannot be continued
                part.restart(None, None)
            failed = 1 if part.have > most else failed + 1
            most = max(most, part.have)
            if error.again and failed < attempts:
                wait = PAUSE * 2 ** (failed - 1)
                _log.info("%s: %s; again in %g s", path.name, error, wait)
                time.sleep(wait)
                continue
            kept = f"{part.have:,} bytes are kept in {part.path}" if part.have else "nothing is kept"
            raise DataError(
                f"could not download {url} (attempts: {tried}; the last error: {error}; {kept}). Run the same command "
                f"again later{', it continues from there' * bool(part.have)}; or download the file with a browser or curl and "
                f"save it as {path}{advice}"
            ) from error


def _request(url, path, part, timeout, show_progress):
    """Sends one request for the missing bytes.

    Raises:
        _Failed: the part is still not complete.
    """
    # identity: a server that compresses the file again, or decompresses it, would send other bytes.
    headers = {"User-Agent": "recbole_flr", "Accept-Encoding": "identity"}
    if part.have:
        headers.update({"Range": f"bytes={part.have}-", "If-Range": part.validator})
    try:
        with _network():
            response = build_opener(_Redirects).open(Request(url, headers=headers), timeout=timeout)
    except _Failed as failed:
        answer = failed.__cause__
        if not part.have or not isinstance(answer, HTTPError) or answer.code != 416:
            raise
        if answer.headers.get("Content-Range") == f"bytes */{part.have}" and part.size is None:
            part.size = part.have  # the part was complete
            return
        part.restart(None, None)
        found = "the bytes that were kept are not the beginning of the server's file"
        raise _Failed(f"{found}; the next attempt starts again") from failed
    with response:
        _accept(response, path, part)
        if part.size is not None and part.size - part.have > shutil.disk_usage(path.parent).free:
            raise part.no_space()
        with tqdm(desc=path.name, total=part.size, initial=part.have, unit="B", unit_scale=True, unit_divisor=1024,
                  disable=not show_progress) as bar:  # fmt: skip
            while block := _read(response.read1, BLOCK):
                part.write(block)
                bar.update(len(block))
    if part.size is None:  # a chunked answer: http.client has seen its end
        part.size = part.have
    if part.have > part.size:
        part.restart(None, None)
        raise _Failed("the server sent more bytes than it had announced")
    if part.have < part.size:
        raise _Failed(f"the connection ended after {part.have:,} of {part.size:,} bytes")


def _accept(response, path, part):
    """Prepares the part for the body of an answer: its next bytes, or a new beginning."""
    etag, date = response.headers["ETag"], response.headers["Last-Modified"]
    validator = etag if etag and not etag.startswith("W/") else date  # If-Range does not allow weak ones (RFC 9110, 13.1.5)
    if response.status == 206 and part.have:
        place = re.fullmatch(r"bytes (\d+)-\d+/(\d+)", response.headers.get("Content-Range", ""))
        first, size = map(int, place.groups()) if place else (None, None)
        if first == part.have and part.size in (None, size) and validator in (None, part.validator):
            part.size = size
            return
        part.restart(None, None)
        raise _Failed("the file on the server has changed; the next attempt starts from its beginning")
    if response.status != 200:
        raise _Failed(f"the server answers {response.status} {response.reason}")
    size = response.length
    if size is None and not response.chunked:
        raise _Failed("the server does not say how long the file is, so a cut would not be noticed", False)
    # Look at the first bytes before anything is thrown away: a proxy's login page must not cost the bytes so far.
    start = _read(response.read, 2)
    if len(start) < (2 if size is None else min(size, 2)):
        raise _Failed("the connection ended before the first bytes")
    if path.suffix == ".gz" and start != GZIP:
        kind = response.headers.get("Content-Type", "something")
        raise _Failed(f"the server sends {kind}, which is not a gzip file; perhaps a login page or a notice", False)
    part.restart(validator, size)
    part.write(start)


def _read(method, count):
    with _network():
        return method(count)
