"""A stage of the training: one run of RecBole's `fit` with a loss, a loader and settings of its own.

A new stage is a subclass of :class:`Stage` in a file of its own, and an entry in the `stages` of the models that have it. The
trainer (:class:`recbole_flr.training.staged.StagedTrainer`) runs a list of stages and knows none of them by name.
"""

from dataclasses import replace

import torch

from recbole_flr.contracts import LossPart, total_loss
from recbole_flr.distributed import total
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
        epochs, learning_rate, stopping_step, eval_step: as RecBole's options of these names. (`grpo` is validated after each of its
            epochs, unless `eval_step` is 0.)
        planned_epochs: `epochs`, or in a short trial those of the run that it is the beginning of.
        means: :class:`Means` of the loss and of what else the stage wants to be logged, over an epoch.
    """

    name = None
    prefix = ""
    validated = True
    starts_from_trained = False

    def __init__(self, model, config):
        self.model, self.config = model, config
        self.epochs, self.learning_rate = self.option("epochs"), self.option("learning_rate")
        self.planned_epochs = self.epochs
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

    def counts(self, batch):
        """See :meth:`recbole_flr.contracts.Recommender.loss_counts`, for a batch of the stage's loader."""
        return self.model.loss_counts(batch)

    def loss(self, batch, shares=None):
        """The total loss of a batch, a scalar. Its parts and their weights are recorded for the log.

        Args:
            batch: of the stage's loader.
            shares: name in :meth:`counts` -> the batch's share in a larger batch, which others have the other parts of. None: this
                is the whole batch. The losses of all parts, each with its shares, add up to the loss of the larger batch.
        """
        self.means.share = None if shares is None else shares["rows"]
        parts = self.losses(batch)
        if shares is not None:
            parts = {name: replace(part, value=shares[part.mean_over] * part.value) for name, part in parts.items()}
        whole = total_loss(parts)
        self.means.add_shared(whole, self.means.share, "loss")
        for name, part in parts.items():
            self.means.add_shared(part.value, None if shares is None else shares[part.mean_over], name)
            if part.has_weight:
                self.means.add(**{f"{name}_weight": part.weight})
        return whole


class Means:
    """Means of numbers over the steps of an epoch. They stay on the device until they are read.

    Attributes:
        share: of the batch in progress in a larger batch; None if it is whole.
    """

    def __init__(self):
        self._sums, self._counts, self.share = {}, {}, None

    def add(self, **values):
        """Add scalars, tensors or numbers, each under its name. They count according to the share."""
        for name, value in values.items():
            self.add_shared(value if self.share is None else self.share * value, self.share, name)

    def add_shared(self, value, share, name):
        """Add a scalar that was multiplied with its share (None for 1)."""
        value = value.detach() if isinstance(value, torch.Tensor) else value
        self._sums[name] = self._sums.get(name, 0) + value
        self._counts[name] = self._counts.get(name, 0) + (1 if share is None else share)

    def read(self):
        """name -> mean, a float: over what this process has seen."""
        return {name: float(value) / float(self._counts[name]) for name, value in self._sums.items()}

    def read_all(self):
        """As :meth:`read`, over what all processes have seen."""
        names = list(self._sums)
        mine = torch.tensor([[float(each[name]) for name in names] for each in (self._sums, self._counts)], dtype=torch.float64)
        sums, counts = total(mine)
        return {name: value / count for name, value, count in zip(names, sums.tolist(), counts.tolist())}

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
