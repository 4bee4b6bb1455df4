"""What makes two runs the same: their options, their data and the version of the code.

Each run writes this to `key.json` in its folder, so that a comparison finds the runs that it has already, finished or not.
"""

import hashlib
import json
from functools import lru_cache
from pathlib import Path

from recbole_flr import processes
from recbole_flr.data.loading import expected_files, item_file
from recbole_flr.result import versions
from recbole_flr.training import checkpoint

KEY = "key.json"
WITHOUT_EFFECT = {  # options that change where and how a run works, but not its result (`processes` of a key says how many work)
    "checkpoint_dir",
    "checkpoint_every",
    "data_path",
    "device",
    "download",
    "gpu_id",
    "group_offset",
    "ip",
    "local_rank",
    "log_wandb",
    "nproc",
    "offset",
    "port",
    "resume",
    "show_progress",
    "state",
    "use_gpu",
    "wandb_project",
    "worker",
    "world_size",
}
NOT_PART_OF_A_RUN = (
    "comparison", "command.py", "__main__.py", "exit_status.py", "words.py", "search.py", "search_process.py", "search_result.py", "search_space.py",
    "export.py", "bulk_recommendation.py", "user_files.py", "recommendation.py",
)  # code of the package that no run depends on
VERSIONS = ("recbole", "torch", "transformers")


def run_key(config, start=None):
    """Describe a run before it starts.

    Args:
        config: :class:`recbole_flr.config.Config` of the run. The data set's files must be there.
        start: folder of the run whose weights this one starts from; None: the option `checkpoint`.

    Returns:
        dict: `options` (name -> value, without those that cannot change the result), `data` (sha256 of the files), `start`
        (sha256 of the weights that the run starts from, or None), `processes` (their number: dropout and noise differ with it) and
        `version` (of the packages, and sha256 of the code).
    """
    options = {name: value for name, value in config.planned().items() if name not in WITHOUT_EFFECT}
    start = options.pop("checkpoint", None) or start
    if start:
        options.pop("tokenizer", None)  # it is in the folder that the run starts from
        start = _digest([start if str(start).endswith(".safetensors") else Path(start) / checkpoint.BEST])
    data = _digest([path for path in [*expected_files(config), item_file(config)] if path.is_file()])
    found = {"options": options, "data": data, "start": start, "processes": processes.planned(config), "version": code_version()}
    return json.loads(json.dumps(found, default=str))


@lru_cache(maxsize=None)
def code_version():
    """Versions of the packages that results depend on, and `source`: sha256 of the package's own code. name -> text."""
    root = Path(__file__).parent
    files = sorted(path for path in root.rglob("*.py") if path.relative_to(root).parts[0] not in NOT_PART_OF_A_RUN)
    return {**versions(("recbole_flr", *VERSIONS)), "source": _digest(files)}


def read_key(folder):
    """`key.json` of a run's folder; None if there is none, as in the folders of earlier versions, or if it cannot be read."""
    try:
        found = json.loads((Path(folder) / KEY).read_text(encoding="utf-8"))
        return {"processes": 1, **found}  # earlier versions did not write it
    except (OSError, ValueError, TypeError):
        return None


def _digest(paths):
    """sha256 of the contents of some files, as text."""
    digest = hashlib.sha256()
    for path in paths:
        digest.update(f"{Path(path).stat().st_size} ".encode())  # so that two files are not one
        with open(path, "rb") as file:
            for block in iter(lambda: file.read(1 << 20), b""):
                digest.update(block)
    return digest.hexdigest()
