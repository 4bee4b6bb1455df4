"""FLR: Factorized Latent Reasoning (arXiv 2604.26760) as a RecBole model. This file only wires the parts together: the method
is in `factors.py` (eqs. 3-8) and `reasoner.py` (eq. 2)."""

import torch

from recbole_flr.contracts import LossPart
from recbole_flr.model.factors import REGULARISERS, FactorStep, LossWeights, gate_balance
from recbole_flr.model.reasoner import ByFactors, Reasoner
from recbole_flr.model.writer import ThinkingWriter
from recbole_flr.training.reinforcement import LatentGRPO


class FLR(ByFactors, ThinkingWriter):
    """The user's history becomes text. K factors refine the thought behind it N times. Then the title is written.

    Args:
        config: see `properties/model/FLR.yaml`.
        dataset: RecBole training dataset.
    """

    weights_depend_on_item_ids = False  # it reads and writes titles
    stages = (*ThinkingWriter.stages, LatentGRPO)

    def __init__(self, config, dataset):
        super().__init__(config, dataset)
        width = self.backbone.width
        self.reasoner = Reasoner(
            FactorStep(width, config["num_factors"]), width, config["num_refinements"], config["attend_thought"]
        )
        with torch.no_grad():  # the row that <|Thought|> has in the vocabulary
            self.reasoner.initial.copy_(self.backbone.lm.get_input_embeddings().weight[self.backbone.thought_id])
        self.balance_weight = config["gate_balance"]
        names = [name for name in REGULARISERS if config[f"{name}_loss"]]
        self.loss_weights = LossWeights(
            names, config["loss_weighting"], {name: config[f"{name}_weight"] for name in REGULARISERS}
        )

    def own_losses(self, thought, target):
        """Eqs. 5 to 8: the regularisers of the last refinement; and with `gate_balance` the balance of the gate, which is not in
        the paper."""
        parts = self.loss_weights(thought.state.regularisers())
        if self.balance_weight:
            parts["balance"] = LossPart(gate_balance(thought.state.alpha), self.balance_weight)
        return parts

