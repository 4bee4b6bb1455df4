"""Title-level metrics beside RecBole's item-level ones, and the ranks from which both can be computed again.

Several items may share a title (14% of the test targets of Amazon CDs). RecBole's Hit and NDCG ask for the very item. The LatentR3
line of papers asks for the right title. Both are fair questions, so both are reported under names that nobody confuses:
``hit@10`` and ``title_hit@10``.

Shapes: B rows of a batch, P targets (one for each row of a sequential model), K the largest cut-off (max(topk)).
"""

import math

import numpy as np
import torch
from recbole.evaluator import Collector, Evaluator
from tabulate import tabulate

TITLE_RANK = "rec.title_rank"
METRICS = {  # of ranks that count from 1
    "title_hit": lambda rank, k: (rank <= k).double(),
    "title_ndcg": lambda rank, k: torch.where(rank <= k, math.log(2) / (rank + 1).double().log(), 0.0),
}


def title_ranks(scores, title_ids, targets, count):
    """Rank of each target's title among all titles. A title's score is that of its best item. Ties are broken as for items.

    Args:
        scores: [P, n_items].
        title_ids: [n_items] int64, 0 for padding.
        targets: [P] item ids.
        count: K.

    Returns:
        [P] int64 from 1, as those of :func:`item_ranks`. They are the same if each item has a title of its own.
    """
    n_titles = int(title_ids.max()) + 1
    best = scores.new_full((len(scores), n_titles), -math.inf)
    best = best.scatter_reduce(1, title_ids.expand(len(scores), -1), scores, reduce="amax")
    best[:, 0] = -math.inf
    ranks = item_ranks(best, title_ids[targets], best.topk(min(count, n_titles), dim=-1).indices)
    unreached = best.gather(1, title_ids[targets].unsqueeze(1)).squeeze(1) == -math.inf
    return torch.where(unreached, scores.shape[1] + 1, ranks)  # no hit, however few the titles are


def item_ranks(scores, targets, top_items):
    """Rank of each target among all items, with ties as torch's top-k breaks them, so that RecBole's metrics follow from it.

    Args:
        scores: [P, n_items].
        targets: [P] item ids.
        top_items: [P, K], the best items as torch's top-k gives them.

    Returns:
        [P] int64 from 1: the place in `top_items`, or else one more than the number of items that are better, but more than K.
        A target that was not reached (-inf) and is not in `top_items` has rank n_items + 1.
    """
    own = scores.gather(1, targets.unsqueeze(1))
    rank = ((scores > own).sum(1) + 1).clamp_min(top_items.shape[1] + 1)
    rank = torch.where(own.squeeze(1) == -math.inf, scores.shape[1] + 1, rank)
    found = top_items == targets.unsqueeze(1)
    return torch.where(found.any(1), found.int().argmax(1) + 1, rank)


class RankCollector(Collector):
    """RecBole's collector, which also keeps the ranks of the targets and the best items of each row.

    Args:
        config: RecBole's.
        title_ids: [n_items] int64, equal for items of equal title; None for no title-level ranks.
    """

    def __init__(self, config, title_ids=None):
        super().__init__(config)
        self.title_ids = None if title_ids is None else title_ids.to(config["device"])
        self._parts, self._rows = [], 0

    def eval_batch_collect(self, scores_tensor, interaction, positive_u, positive_i):
        super().eval_batch_collect(scores_tensor, interaction, positive_u, positive_i)
        row, target = positive_u.to(scores_tensor.device), positive_i.to(scores_tensor.device)
        top_scores, top_items = torch.topk(scores_tensor, min(max(self.topk), scores_tensor.shape[1]), dim=-1)
        scores = scores_tensor if torch.equal(row, torch.arange(len(scores_tensor), device=row.device)) else scores_tensor[row]
        part = {
            "row": row + self._rows, "target": target, "item_rank": item_ranks(scores, target, top_items[row]),
            "top_items": top_items, "top_scores": top_scores,
        }
        if self.title_ids is not None:
            part["title_rank"] = title_ranks(scores, self.title_ids, target, max(self.topk))
            self.data_struct.update_tensor(TITLE_RANK, part["title_rank"])
        self._rows += len(scores_tensor)
        self._parts.append({name: value.cpu() for name, value in part.items()})

    def get_data_struct(self):
        struct = super().get_data_struct()
        if self.title_ids is not None:
            del self.data_struct[TITLE_RANK]
        return struct

    def take_ranks(self):
        """The ranks of the evaluation that has just ended, and forget them.

        Returns:
            dict of numpy arrays. `row`, `target`, `item_rank` and, with titles, `title_rank`: [P] int32, where `row` counts the
            rows of the evaluated loader, item ids are RecBole's internal ones, and ranks count from 1 (n_items + 1 if not reached).
            `top_items` [rows, K] int32 and `top_scores` [rows, K] float32, the best first.
        """
        parts, self._parts, self._rows = self._parts, [], 0
        if not parts:
            return {}
        ranks = {name: torch.cat([part[name] for part in parts]).numpy() for name in parts[0]}
        return {name: value.astype(np.float32 if name == "top_scores" else np.int32) for name, value in ranks.items()}


class TitleEvaluator(Evaluator):
    """RecBole's evaluator, with ``title_hit@k`` and ``title_ndcg@k`` behind its own metrics."""

    def evaluate(self, dataobject):
        result = super().evaluate(dataobject)
        places = self.config["metric_decimal_place"]
        for name, value in METRICS.items():
            for k in self.config["topk"]:
                result[f"{name}@{k}"] = round(value(dataobject[TITLE_RANK], k).mean().item(), places)
        return result


def metrics_table(results):
    """Results of several evaluations as text: a line each, a column for each metric.

    Args:
        results: dict, label -> dict of metrics.
    """
    return tabulate([{"": label, **metrics} for label, metrics in results.items()], headers="keys", floatfmt=".4f")
