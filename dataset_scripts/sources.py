"""Files of any size and kind: what one is, whether it is whole, what its bytes are.

Formats: JSON lines, CSV, TSV and Parquet; the first three plain, gzip or zstd. All are told by content, not by name.
"""

import csv
import gzip
import hashlib
import json
import os
import re
import sys
import threading
import zlib
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

import duckdb
import numpy as np
import zstandard

from recbole_flr.errors import ConfigError, DataError

FORMATS = ("jsonl", "csv", "tsv", "parquet")
_MAGIC = {  # zstd's files may begin with a frame that is to be skipped
    "gzip": re.compile(rb"\x1f\x8b"), "zstd": re.compile(rb"\x28\xb5\x2f\xfd|[\x50-\x5f]\x2a\x4d\x18"),
}  # fmt: skip
_LINE_FEED = ord("\n")
_COMMANDS = {"gzip": "gzip -t", "zstd": "zstd -t"}
_HEAD = 1 << 20  # bytes that are looked at, or more if a line is longer; but no more than _LONGEST
_LONGEST = 64 << 20
_NICENESS = 5  # of the hash: it gets about a third of what a thread that parses gets


@dataclass
class Source:
    """A file and what it is.

    Attributes:
        path: the file.
        format: `jsonl`, `csv`, `tsv` or `parquet`.
        compression: `none`, `gzip` or `zstd`.
        fields: names of its columns, in their order; of JSON lines those that the first lines have.
        delimiter, quote: of CSV and TSV; quote is `"` or empty.
        types: column -> DuckDB type, of Parquet.
        readable: what DuckDB is to read: `path`, or a copy that it can read.
    """

    path: Path
    format: str
    compression: str
    fields: list
    delimiter: str = ""
    quote: str = '"'
    types: dict = field(default_factory=dict)
    readable: Path = None

    def open(self):
        """A binary stream of the decompressed content of `readable`."""
        compression = self.compression if self.readable == self.path else "none"  # a copy is plain
        if compression == "gzip":
            return gzip.open(self.readable)
        raw = open(self.readable, "rb")
        if compression == "zstd":
            return zstandard.ZstdDecompressor().stream_reader(raw, read_across_frames=True, closefd=True)
        return raw

    def csv_style(self):
        """How Python's csv module reads it."""
        return {"delimiter": self.delimiter, **({"quotechar": self.quote} if self.quote else {"quoting": csv.QUOTE_NONE})}


# ---- recognising -------------------------------------------------------------------------------------------------------


def recognise(path, format="auto", delimiter=None, quote='"'):
    """Looks at the beginning of a file.

    Args:
        path: the file.
        format: one of `FORMATS`, or `auto`.
        delimiter: of CSV; by default the one of `,`, `;`, tab and `|` that is most frequent in the header.
        quote: what quotes a field of CSV and TSV; empty: nothing does.

    Returns:
        Source.

    Raises:
        DataError: no such file, an empty one, or one in an encoding or format that is not read here.
    """
    path = Path(path).absolute()
    if format not in ("auto", *FORMATS):
        raise ConfigError(f"format is {format!r}; expected auto, {', '.join(FORMATS)}")
    if quote and not _is_mark(quote):
        raise ConfigError(f"quote is {quote!r}; expected one ASCII character, or nothing")
    if delimiter is not None and (not _is_mark(delimiter) or delimiter == quote):
        raise ConfigError(f"delimiter is {delimiter!r}; expected one ASCII character, and not the quote")
    head, compression = _head(path)
    if head[:4] == b"PAR1" and format in ("auto", "parquet"):
        return _recognise_parquet(path)
    if format == "parquet":
        raise DataError(f"{path} is no Parquet file: it does not begin with PAR1")
    if head[:2] in (b"\xff\xfe", b"\xfe\xff") or re.match(rb"[^\0]\0[^\0]\0|\0[^\0]\0[^\0]", head):
        raise DataError(f"{path} is UTF-16 text; expected UTF-8: iconv -f UTF-16 -t UTF-8 {path.name} > new file")
    text = head.removeprefix(b"\xef\xbb\xbf")
    if not text.strip():
        raise DataError(f"{path} is empty; expected JSON lines, CSV, TSV or Parquet")
    if format == "auto":
        format = "jsonl" if text.lstrip()[:1] in (b"{", b"[") or _some_json(text) else "csv"
    if format == "jsonl":
        if _is_array(text):
            raise DataError(f"{path} begins with '[', a JSON array; expected one JSON object a line: jq -c '.[]' makes that")
        return Source(path, format, compression, _keys(text), readable=path)
    return _recognise_csv(path, format, compression, text, delimiter, quote)


def _is_mark(text):
    return len(text) == 1 and text.isascii() and text not in "\0\r\n"


def _head(path):
    """The first (decompressed) bytes, at least two lines of them if there are so many; and the compression."""
    try:
        str(path).encode("utf-8")  # DuckDB and the report need it
        if path.exists() and not (path.is_file() or path.is_dir()):
            raise DataError(f"{path} is no regular file, and it is read more than once; write what it gives into a file")
        with open(path, "rb") as raw:
            start = raw.read(4)
            compression = next((name for name, magic in _MAGIC.items() if magic.match(start)), "none")
            raw.seek(0)
            unpack, head, line_ends = _UNPACK[compression](), bytearray(), 0
            while len(head) < _HEAD or (line_ends < 2 and len(head) < _LONGEST):
                data = raw.read(1 << 16)
                if not data:
                    if not unpack.complete:
                        raise EOFError("it ends too early")
                    break
                block = unpack(data)
                head += block
                line_ends += block.count(b"\n")
            return bytes(head), compression
    except (EOFError, zlib.error, zstandard.ZstdError) as error:
        raise _broken(path, compression, error) from error
    except OSError as error:
        raise DataError(f"cannot read {path}: {error.strerror or error}") from error
    except ValueError as error:  # a name that is not UTF-8, or holds a NUL
        raise DataError(f"cannot read {str(path)!r}: {error}; rename it") from error


def _broken(path, compression, what):
    return DataError(f"{path} is a broken {compression} file ({what}); fetch it again ({_COMMANDS[compression]} checks it)")


def broken_parquet(path, error):
    return DataError(f"{path} is a broken Parquet file ({first_line(error)}); fetch it again")


def _objects(text):
    """The JSON objects among the first lines."""
    for line in text.split(b"\n", 100)[:100]:
        if isinstance(row := parse_json(line), dict):
            yield row


def _some_json(text):
    return any(True for _ in _objects(text))


def _is_array(text):
    """Whether it is one JSON array over many lines, or in the first; a broken line may begin with `[` too."""
    first, second, *_ = [*text.lstrip().split(b"\n", 2), b""]
    return re.match(rb"\[\s*(\{|$)", first) is not None and not isinstance(parse_json(second), dict)


def _keys(text):
    keys = {}
    for row in _objects(text):
        keys.update(dict.fromkeys(row))
    return list(keys)


def _recognise_csv(path, format, compression, text, delimiter, quote):
    line = text.split(b"\n")[0].removesuffix(b"\r").decode("utf-8", "replace")
    if delimiter is None:
        delimiter = "\t" if format == "tsv" else max((mark for mark in ",;\t|" if mark != quote), key=line.count)
    source = Source(path, "tsv" if delimiter == "\t" else "csv", compression, [], delimiter, quote, readable=path)
    try:
        with csv_limit():
            source.fields = next(csv.reader([line], **source.csv_style()), [])
    except csv.Error as error:  # of Python 3.10, a NUL
        raise DataError(f"{path}: cannot read the header ({error}); expected the names of the columns") from error
    return source


def _recognise_parquet(path):
    with duckdb.connect() as connection:
        try:
            table = f"read_parquet({literal(unglobbed(path))}, hive_partitioning = false)"
            rows = connection.execute(f"DESCRIBE SELECT * FROM {table}").fetchall()
        except duckdb.Error as error:
            raise broken_parquet(path, error) from error
    types = {row[0]: row[1] for row in rows}
    return Source(path, "parquet", "none", list(types), types=types, readable=path)


def parse_json(line):
    """The value of one line of JSON; None if it is none."""
    try:
        return json.loads(line.decode("utf-8"))
    except (ValueError, RecursionError):  # also of a wrong encoding, and of numbers of absurd length
        return None


def literal(text):
    """`text` as a literal of SQL."""
    return "'" + str(text).replace("'", "''") + "'"


def unglobbed(path):
    """A path as DuckDB is to be given it, which takes `*`, `?` and `[` for a pattern."""
    return "".join(f"[{letter}]" if letter in "*?[" else letter for letter in str(path))


def listed(names):
    """Names of columns for a message; there may be many, and of binary files they are anything."""
    shown = [name if name.isprintable() and len(name) <= 60 else repr(name[:60]) for name in names[:30]]
    return ", ".join(shown) + (f" and {len(names) - 30} more" if len(names) > 30 else "")


@contextmanager
def csv_limit(n_bytes=2**31 - 1):
    """While this is open, Python's csv module reads fields of that size; it is its only setting that is not a reader's."""
    before = csv.field_size_limit(n_bytes)
    try:
        yield
    finally:
        csv.field_size_limit(before)


def first_line(error):
    return str(error).split("\n")[0]


# ---- checking ----------------------------------------------------------------------------------------------------------


class Check(threading.Thread):
    """Reads all bytes of a file beside DuckDB, twice: first it looks whether the file is whole, and counts; then it hashes.

    After `finish`, which raises what was wrong with the file: of its (decompressed) content `line_ends`, how many line feeds
    it has, `ends_open`, whether there is something but white space behind the last one, `steps`, how many line feeds are in
    the first 0, 1, 2, ... times `STEP` bytes (of a file that is not compressed), and `quotes`, how many characters that may
    quote a field (of CSV). The hash, `sha256`, takes longer, and gives way to whatever else there is to do until it is asked
    for; it raises, too, and also if somebody wrote to the file since the first look.
    """

    STEP = 1 << 18

    def __init__(self, source):
        super().__init__(daemon=True)
        self.source, self.line_ends, self.ends_open, self.steps, self.quotes = source, 0, False, [0], 0
        self._mark = ord(source.quote) if source.format in ("csv", "tsv") and source.quote else None
        self._counted, self._digest, self._error, self._version = threading.Event(), hashlib.sha256(), None, None
        self.start()

    def run(self):
        source = self.source
        try:
            unpack = _UNPACK[source.compression]()
            for data in self._blocks(self.STEP if source.compression == "none" else 1 << 16):
                self._count(unpack(data))
            if not unpack.complete:
                raise EOFError("it ends too early")
            self._counted.set()
            _be_nice()
            for data in self._blocks(1 << 20):
                self._digest.update(data)
        except (EOFError, zlib.error, zstandard.ZstdError) as error:
            self._error = _broken(source.path, source.compression, error)
        except OSError as error:
            self._error = DataError(f"cannot read {source.path}: {error.strerror or error}")
        except BaseException as error:  # whatever it is: half a count or half a hash must not pass for a whole one
            self._error = error
        finally:
            self._counted.set()

    def _blocks(self, size):
        """The bytes of the file as it lies there, in blocks of this size; only the last is smaller."""
        with open(self.source.path, "rb") as raw:  # buffered: without, some file systems give less than is asked for
            self._compare(raw)
            while data := raw.read(size):
                yield data
            self._compare(raw)

    def _compare(self, raw):
        """Raises a DataError if the file is another one than before."""
        now = os.fstat(raw.fileno())
        version = now.st_size, now.st_mtime_ns
        if self._version not in (None, version):
            raise DataError(f"{self.source.path} was changed while it was read; run it again when nobody writes there, or on "
                            "a copy")  # fmt: skip
        self._version = version

    def _count(self, data):
        values = np.frombuffer(data, np.uint8)  # numpy counts several times as fast as bytes.count
        ends = int(np.count_nonzero(values == _LINE_FEED))
        self.line_ends += ends
        rest = data[data.rfind(b"\n") + 1 :] if ends else data
        self.ends_open = bool(rest.strip()) or (self.ends_open and not ends)
        if self.source.compression == "none":
            self.steps.append(self.line_ends)
        if self._mark is not None:
            self.quotes += int(np.count_nonzero(values == self._mark))

    def finish(self):
        """Waits until all is counted."""
        self._counted.wait()
        if self._error:
            raise self._error
        return self

    @property
    def sha256(self):
        """Of the file as it lies there, not of what is packed in it; waits for it."""
        self.join()
        self.finish()
        return self._digest.hexdigest()


def _be_nice():
    """This thread gets less of a processor that others want."""
    if sys.platform != "linux":  # there it would be the whole process
        return
    with suppress(OSError):  # a sandbox may forbid it
        os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), os.getpriority(os.PRIO_PROCESS, 0) + _NICENESS)


class _Plain:
    complete = True

    def __call__(self, data):
        return data


class _Packed:
    """A compressed file bit by bit; such files may hold several members or frames, one behind the other."""

    def __init__(self, begin):
        self._begin, self._stream, self.complete = begin, begin(), False

    def __call__(self, data):
        out = []
        while data:
            if self._stream.eof:
                self._stream = self._begin()
            out.append(self._stream.decompress(data))
            data = self._stream.unused_data
        self.complete = self._stream.eof
        return b"".join(out)


_UNPACK = {
    "none": _Plain,
    "gzip": lambda: _Packed(lambda: zlib.decompressobj(wbits=31)),
    "zstd": lambda: _Packed(lambda: zstandard.ZstdDecompressor().decompressobj()),
}
