"""What the processes of a run tell each other, over torch.distributed: gloo between CPUs, NCCL between GPUs.

With one process each function returns its argument, or does nothing. Each process must call a function as often as the others,
and in the same order.

Convention for losses: each process scales its loss so that the mean over the processes is the loss of the whole batch. So does
DistributedDataParallel with gradients.
"""

import json
import os
from contextlib import contextmanager, suppress
from datetime import timedelta
from functools import cache
from itertools import count

import torch
import torch.distributed as dist

from recbole_flr import processes
from recbole_flr.errors import ConfigError, LostProcess, first_line

PATIENCE = timedelta(minutes=30)  # for a process that does not answer; one that has ended is noticed at once
LONG = timedelta(days=7)  # the same while rank 0 works alone: it may load, download or convert for hours

_runs = count()  # of this process
_waiting = None  # group over gloo of the present run, for those who wait for rank 0 alone
# The groups of all runs. One that goes with the last DistributedDataParallel that uses it waits for its threads while it holds
# Python's lock, for which a thread may be waiting.
_groups = []


def size():
    """How many processes work together now."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def rank():
    """The number of this process among them."""
    return dist.get_rank() if size() > 1 else 0


def is_main():
    """Whether this process writes the files: the one with rank 0."""
    return rank() == 0


@contextmanager
def joined(device):
    """Inside the block, the processes that a launcher has started work together. Nothing happens if there is one.

    A process group that exists already is used and left open.

    Args:
        device: of the models. Tensors on a GPU go over NCCL, those on a CPU over gloo.

    Raises:
        ConfigError: the processes do not find each other, or only some have a GPU.
        LostProcess: another process has ended.
    """
    global _waiting
    if processes.world_size() == 1 or size() > 1:
        yield
        return
    share_threads()
    backend = "cpu:gloo,cuda:nccl" if torch.device(device).type == "cuda" else "gloo"
    try:
        store, own_rank, world = _meeting()
        store = dist.PrefixStore(f"recbole_flr/{next(_runs)}", store)  # what an earlier run of these processes left is not read
        dist.init_process_group(backend, store=store, rank=own_rank, world_size=world, timeout=PATIENCE)
    except (RuntimeError, ValueError) as error:
        raise ConfigError(f"the {processes.world_size()} processes of the run do not find each other ({first_line(error)}); expected "
                          "the environment that torchrun sets: RANK, WORLD_SIZE, MASTER_ADDR, MASTER_PORT") from error
    try:
        kinds = gather_json(torch.device(device).type)
        if len(set(kinds)) > 1:
            raise ConfigError(f"the processes have the devices {', '.join(kinds)}, expected the same for all: start one process for "
                              "each GPU, or say --use_gpu=False")
        with lost_process():
            _waiting = dist.new_group(backend="gloo", timeout=LONG)
            yield
            barrier()  # nobody leaves while another one may still need it
    finally:
        _groups.extend((dist.group.WORLD, _waiting))
        _waiting = None
        dist.destroy_process_group()


@cache
def _meeting():
    """Where the processes meet: a store, the rank of this process, and their number."""
    return next(dist.rendezvous("env://", timeout=PATIENCE))


@contextmanager
def lost_process():
    """Inside the block, an error of torch.distributed about another process is a LostProcess.

    Raises:
        LostProcess: another process has ended, or does not answer.
    """
    try:
        yield
    except RuntimeError as error:
        if size() == 1 or not (isinstance(error, dist.DistError) or "gloo" in str(error).lower()):
            raise
        raise LostProcess(f"one of the {size()} processes of the run has ended or does not answer, so all stop") from error


def share_threads():
    """Give each process of this machine an equal share of its cores, unless OMP_NUM_THREADS says how many."""
    if not os.environ.get("OMP_NUM_THREADS"):
        here = int(os.environ.get("LOCAL_WORLD_SIZE") or 1)
        torch.set_num_threads(max(1, processes.cores() // here))


def barrier():
    """Wait until all processes are here."""
    if size() > 1:
        total(torch.zeros(1))


@contextmanager
def main_first():
    """The process with rank 0 enters the block first; the others wait until it has left the block, at most for the time `LONG`.

    They notice at once if it has ended, or if the block has raised an error there.

    Raises:
        LostProcess: the block has raised an error in the process with rank 0.
    """
    def meet(failed=0.0):
        flag = torch.tensor([failed])
        if size() > 1:
            dist.all_reduce(flag, group=_waiting)
        return bool(flag)

    if not is_main():
        if meet():
            raise LostProcess(f"one of the {size()} processes of the run has ended or does not answer, so all stop")
        yield
        return
    try:
        yield
    except BaseException:
        with suppress(RuntimeError):  # of a process that has ended; what was raised here says more
            meet(failed=1.0)
        raise
    meet()


def total(values):
    """Sum of a tensor over the processes; no gradient."""
    if size() == 1:
        return values
    values = values.detach().clone()
    dist.all_reduce(values)
    return values


def from_first(value):
    """The value of the process with rank 0: anything that JSON can hold."""
    return value if size() == 1 else gather_json(value)[0]


def gather_json(value):
    """The values of all processes, in the order of their ranks: anything that JSON can hold."""
    if size() == 1:
        return [value]
    text = torch.frombuffer(bytearray(json.dumps(value).encode()), dtype=torch.uint8)
    return [json.loads(bytes(each.tolist())) for each in gather(text)]


def gather(values):
    """The tensors of all processes, in the order of their ranks, without gradient. They may differ in the first dimension.

    Args:
        values: [n, ...].

    Returns:
        list of [n_r, ...].
    """
    if size() == 1:
        return [values]
    counts = torch.zeros(size(), dtype=torch.long)
    counts[rank()] = len(values)
    counts = total(counts).tolist()
    padded = values.new_zeros(max(counts), *values.shape[1:])
    padded[:len(values)] = values.detach()
    found = [torch.empty_like(padded) for _ in counts]
    dist.all_gather(found, padded)
    return [each[:count] for each, count in zip(found, counts)]


def gather_in_turns(pieces):
    """The pieces of all processes, where the processes took pieces in turns: number n is of rank n modulo their number.

    Args:
        pieces: list of tensors [n_i, ...] that are alike but for their lengths.

    Returns:
        list of the tensors of all processes, on the CPU.
    """
    if size() == 1:
        return pieces
    lengths = gather(torch.tensor([len(piece) for piece in pieces], dtype=torch.long))
    shapes = gather_json([list(pieces[0].shape[1:]), str(pieces[0].dtype).removeprefix("torch.")] if pieces else None)
    shape, kind = next(each for each in shapes if each)  # a process may have had no piece
    joined_pieces = torch.cat(pieces).cpu() if pieces else torch.zeros(0, *shape, dtype=getattr(torch, kind))
    return in_turns([list(each.split(sizes.tolist())) for each, sizes in zip(gather(joined_pieces), lengths)])


def in_turns(of_rank):
    """Lists of several processes, which took pieces in turns -> one list in the order of the pieces."""
    return [of_rank[number % len(of_rank)][number // len(of_rank)] for number in range(sum(len(each) for each in of_rank))]


class _GatherRows(torch.autograd.Function):
    """Rows of all processes. The gradient of a row is the sum of what all processes have to say about it."""

    @staticmethod
    def forward(ctx, rows):
        found = gather(rows)
        ctx.first = sum(len(each) for each in found[:rank()])
        ctx.count = len(rows)
        return torch.cat(found)

    @staticmethod
    def backward(ctx, gradient):
        return total(gradient)[ctx.first:ctx.first + ctx.count]


def gather_rows(rows):
    """The rows of all processes with their gradient, for a loss that is no mean over rows.

    Args:
        rows: [n, ...], those of this process; the numbers may differ.

    Returns:
        [sum of n, ...], the same on each process.
    """
    return rows if size() == 1 else _GatherRows.apply(rows)


def same_weights(model):
    """Give the parameters of a model the values that they have on the process with rank 0."""
    if size() > 1:
        with torch.no_grad():
            for parameter in model.parameters():
                dist.broadcast(parameter.data, 0)
