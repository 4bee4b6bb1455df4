"""Factors as a mixture over items: each factor has a distribution over all items, and the gate says how much each one counts.

In FLR the factors are summed to one vector, and one vector gives one distribution. Here factor k has the query
q_k = h + W_o F_k, where h is the state of the thought. Its distribution is p_k(i) = softmax over i of q_k . e_i, and

    p(i) = sum over k of alpha_k p_k(i)

(a mixture of softmaxes; Yang et al., "Breaking the Softmax Bottleneck", ICLR 2018). Each factor learns from the rows that it
explains best.

Shapes: B batch, K factors, D width, n items (the padding item 0 included).
"""

import torch
from torch import nn


class ItemVectors(nn.Module):
    """e_i = id vector + W_t text vector, for all items.

    An item without training rows has no id vector, because nothing was learned for it. Its text alone speaks for it.

    Args:
        n_items: n.
        width: D.
        use_ids: whether items have id vectors.
        text_width: T of the text vectors; None if there are none.
        texts: [n, T], the items' text vectors; None if there are none, or if they change in the training.
        known: [n] bool, whether an item is in a training row.
    """

    def __init__(self, n_items, width, use_ids, text_width, texts, known):
        super().__init__()
        self.ids = nn.Embedding(n_items, width) if use_ids else None
        self.project = None if text_width is None else nn.Linear(text_width, width)
        self.register_buffer("texts", texts, persistent=False)
        self.register_buffer("known", known.unsqueeze(1), persistent=False)

    def forward(self, texts=None):
        """All item vectors: [n, D].

        Args:
            texts: [n, T], the present text vectors, if they change in the training.
        """
        vectors = None if self.ids is None else torch.where(self.known, self.ids.weight, 0)
        if self.project is None:
            return vectors
        projected = self.project(self.texts if texts is None else texts.to(self.project.weight.dtype))
        return projected if vectors is None else vectors + projected


class MixtureHead(nn.Module):
    """From the thought and its factors to a distribution over items.

    Args:
        width: D.
        dropout: on the factors.
        mixture: whether the factors form a mixture. If not, they are summed to z = sum_k alpha_k F_k, as in FLR, and there is
            one query.
    """

    def __init__(self, width, dropout, mixture=True):
        super().__init__()
        self.output, self.drop, self.mixture = nn.Linear(width, width), nn.Dropout(dropout), mixture

    def queries(self, thought, state):
        """The queries of a thought, or of several thoughts that share their factors.

        Args:
            thought: [B, D] or [B, G, D], the state h of each thought.
            state: :class:`recbole_flr.model.factors.FactorState`.

        Returns:
            queries [B, K, D] (or [B, G, K, D]) and the logarithm of their weights [B, K] (or [B, G, K]). Without a mixture K is 1.
        """
        factors, alpha = state.factors, state.alpha
        if not self.mixture:
            factors, alpha = state.thought.unsqueeze(1), torch.ones_like(alpha[:, :1])
        offset, log_weights = self.output(self.drop(factors)), alpha.clamp_min(torch.finfo(alpha.dtype).tiny).log()
        if thought.dim() == 3:
            offset, log_weights = offset.unsqueeze(1), log_weights.unsqueeze(1).expand(-1, thought.shape[1], -1)
        return thought.unsqueeze(-2) + offset, log_weights


def log_probs(queries, log_weights, vectors):
    """log p(i) of all items.

    Args:
        queries: [..., K, D].
        log_weights: [..., K], log alpha.
        vectors: [n, D].

    Returns:
        [..., n]; -inf for item 0.
    """
    total = None
    for query, weight in zip(queries.unbind(-2), log_weights.unbind(-1)):  # all factors at once would take K times the memory
        part, weight = (query @ vectors[1:].T).softmax(-1), weight.exp().unsqueeze(-1)
        total = part * weight if total is None else torch.addcmul(total, part, weight)  # one pass over the items, not two
    total = total.clamp_min(torch.finfo(total.dtype).tiny)  # so that no item has a probability of 0
    return nn.functional.pad(total.log(), (1, 0), value=-torch.inf)


def target_log_probs(queries, log_weights, vectors, target):
    """log p of one item for each row, without the distribution of all items.

    Args:
        queries: [B, ..., K, D].
        log_weights: [B, ..., K].
        vectors: [n, D].
        target: [B] item ids.

    Returns:
        [B, ...].
    """
    logits = queries @ vectors[1:].T
    wanted = (target - 1).view(len(target), *[1] * (queries.dim() - 2)).expand(queries.shape[:-1])
    return (LogProbOfOne.apply(logits, wanted) + log_weights).logsumexp(-1)


class LogProbOfOne(torch.autograd.Function):
    """log softmax of one item: logits [..., n] and items [...] -> [...].

    This is minus torch's cross entropy. Its gradient, [...] * (1 of the item - softmax), takes the place of the log-probabilities in
    memory. That saves two arrays of the size of the logits, and time (`results/mixture.md`, Time). The gradient overwrites the
    log-probabilities, so there is one backward pass; torch refuses a second one.
    """

    @staticmethod
    def forward(ctx, logits, items):
        found, items = logits.log_softmax(-1), items.unsqueeze(-1)
        ctx.save_for_backward(found, items)
        return found.gather(-1, items).squeeze(-1)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, gradient):
        found, items = ctx.saved_tensors
        gradient = gradient.unsqueeze(-1)
        return found.exp_().mul_(-gradient).scatter_add_(-1, items, gradient), None
