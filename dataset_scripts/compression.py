"""Compressed files: how to recognise gzip and zstd by the first bytes, and how to decompress piece by piece."""

import re
import zlib

import zstandard

from recbole_flr.errors import DataError

_MAGIC = {
    "gzip": re.compile(rb"\x1f\x8b"),
    "zstd": re.compile(rb"\x28\xb5\x2f\xfd|[\x50-\x5f]\x2a\x4d\x18"),  # a zstd file may begin with a skippable frame
}
_TEST_COMMANDS = {"gzip": "gzip -t", "zstd": "zstd -t"}
# What a decompressor raises for broken data. `EOFError` is ours: the data ended inside a member or frame.
BROKEN = (EOFError, zlib.error, zstandard.ZstdError)


def compression_of(start):
    """`gzip`, `zstd` or `none`, by the first four bytes of a file."""
    return next((name for name, magic in _MAGIC.items() if magic.match(start)), "none")


def decompressor(compression):
    """A callable: compressed bytes (the next piece of the file) -> decompressed bytes.

    Its attribute `complete` is False while the data has ended inside a gzip member or a zstd frame.
    """
    if compression == "gzip":
        return _Members(lambda: zlib.decompressobj(wbits=31))
    if compression == "zstd":
        return _Members(lambda: zstandard.ZstdDecompressor().decompressobj())
    return _Plain()


def broken_file(path, compression, why):
    """The DataError for a compressed file that is damaged or cut."""
    hint = f"fetch it again ({_TEST_COMMANDS[compression]} checks it)"
    return DataError(f"{path} is a broken {compression} file ({why}); {hint}")


class _Plain:
    complete = True

    def __call__(self, data):
        return data


class _Members:
    """Decompresses a file of several gzip members or zstd frames, one behind the other. `begin` makes a new decompressor."""

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
