"""Checkpoints of several processes: one process writes them, and they hold the random states of all."""

from logging import getLogger
from pathlib import Path

from recbole.utils import init_seed

from recbole_flr.distributed import barrier, gather, gather_json, is_main, rank, size
from recbole_flr.errors import CheckpointError
from recbole_flr.training import checkpoint

OTHERS = "others"  # key of the random states of the ranks above 0, beside those of rank 0


def write_once(path, tensors, meta):
    """Write a checkpoint, on the process with rank 0. All processes go on when it is there."""
    if is_main():
        checkpoint.write(path, tensors, meta)
    barrier()


def check_seen(path):
    """Refuse a folder that not all processes can read.

    Raises:
        CheckpointError: naming the ranks that see no such file.
    """
    blind = [number for number, sees in enumerate(gather_json(Path(path).is_file())) if not sees]
    if blind:
        raise CheckpointError(f"checkpoint_dir: the processes with rank {', '.join(map(str, blind))} see no {path}, which rank 0 has "
                              "written; expected a folder that all machines share")


def random_of_all(generator=None):
    """As :func:`recbole_flr.training.checkpoint.pack_random`, with the states of all processes."""
    tensors, meta = checkpoint.pack_random(generator)
    if size() == 1:
        return tensors, meta
    metas, packed = gather_json(meta), {}
    for name in sorted(tensors):
        for number, state in enumerate(gather(tensors[name])):
            packed[name if number == 0 else f"{name}.rank{number}"] = state
    return packed, {**metas[0], OTHERS: metas[1:]}


def restore_random(tensors, meta, config, generator=None):
    """Put back the random states of this process. A process that the saved run did not have gets a seed of its own.

    Args:
        tensors, meta: from :func:`random_of_all`.
        config: of the run.
        generator: of the loader, whose state is the same on all processes.
    """
    others = meta.get(OTHERS, [])
    if len(others) + 1 != size():
        getLogger().info(f"The run had {len(others) + 1} processes and goes on with {size()}: batches and steps stay the same, but "
                         "dropout, noise and drawn negatives come from other random numbers.")
    checkpoint.unpack_random(tensors, meta, generator)
    if 0 < rank() <= len(others):
        ending = f".rank{rank()}"
        own = {name.removesuffix(ending): state for name, state in tensors.items() if name.endswith(ending)}
        checkpoint.unpack_random(own, others[rank() - 1])
    elif rank():
        init_seed(config["seed"] + rank(), config["reproducibility"])
