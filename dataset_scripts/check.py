"""Checks a raw file while DuckDB reads it: whether it is whole, how many lines it has, and its SHA-256."""

import codecs
import hashlib
import os
import sys
import threading
from contextlib import suppress

import numpy as np

from dataset_scripts.compression import BROKEN, broken_file, decompressor
from recbole_flr.errors import DataError

_LINE_FEED = ord("\n")
_NICENESS = 5  # of the thread while it hashes: it gets about a third of the processor time that a parsing thread gets


class Check(threading.Thread):
    """Reads a file twice in a thread of its own.

    The first pass decompresses the file, finds damage and counts. DuckDB does not notice a cut zstd file or a wrong gzip
    checksum. The second pass computes the SHA-256 at a lower priority, because nobody needs the hash before the end.

    Attributes, valid after `finish` (all counts are of the decompressed content):
        line_ends: number of line feeds.
        ends_open: whether anything but white space follows the last line feed.
        quotes: number of quote characters, for CSV and TSV with a quote.
        ends_quoted: whether the file ends inside a quoted field, for CSV and TSV with a quote.
        not_utf8: (line, byte) of the first byte that is not UTF-8, the line counted from 1; None without one. For text files.
        steps: line feeds in the first 0, 1, 2, ... times `STEP` bytes, for files that are not compressed.
    """

    STEP = 1 << 18

    def __init__(self, source):
        super().__init__(daemon=True)
        self.source, self.line_ends, self.ends_open, self.steps = source, 0, False, [0]
        self.not_utf8, self._decoder = None, codecs.getincrementaldecoder("utf-8")()
        self._quotes = _Quotes(source) if source.format in ("csv", "tsv") and source.quote else None
        self._counted, self._digest, self._error, self._version = threading.Event(), hashlib.sha256(), None, None
        self.start()

    def run(self):
        source = self.source
        try:
            unpack = decompressor(source.compression)
            for data in self._blocks(self.STEP if source.compression == "none" else 1 << 16):
                self._count(unpack(data))
            if not unpack.complete:
                raise EOFError("it ends too early")
            self._counted.set()
            _be_nice()
            for data in self._blocks(1 << 20):
                self._digest.update(data)
        except BROKEN as error:
            self._error = broken_file(source.path, source.compression, error)
        except OSError as error:
            self._error = DataError(f"cannot read {source.path}: {error.strerror or error}")
        except BaseException as error:  # any failure: half a count or half a hash must not pass for a whole one
            self._error = error
        finally:
            self._counted.set()

    def _blocks(self, size):
        """Yields the bytes of the file, still compressed, in blocks of `size`; only the last is smaller."""
        with open(self.source.path, "rb") as raw:  # buffered, as some file systems return less than was asked for
            self._compare(raw)
            while data := raw.read(size):
                yield data
            self._compare(raw)

    def _compare(self, raw):
        """Raises a DataError if the file has changed since the last call."""
        now = os.fstat(raw.fileno())
        version = now.st_size, now.st_mtime_ns
        if self._version not in (None, version):
            raise DataError(f"{self.source.path} was changed while it was read; run the command again when no other program "
                            "writes to the file, or on a copy")  # fmt: skip
        self._version = version

    def _count(self, data):
        values = np.frombuffer(data, np.uint8)  # numpy counts several times as fast as bytes.count
        ends = int(np.count_nonzero(values == _LINE_FEED))
        if self.not_utf8 is None and self.source.format != "parquet":
            self._look_at_encoding(data)
        self.line_ends += ends
        rest = data[data.rfind(b"\n") + 1 :] if ends else data
        self.ends_open = bool(rest.strip()) or (self.ends_open and not ends)
        if self.source.compression == "none":
            self.steps.append(self.line_ends)
        if self._quotes:
            self._quotes.add(values)

    def _look_at_encoding(self, data):
        if data.isascii() and not self._decoder.getstate()[0]:  # nothing of the last block waits for its end
            return
        try:
            self._decoder.decode(data)
        except UnicodeDecodeError as error:
            self.not_utf8 = self.line_ends + error.object.count(b"\n", 0, error.start) + 1, error.object[error.start]

    def finish(self):
        """Waits for the first pass and returns this object.

        Raises:
            DataError: the file is broken, cannot be read, or was changed meanwhile.
        """
        self._counted.wait()
        if self._error:
            raise self._error
        return self

    @property
    def quotes(self):
        return self._quotes.total if self._quotes else 0

    @property
    def ends_quoted(self):
        return bool(self._quotes) and self._quotes.inside()

    @property
    def sha256(self):
        """SHA-256 of the file itself (not of its decompressed content). Waits for the second pass; raises as `finish`."""
        self.join()
        self.finish()
        return self._digest.hexdigest()


class _Quotes:
    """Follows the quotes of a CSV file, piece by piece, to know whether its end lies inside a quoted field.

    The quotes mean what they mean to Python's csv module. A quote opens a quoted field only at the beginning of a field, and two
    quotes inside a quoted field stand for one. So only runs of an odd number of quotes matter. A run at the beginning of a field
    opens or closes a quoted field. Any other run closes one, or is text of an unquoted field: no quoted field is open after it.
    """

    def __init__(self, source):
        self.total = 0
        self._mark, self._begins = ord(source.quote), np.zeros(256, bool)  # byte -> whether a field begins after it
        self._begins[[ord(mark) for mark in (source.delimiter, "\n", "\r")]] = True
        self._size, self._last = 0, _LINE_FEED  # bytes so far, and the last of them; the first field begins a line
        self._inside = False  # after all runs that have ended
        self._run, self._opens = 0, False  # the run that may go on in the next piece: its length, whether it begins a field

    def add(self, values):
        """`values`: [bytes] uint8, the next piece of the file."""
        if not len(values):
            return
        places = np.flatnonzero(values == self._mark)
        self.total += len(places)
        if self._run and not (len(places) and places[0] == 0):
            self._end_run()
        if len(places):
            first = np.append(0, np.flatnonzero(places[1:] != places[:-1] + 1) + 1)  # places[first]: where the runs begin
            begins = places[first]
            lengths = np.diff(first, append=len(places))
            before = values[begins - 1]
            if begins[0] == 0:
                before[0] = self._last
            opens = self._begins[before]
            if self._size + begins[0] == 3 and before[0] == 0xBF:  # the first field begins after the byte order mark
                opens[0] = True
            if self._run and begins[0] == 0:  # the last run goes on
                lengths[0] += self._run
                opens[0] = self._opens
            self._run = 0
            if places[-1] == len(values) - 1:
                self._run, self._opens = int(lengths[-1]), bool(opens[-1])
                lengths, opens = lengths[:-1], opens[:-1]
            self._end_runs(opens[lengths % 2 == 1])
        self._size, self._last = self._size + len(values), int(values[-1])

    def inside(self):
        """Whether a quoted field is open after all pieces."""
        return (self._opens and not self._inside) if self._run % 2 else self._inside

    def _end_run(self):
        self._inside, self._run = self.inside(), 0

    def _end_runs(self, opens):
        """Runs of an odd length; [runs] bool: whether they are at the beginning of a field."""
        closing = np.flatnonzero(~opens)
        if len(closing):
            self._inside, opens = False, opens[closing[-1] + 1 :]
        self._inside ^= bool(len(opens) % 2)


def _be_nice():
    """Lowers the priority of the current thread."""
    if sys.platform != "linux":  # elsewhere the call would lower the priority of the whole process
        return
    with suppress(OSError):  # a sandbox may forbid it
        os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), os.getpriority(os.PRIO_PROCESS, 0) + _NICENESS)
