"""Self-supervised pre-training: the next item, and the alignment of the model's own thoughts (LARES, arXiv 2505.16865)."""

from recbole_flr.training.stage import Stage


class SelfSupervised(Stage):
    """Trains all parameters on the parts of the model's `losses`."""

    name = "spt"

    def losses(self, batch):
        return self.model.losses(batch)
