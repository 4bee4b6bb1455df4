"""The log of a run: a file with everything, and a console with what a person wants to see."""

import logging
import os
import re
import sys
import threading
import warnings
from contextlib import contextmanager, suppress
from pathlib import Path

from colorama.ansitowin32 import StreamWrapper
from recbole.trainer import trainer as recbole_trainer
from recbole.utils import init_logger

from recbole_flr import processes
from recbole_flr.errors import printable
from recbole_flr.files import disk_error, writing

FILE_ONLY = {"file_only": True}  # extra= of a record that only the log file gets
_handlers = []  # of the run in progress
_state = {"shared": False, "quiet": False}  # whether the next runs share the open log; whether the console shows warnings only
_COLOUR = re.compile(r"(\x1b\[[0-9;]*m)")  # RecBole colours parts of its lines


def open_log(config):
    """RecBole's `init_logger`, so that each run of a process has its own file (RecBole's second run would write to none).

    Of several processes the one with rank 0 writes the log. Handlers that others installed stay. Records with `extra=FILE_ONLY` do
    not reach the console. Within :func:`shared_log` this does nothing.
    """
    if _state["shared"]:
        return
    root = logging.getLogger()
    if not processes.is_main():  # the process with rank 0 writes the log
        root.addHandler(logging.NullHandler())
        return
    for handler in _handlers:
        root.removeHandler(handler)
        with suppress(OSError):  # what a full disk refused stays refused
            handler.close()
    others, root.handlers = root.handlers, []
    streams = sys.stdout, sys.stderr
    with writing("log"):
        init_logger(config)
    if isinstance(streams[1], StreamWrapper):  # each call wraps them once more, and a thousand wrappers are too deep a stack
        sys.stdout, sys.stderr = streams
    _handlers[:] = root.handlers
    root.handlers = others + root.handlers
    for handler in _handlers:
        handler.addFilter(_make_printable)
        if isinstance(handler, logging.FileHandler):
            _use_new_file(handler)
            handler.handleError = lambda record, file=handler: _refuse_disk(file)
        else:
            handler.addFilter(_for_console)


def _make_printable(record):
    """Show control characters of a message as escapes, but RecBole's colours, line ends and tabs as they are."""
    text = record.getMessage()
    record.msg = "".join(part if _COLOUR.fullmatch(part) else printable(part, lines=True) for part in _COLOUR.split(text))
    record.args = ()
    return True


def _refuse_disk(handler):
    """Called when a record cannot be written. `logging` would print a traceback and go on."""
    error = sys.exc_info()[1]
    if not isinstance(error, OSError):
        raise error
    raise disk_error(handler.baseFilename, error.strerror or str(error)) from error


def _silence_tensorboard(args, print_others=threading.excepthook):
    """Tensorboard's thread hands its error on to whoever writes next, so its traceback is not printed as well."""
    if type(args.thread).__module__.split(".")[0] != "tensorboard":
        print_others(args)


class Curves:
    """Tensorboard's writer. It writes in a thread of its own; here a full disk is a DiskError, at the latest when a stage ends.

    Args:
        writer: torch's SummaryWriter.
    """

    def __init__(self, writer):
        self.writer, self.folder = writer, writer.log_dir
        threading.excepthook = _silence_tensorboard

    def _call(self, name, *args, **kwargs):
        with writing(self.folder):
            getattr(self.writer, name)(*args, **kwargs)

    def add_scalar(self, *args, **kwargs):
        """As SummaryWriter's."""
        self._call("add_scalar", *args, **kwargs)

    def add_hparams(self, *args, **kwargs):
        """As SummaryWriter's. It makes a second file."""
        self._call("add_hparams", *args, **kwargs)

    def flush(self):
        """Wait until everything is on the disk."""
        self._call("flush")

    def close(self):
        """Flush, and close the file."""
        self._call("close")


class Silent:
    """Stands in for tensorboard's writer and writes nothing."""

    def add_scalar(self, *args, **kwargs):
        """Does nothing."""

    add_hparams = flush = close = add_scalar


@contextmanager
def no_curves():
    """Within this context, RecBole's trainers get a tensorboard that writes nothing."""
    before, recbole_trainer.get_tensorboard = recbole_trainer.get_tensorboard, lambda logger: Silent()
    try:
        yield
    finally:
        recbole_trainer.get_tensorboard = before


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
        warnings.filterwarnings("ignore", message="find_unused_parameters=True was specified")
        yield
