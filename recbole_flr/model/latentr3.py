"""LatentR3: Reinforced Latent Reasoning for LLM-based Recommendation (arXiv 2505.19092) as a RecBole model.

One thought, one refinement: the prompt's last state asks, all of the prompt's states answer (the paper's LatentRATT layer,
Gaussian noise on whose output is what its reinforcement stage explores), and what comes out stands before the title. The
thought is not read by the backbone before it is made, so the prompt is read once and the title after it.
"""

import math

import torch
from torch import nn

from recbole_flr.model.factors import rotate
from recbole_flr.model.generative import GenerativeRecommender
from recbole_flr.model.reasoner import read_prompt

ROTARY_BASE = 1000.0  # as in the published code


class LatentAttention(nn.Module):
    """Single-query attention: softmax(RoPE(W_q h_L) . RoPE(W_k H)^T / sqrt(D) + M) (W_v H), the thought's position masked.

    Args:
        width: D, even.
    """

    def __init__(self, width):
        super().__init__()
        self.width = width
        self.query = nn.Linear(width, width)
        self.key = nn.Linear(width, width)
        self.value = nn.Linear(width, width)

    def attend(self, hidden, positions, mask):
        """The thought.

        Args:
            hidden: [B, L, D].
            positions: [B, L], counted from the first real token.
            mask: [B, L], True at real tokens.

        Returns:
            thought [B, D] and attention [B, L] (rows sum to 1).
        """
        last = torch.where(mask, positions, -1).argmax(1, keepdim=True)
        query = self.query(hidden.gather(1, last.unsqueeze(2).expand(-1, -1, self.width)))
        query = rotate(query, positions.gather(1, last), ROTARY_BASE)
        keys = rotate(self.key(hidden), positions, ROTARY_BASE)
        scores = (query @ keys.transpose(1, 2)).squeeze(1) / math.sqrt(self.width)
        attention = scores.masked_fill(~mask, float("-inf")).softmax(-1)
        return self.value((attention.unsqueeze(1) @ hidden).squeeze(1)), attention

    def think(self, backbone, context):
        """Context -> Reading, whose seed is the thought. Same contract as :meth:`Reasoner.think`."""
        hidden = context.hidden.to(self.value.weight.dtype)
        return context.reading(self.attend(hidden, context.positions, context.mask)[0])

    def forward(self, backbone, embeddings, mask, use_cache=True):
        """Read prompts and think. Same contract as :class:`recbole_flr.model.reasoner.Reasoner`."""
        return self.think(backbone, read_prompt(backbone, embeddings, mask, use_cache)[0])


class LatentR3(GenerativeRecommender):
    """The prompt's states are attended to once; the thought that comes out stands before the title.

    Args:
        config: see `properties/model/LatentR3.yaml`.
        dataset: RecBole training dataset.
    """

    def __init__(self, config, dataset):
        super().__init__(config, dataset)
        self.reasoner = LatentAttention(self.backbone.width)
