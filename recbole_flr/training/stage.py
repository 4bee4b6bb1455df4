"""A stage of the training: one run of RecBole's `fit` with a loss, a loader and settings of its own.

A new stage is a subclass of :class:`Stage` in a file of its own, and an entry in the `stages` of the models that have it. The
trainer (:class:`recbole_flr.training.staged.StagedTrainer`) runs a list of stages and knows none of them by name.
"""

import torch

from recbole_flr.contracts import LossPart, total_loss
from recbole_flr.errors import ConfigError


class Stage:
    """One stage of a model's training. The defaults train a model of RecBole's plain shape with its `calculate_loss`.

    Args:
        model: the model that is trained.
        config: options. A stage reads those that begin with its `prefix`: `<prefix>epochs`, `<prefix>learning_rate`,
            `<prefix>stopping_step`, and what else its loader needs.

    Attributes:
        name: for the option `stages`, the log, and the file with the stage's best weights.
        prefix: of the names of the stage's options.
        validated: whether the model is validated in this stage. A stage that is not validated prepares the next one.
        starts_from_trained: whether the stage goes on from a trained model and must not make it worse: the model is validated
            before it, and the better weights are kept.
        epochs, learning_rate, stopping_step, eval_step: as RecBole's options of these names.
        means: :class:`Means` of the loss and of what else the stage wants to be logged, over an epoch.
    """

    name = None
    prefix = ""
    validated = True
    starts_from_trained = False

    def __init__(self, model, config):
        self.model, self.config = model, config
        self.epochs, self.learning_rate = self.option("epochs"), self.option("learning_rate")
        self.stopping_step = self.option("stopping_step") if self.validated else 0
        self.eval_step = min(config["eval_step"], self.epochs) if self.validated else 0
        self.means = Means()

    def option(self, name):
        """The stage's own value of an option.

        Raises:
            ConfigError: if no yaml file declares the option.
        """
        name = self.prefix + name
        if name not in self.config:
            raise ConfigError(f"the stage {self.name} of {type(self.model).__name__} needs the option {name}; declare it in "
                              f"properties/model/{type(self.model).__name__}.yaml")
        return self.config[name]

    @classmethod
    def chosen(cls, names, model, config):
        """Whether the stage runs, given the names in the option `stages`. A stage that is not validated runs by default."""
        return not cls.validated or cls.name in names

    def loader(self, train_data):
        """Loader of the stage's batches. Loaders put data together; they do not run models.

        Args:
            train_data: RecBole's training loader.
        """
        return train_data

    def enter(self):
        """Called when the stage becomes the present one, also when a run is resumed in it: freeze parameters, keep references."""

    def begin(self):
        """Called once, before the first epoch of the stage, and not when a run is resumed in it."""

    def begin_epoch(self, epoch):
        """Called before each epoch (from 0)."""

    def learning_rate_at(self, epoch):
        """The learning rate of an epoch (from 0)."""
        return self.learning_rate

    def before_step(self, optimizer):
        """Called before each step of the optimizer, which may get another learning rate."""

    def losses(self, batch):
        """Parts of the loss of a batch: name -> :class:`recbole_flr.contracts.LossPart`."""
        return {"loss": LossPart(self.model.calculate_loss(batch))}

    def loss(self, batch):
        """The total loss of a batch, a scalar. Its parts and their weights are recorded for the log."""
        parts = self.losses(batch)
        total = total_loss(parts)
        self.means.add(loss=total)
        for name, part in parts.items():
            self.means.add(**{name: part.value})
            if part.has_weight:
                self.means.add(**{f"{name}_weight": part.weight})
        return total


class Means:
    """Means of numbers over the steps of an epoch. They stay on the device until they are read."""

    def __init__(self):
        self._sums, self._counts = {}, {}

    def add(self, **values):
        """Add scalars, tensors or numbers, each under its name."""
        for name, value in values.items():
            value = value.detach() if isinstance(value, torch.Tensor) else value
            self._sums[name] = self._sums.get(name, 0) + value
            self._counts[name] = self._counts.get(name, 0) + 1

    def read(self):
        """name -> mean, a float."""
        return {name: float(total) / self._counts[name] for name, total in self._sums.items()}

    def reset(self):
        """Forget everything."""
        self._sums, self._counts = {}, {}


def choose_stages(model, config):
    """The stages of a run, in their order: all that the option `stages` names, and those that prepare one of these.

    Raises:
        ConfigError: if the option names a stage that the model does not have, or not in the model's order.
    """
    known = [stage.name for stage in model.stages if stage.validated]
    given = config["stages"]
    names = known if given is None else [n.strip() for n in given.split(",")] if isinstance(given, str) else list(given)
    if not names or names != [name for name in known if name in names]:
        expected = ", ".join(known) if len(known) == 1 else f"one or more of {', '.join(known)}, in this order"
        raise ConfigError(f"stages: found {given!r}, expected {expected}: these are the stages of {type(model).__name__}")
    chosen = [stage for stage in model.stages if stage.chosen(names, model, config)]
    first = next(stage for stage in chosen if stage.validated)
    if first.starts_from_trained and not (config["checkpoint"] or config["resume"]):
        raise ConfigError(f"stages: found {first.name} alone, which goes on from a trained model; expected --checkpoint=PATH "
                          f"beside it, or --stages={','.join(known)}")
    return [stage(model, config) for stage in chosen]
