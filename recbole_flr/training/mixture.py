"""The supervised stage of FLRMix: the mixture learns to rank the next item first, and the language model to write its title."""

from recbole_flr.training.supervised import Supervised


class MixtureTraining(Supervised):
    """Trains all parameters that are not frozen on the parts of :meth:`recbole_flr.model.flrmix.FLRMix.losses`."""

    def loader(self, train_data):
        """RecBole's rows; in batches of similar prompt length if the model reads titles."""
        return super().loader(train_data) if self.model.reader.reads_text else self.counted(train_data)

    def begin_epoch(self, epoch):
        """In the second half of the epochs the gate is asked more and more to decide."""
        super().begin_epoch(epoch)
        half = self.planned_epochs / 2
        self.model.sharpness = min(max((epoch - half) / half, 0.0), 1.0)
