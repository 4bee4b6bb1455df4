"""The supervised stage: the model learns to write the title of the next item."""

from recbole_flr.data.batching import LengthBatches
from recbole_flr.training.stage import Stage


class Supervised(Stage):
    """Trains all parameters that are not frozen on the parts of :meth:`recbole_flr.model.writer.Writer.losses`."""

    name = "sft"

    def loader(self, train_data):
        """RecBole's rows in batches of similar prompt length."""
        lengths = self.model.prompt_lengths(train_data._dataset.inter_feat)
        return LengthBatches(
            train_data, lengths, shuffle=self.config["shuffle"], batch_size=self.config["train_batch_size"]
        )

    def learning_rate_at(self, epoch):
        """Falls by the factor `learning_rate_decay` after each epoch."""
        return self.learning_rate * self.config["learning_rate_decay"] ** epoch

    def losses(self, batch):
        return self.model.losses(batch)
