"""The processes that share a search: which of them are alive, and whether the disk has space for them."""

import os
import socket
from datetime import datetime, timedelta

import psutil

from recbole_flr.errors import DiskError


def says_disk_is_full(error):
    """Whether an error, or one that caused it, says that the disk is full or refuses a file."""
    while error is not None:
        if isinstance(error, DiskError) or "No space left" in str(error):
            return True
        error = error.__cause__
    return False


def this_process():
    """What identifies this process on its machine. Process ids are used again, so the time of the start belongs to it."""
    return {"host": socket.gethostname(), "pid": os.getpid(), "started": psutil.Process().create_time()}


def owner_of(trial):
    """The process of a trial in words."""
    owner = trial.user_attrs.get("process")
    return f"process {owner['pid']} on {owner['host']}" if owner else "its process"


def is_lost(trial):
    """Whether the process of a running trial has ended. A process of another machine counts as alive."""
    owner = trial.user_attrs.get("process")
    if owner is None:  # between the first two steps of a trial
        return datetime.now() - trial.datetime_start > timedelta(minutes=1)
    if owner["host"] != socket.gethostname():
        return False
    try:
        return abs(psutil.Process(owner["pid"]).create_time() - owner["started"]) > 1
    except psutil.NoSuchProcess:
        return True
