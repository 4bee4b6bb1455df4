"""The warm-up: plain language modelling of whole user sequences, for a backbone that was not pretrained."""

import math

from recbole_flr.contracts import LossPart
from recbole_flr.data.packing import PackedLoader
from recbole_flr.data.prompt import IGNORE
from recbole_flr.training.stage import Stage
from recbole_flr.training.supervised import Supervised


class WarmUp(Stage):
    """Teaches the compact backbone the language of the catalogue before the supervised stage. It is not validated."""

    name = "warmup"
    prefix = "warmup_"
    validated = False

    @classmethod
    def chosen(cls, names, model, config):
        """It prepares the supervised stage of a backbone that starts from random weights."""
        return bool(Supervised.name in names and config["warmup_epochs"] and model.needs_warmup and not config["checkpoint"])

    def loader(self, train_data):
        """Packed rows of whole user sequences."""
        config = self.config
        return PackedLoader(
            train_data._dataset, self.model.sequence_collator(), config["pack_length"], self.option("batch_size"),
            config["MAX_ITEM_LIST_LENGTH"], config["seed"],
        )

    def learning_rate_at(self, epoch):
        """Falls to a tenth along a cosine."""
        return self.learning_rate * (0.1 + 0.45 * (1 + math.cos(math.pi * epoch / self.epochs)))

    def losses(self, batch):
        """Mean cross entropy of the next token."""
        return {"language_model": LossPart(self.model.language_model_loss(batch), mean_over="tokens")}

    def counts(self, batch):
        """The mean is over the tokens that are predicted."""
        return {"rows": len(batch), "tokens": (batch.labels != IGNORE).sum()}
