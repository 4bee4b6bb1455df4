"""Which class a model name stands for, and which trainer trains it: one explicit table, else RecBole's own."""

import inspect
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path

import recbole.utils

from recbole_flr.errors import ConfigError, nearest


@dataclass(frozen=True)
class Entry:
    """A model of the plug-in.

    Attributes:
        module: that holds the class, whose name is the model's.
        shared_options: files in `properties/` that it shares with other models; its own file comes after them.
        trainer: in :mod:`recbole_flr.trainer`.
    """

    module: str
    shared_options: tuple = ("generative", "latent")
    trainer: str = "StagedTrainer"


MODELS = {
    "FLR": Entry("recbole_flr.model.flr"),
    "LatentR3": Entry("recbole_flr.model.latentr3"),
    "BIGRec": Entry("recbole_flr.model.bigrec", ("generative",)),
}


def model_names():
    """All names that `--model` takes: the plug-in's first, then RecBole's."""
    folder = Path(recbole.utils.__file__).parents[1] / "properties" / "model"
    return list(MODELS) + sorted(path.stem for path in folder.glob("*.yaml"))


def get_model(name):
    """Model name -> class.

    Raises:
        ConfigError: naming the nearest known model, or the package that a model of RecBole needs.
    """
    if name in MODELS:
        return getattr(import_module(MODELS[name].module), name)
    try:
        found = recbole.utils.get_model(name)
    except (ValueError, AttributeError, ImportError) as error:  # RecBole looks last into a module that needs lightgbm
        if name in model_names():
            raise ConfigError(f"model: {name} cannot be loaded ({error}); install what it needs") from error
        found = None
    if not inspect.isclass(found):
        raise ConfigError(f"model: found {name!r}, which neither recbole_flr nor RecBole has; the nearest is "
                          f"{nearest(name, model_names())!r}")
    return found


def get_trainer(config):
    """Config -> trainer class: RecBole's, with checkpoints that need no pickle."""
    from recbole_flr import trainer

    if config["model"] in MODELS:
        return getattr(trainer, MODELS[config["model"]].trainer)
    return trainer.with_safe_checkpoints(recbole.utils.get_trainer(config["MODEL_TYPE"], config["model"]))
