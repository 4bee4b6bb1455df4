"""Factor attention, gate and regularisers of FLR: plain tensors in, plain tensors out.

Paper: Factorized Latent Reasoning (FLR), arXiv 2604.26760; the equation numbers below are the paper's.

Shapes: B batch, L keys (prompt tokens and the thought), D hidden width, K factors.

Departures from the paper, and why:
- lambda_i = exp(-s_i)/2 alone lets s_i grow without bound, so that every weight dies; Kendall's + s_i/2 is added.
- Kendall's sum has no lower bound when a loss can reach 0, as all three do: s_i falls with ln L_i, lambda_i outgrows the
  recommendation loss. s_i = softplus(u_i) - ln 2 with u_i learned from 0 starts at the same lambda of 1/2 and never passes 1.
- A (W_v H) is computed as (A H) W_v, which is the same product with K rows instead of L.
"""

import math
from dataclasses import dataclass

import torch
from torch import nn

from recbole_flr.contracts import LossPart
from recbole_flr.distributed import gather_rows

REGULARISERS = ("orthogonality", "diversity", "sparsity")


def rotate(x, positions, base=10000.0):
    """Rotary position embedding (Su et al., arXiv 2104.09864) over the whole last axis.

    Args:
        x: [B, L, D] with D even.
        positions: [B, L], counted from the first real token.
        base: the largest wavelength is 2 pi base.

    Returns:
        [B, L, D]; a row at position 0 is unchanged.
    """
    half = x.shape[-1] // 2
    frequency = base ** (-torch.arange(half, device=x.device, dtype=x.dtype) / half)
    angle = positions.to(x.dtype).unsqueeze(-1) * frequency  # [B, L, D/2]
    cos, sin = angle.cos(), angle.sin()
    first, second = x[..., :half], x[..., half:]
    return torch.cat([first * cos - second * sin, second * cos + first * sin], dim=-1)


class FactorAttention(nn.Module):
    """K learned queries attend to the hidden states (eq. 3).

    A = softmax(W_q Q_f . RoPE(W_k H)^T / sqrt(D) + M), F = A (W_v H).

    Args:
        width: D, even.
        num_factors: K >= 1; K = 1 is plain single-query attention.
    """

    def __init__(self, width, num_factors):
        super().__init__()
        if width % 2:
            raise ValueError(f"factor attention rotates pairs of channels: width must be even, found {width}")
        self.width = width
        self.queries = nn.Parameter(torch.empty(num_factors, width))
        self.query = nn.Linear(width, width, bias=False)
        self.key = nn.Linear(width, width, bias=False)
        self.value = nn.Linear(width, width, bias=False)
        nn.init.normal_(self.queries)

    def scores(self, hidden, positions):
        """How much each factor looks for each state, before the softmax. Those of the prompt never change: compute them once.

        Args:
            hidden: [B, L, D].
            positions: [B, L], counted from the first real token.

        Returns:
            [B, K, L].
        """
        keys = rotate(self.key(hidden), positions)
        return self.query(self.queries) @ keys.transpose(1, 2) / math.sqrt(self.width)

    def forward(self, scores, history, last, mask):
        """Attend to a history of L - 1 states and one more, which stand apart as the history stays the same.

        Args:
            scores: [B, K, L], from :meth:`scores`.
            history: [B, L - 1, D].
            last: [B, 1, D].
            mask: [B, L], True where a state may be seen; at least one True in a row.

        Returns:
            factors [B, K, D] and attention maps [B, K, L] (rows sum to 1).
        """
        attention = scores.masked_fill(~mask.unsqueeze(1), float("-inf")).softmax(dim=-1)
        return self.value(attention[..., :-1] @ history + attention[..., -1:] * last), attention


class Gate(nn.Module):
    """Weights of the factors (eq. 4): alpha = softmax(MLP(flatten(F))).

    Args:
        width: D.
        num_factors: K.
    """

    def __init__(self, width, num_factors):
        super().__init__()
        self.mlp = nn.Sequential(
            nn.Linear(num_factors * width, width), nn.GELU(), nn.Linear(width, num_factors)
        )

    def forward(self, factors):
        """factors [B, K, D] -> alpha [B, K], rows sum to 1."""
        return self.mlp(factors.flatten(1)).softmax(dim=-1)


def orthogonality(factors):
    """Eq. 5: mean over the batch of ||F^ F^^T - I||_F^2, rows of F^ normalised. [B, K, D] -> scalar in [0, K(K-1)]."""
    unit = nn.functional.normalize(factors, dim=-1)
    gram = unit @ unit.transpose(1, 2)
    return (gram - torch.eye(gram.shape[1], dtype=gram.dtype, device=gram.device)).square().sum((1, 2)).mean()


def diversity(attention):
    """Eq. 6: mean cosine between the attention maps over pairs of factors. [B, K, L] -> scalar in [0, 1]; 0 at K = 1."""
    num_factors = attention.shape[1]
    if num_factors == 1:
        return attention.new_zeros(())
    unit = nn.functional.normalize(attention, dim=-1)
    cosine = unit @ unit.transpose(1, 2)
    row, column = torch.triu_indices(num_factors, num_factors, offset=1, device=attention.device)
    return cosine[:, row, column].mean()


def sparsity(alpha):
    """Eq. 7: mean entropy of the gate, in nats. [B, K] -> scalar in [0, ln K]."""
    log = alpha.clamp_min(torch.finfo(alpha.dtype).tiny).log()  # at an alpha of exactly 0 the slope must stay finite
    return -(alpha * log).sum(-1).mean()


def gate_balance(alpha):
    """Negative entropy of the mean gate: sum_k m_k log m_k with m the batch mean of alpha. [B, K] -> scalar in [-ln K, 0].

    It is smallest if all factors have equal weight over the batch. The sparsity of eq. 7 alone is smallest if one factor serves
    all users.
    """
    mean = gather_rows(alpha).mean(0)  # the batch is that of all processes
    return (mean * mean.clamp_min(torch.finfo(mean.dtype).tiny).log()).sum()


class LossWeights(nn.Module):
    """Weighs the regularisers beside the recommendation loss (eq. 8).

    ``uncertainty``: lambda_i = exp(-s_i)/2 with s_i learned from 0, plus s_i/2 (Kendall et al., CVPR 2018), and
    s_i > -ln 2, so that lambda_i < 1 (see the top of this file).
    ``fixed``: lambda_i as given.

    Args:
        names: the regularisers in use.
        weighting: ``uncertainty`` or ``fixed``.
        fixed: lambda of each name, used by ``fixed``.
    """

    def __init__(self, names, weighting="uncertainty", fixed=None):
        super().__init__()
        self.names, self.fixed = tuple(names), dict(fixed or {})
        self.unbounded = nn.Parameter(torch.zeros(len(self.names))) if weighting == "uncertainty" else None  # u

    def log_variance(self):
        """s of each name, [names]."""
        return nn.functional.softplus(self.unbounded) - math.log(2)

    def lambdas(self):
        """name -> lambda, as tensors (``uncertainty``) or numbers (``fixed``)."""
        if self.unbounded is None:
            return {name: self.fixed[name] for name in self.names}
        return dict(zip(self.names, (-self.log_variance()).exp() / 2))

    def forward(self, regularisers):
        """The regularisers as parts of the loss.

        Args:
            regularisers: name -> scalar; those that are not in use are left out.

        Returns:
            dict, name -> LossPart. With ``uncertainty`` the part `uncertainty` is the sum of s, of which Kendall adds half.
        """
        parts = {name: LossPart(regularisers[name], weight) for name, weight in self.lambdas().items()}
        if parts and self.unbounded is not None:
            parts["uncertainty"] = LossPart(self.log_variance().sum(), 0.5)
        return parts


@dataclass
class FactorState:
    """What one factor step gives: the new thought and all that explains it."""

    thought: torch.Tensor  # z, [B, D]
    factors: torch.Tensor  # F, [B, K, D]
    attention: torch.Tensor  # A, [B, K, L]
    alpha: torch.Tensor  # [B, K]

    def regularisers(self):
        """name -> scalar: eqs. 5, 6 and 7."""
        return {
            "orthogonality": orthogonality(self.factors),
            "diversity": diversity(self.attention),
            "sparsity": sparsity(self.alpha),
        }


class FactorStep(nn.Module):
    """One step of eq. 3 and eq. 4: hidden states to the next thought, z = sum_k alpha_k F_k."""

    def __init__(self, width, num_factors):
        super().__init__()
        self.attention = FactorAttention(width, num_factors)
        self.gate = Gate(width, num_factors)

    def scores(self, hidden, positions):
        """See :meth:`FactorAttention.scores`."""
        return self.attention.scores(hidden, positions)

    def forward(self, scores, history, last, mask):
        """See :meth:`FactorAttention.forward`. Returns :class:`FactorState`."""
        factors, attention = self.attention(scores, history, last, mask)
        alpha = self.gate(factors)
        return FactorState((alpha.unsqueeze(1) @ factors).squeeze(1), factors, attention, alpha)
