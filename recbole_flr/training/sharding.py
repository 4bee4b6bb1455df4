"""Fully sharded data parallelism (FSDP2, torch's `fully_shard`): each process keeps a part of each weight, gradient and moment.

A layer of the backbone is put together right before it is used, and given up right after it. All that is not in a layer
(embeddings, the reasoner) is one group, which is whole during a step. For validation all weights are put together, because the
processes rank batches of different length, each at its own pace.

Checkpoints hold whole tensors. So they are the same for any number of processes, and with or without sharding.
"""

from contextlib import contextmanager

import torch

from recbole_flr import distributed
from recbole_flr.contracts import Thinker
from recbole_flr.errors import ConfigError


def check_sharding(config, model):
    """Refuse models and options that cannot be sharded.

    Raises:
        ConfigError: says why.
    """
    if not isinstance(model, Thinker) or model.language_model() is None:
        raise ConfigError(f"shard: found fsdp, expected none: {config['model']} has no backbone of titles that could be sharded; FLR, "
                          "LatentR3 and FLRMix (with a backbone of titles) have one")
    kinds = {str(p.dtype).removeprefix("torch.") for p in model.parameters() if p.requires_grad}
    if len(kinds) > 1:
        raise ConfigError(f"shard: found fsdp and trained weights in {' and '.join(sorted(kinds))}, expected one precision: say "
                          "--torch_dtype=float32, or --trainable=lora, which trains small matrices alone")
    if config["share_prefixes"]:
        raise ConfigError("shard: found fsdp and share_prefixes, expected --share_prefixes=False: all processes must read their prompts "
                          "in the same number of passes")


def shard(engine, model):
    """Shard a model.

    Args:
        engine: :class:`recbole_flr.training.steps.LossOf` with the model. Its forward must be the only way to a loss.
        model: as :func:`check_sharding` allows it.
    """
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    mesh = init_device_mesh(next(model.parameters()).device.type, (distributed.size(),))
    lm = model.language_model().lm
    names = set(lm._no_split_modules or ())  # the classes of its layers
    for layer in [module for module in lm.modules() if type(module).__name__ in names]:
        fully_shard(layer, mesh=mesh)
    fully_shard(engine, mesh=mesh)
    engine(torch.zeros, 1)  # the first call makes it the root of all layers, and leaves its own weights whole
    engine.reshard()


@contextmanager
def whole_weights(engine, model):
    """Inside the block, each process has all weights, and may use the model at its own pace.

    Args:
        engine, model: after :func:`shard`; otherwise nothing happens.
    """
    from torch.distributed.fsdp import FSDPModule

    parts = [module for module in engine.modules() if isinstance(module, FSDPModule)]
    for part in parts:
        part.set_reshard_after_forward(False, recurse=False)
        part.unshard()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(1)  # so that torch's version counter says that they may have changed
    try:
        yield
    finally:
        trained = {name: parameter.requires_grad for name, parameter in model.named_parameters()}
        for part in parts:
            part.reshard()
            part.set_reshard_after_forward(part is not engine, recurse=False)
        for name, parameter in model.named_parameters():  # a stage may have frozen the whole weights
            parameter.requires_grad_(trained[name])
            if not trained[name]:
                parameter.grad = None


def whole(tensor):
    """A tensor for a checkpoint: if it is sharded, all of it, on the CPU of the process with rank 0 (the others get an empty one)."""
    if distributed.size() == 1:
        return tensor
    from torch.distributed.tensor import DTensor

    if not isinstance(tensor, DTensor):
        return tensor
    found = tensor.full_tensor()
    return found.cpu() if distributed.is_main() else found.new_zeros(0, device="cpu")


def sharded_like(tensor, example):
    """A whole tensor of a checkpoint, sharded as another one is: an example of a model's or an optimizer's tensors."""
    if distributed.size() == 1:
        return tensor
    from torch.distributed.tensor import DTensor, distribute_tensor

    if not isinstance(example, DTensor) or tensor.shape != example.shape:
        return tensor
    return distribute_tensor(tensor.to(example.device), example.device_mesh, example.placements, src_data_rank=None)
