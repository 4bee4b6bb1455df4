"""The processes of a run, as their launcher describes them: `torchrun`, `accelerate launch`, Slurm's `srun`, or the option `nproc`.

They set the environment variables RANK, WORLD_SIZE, LOCAL_RANK, MASTER_ADDR and MASTER_PORT. What the processes tell each other is
in :mod:`recbole_flr.distributed`. This module does not import torch unless there are several processes.
"""

import hashlib
import os
import secrets
import socket
from datetime import timedelta
from functools import cache

from recbole_flr.errors import ConfigError, LostProcess

SAID = "recbole_flr/said"  # keys of the store at MASTER_ADDR:MASTER_PORT


def _number(name, default):
    """A number of the environment.

    Raises:
        ConfigError: it is something else.
    """
    text = os.environ.get(name) or default
    try:
        return int(text)
    except ValueError as error:
        raise ConfigError(f"{name}: found {text!r} in the environment, expected a number; torchrun sets it") from error


def world_size():
    """How many processes the run has on all machines."""
    return _number("WORLD_SIZE", "1")


def asked_for(options):
    """How many processes the options ask for on all machines: `world_size`, or `nproc` if that is null, or -1 as in RecBole."""
    return options["nproc"] if options["world_size"] in (None, -1) else options["world_size"]


def planned(config):
    """On how many processes a run works, on all machines together: those there are, or those that it will start."""
    return world_size() if world_size() > 1 else asked_for(config)


def rank():
    """The number of this process among all, from 0."""
    return _number("RANK", "0")


def local_rank():
    """The number of this process on its machine, from 0."""
    return _number("LOCAL_RANK", "0")


def cores():
    """How many cores this process may use."""
    try:
        return len(os.sched_getaffinity(0))
    except AttributeError:  # Windows, macOS
        return os.cpu_count() or 1


def temporary_name(name):
    """A temporary name that is unique over processes and machines, because several machines may share a folder.

    Args:
        name: of a file or a folder.
    """
    return f"{name}.{socket.gethostname()}.{os.getpid()}.{secrets.token_hex(4)}.tmp"


@cache
def visible_gpus():
    """What CUDA_VISIBLE_DEVICES was at first; None if it was not set. RecBole sets it."""
    return os.environ.get("CUDA_VISIBLE_DEVICES")


def is_main():
    """Whether this process writes the files, the log and the progress bar: the one with rank 0."""
    return rank() == 0


def quiet_torch():
    """Hide the warnings of torch's C++ code, which each process would print. To be called before torch is imported."""
    if world_size() > 1:
        os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")


def check_alone(what):
    """Refuse a command that has no use for several processes.

    Args:
        what (str): the command, such as "a search".

    Raises:
        ConfigError: torchrun or another launcher started several processes.
    """
    if world_size() > 1:
        raise ConfigError(f"WORLD_SIZE: found {world_size()}, so a launcher such as torchrun started several processes, but {what} "
                          "runs in one; start it without the launcher")


def speaks(error):
    """Whether this process prints the message of an error that ended it. All processes together print a message once.

    A process that ends because another one ended prints nothing if that one has said why.

    Args:
        error: what ended the process.
    """
    if world_size() == 1:
        return True
    try:
        from torch.distributed import TCPStore

        host, port = os.environ["MASTER_ADDR"], _number("MASTER_PORT", "")
        store = TCPStore(host, port, is_master=False, timeout=timedelta(seconds=5), wait_for_workers=False)
        start = f"{SAID}/{os.environ.get('TORCHELASTIC_RESTART_COUNT', '0')}"
        is_first = store.add(start, 1) == 1
        if isinstance(error, LostProcess):
            return is_first
        return store.add(f"{start}/{hashlib.sha256(str(error).encode()).hexdigest()}", 1) == 1
    except (ConfigError, KeyError, RuntimeError, ValueError, OSError):  # there is no store (any more)
        return is_main() or isinstance(error, LostProcess)
