"""ReaRec: Think Before Recommend (Tang et al., arXiv 2503.22675) on RecBole's SASRec.

The last hidden state of SASRec is fed back as one more place of the sequence, K times. The fed-back states have position embeddings
of their own, which tell items and reasoning apart:

    r_0 = SASRec(history),   r_k = SASRec(history, r_0 + p_1, ..., r_(k-1) + p_k)[last place]

`learning` names one of the paper's two ways to train it (tau is `temperature`):

- `erl`, ensemble reasoning learning. The user is the mean of r_0 ... r_K. The loss is its cross entropy minus `kl_weight` times the mean
  KL divergence between the item distributions of different steps, which keeps the steps different.
- `prl`, progressive reasoning learning. The user is r_K. The loss is its cross entropy; plus `progressive_weight` times the mean cross
  entropy of the earlier steps k, with the temperature tau * temperature_base^(K - k), which is sharper from step to step; plus
  `contrast_weight` times the mean of a contrast (InfoNCE on the inner product): a step whose inputs have noise belongs to the same
  step without it, and not to those of other rows.

Departures: a fed-back state passes SASRec's layer norm and dropout, as every input of RecBole's SASRec does. The noise is there from the
first epoch on. In the contrast, rows with the same target are no negatives of each other. As in the published code, the second
distribution of the KL divergence gets no gradient.

Shapes: B batch, L places of a history (right-padded with item 0), D width, n items, K steps.
"""

import torch
from recbole.model.sequential_recommender.sasrec import SASRec
from recbole.utils import InputType
from torch import nn

from recbole_flr.contracts import Recommender
from recbole_flr.distributed import gather_rows
from recbole_flr.errors import ConfigError


class ReaRec(SASRec, Recommender):
    """SASRec that reasons for K steps before it ranks.

    Args:
        config: see `properties/model/ReaRec.yaml`.
        dataset: RecBole training dataset.

    Raises:
        ConfigError: if hidden_size is no multiple of n_heads, or loss_type is another one.
    """

    input_type = InputType.POINTWISE

    def __init__(self, config, dataset):
        if config["hidden_size"] % config["n_heads"]:
            raise ConfigError(f"hidden_size: found {config['hidden_size']}, expected a multiple of n_heads = {config['n_heads']}")
        if config["loss_type"] != "CE":
            raise ConfigError(f"loss_type: found {config['loss_type']!r}, expected CE: ReaRec compares the target with all items")
        super().__init__(config, dataset)
        self.num_steps, self.learning, self.temperature = config["num_steps"], config["learning"], config["temperature"]
        self.temperature_base, self.noise = config["temperature_base"], config["reasoning_noise"]
        self.kl_weight, self.progressive_weight = config["kl_weight"], config["progressive_weight"]
        self.contrast_weight = config["contrast_weight"]
        self.step_embedding = nn.Embedding(max(self.num_steps, 1), self.hidden_size)
        self._init_weights(self.step_embedding)

    def reason(self, history, length, noise=0.0):
        """The states after each step: [B, K + 1, D].

        Args:
            history: [B, L] item ids.
            length: [B], items of each history.
            noise: standard deviation of what is added to each fed-back state.
        """
        places = torch.arange(history.shape[1], device=history.device)
        inputs = [self.item_embedding(history) + self.position_embedding(places)]
        state = self._read(inputs, history)
        found = [state.gather(1, (length - 1).view(-1, 1, 1).expand(-1, -1, state.shape[2]))]
        for step in self.step_embedding.weight[:self.num_steps]:
            thought = found[-1] + step
            inputs.append(thought + noise * torch.randn_like(thought) if noise else thought)
            found.append(self._read(inputs, history)[:, -1:])
        return torch.cat(found, dim=1)

    def _read(self, inputs, history):
        """Run the encoder on the history and the steps behind it; the padding between them is not seen."""
        seen = nn.functional.pad(history, (0, len(inputs) - 1), value=1)
        embeddings = self.dropout(self.LayerNorm(torch.cat(inputs, dim=1)))
        return self.trm_encoder(embeddings, self.get_attention_mask(seen), output_all_encoded_layers=False)[-1]

    def user(self, states):
        """States of the steps [B, K + 1, D] -> user vectors [B, D], already divided by the temperature."""
        return (states.mean(1) if self.learning == "erl" else states[:, -1]) / self.temperature

    def forward(self, item_seq, item_seq_len):
        """User vectors [B, D], whose inner products with the items are the scores. RecBole's ranking calls this."""
        return self.user(self.reason(item_seq, item_seq_len))

    def retrieval(self, interaction):
        """See :meth:`recbole_flr.contracts.Recommender.retrieval`. There is one query, the user vector."""
        queries = self(interaction[self.ITEM_SEQ], interaction[self.ITEM_SEQ_LEN]).unsqueeze(1)
        return queries, queries.new_zeros(queries.shape[:2]), self.item_embedding.weight

    def calculate_loss(self, interaction):
        """The loss of `learning`. A scalar."""
        history, length, target = (interaction[name] for name in (self.ITEM_SEQ, self.ITEM_SEQ_LEN, self.POS_ITEM_ID))
        states = self.reason(history, length)
        loss = nn.functional.cross_entropy(self.user(states) @ self.item_embedding.weight.T, target)
        if not self.num_steps:
            return loss
        if self.learning == "erl":
            logits = states @ self.item_embedding.weight.T / self.temperature
            return loss - self.kl_weight * step_divergence(logits) if self.kl_weight else loss
        if self.progressive_weight:
            logits = states[:, :-1] @ self.item_embedding.weight.T
            early = progressive_loss(logits, target, self.temperature, self.temperature_base)
            loss = loss + self.progressive_weight * early
        if self.contrast_weight and self.noise:
            noisy = self.reason(history, length, self.noise)
            loss = loss + self.contrast_weight * step_contrast(noisy[:, 1:], states[:, 1:], target, self.temperature)
        return loss


def step_divergence(logits):
    """Mean over rows and pairs of different steps (j, k) of KL(step j, step k), where step k gets no gradient. A scalar.

    Args:
        logits: [B, K + 1, n].
    """
    log_p = logits.log_softmax(-1)
    p, other = log_p.exp(), log_p.detach()
    own = (p * log_p).sum(-1, keepdim=True)  # [B, K + 1, 1]
    pairs = own - p @ other.transpose(1, 2)  # [B, j, k]
    steps = pairs.shape[1]
    return pairs.sum((1, 2)).mean() / (steps * (steps - 1))  # a step with itself has 0


def progressive_loss(logits, target, temperature, base):
    """Mean cross entropy of the steps before the last one; step k of K has the temperature `temperature` * `base`^(K - k). A scalar.

    Args:
        logits: [B, K, n], inner products of the steps 0 ... K - 1 with the items.
        target: [B] item ids.
        temperature: > 0, of the last step.
        base: > 0.
    """
    steps = logits.shape[1]
    scales = temperature * base ** torch.arange(steps, 0, -1, device=logits.device, dtype=logits.dtype)
    return nn.functional.cross_entropy((logits / scales.view(1, -1, 1)).flatten(0, 1), target.repeat_interleave(steps))


def step_contrast(noisy, clean, target, temperature):
    """InfoNCE for each step: the noisy state of a row belongs to the clean one of the same row. A scalar.

    Args:
        noisy, clean: [B, K, D].
        target: [B] item ids. Rows with the same target are no negatives of each other.
        temperature: > 0, of the inner products.
    """
    noisy, clean, target = gather_rows(noisy), gather_rows(clean), gather_rows(target)  # the batch is that of all processes
    rows = torch.arange(len(target), device=target.device)
    same = (target.unsqueeze(0) == target.unsqueeze(1)) & (rows.unsqueeze(0) != rows.unsqueeze(1))
    logits = torch.einsum("bkd,ckd->kbc", noisy, clean) / temperature
    logits = logits.masked_fill(same, -torch.inf).flatten(0, 1)
    return nn.functional.cross_entropy(logits, rows.repeat(noisy.shape[1]))
