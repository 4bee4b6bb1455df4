"""The supervised stage of FLRMix: the mixture learns to rank the next item first."""

from recbole_flr.training.stage import Stage


class MixtureTraining(Stage):
    """Trains all parameters on the parts of :meth:`recbole_flr.model.flrmix.FLRMix.losses`."""

    name = "sft"

    def begin_epoch(self, epoch):
        """In the second half of the epochs the gate is asked more and more to decide."""
        half = self.epochs / 2
        self.model.sharpness = min(max((epoch - half) / half, 0.0), 1.0)

    def losses(self, batch):
        return self.model.losses(batch)
