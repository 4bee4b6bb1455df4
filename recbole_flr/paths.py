"""Names and folders that a user gives: they are checked before anything is read or written."""

import errno
import os
import re
from pathlib import Path

from recbole_flr.errors import CheckpointError, ConfigError, first_line

LOG_FOLDERS = ("log", "log_tensorboard")  # RecBole writes into these folders of the working folder


def check_name(name, option):
    """Refuse a name of a data set that is no plain name of a file.

    Args:
        name (str): of the data set.
        option (str): the option that it came from; the message begins with it.

    Raises:
        ConfigError: the name is empty, `.` or `..`, or has slashes, blanks or NUL.
    """
    if not name or name in (".", "..") or re.search(r"[/\\\s\0]", name):
        raise ConfigError(f"{option} is {name!r}; expected a file name without blanks and slashes" + (
            "; the folder of the data sets is --data_path" if option == "dataset" else ""))


def check_folder(folder, option):
    """Refuse a folder into which no file can be written. The folder need not exist; nothing is made.

    Args:
        folder: the folder.
        option (str): the option that it came from.

    Raises:
        ConfigError: the folder, or the one in which it would be made, is a file or not writable.
    """
    try:
        path = Path(folder).absolute()
        if "\0" in str(path):
            raise ValueError("it holds a NUL")
        while not path.exists() and path != path.parent:
            path = path.parent
        is_folder = path.is_dir()
    except (OSError, ValueError) as error:  # a name that is too long, or has a NUL
        raise ConfigError(f"{option}: found {str(folder)!r}, which cannot be a folder ({first_line(error)})") from error
    if not is_folder:
        raise ConfigError(f"{option}: found {str(folder)!r}, but {path} is a file; expected a folder, or the name of a new one")
    reason = _why_not_writable(path)
    if reason:
        raise ConfigError(f"{option}: found {str(folder)!r}, but {path} is not writable ({reason}); choose another folder")


def _why_not_writable(folder):
    """What the system says when a file is made in a folder; None if it can be made. `os.access` knows too little: root passes."""
    probe = folder / f".recbole_flr-{os.getpid()}.tmp"
    try:
        os.close(os.open(probe, os.O_CREAT | os.O_EXCL | os.O_WRONLY))
        probe.unlink()
    except OSError as error:
        return None if error.errno == errno.EEXIST else error.strerror
    return None


def check_run(path, option):
    """Refuse a path that is no run: neither a folder of one nor a file of weights.

    Args:
        path: given by the user.
        option (str): the option that it came from.

    Raises:
        CheckpointError: says what stands at the path.
    """
    try:
        place = Path(path)
        if place.is_file() and place.suffix != ".safetensors":
            raise CheckpointError(f"{option}: found the file {path}, expected the folder of a run, such as saved/FLR-movies-..., "
                                  "or a .safetensors file in it")
        os.stat(place)
    except (FileNotFoundError, NotADirectoryError):  # whoever reads it says so
        pass
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{option}: found {str(path)!r}, which cannot be a path ({first_line(error)})") from error
