"""FLR: Factorized Latent Reasoning (arXiv 2604.26760) as a RecBole model. Wiring only; the method is in
`factors.py` (eqs. 3-8) and `reasoner.py` (eq. 2)."""

import torch

from recbole_flr.model.factors import REGULARISERS, FactorStep, LossWeights
from recbole_flr.model.generative import GenerativeRecommender
from recbole_flr.model.reasoner import Reasoner


class FLR(GenerativeRecommender):
    """The user's history becomes text; the thought behind it is refined N times by K factors; then the title is written.

    Args:
        config: see `properties/model/FLR.yaml`.
        dataset: RecBole training dataset.
    """

    def __init__(self, config, dataset):
        super().__init__(config, dataset)
        width = self.backbone.width
        self.reasoner = Reasoner(
            FactorStep(width, config["num_factors"]), width, config["num_refinements"], config["attend_thought"]
        )
        with torch.no_grad():  # the row that <|Thought|> has in the vocabulary
            self.reasoner.initial.copy_(self.backbone.lm.get_input_embeddings().weight[self.backbone.thought_id])
        names = [name for name in REGULARISERS if config[f"{name}_loss"]]
        self.loss_weights = LossWeights(
            names, config["loss_weighting"], {name: config[f"{name}_weight"] for name in REGULARISERS}
        )

    def regularise(self, loss, reading):
        """Eq. 8."""
        return self.loss_weights(loss, reading.state.regularisers())

    def figures(self, reading):
        """The regularisers and their weights lambda."""
        lambdas = {f"lambda_{name}": weight for name, weight in self.loss_weights.lambdas().items()}
        return {**reading.state.regularisers(), **lambdas}

    def explain(self, interaction):
        """For each row and factor: its weight, and how much of its attention went to each item of the history.

        Returns:
            alpha [B, K], and attention [B, K, H + 1]: the H items oldest first, then all the rest (thought, template);
            rows sum to 1.
        """
        prompts = self.collator.prompts(interaction[self.ITEM_SEQ], interaction[self.ITEM_SEQ_LEN])
        state = self.read(prompts).state
        items = interaction[self.ITEM_SEQ].shape[1]
        owner = torch.where(prompts.item >= 0, prompts.item, items)
        owner = torch.cat([owner, owner.new_full((len(owner), 1), items)], dim=1)  # the thought
        shares = state.attention.new_zeros(*state.attention.shape[:2], items + 1)
        return state.alpha, shares.scatter_add(2, owner.unsqueeze(1).expand_as(state.attention), state.attention)
