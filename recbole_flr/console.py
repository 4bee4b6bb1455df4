"""The log of a run: a file with everything, and a console with what a person wants to see."""

import logging
import os
import warnings
from contextlib import contextmanager
from pathlib import Path

from recbole.utils import init_logger

FILE_ONLY = {"file_only": True}  # extra= of a record that only the log file gets
_handlers = []  # of the run in progress
_state = {"shared": False, "quiet": False}  # whether the next runs share the open log; whether the console shows warnings only


def open_log(config):
    """RecBole's `init_logger`, so that each run of a process has its own file (RecBole's second run would write to none).

    Handlers that others installed stay. Records with `extra=FILE_ONLY` do not reach the console. Within :func:`shared_log` this
    does nothing.
    """
    if _state["shared"]:
        return
    root = logging.getLogger()
    for handler in _handlers:
        root.removeHandler(handler)
        handler.close()
    others, root.handlers = root.handlers, []
    init_logger(config)
    _handlers[:] = root.handlers
    root.handlers = others + root.handlers
    for handler in _handlers:
        if isinstance(handler, logging.FileHandler):
            _use_new_file(handler)
        else:
            handler.addFilter(_for_console)


def _for_console(record):
    """Whether a record is for the console: not the long ones, and not what RecBole's data package notes about its loaders."""
    routine = record.levelno <= logging.INFO and Path(record.pathname).parts[-3:-1] == ("recbole", "data")
    unwanted = _state["quiet"] and record.levelno <= logging.INFO
    return not (routine or unwanted or vars(record).get("file_only"))


@contextmanager
def _set(name):
    """One of the states is true within this context."""
    before, _state[name] = _state[name], True
    try:
        yield
    finally:
        _state[name] = before


@contextmanager
def shared_log(config):
    """Open a log in which all runs within this context write."""
    open_log(config)
    with _set("shared"):
        yield


def quiet_console():
    """Within this context the console shows warnings and errors only. The log file gets everything."""
    return _set("quiet")


def log_file():
    """Path of the run's log file; None before the first run."""
    return next((handler.baseFilename for handler in _handlers if isinstance(handler, logging.FileHandler)), None)


def _use_new_file(handler):
    """A run of the same options in the same second has the same file name: number the later one."""
    path = Path(handler.baseFilename)
    if not path.stat().st_size:
        return
    handler.close()
    for number in range(2, 1000):
        numbered = path.with_name(f"{path.stem}-{number}{path.suffix}")
        if not numbered.exists():
            handler.baseFilename = os.fspath(numbered)
            return


@contextmanager
def no_foreign_warnings():
    """Hide the warnings about RecBole's use of pandas: a user can do nothing about them."""
    with warnings.catch_warnings():
        for category in (FutureWarning, DeprecationWarning, UserWarning):
            warnings.filterwarnings("ignore", category=category, module=r"recbole\.")
        warnings.filterwarnings("ignore", category=FutureWarning, message=".*inplace method.*")
        yield
