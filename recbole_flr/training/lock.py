"""One process writes the folder of a run at a time. What is locked is its `run.json`, which does not change."""

from pathlib import Path

from recbole_flr.errors import CheckpointError
from recbole_flr.training.checkpoint import CONFIG

try:
    import fcntl
except ImportError:  # Windows: folders are not locked there
    fcntl = None


class FolderLock:
    """A lock on the folder of a run, which :meth:`take` locks within a `with` block, and which is given back at the block's end.

    The system gives it back too when the process ends, however it ends.
    """

    def __init__(self):
        self._file, self._in_use = None, False

    def take(self, folder):
        """Lock a folder. Nothing happens outside of a `with` block, if this lock holds the folder already, or where the file
        system has no locks.

        Raises:
            CheckpointError: if another process is writing to the folder.
        """
        if fcntl is None or not self._in_use or self._file is not None:
            return
        try:
            file = open(Path(folder) / CONFIG, "rb")
        except OSError:
            return
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            file.close()
            raise CheckpointError(
                f"the run in {folder} is in progress in another process; wait for its end, or stop it"
            ) from error
        except OSError:
            file.close()
            return
        self._file = file

    def __enter__(self):
        self._in_use = True
        return self

    def __exit__(self, *_):
        self._in_use = False
        if self._file is not None:
            self._file.close()
            self._file = None


def is_in_progress(folder):
    """Whether a process is writing to the folder of a run."""
    with FolderLock() as lock:
        try:
            lock.take(folder)
        except CheckpointError:
            return True
    return False
