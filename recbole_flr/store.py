"""Results that take long to compute: stored beside the data set, and trusted only if they are whole and of the same inputs.

A file holds tensors (safetensors, so nothing in it is executed), the fingerprint of what they were computed from, and the
SHA-256 of the tensors themselves. A file that is damaged, or that belongs to other inputs, is written anew.

Of several processes of a run, the one with rank 0 computes. The others wait, and read what it has stored.
"""

import hashlib
import json
from logging import getLogger
from pathlib import Path

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from recbole_flr.distributed import main_first
from recbole_flr.errors import first_line
from recbole_flr.processes import temporary_name


def fingerprint(*parts):
    """SHA-256 of values that JSON can hold. Texts may hold lone surrogates."""
    return hashlib.sha256(json.dumps(parts).encode("utf-8", "surrogatepass")).hexdigest()


def stored(path, wanted, compute, what):
    """Tensors from a file if it holds those that are wanted. Otherwise they are computed and stored there.

    All processes of a run must call it. A process that cannot read what rank 0 has stored computes the tensors itself.

    Args:
        path: of the file.
        wanted: fingerprint of all that the tensors depend on.
        compute: function without arguments that returns a dict, name -> tensor.
        what: name of the tensors for the log.

    Returns:
        dict, name -> tensor on the CPU.
    """
    with main_first():
        return _read_or_compute(path, wanted, compute, what)


def _read_or_compute(path, wanted, compute, what):
    try:
        with safe_open(path, "pt") as file:
            meta, tensors = file.metadata() or {}, {name: file.get_tensor(name) for name in file.keys()}
        if meta.get("fingerprint") == wanted:
            if meta.get("content") == _content(tensors):
                return tensors
            getLogger().warning(f"{path} is damaged and is written anew")
    except FileNotFoundError:
        pass
    except (SafetensorError, OSError, RuntimeError, ValueError) as error:
        getLogger().warning(f"{path} cannot be read ({first_line(error)}) and is written anew")
    tensors = {name: tensor.contiguous().cpu() for name, tensor in compute().items()}
    temporary = Path(temporary_name(path))  # another run may write the same file
    try:
        save_file(tensors, temporary, {"fingerprint": wanted, "content": _content(tensors)})
        temporary.replace(path)
    except (SafetensorError, OSError) as error:
        temporary.unlink(missing_ok=True)
        getLogger().warning(f"{path} cannot be written ({first_line(error)}); {what} will be computed again next time")
    return tensors


def _content(tensors):
    digest = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        digest.update(json.dumps([name, str(tensor.dtype), list(tensor.shape)]).encode())
        digest.update(tensor.contiguous().numpy().data)
    return digest.hexdigest()
