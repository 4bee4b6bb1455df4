"""The supervised stage: the model learns to write the title of the next item."""

from recbole_flr.data.batching import LengthBatches, PrefixBatches
from recbole_flr.training.schedule import Scheduled


class Supervised(Scheduled):
    """Trains all parameters that are not frozen on the parts of :meth:`recbole_flr.model.writer.Writer.losses`."""

    name = "sft"

    def loader(self, train_data):
        """RecBole's rows in batches of similar prompt length; rows that share the prefixes of their prompts stand together."""
        rows = train_data._dataset.inter_feat
        lengths, groups = self.model.prompt_lengths(rows), self.model.row_groups(rows)
        settings = {"shuffle": self.config["shuffle"], "batch_size": self.config["train_batch_size"]}
        if groups is None:
            return self.counted(LengthBatches(train_data, lengths, **settings))
        return self.counted(PrefixBatches(train_data, lengths, groups, **settings))

    def learning_rate_at(self, epoch):
        """Falls by the factor `learning_rate_decay` after each epoch."""
        return self.learning_rate * self.config["learning_rate_decay"] ** epoch

    def losses(self, batch):
        return self.model.losses(batch)
