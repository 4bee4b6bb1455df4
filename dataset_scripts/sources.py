"""Raw files: which format, compression and columns a file has.

Formats: JSON lines, CSV, TSV and Parquet; the first three plain, gzip or zstd. The content decides, never the file name.
"""

import csv
import gzip
import json
import re
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import duckdb
import zstandard

from dataset_scripts.compression import BROKEN, broken_file, compression_of, decompressor
from dataset_scripts.sql import literal, unglobbed
from recbole_flr.errors import ConfigError, DataError, first_line

FORMATS = ("jsonl", "csv", "tsv", "parquet")
_HEAD = 1 << 20  # bytes that `recognise` looks at; it reads on, up to _LONGEST_HEAD, until it has two lines
_LONGEST_HEAD = 64 << 20


@dataclass
class Source:
    """A raw file, and how to read it.

    Attributes:
        path: the file.
        format: `jsonl`, `csv`, `tsv` or `parquet`.
        compression: `none`, `gzip` or `zstd`.
        fields: names of the columns, in their order; for JSON lines the keys of the first lines.
        delimiter, quote: for CSV and TSV; quote is one character, or empty if fields are never quoted.
        types: for Parquet: column -> DuckDB type.
        readable: the file that DuckDB reads: `path`, or a plain copy of it.
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
        """Keyword arguments with which Python's csv module reads the file."""
        return {"delimiter": self.delimiter, **({"quotechar": self.quote} if self.quote else {"quoting": csv.QUOTE_NONE})}


# ---- recognising -------------------------------------------------------------------------------------------------------


def recognise(path, format="auto", delimiter=None, quote='"'):
    """Looks at the beginning of a file.

    Args:
        path: the file.
        format: one of `FORMATS`, or `auto`.
        delimiter: for CSV; by default whichever of `,`, `;`, tab and `|` is most frequent in the header.
        quote: the character that quotes a field of CSV and TSV; empty: fields are never quoted.

    Returns:
        Source.

    Raises:
        ConfigError: an unknown format, or a delimiter or quote that is not one ASCII character.
        DataError: the file is missing, empty or broken, or has an encoding or format that cannot be read.
    """
    path = Path(path).absolute()
    if format not in ("auto", *FORMATS):
        raise ConfigError(f"format is {format!r}; expected auto, {', '.join(FORMATS)}")
    if quote and not _is_mark(quote):
        raise ConfigError(f"quote is {quote!r}; expected one ASCII character, or an empty text")
    if delimiter is not None and (not _is_mark(delimiter) or delimiter == quote):
        raise ConfigError(f"delimiter is {delimiter!r}; expected one ASCII character other than the quote")
    head, compression = _head(path)
    if head[:4] == b"PAR1" and format in ("auto", "parquet"):
        return _recognise_parquet(path)
    if format == "parquet":
        raise DataError(f"{path} is not a Parquet file: a Parquet file begins with PAR1")
    if head[:2] in (b"\xff\xfe", b"\xfe\xff") or re.match(rb"[^\0]\0[^\0]\0|\0[^\0]\0[^\0]", head):
        raise DataError(f"{path} is UTF-16 text; expected UTF-8. Convert it: iconv -f UTF-16 -t UTF-8 {path.name} > new_file")
    text = head.removeprefix(b"\xef\xbb\xbf")
    if not text.strip():
        raise DataError(f"{path} is empty; expected JSON lines, CSV, TSV or Parquet")
    if format == "auto":
        format = "jsonl" if text.lstrip()[:1] in (b"{", b"[") or _has_object(text) else "csv"
    if format == "jsonl":
        if _is_array(text):
            raise DataError(f"{path} begins with '[', a JSON array; expected one JSON object a line. Convert it: jq -c '.[]' "
                            f"{path.name} > new_file")  # fmt: skip
        return Source(path, format, compression, _keys(text), readable=path)
    return _recognise_csv(path, format, compression, text, delimiter, quote)


def _is_mark(text):
    return len(text) == 1 and text.isascii() and text not in "\0\r\n"


def _head(path):
    """The first decompressed bytes of a file, at least two lines if the file has them; and the compression."""
    try:
        str(path).encode("utf-8")  # DuckDB and the report need a path in UTF-8
        if path.exists() and not (path.is_file() or path.is_dir()):
            raise DataError(f"{path} is not a regular file, but the conversion reads it several times; save its content to "
                            "a file first")  # fmt: skip
        with open(path, "rb") as raw:
            compression = compression_of(raw.read(4))
            raw.seek(0)
            unpack, head, line_ends = decompressor(compression), bytearray(), 0
            while len(head) < _HEAD or (line_ends < 2 and len(head) < _LONGEST_HEAD):
                data = raw.read(1 << 16)
                if not data:
                    if not unpack.complete:
                        raise EOFError("it ends too early")
                    break
                block = unpack(data)
                head += block
                line_ends += block.count(b"\n")
            return bytes(head), compression
    except BROKEN as error:
        raise broken_file(path, compression, error) from error
    except OSError as error:
        raise DataError(f"cannot read {path}: {error.strerror or error}") from error
    except ValueError as error:  # the name is not UTF-8, or holds a NUL
        raise DataError(f"cannot read {str(path)!r}: {error}; rename it") from error


def broken_parquet(path, error):
    """The DataError for a Parquet file that DuckDB cannot read."""
    return DataError(f"{path} is a broken Parquet file ({first_line(error)}); fetch it again")


def _objects(text):
    """The JSON objects among the first lines."""
    for line in text.split(b"\n", 100)[:100]:
        if isinstance(row := parse_json(line), dict):
            yield row


def _has_object(text):
    return any(True for _ in _objects(text))


def _is_array(text):
    """Whether the file is one JSON array, on one line or over many. A broken line among JSON lines may begin with `[` too."""
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
    except csv.Error as error:  # Python 3.10 refuses a NUL
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
    """The value of one line (bytes) of JSON; None if the line is not valid JSON in UTF-8."""
    try:
        return json.loads(line.decode("utf-8"))
    except (ValueError, RecursionError):  # ValueError: also a wrong encoding, or a number of thousands of digits
        return None


def listed(names):
    """Names of columns for a message: at most 30, and unprintable or long ones shortened (a binary file has such names)."""
    shown = [name if name.isprintable() and len(name) <= 60 else repr(name[:60]) for name in names[:30]]
    return ", ".join(shown) + (f" and {len(names) - 30} more" if len(names) > 30 else "")


@contextmanager
def csv_limit(n_bytes=2**31 - 1):
    """Inside the block, Python's csv module reads fields of up to `n_bytes`. That limit is global, so it is put back."""
    before = csv.field_size_limit(n_bytes)
    try:
        yield
    finally:
        csv.field_size_limit(before)
