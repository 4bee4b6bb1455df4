"""Writes atomic files from numpy arrays: ids that RecBole can read, and lines that are put together as bytes."""

import hashlib
import re

import numpy as np

from recbole_flr.errors import DataError

# What an id may not hold. RecBole splits lists at white space, and reads files with pandas, which interprets quotes. Some readers
# end a line at a control character. A lone surrogate cannot be written as UTF-8.
_UNFIT = re.compile(r'[\s"\x00-\x1f\x7f-\x9f\ud800-\udfff]')
_ENCODED = re.compile(r"%[0-9A-Fa-f]{2}")
_CHUNK = 4 << 20  # bytes of padded lines that are put together at a time
_LARGEST = 2 << 30  # the most bytes of an array of texts


def fit_id(raw):
    """An id in a form that RecBole can read. `urllib.parse.unquote` gives the raw id back.

    Characters that an id may not hold are percent-encoded, as UTF-8. In such ids, and in ids that look percent-encoded,
    `%` is encoded, too.
    """
    if not (_UNFIT.search(raw) or _ENCODED.search(raw)):
        return raw
    return re.sub("%|" + _UNFIT.pattern, lambda match: "".join(f"%{byte:02X}" for byte in match[0].encode("utf-8")), raw)


def as_bytes(texts):
    """Texts (without NUL) -> [texts] bytes of fixed width, UTF-8.

    Raises:
        DataError: one text is so long that the array would not fit into memory.
    """
    encoded = [text.encode("utf-8") for text in texts] or [b""]
    longest = max(encoded, key=len)
    if len(longest) * len(encoded) > _LARGEST:
        found = f"an id has {len(longest):,} bytes, too many beside {len(encoded):,} others"
        raise DataError(f"{found}; it begins with {longest[:40]!r}")
    return np.array(encoded, dtype=np.bytes_)


def seconds(microseconds):
    """Times in microseconds ([R] int64, not negative) -> [R] bytes: seconds, with as many decimals as needed.

    The bytes may hold NULs as padding inside; `write_rows` drops them.
    """
    whole, fraction = np.divmod(microseconds, 10**6)
    whole = whole.astype(np.bytes_)
    if not fraction.any():
        return whole
    digits = (fraction[:, None] // 10 ** np.arange(5, -1, -1)) % 10
    shown = np.cumsum(digits[:, ::-1], axis=1)[:, ::-1] > 0  # from the first digit to the last one that is not 0
    decimals = np.zeros((len(whole), 7), np.uint8)
    decimals[:, 0] = np.where(fraction > 0, ord("."), 0)
    decimals[:, 1:] = np.where(shown, digits + ord("0"), 0)
    width = whole.dtype.itemsize
    return np.concatenate([whole.view(np.uint8).reshape(-1, width), decimals], axis=1).reshape(-1).view(f"S{width + 7}")


def numbers(values):
    """Numbers ([R] float64) -> [R] bytes, as Python's `repr` writes them."""
    distinct, inverse = np.unique(values.view(np.int64), return_inverse=True)  # as int64, to tell 0.0 from -0.0
    return as_bytes(map(repr, distinct.view(np.float64).tolist()))[inverse.reshape(-1)]


def write_rows(path, header, fields, n_rows):
    """Writes a table: a header, then one line for each row, with tabs between the fields.

    Args:
        path: the new file.
        header (str): the first line.
        fields (list of callable): one for each column: slice of rows -> [rows] bytes. NULs in them are padding.
        n_rows: number of rows.

    Returns:
        str: SHA-256 of the file.
    """
    width = sum(field(slice(0, 1)).nbytes + 1 for field in fields) if n_rows else 1
    step = max(1, _CHUNK // width)
    chunks = (slice(begin, min(begin + step, n_rows)) for begin in range(0, n_rows, step))
    return write_batches(path, header, ([field(rows) for field in fields] for rows in chunks))


def write_batches(path, header, batches):
    """Writes a table as `write_rows` does; each batch is a list of columns, [rows] bytes. Returns the SHA-256 of the file."""
    with _Hashed(path) as out:
        out.write(header.encode("utf-8") + b"\n")
        for columns in batches:
            parts = []
            for number, column in enumerate(columns):
                values = np.ascontiguousarray(column)
                end = np.full((len(values), 1), ord("\n" if number == len(columns) - 1 else "\t"), np.uint8)
                parts += [values.view(np.uint8).reshape(len(values), -1), end]
            padded = np.concatenate(parts, axis=1).reshape(-1)
            out.write(padded[padded != 0].tobytes())
    return out.sha256


def write_lines(path, lines):
    """Writes lines of text. Returns the SHA-256 of the file.

    Raises:
        ValueError: a line holds a line end.
    """
    with _Hashed(path) as out:
        for line in lines:
            if "\n" in line or "\r" in line:
                raise ValueError(f"{path.name}: a line end inside the line {line!r}")
            out.write(line.encode("utf-8") + b"\n")
    return out.sha256


class _Hashed:
    """A new file; after the block, `sha256` is its SHA-256."""

    def __init__(self, path):
        self._file, self._digest = open(path, "wb"), hashlib.sha256()

    def __enter__(self):
        return self

    def write(self, data):
        self._digest.update(data)
        self._file.write(data)

    def __exit__(self, *_):
        self._file.close()
        self.sha256 = self._digest.hexdigest()
