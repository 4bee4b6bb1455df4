"""Starts the processes of a run on this machine, for RecBole's options `nproc`, `world_size`, `ip`, `port` and `group_offset`.

It gives each process the environment that torchrun would give it. torchrun, accelerate and Slurm start the processes themselves.
"""

import os
import signal
import socket
import sys
import threading
import time
from contextlib import contextmanager
from datetime import timedelta

from recbole_flr import processes
from recbole_flr.errors import AlreadySaid, ConfigError, Interrupted
from recbole_flr.exit_status import one_line

GRACE = 30  # seconds that the processes have after Ctrl-C
AGAIN = 0.5  # seconds after which a process that still runs is told again: it may have been starting


def wants_launch(config):
    """Whether a run has to start its processes itself."""
    return processes.world_size() == 1 and (config["nproc"] > 1 or (config["world_size"] or 1) > 1)


def launch(config, function, *arguments):
    """Call a function in several processes at a time, each of which knows its rank.

    Args:
        config: options `nproc`, `world_size` (null: nproc), `ip`, `port` (null: any free one) and `group_offset`.
        function: of a module, called with `arguments`. Both are pickled by multiprocessing, in memory.

    Returns:
        what the function returned in the process with rank 0; None if that is on another machine.

    Raises:
        AlreadySaid: a process ended with an error, or Ctrl-C. It has printed a message, and the others were stopped.
        Interrupted: Ctrl-C, and no process has printed a message.
    """
    from torch import multiprocessing
    from torch.distributed import TCPStore

    count, world = config["nproc"], processes.asked_for(config)
    is_first = config["group_offset"] == 0
    port = config["port"] or _free_port()
    try:  # here and not in the process with rank 0, so that it outlives each of them
        store = TCPStore(config["ip"], port, is_master=True, timeout=timedelta(seconds=60), wait_for_workers=False) if is_first else None
    except (RuntimeError, OSError) as error:
        raise ConfigError(f"port: found {port}, which cannot be used on {config['ip']}; expected a free port, or null for any") from error
    environment = {
        "WORLD_SIZE": world, "LOCAL_WORLD_SIZE": count, "MASTER_ADDR": config["ip"], "MASTER_PORT": port,
        "TORCHELASTIC_USE_AGENT_STORE": True, "TORCH_CPP_LOG_LEVEL": os.environ.get("TORCH_CPP_LOG_LEVEL", "ERROR"),
        "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS") or max(1, processes.cores() // count),
        "CUDA_VISIBLE_DEVICES": processes.visible_gpus(),  # which RecBole has changed in this process
    }
    answers = multiprocessing.get_context("spawn").SimpleQueue()
    with _environment(environment), _later():  # libraries read it when they are imported, before `_work` is called
        context = multiprocessing.start_processes(
            _work, (config["group_offset"], answers, function, arguments), count, join=False, start_method="spawn"
        )
    try:
        while not context.join():
            pass
    except multiprocessing.ProcessExitedException as error:
        status = error.exit_code if error.exit_code and error.exit_code > 0 else 2
        if error.exit_code is not None and error.exit_code < 0:
            name = signal.Signals(-error.exit_code).name
            print(f"run_recbole_flr: process {error.error_index} of the run was ended by {name}, so the others were stopped; --resume=FOLDER "
                  "goes on from the last epoch that was saved", file=sys.stderr)
        raise AlreadySaid(f"process {error.error_index} of the run ended with an error, which it has printed", status) from None
    except KeyboardInterrupt:
        _interrupt(context.processes)
        if any(process.exitcode == 130 for process in context.processes):
            raise AlreadySaid("interrupted", 130) from None
        how = "--resume=FOLDER goes on from the last epoch that was saved"
        raise Interrupted(f"interrupted; the processes were stopped, and {how}") from None
    finally:
        for process in context.processes:
            if process.is_alive():
                process.kill()
        del store
    return answers.get() if is_first else None


@contextmanager
def _later():
    """Within this context, Ctrl-C waits: here until the end, and in processes that are started until they listen (see `_work`)."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    heard = []
    before = signal.signal(signal.SIGINT, lambda *_: heard.append(True))
    try:
        with _blocked():  # new processes inherit this, but no handler
            yield
    finally:
        signal.signal(signal.SIGINT, before)
    if heard:
        signal.raise_signal(signal.SIGINT)


@contextmanager
def _blocked():
    """Within this context, SIGINT is held back, where the system can do that."""
    if sys.platform == "win32":
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _interrupt(running):
    """Hand Ctrl-C on to processes, and wait for them, at most GRACE seconds. The terminal may have told them already, or not."""
    end = time.monotonic() + GRACE
    while any(process.is_alive() for process in running) and time.monotonic() < end:
        for process in running:
            if process.is_alive() and sys.platform != "win32":
                os.kill(process.pid, signal.SIGINT)
        for process in running:
            process.join(AGAIN)


def _interrupted(*_):
    """What a process does at the first Ctrl-C. It does not hear more: the terminal and the first process may both tell it."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    raise KeyboardInterrupt


@contextmanager
def _environment(values):
    """Within this context, the environment has these values; None for no variable."""
    def put(values):
        for name, value in values.items():
            os.environ.pop(name, None)
            if value is not None:
                os.environ[name] = str(value)

    before = {name: os.environ.get(name) for name in values}
    put(values)
    try:
        yield
    finally:
        put(before)


def _work(local_rank, offset, answers, function, arguments):
    """One of the processes."""
    os.environ.update(RANK=str(offset + local_rank), LOCAL_RANK=str(local_rank))
    with one_line("run_recbole_flr") as status:
        signal.signal(signal.SIGINT, _interrupted)
        if sys.platform != "win32":
            signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})  # see `_later`
        answer = function(*arguments)
    if status.code:
        sys.exit(status.code)
    if offset + local_rank == 0:
        answers.put(answer)


def _free_port():
    """A port that nobody uses now."""
    with socket.socket() as probe:
        probe.bind(("", 0))
        return probe.getsockname()[1]
