"""A device that no machine needs to have, for tests that a model keeps its tensors together as a GPU demands.

A :class:`FarTensor` says that it is on the device `FAR`, and holds a tensor on the CPU with its numbers. Each operator runs on that
tensor. It raises an error if it gets tensors of both devices, as torch does for a GPU. `FAR` is torch's `meta`, because this is the
only device besides the CPU that every build of torch knows.

Not covered: kernels that only a GPU has, precisions, and the random numbers of a GPU.
"""

import contextlib

import pytest
import torch
from recbole.config import Config
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

FAR = torch.device("meta")
MAY_MIX = ("aten::copy_", "aten::_to_copy")  # between devices
NEAR_INDEX = ("aten::index", "aten::index_put_", "aten::_index_put_impl_", "aten::index_put")  # a far tensor takes an index of the CPU
TO_PYTHON = ("aten::_local_scalar_dense", "aten::equal", "aten::is_nonzero")


class FarTensor(torch.Tensor):
    """A tensor that says it is on `FAR`.

    Args:
        near: tensor on the CPU with the numbers; it is not copied.
    """

    is_meta, is_cuda = False, True  # transformers gives tensors of the device `meta` a treatment of their own
    __torch_function__ = torch._C._disabled_torch_function_impl

    @staticmethod
    def __new__(cls, near):
        place = {} if near.is_sparse else {"strides": near.stride(), "storage_offset": near.storage_offset()}
        tensor = cls._make_wrapper_subclass(cls, near.shape, dtype=near.dtype, layout=near.layout, device=FAR, **place)
        tensor.near = near
        return tensor

    @classmethod
    def __torch_dispatch__(cls, operator, types, args=(), kwargs=None):
        return run(operator, args, kwargs or {})

    def tolist(self):
        return self.near.tolist()

    def data_ptr(self):
        return self.near.data_ptr()

    def new_tensor(self, data, dtype=None):
        return FarTensor(torch.tensor(data, dtype=dtype or self.dtype))

    def __getitem__(self, index):
        return super().__getitem__(_without_lists(index))

    def __setitem__(self, index, value):
        super().__setitem__(_without_lists(index), value)


class FarGenerator(torch.Generator):
    """A source of random numbers for one device; those of `FAR` come from the CPU."""

    def __new__(cls, device="cpu"):
        generator = super().__new__(cls)
        generator.place = torch.device(device)
        return generator

    def __init__(self, device="cpu"):
        pass

    @property
    def device(self):
        return self.place


class TwoDevices(TorchDispatchMode):
    """Where it is active, new tensors can be made on `FAR`."""

    def __torch_dispatch__(self, operator, types, args=(), kwargs=None):
        return run(operator, args, kwargs or {})


def run(operator, args, kwargs):
    """Run an operator of torch on the numbers of its tensors. Raises RuntimeError if they are on different devices."""
    name, given = operator._schema.name, tree_leaves((args, kwargs))
    tensors = [x for x in given if isinstance(x, torch.Tensor)]
    is_far = any(isinstance(x, FarTensor) for x in tensors)
    near = [x for x in tensors if not isinstance(x, FarTensor) and x.dim() and x.numel()]  # a single number may come from the CPU
    if is_far and near and name not in MAY_MIX and not (name in NEAR_INDEX and isinstance(args[0], FarTensor)):
        raise RuntimeError(f"{name}: found tensors on two devices: " + ", ".join(f"{tuple(x.shape)} on {x.device}" for x in tensors))
    device = kwargs.get("device")
    out_far = is_far and name not in TO_PYTHON if device is None else torch.device(device) == FAR
    source = kwargs.get("generator")
    if source is not None and (source.device == FAR) != out_far:
        raise RuntimeError(f"{name}: found a generator on {source.device}, expected one on the device of the result")
    if device is not None:
        kwargs = {**kwargs, "device": torch.device("cpu")}
    changed = {id(x.near): x for x in tensors if isinstance(x, FarTensor)}  # an operator in place returns what it was given
    found = operator(*tree_map(_near, args), **tree_map(_near, kwargs))

    def far(x):
        if not isinstance(x, torch.Tensor):
            return x
        return changed[id(x)] if id(x) in changed else FarTensor(x) if out_far else x

    return tree_map(far, found)


def _near(x):
    if isinstance(x, FarTensor):
        return x.near
    if isinstance(x, torch.Tensor) and x.device == FAR:  # torch made it by itself, without an operator
        assert not x.numel(), "a tensor of the device meta has no numbers"
        return torch.empty(x.shape, dtype=x.dtype)
    return x


def _without_lists(index):
    """An index whose lists of numbers are tensors; torch would put them on the device `meta`, without their numbers."""
    if isinstance(index, tuple):
        return tuple(torch.tensor(x) if isinstance(x, list) else x for x in index)
    return torch.tensor(index) if isinstance(index, list) else index


@contextlib.contextmanager
def runs_on_far():
    """Let RecBole's configurations choose the device `FAR`."""
    choose, make = Config._init_device, torch.tensor

    def choose_far(config):
        choose(config)
        config.final_config_dict["device"] = FAR

    def make_there(data, device=None, **options):  # torch would give a tensor of `meta` no numbers
        tensor = make(data, **options)
        return tensor if device is None else tensor.to(device)

    with pytest.MonkeyPatch.context() as patch, TwoDevices():
        patch.setattr(Config, "_init_device", choose_far)
        patch.setattr(torch, "tensor", make_there)
        patch.setattr(torch, "Generator", FarGenerator)
        patch.setattr(torch, "autocast", lambda *_, **__: contextlib.nullcontext())
        yield
