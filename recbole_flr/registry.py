"""Which class a model name stands for: the plug-in's table, else RecBole's own class."""

import inspect
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from importlib import import_module
from logging import getLogger
from pathlib import Path

import recbole.utils
import torch
from scipy.sparse import dok_matrix

from recbole_flr.contracts import Recommender
from recbole_flr.errors import ConfigError, enough_memory, first_line, nearest


@dataclass(frozen=True)
class Entry:
    """A model of the plug-in. A new model needs one entry here and its options in `properties/model/NAME.yaml`.

    Attributes:
        module: import path of the module that holds the class. The class has the model's name.
        shared_options: files in `properties/`, without `.yaml`, that are read before the model's own file.
    """

    module: str
    shared_options: tuple = ()


MODELS = {
    "FLR": Entry("recbole_flr.model.flr", ("generative", "latent")),
    "FLRMix": Entry("recbole_flr.model.flrmix", ("generative", "latent")),
    "LatentR3": Entry("recbole_flr.model.latentr3", ("generative", "latent")),
    "BIGRec": Entry("recbole_flr.model.bigrec", ("generative",)),
    "Base": Entry("recbole_flr.model.base", ("generative",)),
    "CoT": Entry("recbole_flr.model.cot", ("generative",)),
    "AlphaRec": Entry("recbole_flr.model.alpharec"),
    "LARES": Entry("recbole_flr.model.lares", ("latent",)),
    "ReaRec": Entry("recbole_flr.model.rearec"),
    "SequentialRules": Entry("recbole_flr.model.sequential_rules"),
    "VSKNN": Entry("recbole_flr.model.vsknn"),
}


def model_names():
    """All names that `--model` takes: the plug-in's first, then RecBole's."""
    folder = Path(recbole.utils.__file__).parents[1] / "properties" / "model"
    return list(MODELS) + sorted(path.stem for path in folder.glob("*.yaml"))


def shared_options(name):
    """The files of shared options of a model; none for RecBole's own models."""
    return MODELS[name].shared_options if name in MODELS else ()


def get_model(name):
    """Model name -> class, which fulfils :class:`recbole_flr.contracts.Recommender`.

    Raises:
        ConfigError: naming the nearest known model, or the package that a model of RecBole needs.
    """
    # RecBole's SINE is imported with every sequential model. It turns anomaly detection on for the whole process, which makes
    # the training of all models much slower. Here it is put back as it was.
    guard = torch.autograd.set_detect_anomaly(torch.is_anomaly_enabled())
    if name in MODELS:
        with guard:
            return with_contract(getattr(import_module(MODELS[name].module), name))
    try:
        with guard:
            found = recbole.utils.get_model(name)
    except (ValueError, AttributeError, ImportError) as error:  # RecBole looks last into a module that needs lightgbm
        if name in model_names():
            raise ConfigError(f"model: {name} cannot be loaded ({error}); install what it needs") from error
        found = None
    if not inspect.isclass(found):
        raise ConfigError(f"model: found {name!r}, which neither recbole_flr nor RecBole has; the nearest is "
                          f"{nearest(name, model_names())!r}")
    return with_contract(found)


@lru_cache(maxsize=None)
def with_contract(model_class):
    """A model class -> the same class with the defaults of :class:`Recommender` for what it does not declare itself."""
    if issubclass(model_class, Recommender):
        return model_class
    own = {"__module__": model_class.__module__, "__doc__": model_class.__doc__}
    return type(model_class.__name__, (model_class, Recommender), own)


@contextmanager
def old_scipy():
    """While this is open, scipy's `dok_matrix` has the method `_update` of old versions, with which RecBole builds graphs.

    Newer versions of scipy keep the entries in the dict `_dict` instead of being a dict. What scipy has itself is left alone.
    """
    known = "_update" in dir(dok_matrix)
    if not known:
        dok_matrix._update = lambda self, entries: self._dict.update(entries)
    try:
        yield
    finally:
        if not known:
            del dok_matrix._update


@contextmanager
def _one_line(name):
    """Inside the block, an error of RecBole's own models about their options is a ConfigError. The log has its traceback."""
    try:
        yield
    except (ValueError, TypeError, KeyError, AttributeError, IndexError, AssertionError, NotImplementedError, OverflowError,
            ZeroDivisionError) as error:
        if name in MODELS:
            raise
        getLogger().debug(f"{name} cannot be built", exc_info=True)
        found = f"{type(error).__name__}: {first_line(error)}"
        raise ConfigError(f"model: {name} cannot be built with these options and data ({found})") from error


def build_model(config, dataset):
    """Build the model that `config` names, on its device.

    Args:
        config: RecBole's or the plug-in's Config.
        dataset: RecBole's training dataset.

    Raises:
        ConfigError: as :func:`get_model`, and if the model asks for more memory than there is.
    """
    model_class = get_model(config["model"])
    with old_scipy(), enough_memory("the model"), _one_line(config["model"]):
        model = model_class(config, dataset)
        if config["model"] == "KSR":  # RecBole leaves this matrix in float64, and then multiplies it with float32
            model.relation_Matrix = model.relation_Matrix.float()
        return model.to(config["device"])
