"""Batched beam search over the titles of a trie, for any model that can score tokens after a prompt.

Three departures from the usual beam search of a language model:

- A beam costs no cache. All tokens tried for a user form one tree behind the user's prompt (tree attention), and the model
  is asked for the hidden states of new tokens given the place of their predecessors; see :class:`PrefixScorer`.
- A beam with only one title left leaves the search at once; such tails are collected and scored together in one pass at
  the end. So the number of passes is the depth at which titles stop branching, plus one, whatever their length; and as
  places in the beam become free, at least min(num_beams, titles) titles are always finished, usually more.
- Only a node's children are looked at: no mask of vocabulary width for a beam, no Python loop over users or beams.

Ties are broken the same way on every device: in a step the earlier beam wins (beams stand in order of score), then the
lower token id; finished titles of equal score stand in the order of their leaves, which is that of their tokens.

Shape letters: U users, W active beams (padded), S new tokens a user (padded), D hidden width, V vocabulary, F finished
titles (padded).
"""

from dataclasses import dataclass
from typing import Protocol

import torch

from recbole_flr.errors import ConfigError, DataError, FLRError

SCORES = ("full", "trie")


class PrefixScorer(Protocol):
    """What beam search needs of a language model, for a batch of U users that have each read their prompt.

    Attributes:
        hidden: [U, D], the state at a user's last prompt position, which predicts the title's first token.
    """

    hidden: torch.Tensor

    def extend(self, tokens, parents, valid):
        """Append tokens to every user's tree and return their hidden states.

        Appended tokens take the next free slots 0, 1, 2, … of their user in the order given, padding included.

        Args:
            tokens: int64 [U, S].
            parents: int64 [U, S], the slot of each token's predecessor, -1 for the prompt. It may be a slot of this very
                call as long as it is to the left: a chain is appended at once.
            valid: bool [U, S], False for padding (token 0, parent -1), whose hidden state is never read.

        Returns:
            [U, S, D]: each token's state after its prompt, its ancestors and itself.
        """

    def logits(self, hidden):
        """[..., D] -> [..., V], scores of the next token."""


@dataclass(frozen=True)
class Beams:
    """Finished titles of each user, best first.

    Attributes:
        nodes: int64 [U, F], leaves of the trie, -1 where padded.
        scores: [U, F] float32 or float64, -inf where padded, finite elsewhere.
    """

    nodes: torch.Tensor
    scores: torch.Tensor


@torch.no_grad()
def beam_search(scorer, trie, num_beams, *, score="full", length_penalty=0.0, max_logits=2**26):
    """The titles that a model finds most probable, per user.

    In every step the children of a user's active beams compete on the sum of their tokens' log-probabilities and the best
    `num_beams` stay (the length penalty plays no part in this); of those, titles that are complete, or that are the only
    one left under their node, are finished and leave the search.

    Args:
        scorer: a :class:`PrefixScorer`.
        trie: a :class:`~recbole_flr.decoding.trie.Trie` on the scorer's device.
        num_beams: how many candidates stay in a step, at least 1.
        score: "full", a token's log-probability is over the whole vocabulary; "trie", over its node's children, so that
            all titles' probabilities sum to 1 and an only child costs nothing.
        length_penalty: the final score is the sum of log-probabilities / (tokens, end of title included)^length_penalty.
        max_logits: at most so many logits are asked for at a time (or one position's); other temporary memory is a small
            multiple of it. On a CPU smaller blocks are used, as they are faster.

    Returns:
        :class:`Beams`. F may exceed `num_beams`.

    Raises:
        ConfigError: `num_beams` or `score` has a value that it cannot have.
        FLRError: the model's logits are not numbers.
    """
    if num_beams < 1:
        raise ConfigError(f"num_beams must be at least 1; it is {num_beams}")
    if score not in SCORES:
        raise ConfigError(f"score must be one of {', '.join(SCORES)}; it is {score!r}")
    probe = scorer.logits(scorer.hidden[:1])
    dtype = torch.promote_types(probe.dtype, torch.float32)
    rows = max(1, max_logits // probe.shape[-1])
    if probe.device.type == "cpu":  # blocks that stay near its caches: 3.5 times faster than 2**26 logits at V = 8000
        rows = min(rows, max(256, 2**22 // probe.shape[-1]))
    del probe

    # The root is everyone's only beam: a node, its score, its slot, the state that predicts its children.
    hidden = scorer.hidden.unsqueeze(1)
    node = torch.zeros(hidden.shape[:2], dtype=torch.long, device=hidden.device)
    total = torch.zeros_like(node, dtype=dtype)
    slot, valid = torch.full_like(node, -1), torch.ones_like(node, dtype=torch.bool)
    depth = slots = 0
    finished, tails = [], []
    while node.shape[1]:
        depth += 1
        candidates, edges = _expand(scorer, trie, hidden, node, total, valid, num_beams, score, rows)
        per_beam = candidates.shape[2]
        candidates, edges = candidates.flatten(1), edges.flatten(1)
        total, kept = _top(candidates, min(num_beams, candidates.shape[1]))
        edge, parent = edges.gather(1, kept), slot.gather(1, kept // per_beam)
        token, node = trie.child_token[edge].long(), trie.child_node[edge].long()
        tail = trie.tail_length[node].long()

        real = total > -torch.inf
        ends = real & (tail >= 0 if score == "trie" else tail == 0)
        user, place = ends.nonzero(as_tuple=True)
        left = tail[user, place]
        finished.append((user, node[user, place] + left, total[user, place], depth + left))
        user, place = (real & (tail > 0) & ~ends).nonzero(as_tuple=True)
        left = tail[user, place]
        tails.append((user, node[user, place], total[user, place], depth + left, left, parent[user, place]))

        # What stays active moves to the left, in order.
        active = real & (tail < 0)
        width = int(active.sum(1).max()) if len(active) else 0
        front = active.to(torch.uint8).argsort(dim=1, descending=True, stable=True)[:, :width]
        node, total, token, parent, valid = (x.gather(1, front) for x in (node, total, token, parent, active))
        if width:
            hidden = scorer.extend(token.masked_fill(~valid, 0), parent.masked_fill(~valid, -1), valid)
            slot = torch.arange(slots, slots + width, device=node.device).expand_as(node)
            slots += width

    tails = [torch.cat(parts) for parts in zip(*tails)]
    if len(tails[0]):
        finished.append(_finish_tails(scorer, trie, tails, slots, rows))
    user, leaf, total, length = (torch.cat(parts) for parts in zip(*finished))
    total = _finite(total / length.to(dtype) ** length_penalty)
    return _collect(user, leaf, total, len(scorer.hidden), trie.num_nodes)


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
    of_title, within = _ragged(count)
    item = trie.items[trie.item_start[leaf].long()[of_title] + within].long()
    user, title = user[of_title], title[of_title]
    place = _place_in_run(user, len(out))

    # With numbers counted upwards, x' at place i is the minimum over j <= i of x_j - (i - j).
    width = int(place.max()) + 1 if len(place) else 0
    number = torch.full((len(out), width), torch.iinfo(torch.int64).max, device=out.device)
    number[user, place] = _to_count(beams.scores[user, title]) + place
    number = number.cummin(dim=1).values[user, place] - place
    out[user, item] = _from_count(number, out.dtype)
    return out


def _expand(scorer, trie, hidden, node, total, valid, num_beams, score, rows):
    """The best children of every beam: scores (-inf where padded) and edges, both [U, W, k], k <= num_beams."""
    state, before = hidden[valid], total[valid]
    first = trie.first_child[node[valid]].long()
    degree = trie.first_child[node[valid] + 1].long() - first
    most = int(degree.max()) if len(degree) else 1
    best = min(num_beams, most)
    column = torch.arange(most, device=node.device)
    scores, edges = [], []
    # Padding children to the widest node's is safe here: a node has at most V of them, as many as there are logits.
    for at in torch.arange(len(state), device=node.device).split(rows):
        logits = scorer.logits(state[at]).to(total.dtype)
        inside = column < degree[at, None]
        edge = (first[at, None] + column).clamp(max=len(trie.child_token) - 1)
        child = logits.gather(1, trie.child_token[edge].long()).masked_fill(~inside, -torch.inf)
        log_prob = child - _normaliser(logits if score == "full" else child)
        candidate = _finite(before[at, None] + log_prob).masked_fill(~inside, -torch.inf)
        top, kept = _top(candidate, best)
        scores.append(top)
        edges.append(edge.gather(1, kept))
    out_scores = total.new_full((*node.shape, best), -torch.inf)
    out_edges = node.new_zeros((*node.shape, best))
    if scores:
        out_scores[valid], out_edges[valid] = torch.cat(scores), torch.cat(edges)
    return out_scores, out_edges


def _finish_tails(scorer, trie, tails, slots, rows):
    """Score all tails in one pass.

    A tail of n tokens below node v appends v's own token and all of its own but the last: the state of each predicts the
    next one.

    Args:
        tails: user, node, score so far, tokens of the whole title, tokens of the tail, slot of the node's parent; all [n].
        slots: slots in use.

    Returns:
        user, leaf, score, tokens of the whole title: all [n].
    """
    order = tails[0].argsort(stable=True)
    user, node, total, length, left, parent = (x[order] for x in tails)
    of_tail, step = _ragged(left)
    token_user, token_node = user[of_tail], node[of_tail] + step
    column = _place_in_run(token_user, len(scorer.hidden))
    shape = len(scorer.hidden), int(column.max()) + 1
    tokens = torch.zeros(shape, dtype=torch.long, device=user.device)
    parents, valid = torch.full_like(tokens, -1), torch.zeros_like(tokens, dtype=torch.bool)
    tokens[token_user, column] = trie.node_token[token_node].long()
    parents[token_user, column] = torch.where(step > 0, slots + column - 1, parent[of_tail])
    valid[token_user, column] = True
    hidden = scorer.extend(tokens, parents, valid)

    target = trie.node_token[token_node + 1].long()
    log_probs = total.new_zeros((len(user), int(left.max())))
    for at in torch.arange(len(of_tail), device=user.device).split(rows):
        logits = scorer.logits(hidden[token_user[at], column[at]]).to(total.dtype)
        log_prob = logits.gather(1, target[at, None]) - _normaliser(logits)
        log_probs[of_tail[at], step[at]] = log_prob.squeeze(1)
    return user, node + left, _finite(total + log_probs.sum(1)), length


def _collect(user, leaf, total, users, num_nodes):
    """Flat finished titles as :class:`Beams`."""
    order = (user * num_nodes + leaf).argsort()  # a leaf is finished once: all keys differ
    user, leaf, total = user[order], leaf[order], total[order]
    place = _place_in_run(user, users)
    width = int(place.max()) + 1 if len(place) else 0
    nodes = torch.full((users, width), -1, device=user.device)
    scores = total.new_full((users, width), -torch.inf)
    nodes[user, place], scores[user, place] = leaf, total
    scores, order = scores.sort(dim=1, descending=True, stable=True)
    return Beams(nodes.gather(1, order), scores)


def _normaliser(logits):
    """Log-sum-exp over the last dimension, [n, 1]."""
    out = logits.logsumexp(dim=-1, keepdim=True)
    if not bool((out < torch.inf).all()):
        raise FLRError("the model's logits are NaN or infinite: its weights are damaged, or training it diverged")
    return out


def _finite(score):
    """Impossible titles get a very low score instead of -inf, which means padding; half-way to the lowest number there is,
    which leaves :func:`item_scores` room below it."""
    lowest = torch.finfo(score.dtype).min / 2
    return score.nan_to_num(nan=lowest, neginf=lowest).clamp(min=lowest)


def _top(values, k):
    """The k largest of each row, descending, and their columns: [n, k]; of equal ones the left (`topk` promises nothing)."""
    kth = values.topk(k, dim=1).values[:, -1:]
    above, equal = values > kth, values == kth
    room = k - above.sum(dim=1, keepdim=True)
    column = (above | (equal & (equal.cumsum(dim=1) <= room))).nonzero()[:, 1].view(len(values), k)
    top, order = values.gather(1, column).sort(dim=1, descending=True, stable=True)
    return top, column.gather(1, order)


def _ragged(count):
    """Rows of `count` entries laid end to end: each entry's row, and its number within the row."""
    row = torch.arange(len(count), device=count.device).repeat_interleave(count)
    return row, torch.arange(len(row), device=count.device) - (count.cumsum(0) - count)[row]


def _place_in_run(key, num_keys):
    """For ascending `key` in 0 .. num_keys - 1: each entry's number among those of the same key."""
    start = torch.searchsorted(key, torch.arange(num_keys, device=key.device))
    return torch.arange(len(key), device=key.device) - start[key]


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
