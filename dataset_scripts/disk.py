"""How much disk a conversion needs: an estimate before it reads, a closer one before it writes, and refusals."""

import os
import shutil
from pathlib import Path

from dataset_scripts.compression import BROKEN, decompressor
from recbole_flr.errors import DataError
from recbole_flr.files import size_text

_SAMPLE = 1 << 20  # bytes of a file from whose lines the others are estimated
_ROW = 52  # bytes of a review in DuckDB's table, without its ids: measured, see results/scale.md
_IN_ROW = 12  # bytes of an id that DuckDB keeps in the row itself
_LONGEST_ID = 40  # bytes; what an id may take if its length is not known


def estimated_lines(source):
    """Lines of a raw file and its size without compression, from its first bytes: two int. For Parquet, the lines are exact.

    Args:
        source: Source, see `dataset_scripts.sources`.
    """
    path = source.path
    if source.format == "parquet":
        import duckdb

        from dataset_scripts.sql import literal, unglobbed

        with duckdb.connect() as connection:
            query = f"SELECT sum(num_rows)::BIGINT FROM parquet_file_metadata({literal(unglobbed(path))})"
            return connection.execute(query).fetchone()[0] or 0, path.stat().st_size
    try:
        with open(path, "rb") as raw:
            head = raw.read(_SAMPLE)
        plain = decompressor(source.compression)(head)
    except (*BROKEN, OSError):
        return 0, 0  # the reader says what is wrong with the file
    size = path.stat().st_size * len(plain) // max(len(head), 1)
    return size * (plain.count(b"\n") + 1) // max(len(plain), 1), size


def tables(lines, id_bytes=None):
    """Most bytes that DuckDB's table of reviews takes, in memory and on disk together.

    Args:
        lines: of the log.
        id_bytes: mean lengths of the ids of users and items in bytes; None if they are not known.
    """
    lengths = id_bytes or (_LONGEST_ID, _LONGEST_ID)
    return round(lines * (_ROW + sum(length for length in lengths if length > _IN_ROW)))


def samples(n_samples, n_items_of_histories, n_reviews, user_bytes, item_bytes):
    """Bytes of the split files and of the `.inter` file.

    Args:
        n_samples, n_items_of_histories: of all parts together.
        n_reviews: kept reviews.
        user_bytes, item_bytes: mean lengths of the ids.
    """
    time = rating = 14  # with a tab or line end; times may have decimals
    row = user_bytes + item_bytes + time + 2
    return round(n_samples * row + n_items_of_histories * (item_bytes + 1) + n_reviews * (row + rating))


def check(folder, needed, what):
    """Refuses to go on if a disk is too small.

    Args:
        folder: Path where the files will be; it need not exist.
        needed: bytes.
        what (str): the files.

    Raises:
        DataError: fewer bytes are free.
    """
    place = Path(folder).absolute()
    while not place.exists():
        place = place.parent
    free = shutil.disk_usage(place).free
    if free < needed:
        found = f"{what} may need {size_text(needed)} of disk, but {size_text(free)} are free there"
        raise DataError(f"{os.fspath(folder)}: {found}; make room, or choose another --out")
