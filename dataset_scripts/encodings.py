"""Raw files in another encoding than UTF-8: a copy in UTF-8 that is read in their place."""

import codecs
import gzip
import hashlib
from contextlib import contextmanager
from pathlib import Path

import zstandard

from dataset_scripts.compression import BROKEN, broken_file, compression_of
from recbole_flr.errors import ConfigError, DataError

_BLOCK = 1 << 20  # bytes that are decoded at a time


def check_encoding(name):
    """Raises a ConfigError for an encoding that Python does not know, or that is none of text."""
    try:
        if codecs.lookup(name)._is_text_encoding:
            return
    except (LookupError, ValueError, TypeError):
        pass
    raise ConfigError(f"encoding is {name!r}, which Python does not know; expected such as utf-8, latin-1 or cp1252")


@contextmanager
def in_utf8(path, folder, encoding, originals):
    """Yields the path of a plain copy in UTF-8 of a file; the copy is left to whoever removes the folder.

    Inside the block, a DataError that names the copy names the file instead.

    Args:
        path: the file, plain, gzip or zstd; None: yields None.
        folder (Path): where the copy goes, under the file's own name.
        encoding: of the file.
        originals (dict): gets the SHA-256 of the file: name -> digest.

    Raises:
        DataError: the file cannot be read, or is not in this encoding.
    """
    if path is None:
        yield None
        return
    path = Path(path).absolute()
    place = folder / str(len(originals))
    place.mkdir(parents=True)
    copy, digest = place / path.name, hashlib.sha256()
    compression = "none"
    try:
        with open(path, "rb") as raw:
            compression = compression_of(raw.read(4))
            raw.seek(0)
            while data := raw.read(_BLOCK):
                digest.update(data)
        with _opened(path, compression) as raw, open(copy, "w", encoding="utf-8", newline="") as out:
            decoder = codecs.getincrementaldecoder(encoding)()
            while data := raw.read(_BLOCK):
                out.write(decoder.decode(data))
            out.write(decoder.decode(b"", final=True))
    except UnicodeError as error:
        raise DataError(f"{path} is not {encoding} text ({error}); name its encoding with --encoding") from error
    except BROKEN as error:
        raise broken_file(path, compression, error) from error
    except OSError as error:
        raise DataError(f"cannot read {path}: {error.strerror or error}") from error
    originals[path.name] = digest.hexdigest()
    try:
        yield copy
    except DataError as error:
        raise DataError(str(error).replace(str(copy), str(path))) from error


def _opened(path, compression):
    if compression == "gzip":
        return gzip.open(path)
    raw = open(path, "rb")
    return (
        zstandard.ZstdDecompressor().stream_reader(raw, read_across_frames=True, closefd=True) if compression == "zstd" else raw
    )
