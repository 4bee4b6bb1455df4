"""How FLRMix ranks: by log p(i), by what the memory says, and by the titles, with weights that are chosen on validation rows.

Shapes: B rows, L places of a history (right-padded with item 0), C candidates of a row, n items.
"""

import torch

from recbole_flr.model.blend import REPEAT, Candidates, blend, rerank, search

MOST_ROWS = 20_000  # validation rows on which the weights are chosen
TITLE_ROWS = 2_000  # of these, rows on which the weight of the titles is chosen
LOG_P, TITLE = "mixture", "title"  # names of the parts that are log p(i), and the log-probability of the title


class Ranking:
    """The parts of a ranking and their weights.

    Args:
        config: needs transitions_weight, neighbors_weight, repeat_weight, title_weight, fit_weights, topk and num_candidates.
        memory: :class:`recbole_flr.model.memory.Memory`.
        reranks: whether the best items are ranked anew by their titles (`rank: both`).

    Attributes:
        start_weights: name of a part -> weight, as the options give them.
        weights: name of a part -> weight in use. log p(i) has the weight 1 and no name here.
        fits: whether the weights are chosen on validation rows.
        cutoff: of the NDCG for which they are chosen, and of the reward of the reinforcement stage.
    """

    def __init__(self, config, memory, reranks):
        starts = {"transitions": config["transitions_weight"], "neighbors": config["neighbors_weight"]}
        weights = {name: starts[name] for name in memory.tables} | {REPEAT: config["repeat_weight"]}
        if reranks:
            weights[TITLE] = config["title_weight"]
        self.memory, self.reranks, self.fits = memory, reranks, config["fit_weights"]
        self.start_weights, self.weights = weights, dict(weights)
        self.cutoff = max(config["topk"])
        self.num_candidates = max(config["num_candidates"], self.cutoff)

    def parts(self, log_p, history):
        """What the ranking is made of, without the titles: name -> [B, n]. `repeat` is 1 for items of the history.

        Args:
            log_p: [B, n], log p(i).
            history: [B, L] item ids.
        """
        return {**self._without_repeats(log_p, history), REPEAT: torch.zeros_like(log_p).scatter(1, history, 1.0)}

    def _without_repeats(self, log_p, history):
        return {LOG_P: log_p, **self.memory.log_votes(history)}

    def _blend(self, log_p, history):
        """Scores without the titles: [B, n]. The weight of repeats is added where it counts: an array of zeros and ones takes time."""
        if log_p.requires_grad:  # an item that stands twice in a history would count twice in the gradient
            return blend(self.parts(log_p, history), self.weights)
        scores = blend(self._without_repeats(log_p, history), self.weights)
        return scores.scatter(1, history, scores.gather(1, history) + self.weights[REPEAT])

    def scores(self, log_p, history, titles, top=None):
        """Scores of all items: [B, n].

        Args:
            log_p: [B, n], log p(i).
            history: [B, L] item ids.
            titles: function, items [B, C] -> log-probabilities of their titles [B, C]. It is called if the best items are ranked anew.
            top: how many items are wanted; at least so many are ranked anew.
        """
        scores = self._blend(log_p, history)
        if not self.reranks:
            return scores
        best = self.best(scores, top or 0)
        return rerank(scores, best.indices, best.values + self.weights[TITLE] * titles(best.indices))

    def best(self, scores, least=0):
        """The items of each row that are ranked anew by their titles, `least` or more: top-k with [B, C]."""
        return scores.topk(min(max(self.num_candidates, least), scores.shape[1] - 1))

    def shares(self, log_p, history, items, titles):
        """What each part adds to the scores of some items of one user: name -> [C].

        Args:
            log_p: [1, n], log p(i).
            history: [1, L] item ids.
            items: list of C item ids.
            titles: as for :meth:`scores`.
        """
        shares = {name: self.weights.get(name, 1.0) * part[0, items] for name, part in self.parts(log_p, history).items()}
        if self.reranks:
            shares[TITLE] = self.weights[TITLE] * titles(torch.tensor([items], device=history.device))[0]
        return shares

    # the weights

    def fit(self, rows, read):
        """Choose the weights on validation rows: :func:`recbole_flr.model.blend.search`.

        Each search starts from the weights that were given. A search from the weights of the last validation would go on fitting
        the same few rows, epoch after epoch. The weight of the titles is chosen last, among the best items by all else.

        Args:
            rows: number of validation rows.
            read: function, index of some of them [R] -> their batches, each as log_p [B, n], history [B, L], target [B], and the
                function `titles` of :meth:`scores`.
        """
        chosen, found = _spread(rows, MOST_ROWS), []
        for log_p, history, target, _ in read(chosen):
            found.append(Candidates.of(self.parts(log_p, history), target, 10 * self.cutoff))
        given = {name: weight for name, weight in self.start_weights.items() if name != TITLE}
        self.weights, _ = search(Candidates.joined(found), given, self.cutoff)
        if not self.reranks:
            return
        found = []
        for log_p, history, target, titles in read(chosen[_spread(len(chosen), TITLE_ROWS)]):
            best = self.best(self._blend(log_p, history))
            valid = torch.ones_like(best.indices, dtype=torch.bool)
            parts = {LOG_P: best.values, TITLE: titles(best.indices)}
            found.append(Candidates(parts, best.indices == target.unsqueeze(1), valid))
        title, _ = search(Candidates.joined(found), {TITLE: self.start_weights[TITLE]}, self.cutoff)
        self.weights.update(title)

    def restore(self, weights):
        """Take the weights of a checkpoint, name -> float. Where they are not chosen but given, they stay as the options give them."""
        if self.fits:
            self.weights.update({name: weight for name, weight in weights.items() if name in self.weights})


def _spread(count, most):
    """At most `most` of the numbers below `count`, spread over all of them, which may be sorted by time or user."""
    return torch.arange(count) if count <= most else torch.linspace(0, count - 1, most).long().clamp_max(count - 1)
