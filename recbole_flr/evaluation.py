"""Title-level metrics beside RecBole's item-level ones.

Several items may share a title (14% of the test targets of Amazon CDs). RecBole's Hit and NDCG ask for the very item;
the LatentR3 line of papers asks for the right title. Both are fair questions; they get names that nobody confuses:
``hit@10`` and ``title_hit@10``.
"""

import math

import torch
from recbole.evaluator import Collector, Evaluator

RANK = "rec.title_rank"
METRICS = {  # rank counts from 0
    "title_hit": lambda rank, k: (rank < k).double(),
    "title_ndcg": lambda rank, k: torch.where(rank < k, math.log(2) / (rank + 2).double().log(), 0.0),
}


def title_ranks(scores, title_ids, targets):
    """Rank of each target's title among all titles; a title scores as the best of its items.

    Args:
        scores: [B, n_items].
        title_ids: [n_items] int64, 0 for padding.
        targets: [B] item ids.

    Returns:
        [B] int64 from 0; ties count against the target; one that was not reached (-inf) has rank n_items, beyond any k.
    """
    n_titles = int(title_ids.max()) + 1
    best = scores.new_full((len(scores), n_titles), -math.inf)
    best = best.scatter_reduce(1, title_ids.expand(len(scores), -1), scores, reduce="amax")
    target = best.gather(1, title_ids[targets].unsqueeze(1))
    above = (best[:, 1:] >= target).sum(1) - 1
    return torch.where(target.squeeze(1) == -math.inf, scores.shape[1], above)


class TitleCollector(Collector):
    """RecBole's collector, which also keeps the rank of each target's title."""

    def __init__(self, config, title_ids):
        super().__init__(config)
        self.title_ids = title_ids.to(config["device"])

    def eval_batch_collect(self, scores_tensor, interaction, positive_u, positive_i):
        super().eval_batch_collect(scores_tensor, interaction, positive_u, positive_i)
        rows = positive_u.to(scores_tensor.device)
        ranks = title_ranks(scores_tensor[rows], self.title_ids, positive_i.to(scores_tensor.device))
        self.data_struct.update_tensor(RANK, ranks)

    def get_data_struct(self):
        struct = super().get_data_struct()
        del self.data_struct[RANK]
        return struct


class TitleEvaluator(Evaluator):
    """RecBole's evaluator, with ``title_hit@k`` and ``title_ndcg@k`` behind its own metrics."""

    def evaluate(self, dataobject):
        result = super().evaluate(dataobject)
        places = self.config["metric_decimal_place"]
        for name, value in METRICS.items():
            for k in self.config["topk"]:
                result[f"{name}@{k}"] = round(value(dataobject[RANK], k).mean().item(), places)
        return result
