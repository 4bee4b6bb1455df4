"""The learning rate of a step: a linear warm-up, then constant, or falling to 0 along a line or a cosine.

The schedules and their names are those of `transformers.get_scheduler`.
"""

import math

from recbole_flr.training.stage import Stage


def rate_factor(kind, step, warmup, steps):
    """Factor on the learning rate.

    Args:
        kind: `constant`, `linear` or `cosine`.
        step: number of steps of the optimizer that were taken before.
        warmup: number of steps in which the factor rises from 0 to 1.
        steps: of the whole stage.

    Returns:
        float in [0, 1].
    """
    if step < warmup:
        return step / warmup
    if kind == "constant":
        return 1.0
    left = max(0.0, (steps - step) / max(1, steps - warmup))
    return left if kind == "linear" else (1 - math.cos(math.pi * left)) / 2


class Scheduled(Stage):
    """A stage whose learning rate follows the options `<prefix>schedule` and `<prefix>schedule_warmup`, step by step.

    A stage that makes a loader of its own returns it through :meth:`counted`.
    """

    def __init__(self, model, config):
        super().__init__(model, config)
        self.schedule, self.warmup = self.option("schedule"), self.option("schedule_warmup")
        self._step = self._steps_per_epoch = 0

    def counted(self, loader):
        """Note how many steps an epoch has. Returns the loader."""
        self._steps_per_epoch = len(loader)
        return loader

    def begin_epoch(self, epoch):
        super().begin_epoch(epoch)
        self._epoch, self._step = epoch, epoch * self._steps_per_epoch  # also where a run was resumed

    def before_step(self, optimizer):
        factor = rate_factor(self.schedule, self._step, self.warmup, self.epochs * self._steps_per_epoch)
        for group in optimizer.param_groups:
            group["lr"] = factor * self.learning_rate_at(self._epoch)
        self._step += 1
