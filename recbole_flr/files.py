"""Files and folders that a run writes: each is whole or not there, and a full disk gets one clear error."""

import json
import os
import shutil
from contextlib import contextmanager, suppress
from pathlib import Path

from recbole_flr.errors import DiskError
from recbole_flr.processes import temporary_name


@contextmanager
def writing(path, needed=None):
    """Inside the block, an error of the system, such as that of a full disk, is a DiskError.

    Args:
        path: file or folder that is written.
        needed: bytes that the file needs, if that is known.

    Raises:
        DiskError: says which path, how much space it needs, and how much is free.
    """
    try:
        yield
    except OSError as error:
        raise disk_error(path, error.strerror or str(error), needed) from error


def disk_error(path, reason, needed=None):
    """The DiskError for a path that cannot be written.

    Args:
        path: of the file or folder.
        reason (str): what the system says.
        needed: bytes that the file needs; None if that is not known.
    """
    place = Path(path).absolute()
    while not place.exists() and place != place.parent:
        place = place.parent
    try:
        free = f"{size_text(shutil.disk_usage(place).free)} are free there"
    except OSError:
        free = "the free space there is not known"
    wanted = f"it needs {size_text(needed)}, " if needed is not None else ""
    return DiskError(f"cannot write {os.fspath(path)}: {reason}; {wanted}{free}. Make room or choose another place")


def size_text(number):
    """A number of bytes as text: `512 bytes`, `1.5 MB`."""
    for unit, scale in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if number >= scale:
            return f"{number / scale:.1f} {unit}"
    return f"{number} bytes"


@contextmanager
def new_file(path, needed=None):
    """Yield a temporary name; when the block ends, that file takes the place of `path`. If the block fails, nothing is left.

    A kill at any moment leaves the old file or the new one, both whole. The file's mode is that of any new file (the umask's).

    Args:
        path: file to write.
        needed: bytes that the new file needs, if that is known.

    Raises:
        DiskError: the disk is full, or refuses the file.
    """
    temporary = Path(f"{path}.tmp")
    try:
        with writing(path, needed):
            temporary.unlink(missing_ok=True)
            with open(temporary, "wb") as file:
                mode = os.fstat(file.fileno()).st_mode
            yield temporary
            os.chmod(temporary, mode)  # safetensors makes files that only their owner can read
            with open(temporary, "rb") as file:
                os.fsync(file.fileno())
            os.replace(temporary, path)
    except BaseException:
        try:
            temporary.unlink(missing_ok=True)
        except OSError:  # the first error says more
            pass
        raise


@contextmanager
def new_folder(path, record):
    """Yield a new empty folder; when the block ends, it takes the place of `path`. If the block fails, it is removed.

    A folder that was at `path` is removed at the end, and put back if the new one cannot take its place; a kill between the two can
    leave it under another name. Several processes may make the same folder at the same time: then the folder of one of them stays.

    Args:
        path: folder to write. Its parents are made.
        record: name of a file that the block writes into the folder. Only a complete folder has it.

    Raises:
        OSError: the folder cannot be written.
    """
    path = Path(path)
    temporary, old = (path.with_name(temporary_name(f".{path.name}{kind}")) for kind in ("", ".old"))
    try:
        temporary.mkdir(parents=True)
        yield temporary
        with suppress(FileNotFoundError):  # there is none, or another process has moved it
            os.rename(path, old)
        try:
            os.rename(temporary, path)
        except BaseException as error:
            if not (path / record).is_file():  # no other process was faster
                with suppress(OSError):
                    os.rename(old, path)
                raise
            if not isinstance(error, OSError):
                raise
        shutil.rmtree(old, ignore_errors=True)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def write_json(path, value):
    """Write JSON; see :func:`new_file`."""
    text = json.dumps(value, indent=1, ensure_ascii=False).encode("utf-8")
    with new_file(path, len(text)) as temporary:
        temporary.write_bytes(text)


def link(path, name):
    """Let `name` be another name of the file at `path`, in one step; where there are no links, a copy."""
    if os.path.exists(name) and os.path.samefile(path, name):
        return
    with new_file(name, os.path.getsize(path)) as temporary:
        temporary.unlink()
        try:
            os.link(path, temporary)
        except OSError:
            shutil.copyfile(path, temporary)
