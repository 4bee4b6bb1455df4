"""Checkpoints: a safetensors file with JSON in its header, replaced in one step. Nothing is ever unpickled.

The folder of a run holds `best.safetensors` (the weights that validation chose, with the validation ranks that they gave),
`last.safetensors` (weights, optimizer and random states, from which the run can go on), `run.json` (its options), and what else
a model needs to be built again. When the run ends, `result.json` and `ranks.npz` are added.
"""

import json
import random
import re
from contextlib import contextmanager
from logging import getLogger
from pathlib import Path

import numpy as np
import scipy.sparse
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from recbole_flr.errors import CheckpointError, first_line
from recbole_flr.files import disk_error, new_file
from recbole_flr.training.header import Header, Options, Weights, check_header
from recbole_flr.training.sharding import sharded_like, whole

REBUILT = {"ripple_set"}  # RippleNet draws it in its constructor, with the run's seed
BEST, LAST, CONFIG = "best.safetensors", "last.safetensors", "run.json"


def write(path, tensors, meta):
    """Write tensors and a JSON header; see :func:`recbole_flr.files.new_file`.

    Args:
        path: file to write.
        tensors: name -> tensor; names that share memory (tied weights) are stored once.
        meta: anything that JSON can hold.
    """
    stored, seen, aliases = {}, {}, {}
    for name, tensor in tensors.items():
        key = (tensor.data_ptr(), tuple(tensor.shape), tensor.stride())
        if tensor.numel() and key in seen:
            aliases[name] = seen[key]
            continue
        seen[key] = name
        stored[name] = tensor.detach().contiguous().cpu()
    header = json.dumps({"meta": meta, "aliases": aliases})
    needed = len(header) + sum(tensor.numel() * tensor.element_size() for tensor in stored.values())
    with new_file(path, needed) as temporary:
        try:
            save_file(stored, temporary, {"json": header})
        except SafetensorError as error:
            if "os error" not in str(error):
                raise
            raise disk_error(path, re.sub(r".*?: |\(os error.*", "", first_line(error)).strip(), needed) from error


def read(path):
    """File -> (name -> tensor on the CPU, meta).

    Raises:
        CheckpointError: if the file is missing, cut short, or not one of ours.
    """
    path = Path(path)
    try:
        with safe_open(path, "pt") as file:
            content = json.loads((file.metadata() or {})["json"])
            tensors = {name: file.get_tensor(name) for name in file.keys()}
    except FileNotFoundError as error:
        raise CheckpointError(_missing(path)) from error
    except (SafetensorError, KeyError, ValueError, TypeError, OSError, RecursionError) as error:
        raise CheckpointError(f"{path} is no checkpoint of recbole_flr, or is cut short: {first_line(error)}") from error
    check_header(Header, content, path)
    with undamaged(path):
        tensors.update({name: tensors[target] for name, target in content["aliases"].items()})
    return tensors, content["meta"]


def _missing(path):
    """What to say about a file of weights that is not there."""
    if not path.parent.is_dir():
        return f"found no checkpoint at {path}; expected the folder of a run, such as saved/FLR-movies-..."
    others = sorted(other.name for other in path.parent.glob("*.safetensors"))
    if not others:
        return f"found no {path}: the run was cut short before it first saved; start it anew"
    return (f"found no {path}, although the run saved it: it was removed (there are {', '.join(others)}); put it back, or start "
            "a new run from the weights that are there with --checkpoint")


@contextmanager
def undamaged(path):
    """Inside the block, what a damaged checkpoint raises is a CheckpointError that names the file."""
    try:
        yield
    except (KeyError, TypeError, ValueError, IndexError, AttributeError, RuntimeError, OverflowError) as error:
        found = f"{type(error).__name__}: {first_line(error)}"
        raise CheckpointError(f"{path} is damaged, or is no checkpoint of this run ({found}); "
                              "start the run anew") from error


def run_folder(path):
    """Folder of a run, given the folder or a file in it."""
    path = Path(path)
    return path.parent if path.suffix == ".safetensors" else path


def read_config(path):
    """Options of the run at a path.

    Raises:
        CheckpointError: if there is no run.
    """
    file = run_folder(path) / CONFIG
    try:
        options = json.loads(file.read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError) as error:
        raise CheckpointError(f"found no {file}; expected the folder of a run, such as saved/FLR-movies-...") from error
    except OSError as error:
        raise CheckpointError(f"cannot read {file}: {error.strerror or error}") from error
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{file} is not the JSON that a run writes: {error}") from error
    check_header(Options, options, file)
    return options


# optimizer


def pack_optimizer(optimizer):
    """Optimizer -> (name -> tensor, JSON)."""
    state = optimizer.state_dict()
    tensors, scalars = {}, {}
    for index, slots in state["state"].items():
        for name, value in slots.items():
            if isinstance(value, torch.Tensor):
                tensors[f"optimizer.{index}.{name}"] = whole(value)
            else:
                scalars[f"{index}.{name}"] = value
    return tensors, {"param_groups": state["param_groups"], "scalars": scalars}


def unpack_optimizer(optimizer, tensors, meta):
    """Put a packed state back.

    Raises:
        CheckpointError: if it belongs to another optimizer or other parameters.
    """
    state = {}
    for name, value in [*tensors.items(), *(("optimizer." + k, v) for k, v in meta["scalars"].items())]:
        if name.startswith("optimizer."):
            _, index, slot = name.split(".", 2)
            state.setdefault(int(index), {})[slot] = value
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    for index, slots in state.items():
        if index < len(parameters):
            state[index] = {slot: sharded_like(value, parameters[index]) if isinstance(value, torch.Tensor) else value
                            for slot, value in slots.items()}
    try:
        optimizer.load_state_dict({"state": state, "param_groups": meta["param_groups"]})
    except (ValueError, KeyError) as error:
        raise CheckpointError(f"the checkpoint's optimizer state does not fit this run's: {error}") from error


# random states


def pack_random(generator=None):
    """Random states of torch, CUDA, numpy, python and of a loader's generator -> (tensors, JSON)."""
    kind, keys, position, has_gauss, cached = np.random.get_state()
    tensors = {"random.torch": torch.get_rng_state(), "random.numpy": torch.from_numpy(keys.astype(np.int64))}
    if generator is not None:
        tensors["random.loader"] = generator.get_state()
    for device in range(torch.cuda.device_count()):
        tensors[f"random.cuda{device}"] = torch.cuda.get_rng_state(device)
    return tensors, {"numpy": [kind, position, has_gauss, cached], "python": random.getstate()}


def unpack_random(tensors, meta, generator=None):
    """Put packed random states back."""
    torch.set_rng_state(tensors["random.torch"])
    kind, position, has_gauss, cached = meta["numpy"]
    np.random.set_state((kind, tensors["random.numpy"].numpy().astype(np.uint32), position, has_gauss, cached))
    version, keys, gauss = meta["python"]
    random.setstate((version, tuple(keys), gauss))
    if generator is not None and "random.loader" in tensors:
        generator.set_state(tensors["random.loader"])
    for device in range(torch.cuda.device_count()):
        if f"random.cuda{device}" in tensors:
            torch.cuda.set_rng_state(tensors[f"random.cuda{device}"], device)


# what some RecBole models keep outside their parameters


def pack_other(other):
    """RecBole's ``other_parameter()`` -> (tensors, JSON).

    Raises:
        CheckpointError: for a value that only a pickle could hold.
    """
    tensors, meta = {}, {}
    for name, value in other.items():
        if isinstance(value, torch.nn.Module) or name in REBUILT:
            continue  # the weights of a part of the model are saved with the model's
        if isinstance(value, torch.Tensor):
            tensors[f"other.{name}"], meta[name] = value, "tensor"
        elif isinstance(value, np.ndarray):
            tensors[f"other.{name}"], meta[name] = torch.from_numpy(value), "numpy"
        elif scipy.sparse.issparse(value):
            matrix = value.tocsr()
            for part in ("data", "indices", "indptr"):
                tensors[f"other.{name}.{part}"] = torch.from_numpy(getattr(matrix, part))
            meta[name] = list(matrix.shape)
        else:
            try:
                meta[name] = {"json": json.loads(json.dumps(_for_json(value)))}
            except TypeError as error:
                raise CheckpointError(f"{name} of this model is a {type(value).__name__}, which cannot be saved without "
                                      "a pickle; call run_recbole_flr(..., saved=False)") from error
    return tensors, meta


def unpack_other(tensors, meta):
    """Inverse of :func:`pack_other`: name -> value."""
    other = {}
    for name, kind in meta.items():
        if kind == "tensor":
            other[name] = tensors[f"other.{name}"]
        elif kind == "numpy":
            other[name] = tensors[f"other.{name}"].numpy()
        elif isinstance(kind, list):
            parts = [tensors[f"other.{name}.{part}"].numpy() for part in ("data", "indices", "indptr")]
            other[name] = scipy.sparse.csr_matrix(tuple(parts), shape=kind)
        else:
            other[name] = _from_json(kind["json"])
    return other


def _for_json(value):
    """A value of lists, dicts and numbers as JSON can hold it: a dict whose keys are numbers becomes pairs."""
    if isinstance(value, dict):
        if all(isinstance(key, str) for key in value) and "pairs" not in value:
            return {key: _for_json(each) for key, each in value.items()}
        return {"pairs": [[_for_json(key), _for_json(each)] for key, each in value.items()]}
    if isinstance(value, (list, tuple)):
        return [_for_json(each) for each in value]
    return value.item() if isinstance(value, np.generic) else value


def _from_json(value):
    """Inverse of :func:`_for_json`; tuples become lists."""
    if isinstance(value, dict):
        if value.keys() == {"pairs"}:
            return {key: _from_json(each) for key, each in value["pairs"]}
        return {key: _from_json(each) for key, each in value.items()}
    return [_from_json(each) for each in value] if isinstance(value, list) else value


# validation ranks


def pack_ranks(ranks):
    """Arrays of :meth:`recbole_flr.evaluation.RankCollector.take_ranks` -> name -> tensor."""
    return {f"ranks.{name}": torch.from_numpy(value) for name, value in ranks.items()}


def unpack_ranks(tensors):
    """Inverse of :func:`pack_ranks`."""
    return {name[len("ranks."):]: value.numpy() for name, value in tensors.items() if name.startswith("ranks.")}


# model


def check_data(meta, fingerprint, strict=True):
    """Compare the data set with the one that a checkpoint was trained on.

    Args:
        meta: of the checkpoint.
        fingerprint: of the data set, see :func:`recbole_flr.data.loading.fingerprint`.
        strict: whether another data set is an error; a model of text, not of ids, gets a warning.

    Raises:
        CheckpointError: if strict and they differ.
    """
    if meta["data"] in (None, fingerprint):
        return
    message = "the items or users of the data set are not those that the run was trained on"
    if strict:
        raise CheckpointError(f"{message}; put the old files back, or train anew")
    getLogger().warning(message)


def pack_model(model):
    """Model -> (name -> tensor, JSON); leaves out the `unsaved_parameters` of :class:`recbole_flr.contracts.Recommender`."""
    skipped = model.unsaved_parameters
    tensors = {f"model.{name}": whole(value) for name, value in model.state_dict().items() if name not in skipped}
    other, meta = pack_other(model.other_parameter())
    return {**tensors, **other}, {"other": meta, "skipped": sorted(skipped)}


def unpack_model(model, tensors, meta):
    """Put packed weights back.

    Raises:
        CheckpointError: if names or shapes do not fit.
    """
    state = {name[len("model."):]: value for name, value in tensors.items() if name.startswith("model.")}
    state, own = model.adapt_weights(state), model.state_dict()
    state = {name: sharded_like(value, own[name]) if name in own else value for name, value in state.items()}
    elsewhere = set(model.unsaved_parameters)
    for name in own:
        if name not in state and name not in elsewhere and name not in meta["skipped"]:
            _does_not_fit(f"has no {name}, which this model has")
        if name in state and state[name].shape != own[name].shape:
            _does_not_fit(f"has {name} of the shape {_shape(state[name])}, and this model of {_shape(own[name])}")
    for name in state:
        if name not in own:
            _does_not_fit(f"has {name}, which this model has not")
    missing, _ = model.load_state_dict(state, strict=False)
    if elsewhere:
        model.keep_saving(elsewhere - set(missing))
    model.load_other_parameter(unpack_other(tensors, meta["other"]))


def _does_not_fit(found):
    raise CheckpointError(f"the checkpoint does not fit the model: it {found}. An option that decides the shape of the model is not "
                          "that of the run (they are in its run.json), or the data set has changed")


def _shape(tensor):
    return " x ".join(map(str, tensor.shape)) or "one number"


def load_weights(model, path, check=None):
    """Put the weights of a file into a model.

    Args:
        model: of the run's options.
        path: of the file.
        check: called with the checkpoint's meta before anything is put into the model.

    Raises:
        CheckpointError: the file is missing or damaged, or does not fit the model.
    """
    tensors, meta = read(path)
    check_header(Weights, meta, path)
    if check is not None:
        check(meta)
    with undamaged(path):
        unpack_model(model, tensors, meta)
