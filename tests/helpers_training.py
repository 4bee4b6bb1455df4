"""For the tests of training: find the folder of a run, and interrupt a run."""

from pathlib import Path

import pytest
from recbole.trainer import Trainer


def only_run(folder="saved"):
    """The folder of the only run below `folder`."""
    run, = Path(folder).iterdir()
    return run


def interrupt(train, epochs):
    """Call train() and interrupt it after some epochs, as Ctrl-C does.

    Args:
        train: a function without arguments that trains a model. The test fails if it returns.
        epochs (int): number of epochs that are trained before the interruption, counted over all stages.
    """
    train_epoch, trained = Trainer._train_epoch, []

    def interrupted(self, *args, **kwargs):
        if len(trained) == epochs:
            raise KeyboardInterrupt
        trained.append(self)
        return train_epoch(self, *args, **kwargs)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Trainer, "_train_epoch", interrupted)
        with pytest.raises(KeyboardInterrupt):
            train()
