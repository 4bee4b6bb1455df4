"""RecBole's trainer for models without training: nothing is optimised, and the model is validated once."""

import torch
from recbole.trainer import Trainer
from recbole.utils import set_color


class UntrainedTrainer(Trainer):
    """Runs RecBole's `fit` with one epoch that has no batches. What follows an epoch is RecBole's: validation and checkpoint.

    Args:
        config: RecBole's. `epochs` and all options of the optimizer have no effect.
        model: a :class:`recbole_flr.contracts.Recommender` with `needs_training` False.
    """

    def __init__(self, config, model):
        super().__init__(config, model)
        self.epochs = 1
        self.eval_step = min(config["eval_step"], 1)

    def _build_optimizer(self, **kwargs):
        return torch.optim.SGD([torch.empty(0)], lr=0.0)  # checkpoints hold an optimizer's state, and torch allows no empty one

    def _train_epoch(self, train_data, epoch_idx, loss_func=None, show_progress=False):
        return 0.0

    def _generate_train_loss_output(self, epoch_idx, s_time, e_time, losses):
        return set_color("No training", "green") + ": the model is complete as it was built."

    def _add_train_loss_to_tensorboard(self, epoch_idx, losses, tag="Loss/Train"):
        """There is no loss."""
