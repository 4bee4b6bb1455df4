r"""RecBole's atomic files as plain text: reads columns as they are, escapes titles, writes all files of a folder or none.

An atomic file is a table: fields separated by tabs, no quoting, a header of `name:type` fields
(https://recbole.io/docs/user_guide/data/atomic_files.html). RecBole reads it with pandas, which treats a leading quote as
quoting and words such as `NA` as missing. The functions here return the text as it stands in the file. A title may hold any
character, so tab, newline, carriage return and backslash are written as `\t`, `\n`, `\r` and `\\`.
"""

import os
import re
import secrets
import shutil
from contextlib import contextmanager
from pathlib import Path

from recbole_flr.errors import DataError

try:
    import fcntl
except ImportError:  # Windows: what a killed process leaves stays there
    fcntl = None

_TO_ESCAPED = {"\\": r"\\", "\t": r"\t", "\n": r"\n", "\r": r"\r"}
_FROM_ESCAPED = {escaped: plain for plain, escaped in _TO_ESCAPED.items()}


def escape(text):
    r"""`text` as one field of an atomic file: backslash, tab, newline and CR become `\\`, `\t`, `\n`, `\r`."""
    return re.sub(r"[\\\t\n\r]", lambda match: _TO_ESCAPED[match[0]], text)


def unescape(field):
    """The inverse of `escape`. Other backslash sequences stay as they are, because other programs do not escape."""
    return re.sub(r"\\[\\tnr]", lambda match: _FROM_ESCAPED[match[0]], field)


def header(path, separator="\t", encoding="utf-8"):
    """Reads the names and types of the fields of an atomic file.

    Returns:
        dict[str, str]: name -> type (`token`, `token_seq`, `float`, `float_seq`), in the order of the file.

    Raises:
        DataError: the file is missing or has another encoding, or its header is not a list of distinct `name:type` fields.
    """
    with _lines(path, encoding) as lines:
        return _parse_header(path, next(lines, ""), separator)


def guess_separator(path, encoding="utf-8"):
    """The separator of an atomic file with several columns, as its header shows it: a tab or one of `,;|` and a blank; else None."""
    with _lines(path, encoding) as lines:
        line = next(lines, "")
    for separator in "\t,;| ":
        fields = line.split(separator)
        if len(fields) > 1 and all(re.fullmatch(r"[^:]+:(token|float)(_seq)?", field) for field in fields):
            return separator
    return None


def read_columns(path, fields, separator="\t", encoding="utf-8"):
    """Reads columns of an atomic file as text: no quoting, no missing values, nothing stripped or converted.

    Only LF ends a line; one CR before it is dropped. Empty lines are skipped, as pandas does, so row i here is row i in RecBole.

    Args:
        path: the atomic file.
        fields (iterable of str): names of the columns, without their types.

    Returns:
        dict[str, list[str]]: field -> its value in each row; the fields are in the order of `fields`.

    Raises:
        DataError: as `header`; or a column is missing, or a row has a wrong number of columns.
    """
    fields = list(fields)
    with _lines(path, encoding) as lines:
        types = _parse_header(path, next(lines, ""), separator)
        names = list(types)
        missing = [field for field in fields if field not in types]
        if missing:
            raise DataError(f"{path} has no column {', '.join(map(repr, missing))}; its columns are {', '.join(names)}")
        places = [names.index(field) for field in fields]
        columns = [[] for _ in fields]
        for number, line in enumerate(lines, start=2):
            if not line:
                continue
            row = line.split(separator)
            if len(row) != len(names):
                found = f"{path}, line {number}: {len(row)} columns"
                raise DataError(f"{found}, but the header has {len(names)} ({', '.join(names)})")
            for column, place in zip(columns, places):
                column.append(row[place])
    return dict(zip(fields, columns))


@contextmanager
def staged(folder):
    """Yields an empty folder next to `folder`, and moves its content into `folder` if the block succeeds.

    The content is synced to disk first. A new `folder` appears by one rename. In an existing one the files are replaced one by
    one, and the old ones are put back if that fails; only a kill between two of these steps can leave a mixture. Other files of
    an existing folder stay. If the block raises, nothing is left behind. What a killed process has left is removed the next time.

    Raises:
        DataError: `folder` is a file.
    """
    folder = Path(folder)
    if folder.exists() and not folder.is_dir():
        raise DataError(f"{folder} is a file, but a folder has to be written there; move the file away or choose another place")
    made = [parent for parent in folder.absolute().parents if not parent.exists()]
    # Next to `folder`, so that the rename stays within one file system. Not tempfile.mkdtemp: its folders are private.
    temporary = folder.parent / f".{folder.name}.{secrets.token_hex(6)}.tmp"
    done, lock = False, None
    try:
        temporary.mkdir(parents=True)
        lock = _lock(temporary)
        _remove_left_over(folder)
        yield temporary
        _install(temporary, folder)
        done = True
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
        if lock is not None:
            os.close(lock)
        if not done:
            for parent in made:  # innermost first; stop at one that another process has filled meanwhile
                try:
                    parent.rmdir()
                except OSError:
                    break


def _lock(folder):
    """Locks a folder for as long as this process lives. Returns a descriptor; None if another process has locked it, or where
    folders cannot be locked."""
    if fcntl is None:
        return None
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return descriptor
    except OSError:
        os.close(descriptor)
        return None


def _remove_left_over(folder):
    """Removes the temporary folders that killed processes have left for `folder`: those that nobody locks."""
    left = re.compile(rf"\.{re.escape(folder.name)}\.[0-9a-f]{{12}}\.tmp(\.old)?")
    for path in folder.parent.iterdir():
        if not left.fullmatch(path.name):
            continue
        owner = path.with_name(path.name.removesuffix(".old"))
        try:
            lock = _lock(owner if owner.exists() else path)
        except OSError:  # another process has just removed it
            continue
        if lock is not None:
            shutil.rmtree(path, ignore_errors=True)
            os.close(lock)


def _install(temporary, folder):
    files = sorted(path for path in temporary.rglob("*") if path.is_file())
    for path in [*files, *(path for path in temporary.rglob("*") if path.is_dir()), temporary]:
        _sync(path)
    if not os.path.lexists(folder):
        try:
            os.rename(temporary, folder)
            _sync(folder.parent)
            return
        except OSError:
            if not folder.is_dir():  # if it is a folder now, another process made it: fill that one
                raise
    backups = temporary.with_name(temporary.name + ".old")
    backups.mkdir()
    replaced, added = [], []
    try:
        for number, path in enumerate(files):
            target = folder / path.relative_to(temporary)
            target.parent.mkdir(parents=True, exist_ok=True)
            if target.exists():
                backup = backups / str(number)
                shutil.copy2(target, backup)
                replaced.append((backup, target))
            else:
                added.append(target)
            os.replace(path, target)
    except BaseException:
        for backup, target in replaced:
            os.replace(backup, target)
        for target in added:
            target.unlink(missing_ok=True)
        raise
    finally:
        shutil.rmtree(backups, ignore_errors=True)
    _sync(folder)


def _sync(path):
    try:
        descriptor = os.open(path, os.O_RDONLY)
    except OSError:  # Windows cannot open a folder
        return
    try:
        os.fsync(descriptor)
    except OSError:  # nor sync a descriptor that is open for reading
        pass
    finally:
        os.close(descriptor)


@contextmanager
def _lines(path, encoding):
    """Yields an iterator over the lines of a text file, without their ends. Turns read errors into a DataError."""
    try:
        # newline="\n": by default Python also ends lines at a lone CR, which a title in a file of another program may hold.
        with open(path, encoding=encoding, newline="\n") as handle:
            yield (line.removesuffix("\n").removesuffix("\r") for line in handle)
    except OSError as error:
        raise DataError(f"cannot read {path}: {error.strerror or error}") from error
    except UnicodeDecodeError as error:
        raise DataError(f"{path} is not {encoding} text ({error.reason} at byte {error.start})") from error


def _parse_header(path, line, separator):
    types = {}
    for field in line.removeprefix("\ufeff").split(separator):
        name, colon, kind = field.partition(":")
        if not (name and colon and kind):
            raise DataError(f"{path}: the header field {field!r} is not of the form name:type; is the separator {separator!r}?")
        if name in types:
            raise DataError(f"{path}: the header names the column {name!r} twice")
        types[name] = kind
    return types
