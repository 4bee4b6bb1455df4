"""Title-level metrics beside RecBole's item-level ones, and the ranks from which both can be computed again.

Several items may share a title (14% of the test targets of Amazon CDs). RecBole's Hit and NDCG ask for the very item. The LatentR3
line of papers asks for the right title. Both are fair questions, so both are reported under names that nobody confuses:
``hit@10`` and ``title_hit@10``.

Shapes: B rows of a batch, P targets (one for each row of a sequential model), K the largest cut-off (max(topk)).
"""

import math

import numpy as np
import torch
from recbole.evaluator import Collector, Evaluator, smaller_metrics
from tabulate import tabulate

from recbole_flr.distributed import gather_in_turns, gather_json, size

TITLE_RANK = "rec.title_rank"
PER_BATCH = ("rec.topk", "rec.meanrank", "rec.score", "rec.items", "data.label", TITLE_RANK)  # tensors that grow in an evaluation
METRICS = {  # of ranks that count from 1
    "title_hit": lambda rank, k: (rank <= k).double(),
    "title_ndcg": lambda rank, k: torch.where(rank <= k, math.log(2) / (rank + 1).double().log(), 0.0),
}


def smaller_is_better(metric):
    """Whether a smaller value of a metric, such as `giniindex@10`, is the better one, as RecBole's class of the metric says."""
    return metric.partition("@")[0].lower() in smaller_metrics


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


class SharedCollector(Collector):
    """RecBole's collector, which also takes what other processes have collected, if they evaluate batches in turns.

    RecBole means the metrics of the processes instead, weighted by a number that is not that of their rows.
    """

    def __init__(self, config):
        super().__init__(config)
        self._lengths = {}  # name of a tensor that grows from batch to batch -> its rows in each batch

    def eval_batch_collect(self, scores_tensor, interaction, positive_u, positive_i):
        before = {name: len(self.data_struct[name]) if name in self.data_struct else 0 for name in PER_BATCH}
        super().eval_batch_collect(scores_tensor, interaction, positive_u, positive_i)
        self._note(before)

    def _note(self, before):
        """Note how many rows each tensor has got."""
        for name in PER_BATCH:
            if name in self.data_struct and len(self.data_struct[name]) > before[name]:
                self._lengths.setdefault(name, []).append(len(self.data_struct[name]) - before[name])

    def get_data_struct(self):
        """RecBole's, with the rows of all processes in the order in which one process would have them."""
        lengths, self._lengths = self._lengths, {}
        if size() > 1:
            names = next((each for each in gather_json(list(lengths)) if each), ())  # a process may have had no batch
            for name in names:
                pieces = self.data_struct[name].cpu().split(lengths[name]) if name in lengths else []
                self.data_struct.set(name, torch.cat(gather_in_turns(list(pieces))))
        known = list(self.data_struct._data_dict)
        counts = {name: self.data_struct[name] for name in known if not isinstance(self.data_struct[name], torch.Tensor)}
        for name in counts:  # RecBole 1.2.1 takes all for tensors and fails: github.com/RUCAIBox/RecBole/issues/2131
            del self.data_struct[name]
        found = super().get_data_struct()
        for name, value in counts.items():
            found.set(name, value)
            self.data_struct.set(name, value)
        return found


class RankCollector(SharedCollector):
    """A collector that also keeps the ranks of the targets and the best items of each row.

    Args:
        config: RecBole's.
        title_ids: [n_items] int64, equal for items of equal title; None for no title-level ranks.

    Attributes:
        batch_rows: rows of each batch that this process ranked, of the evaluation that :meth:`take_ranks` was called for.
    """

    def __init__(self, config, title_ids=None):
        super().__init__(config)
        self.title_ids = None if title_ids is None else title_ids.to(config["device"])
        self._parts, self.batch_rows = [], []

    def eval_batch_collect(self, scores_tensor, interaction, positive_u, positive_i):
        super().eval_batch_collect(scores_tensor, interaction, positive_u, positive_i)
        row, target = positive_u.to(scores_tensor.device), positive_i.to(scores_tensor.device)
        top_scores, top_items = torch.topk(scores_tensor, min(max(self.topk), scores_tensor.shape[1]), dim=-1)
        scores = scores_tensor if torch.equal(row, torch.arange(len(scores_tensor), device=row.device)) else scores_tensor[row]
        part = {
            "row": row, "target": target, "item_rank": item_ranks(scores, target, top_items[row]),
            "top_items": top_items, "top_scores": top_scores,
        }
        if self.title_ids is not None:
            part["title_rank"] = title_ranks(scores, self.title_ids, target, max(self.topk))
            before = {name: len(self.data_struct[name]) if name in self.data_struct else 0 for name in PER_BATCH}
            self.data_struct.update_tensor(TITLE_RANK, part["title_rank"])
            self._note(before)
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
        parts, self._parts = self._parts, []
        self.batch_rows = [len(part["top_items"]) for part in parts]
        names = next((each for each in gather_json(list(parts[0]) if parts else None) if each), None)
        if names is None:
            return {}
        pieces = {name: gather_in_turns([part[name] for part in parts]) for name in names}
        first = 0
        for number, batch in enumerate(pieces["top_items"]):  # which has a line for each row of the batch
            pieces["row"][number] = pieces["row"][number] + first
            first += len(batch)
        ranks = {name: torch.cat(each).numpy() for name, each in pieces.items()}
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
