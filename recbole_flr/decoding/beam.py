"""Batched beam search over the titles of a trie, for any model that can score tokens after a prompt.

Four departures from the usual beam search of a language model:

- A beam costs no cache. All tokens tried for a user form one tree behind the user's prompt (tree attention), and the model
  is asked for the hidden states of new tokens given the place of their predecessors; see :class:`PrefixScorer`.
- A beam with only one title left leaves the search at once; such tails are collected and scored together at the end. So the
  number of passes is the depth at which titles stop branching, plus one or two, whatever their length; and as places in the
  beam become free, at least min(num_beams, titles) titles are always found, usually more.
- Only the best titles are wanted, and a sum of log-probabilities only falls: what cannot come among the best any more, a beam
  or a tail, is not followed to its end (`top`).
- Only a node's children are looked at: no mask of vocabulary width for a beam, no Python loop over users or beams.

Ties are broken the same way on every device: in a step the earlier beam wins (beams stand in order of score), then the
lower token id; finished titles of equal score stand in the order of their leaves, which is that of their tokens.

Shape letters: U users, W active beams (padded), S new tokens a user (padded), D hidden width, V vocabulary, F finished
titles (padded).
"""

import torch

from recbole_flr.decoding.scoring import (
    Beams, Best, Final, check_options, child_scores, extend_paths, finish_tails, highest, place_in_run, precision, ragged,
)  # fmt: skip
from recbole_flr.errors import DataError


@torch.no_grad()
def beam_search(scorer, trie, num_beams, *, top=None, score="full", length_penalty=0.0, max_logits=2**26):
    """The titles that a model finds most probable, per user.

    In every step the children of a user's active beams compete on the sum of their tokens' log-probabilities and the best
    `num_beams` stay (the length penalty plays no part in this); of those, titles that are complete, or that are the only
    one left under their node, are finished and leave the search.

    Args:
        scorer: a :class:`PrefixScorer`.
        trie: a :class:`~recbole_flr.decoding.trie.Trie` on the scorer's device.
        num_beams: how many candidates stay in a step, at least 1.
        top: how many titles are wanted, at least 1; None for all that the search comes upon. The best `top` of all those come
            back, with the same scores and in the same order, for less work.
        score: "full", a token's log-probability is over the whole vocabulary; "trie", over its node's children, so that
            all titles' probabilities sum to 1 and an only child costs nothing.
        length_penalty: the final score is the sum of log-probabilities / (tokens, end of title included)^length_penalty.
        max_logits: at most so many logits are asked for at a time (or one position's); other temporary memory is a small
            multiple of it. On a CPU smaller blocks are used, as they are faster.

    Returns:
        :class:`Beams`. Without `top`, F may exceed `num_beams`.

    Raises:
        ConfigError: `num_beams`, `top` or `score` has a value that it cannot have.
        FLRError: the model's logits are not numbers.
    """
    check_options(score, num_beams=num_beams, top=1 if top is None else top)
    dtype, rows = precision(scorer, max_logits)
    users, device = len(scorer.hidden), scorer.hidden.device
    final = Final(trie, length_penalty, dtype)
    done = _All(users) if top is None else Best(users, top, dtype, device)

    # The root is everyone's only beam: a node, its score, its slot, the state that predicts its children.
    hidden = scorer.hidden.unsqueeze(1)
    node = torch.zeros(hidden.shape[:2], dtype=torch.long, device=device)
    total = torch.zeros_like(node, dtype=dtype)
    slot, valid = torch.full_like(node, -1), torch.ones_like(node, dtype=torch.bool)
    slots, tails = 0, []
    while node.shape[1]:
        candidates, edges = _expand(scorer, trie, hidden, node, total, valid, num_beams, score, rows)
        total, kept = highest(candidates.flatten(1), num_beams)
        edge, parent = edges.flatten(1).gather(1, kept), slot.gather(1, kept // num_beams)
        token, node = trie.tokens(edge), trie.nodes(edge)
        tail = trie.tails(node)

        real = total > -torch.inf
        ends = real & (tail >= 0 if score == "trie" else tail == 0)
        user, place = ends.nonzero(as_tuple=True)
        leaf = (node + tail)[user, place]
        done.add(user, final(total[user, place], leaf), leaf)
        user, place = (real & (tail > 0) & ~ends).nonzero(as_tuple=True)
        tails.append((user, *(x[user, place] for x in (node, total, parent))))

        # What stays active moves to the left, in order. With a length penalty what is hopeless keeps its place: sums compete,
        # so a lower sum that came in instead may well end as a better title, and `top` would change what is found.
        active = real & (tail < 0)
        if top is not None and not length_penalty:
            user, place = active.nonzero(as_tuple=True)
            open_nodes = node[user, place]
            active[user, place] = done.beaten_by(user, final(total[user, place], open_nodes), open_nodes)
        width = int(active.sum(1).max()) if len(active) else 0
        front = active.to(torch.uint8).argsort(dim=1, descending=True, stable=True)[:, :width]
        node, total, token, parent, valid = (x.gather(1, front) for x in (node, total, token, parent, active))
        if width:
            hidden = scorer.extend(token.masked_fill(~valid, 0), parent.masked_fill(~valid, -1), valid)
            slot = torch.arange(slots, slots + width, device=device).expand_as(node)
            slots += width

    _finish(scorer, trie, tails, done, final, top, slots, rows)
    return done.beams()


def item_scores(beams, trie, n_items):
    """Scores of items, from the titles that beam search finished.

    No two reached items of a user get the same score, so that whoever sorts them finds one order: titles as in `beams`,
    the items of one title by their priority in the trie. For this a score that is not below the one before it is lowered to
    the next number below that one. An item's score thus differs from its title's by as many of the smallest possible steps
    as there are items before it at most, and no item passes one of another title.

    Args:
        beams: what :func:`beam_search` returned, U users.
        trie: the trie that it was given.
        n_items: number of item ids; the trie's are below it.

    Returns:
        [U, n_items] in the dtype of the scores: -inf for an item that was not reached.

    Raises:
        DataError: an item id of the trie is not below `n_items`.
    """
    highest = int(trie.items.max())
    if highest >= n_items:
        raise DataError(f"the trie holds item {highest}, but n_items is {n_items}; item ids must be below it")
    out = beams.scores.new_full((len(beams.nodes), n_items), -torch.inf)
    user, title = (beams.nodes >= 0).nonzero(as_tuple=True)
    leaf = beams.nodes[user, title]
    count = trie.item_start[leaf + 1].long() - trie.item_start[leaf].long()
    of_title, within = ragged(count)
    item = trie.items[trie.item_start[leaf].long()[of_title] + within].long()
    user, title = user[of_title], title[of_title]
    place = place_in_run(user, len(out))

    # With numbers counted upwards, x' at place i is the minimum over j <= i of x_j - (i - j).
    width = int(place.max()) + 1 if len(place) else 0
    number = torch.full((len(out), width), torch.iinfo(torch.int64).max, device=out.device)
    number[user, place] = _to_count(beams.scores[user, title]) + place
    number = number.cummin(dim=1).values[user, place] - place
    out[user, item] = _from_count(number, out.dtype)
    return out


def _expand(scorer, trie, hidden, node, total, valid, num_beams, score, rows):
    """The best children of every beam: scores (-inf where padded) and edges, both [U, W, num_beams]."""
    state, before, parent = hidden[valid], total[valid], node[valid]
    scores, edges = total.new_full((len(state), num_beams), -torch.inf), node.new_zeros((len(state), num_beams))
    for at in torch.arange(len(state), device=node.device).split(rows):
        candidate, edge = child_scores(scorer, trie, state[at], parent[at], before[at], score)
        most = min(num_beams, candidate.shape[1])
        scores[at, :most], kept = highest(candidate, most)
        edges[at, :most] = edge.gather(1, kept)
    out_scores = total.new_full((*node.shape, num_beams), -torch.inf)
    out_edges = node.new_zeros((*node.shape, num_beams))
    out_scores[valid], out_edges[valid] = scores, edges
    return out_scores, out_edges


def _finish(scorer, trie, tails, done, final, top, slots, rows):
    """Score the tails: at once, or a user's `top` most promising ones and then those that these leave a chance.

    Args:
        tails: list of user, node, sum, slot of the node's parent, all [n].
        done: what takes the finished titles.
        final: :class:`Final`.
        slots: slots in use.
    """
    user, node, total, slot = (torch.cat(parts) for parts in zip(*tails))
    bound = final(total, node)
    order = bound.argsort(descending=True, stable=True)
    order = order[user[order].argsort(stable=True)]  # by user, the best first
    user, node, total, slot, bound = (x[order] for x in (user, node, total, slot, bound))
    first = torch.ones_like(user, dtype=torch.bool) if top is None else place_in_run(user, len(scorer.hidden)) < top
    for chosen in (first, ~first):
        if top is not None:
            chosen = chosen & done.beaten_by(user, bound, node)
        of = [x[chosen] for x in (user, node, total, slot)]
        if not len(of[0]):
            continue
        left = trie.tails(of[1])
        hidden, column = extend_paths(scorer, trie, of[0], of[1], of[3], left, slots, last=True)
        leaf = of[1] + left
        done.add(of[0], final(finish_tails(scorer, trie, hidden, *of[:3], column, left, rows), leaf), leaf)


class _All:
    """Takes all finished titles, as :class:`Best` takes the best."""

    def __init__(self, users):
        self.users, self.found = users, []

    def add(self, user, score, leaf):
        self.found.append((user, score, leaf))

    def beams(self):
        user, score, leaf = (torch.cat(parts) for parts in zip(*self.found))
        order = leaf.argsort()  # a leaf is finished once a user
        order = order[score[order].argsort(descending=True, stable=True)]
        order = order[user[order].argsort(stable=True)]
        user, score, leaf = user[order], score[order], leaf[order]
        place = place_in_run(user, self.users)
        width = int(place.max()) + 1 if len(place) else 0
        nodes = torch.full((self.users, width), -1, device=user.device)
        scores = score.new_full((self.users, width), -torch.inf)
        nodes[user, place], scores[user, place] = leaf, score
        return Beams(nodes, scores)


# A floating-point format: its integer twin, the bits of its magnitude, and the largest subnormal magnitude.
_FORMATS = {torch.float32: (torch.int32, 2**31 - 1, 2**23 - 1), torch.float64: (torch.int64, 2**63 - 1, 2**52 - 1)}


def _to_count(x):
    """Floating-point numbers counted upwards, 0 at 0: neighbours differ by 1. Subnormal numbers count as 0, as hardware may
    take them for it."""
    integer, magnitude, subnormal = _FORMATS[x.dtype]
    count = ((x.abs().view(integer) & magnitude).long() - subnormal).clamp(min=0)
    return torch.where(x < 0, -count, count)


def _from_count(count, dtype):
    """The inverse of :func:`_to_count`."""
    integer, _, subnormal = _FORMATS[dtype]
    size = torch.where(count == 0, 0, count.abs() + subnormal).to(integer).view(dtype)
    return torch.where(count < 0, -size, size)
