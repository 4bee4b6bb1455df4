"""How a ranking is put together from several log-scores, and how their weights are chosen on validation rows.

    score(i) = log p(i) + sum over tables t of w_t log(1 + v_t(i) / FLOOR) + w_repeat [i is in the history]

Cross entropy gives the memory less weight than the ranking wants. So the weights are not trained. They are chosen on validation
rows by a coordinate search for the best NDCG, at the cut-off max(topk).

Shapes: B rows, C candidates of a row, P parts.
"""

from dataclasses import dataclass

import torch

REPEAT = "repeat"
FACTORS = (0.0, 0.5, 0.7, 0.85, 1.2, 1.4, 2.0)  # of a weight, tried in each step
LEAST = 0.3  # where a weight of 0 starts again
SWEEPS = 4


@dataclass
class Candidates:
    """Some items of each row with their parts, enough to rank the best of them.

    Attributes:
        parts: name -> [B, C].
        is_target: [B, C] bool, one True in a row.
        valid: [B, C] bool, False for an item that stands twice among the candidates.
    """

    parts: dict
    is_target: torch.Tensor
    valid: torch.Tensor

    @classmethod
    def of(cls, parts, target, count):
        """The best `count` items of each part, the items of the history, and the target.

        Args:
            parts: name -> [B, n].
            target: [B] item ids.
            count: int.
        """
        count = min(count, next(iter(parts.values())).shape[1] - 1)
        counts = {name: count for name in parts}
        if REPEAT in parts:  # all items of the longest history; without them, a high weight of repeats would seem to cost nothing
            counts[REPEAT] = int((parts[REPEAT][:, 1:] > 0).sum(1).max())
        best = [part[:, 1:].topk(counts[name]).indices + 1 for name, part in parts.items()]
        items = torch.cat([*best, target.unsqueeze(1)], dim=1).sort(1).values
        first = torch.ones_like(items, dtype=torch.bool)
        first[:, 1:] = items[:, 1:] != items[:, :-1]
        return cls({name: part.gather(1, items) for name, part in parts.items()}, (items == target.unsqueeze(1)) & first, first)

    @classmethod
    def joined(cls, batches):
        """Those of several batches."""
        def pad(x, value):
            return torch.nn.functional.pad(x, (0, width - x.shape[1]), value=value)

        width = max(each.valid.shape[1] for each in batches)
        parts = {name: torch.cat([pad(each.parts[name], 0.0) for each in batches]) for name in batches[0].parts}
        return cls(parts, *(torch.cat([pad(getattr(each, name), False) for each in batches]) for name in ("is_target", "valid")))

    def ndcg(self, weights, k):
        """Mean NDCG@k of the blend with some weights; of equal scores the target gets the middle place."""
        scores = blend(self.parts, weights).masked_fill(~self.valid, -torch.inf)
        own = scores.masked_fill(~self.is_target, -torch.inf).amax(1, keepdim=True)
        rank = (~(scores < own)).sum(1) - 1 - ((scores == own).sum(1) - 1) / 2  # a score that is no number counts against it
        return torch.where(rank < k, 1 / (rank + 2).log2(), 0.0).double().mean().item()


def blend(parts, weights):
    """Weighted sum of the parts. The part that `weights` does not name has weight 1."""
    total = None
    for name, part in parts.items():
        weight = weights.get(name, 1.0)
        if weight:
            total = weight * part if total is None else torch.add(total, part, alpha=weight)  # one pass over the items, not two
    return total


def rerank(scores, items, values):
    """Give some items new scores, and keep them in front of all others.

    Args:
        scores: [B, n].
        items: [B, C], the best items of each row.
        values: [B, C], their new scores.

    Returns:
        [B, n]: the values of the items; the scores of all others, lowered together until they are below the values.
    """
    rest = scores.scatter(1, items, -torch.inf)
    above = (rest.amax(1, keepdim=True) - values.amin(1, keepdim=True)).clamp_min(0)
    return (rest - torch.where(above.isfinite(), above + 1, 0.0)).scatter(1, items, values)


def search(candidates, weights, k):
    """Weights that rank the targets of some rows best.

    Each weight in turn is multiplied by each of FACTORS (that of repeats also by minus these). The best value is kept. This is
    repeated until nothing improves, at most SWEEPS times.

    Args:
        candidates: :class:`Candidates` of the rows.
        weights: name -> float, where the search starts.
        k: cut-off of the NDCG.

    Returns:
        dict as `weights`, and its NDCG@k.
    """
    best, score = dict(weights), candidates.ndcg(weights, k)
    for _ in range(SWEEPS):
        before = score
        for name in weights:
            for value in _values(name, best[name]):
                tried = candidates.ndcg({**best, name: value}, k)
                if tried > score + 1e-6:
                    best, score = {**best, name: value}, tried
        if score < before + 1e-5:
            break
    return best, score


def _values(name, present):
    """What a search tries in place of the present weight. The weight of repeats may change its sign; the others are never below 0."""
    values = [factor * (present or LEAST) for factor in (*FACTORS, 1.0)]
    return values + [-value for value in values] if name == REPEAT else values
