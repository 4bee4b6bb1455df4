"""Base: a pretrained language model as it is, without any training (the row Base of Table 2 of FLR, arXiv 2604.26760).

It reads the paper's prompt and ranks the catalogue by the log-probability of each title, with beams under the trie.

Departure: the paper does not give the wording of the prompt. `prompt: paper` is written after those of BIGRec and LatentR3.
"""

from recbole_flr.errors import ConfigError
from recbole_flr.model.direct_writer import DirectWriter
from recbole_flr.pretrained import PACKAGES


class Base(DirectWriter):
    """A pretrained language model without training. The title follows the prompt.

    Args:
        config: see `properties/model/Base.yaml`.
        dataset: RecBole training dataset.

    Raises:
        ConfigError: for the compact backbone, which starts from random weights.
    """

    stages = ()
    needs_training = False

    def __init__(self, config, dataset):
        if config["backbone"] == "compact":
            raise ConfigError(f"backbone: found compact, expected a pretrained language model, such as {', '.join(PACKAGES)}: "
                              f"{type(self).__name__} is not trained, and compact starts from random weights")
        super().__init__(config, dataset)
        self.backbone.requires_grad_(False)
        self.unsaved_parameters = frozenset(name for name, _ in self.named_parameters(remove_duplicate=False))
