"""LatentR3: Reinforced Latent Reasoning for LLM-based Recommendation (arXiv 2505.19092) as a RecBole model.

There is one thought and no further refinement. The prompt's last state is the query of an attention over all states of the
prompt (the paper's LatentRATT layer). The result is the thought, which stands before the title. The reinforcement stage adds
Gaussian noise to it.
"""

import math

import torch
from torch import nn

from recbole_flr.model.factors import rotate
from recbole_flr.model.reasoner import Thought, item_attention
from recbole_flr.model.writer import ThinkingWriter
from recbole_flr.training.reinforcement import LatentGRPO

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

    initial = None  # the thought is not read before it is made

    def attend(self, hidden, positions, mask):
        """Make the thought.

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

    def look(self, context):
        """:meth:`attend` on a context."""
        return self.attend(context.hidden.to(self.value.weight.dtype), context.positions, context.mask)

    def think(self, backbone, context):
        """Context -> Thought. Same contract as :meth:`recbole_flr.model.reasoner.Reasoner.think`."""
        return Thought(context, self.look(context)[0])


class LatentR3(ThinkingWriter):
    """The thought attends to the prompt's states once and stands before the title.

    Args:
        config: see `properties/model/LatentR3.yaml`.
        dataset: RecBole training dataset.
    """

    weights_depend_on_item_ids = False  # it reads and writes titles
    stages = (*ThinkingWriter.stages, LatentGRPO)

    def __init__(self, config, dataset):
        super().__init__(config, dataset)
        self.reasoner = LatentAttention(self.backbone.width)

    def explain(self, interaction):
        """As FLR's with K = 1: a weight of 1, and the attention to each item of the history."""
        context = self.read_context(interaction)
        attention = self.reasoner.look(context)[1].unsqueeze(1)
        return attention.new_ones(len(attention), 1), item_attention(attention, context.item, interaction[self.ITEM_SEQ].shape[1])
