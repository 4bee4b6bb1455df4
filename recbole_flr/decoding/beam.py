"""Batched beam search over the titles of a trie, for any model that can score tokens after a prompt.

It differs from the usual beam search of a language model in four points:

- A beam needs no cache of its own. All tokens tried for a user form one tree behind the user's prompt (tree attention). The
  search tells the model the predecessor of each new token and gets its hidden state; see
  :class:`~recbole_flr.decoding.scorer.PrefixScorer`.
- A beam leaves the search as soon as only one title is left below it. These tails are collected and scored together at the
  end. So the number of passes through the model is the depth at which titles stop branching, plus one or two, however long the
  titles are. The places of such beams become free for others. So the search finds at least min(num_beams, titles) titles for
  each user, usually more.
- The search may be asked for the best `top` titles only. A sum of log-probabilities only falls along a path. So a beam or a
  tail that can no longer come among the best is dropped.
- Only the children of a node are looked at. There is no mask of the width of the vocabulary for each beam, and no Python loop
  over users or beams.

Ties are broken the same way on every device. Within a step the earlier beam wins (beams are ordered by score), then the lower
token id. Finished titles of equal score are ordered by their leaves, which is the order of their tokens.

Shape letters: U users, W active beams (padded), D hidden width, F finished titles (padded).
"""

import torch

from recbole_flr.decoding.finished import BestTitles, LengthPenalty
from recbole_flr.decoding.scorer import check_options, child_scores, dtype_and_block, extend_paths, tail_scores
from recbole_flr.ragged import places_in_rows


@torch.no_grad()
def beam_search(scorer, trie, num_beams, *, top=None, score="full", length_penalty=0.0, max_logits=2**26):
    """The titles that a model finds most probable, for each user.

    In every step the children of a user's active beams compete by the sum of their tokens' log-probabilities, and the best
    `num_beams` stay. (The length penalty plays no part in this.) Of those that stay, complete titles are finished and leave the
    search, and so do nodes with only one title left.

    Args:
        scorer: a :class:`~recbole_flr.decoding.scorer.PrefixScorer`.
        trie: a :class:`~recbole_flr.decoding.trie.Trie` on the scorer's device.
        num_beams: number of candidates that stay in a step, at least 1.
        top: number of titles wanted, at least 1; None for all that the search finds. The titles, their scores and their order
            are the same as without `top`; asking for fewer is faster.
        score: "full": the log-probability of a token is over the whole vocabulary. "trie": it is over the children of the
            token's node, so the probabilities of all titles sum to 1, and an only child costs nothing.
        length_penalty: the final score is the sum of log-probabilities / length^length_penalty, the end of title included.
        max_logits: at most this many logits are computed at a time (or those of one position). Other temporary memory is a small
            multiple of it. On a CPU the search uses smaller blocks, because they are faster.

    Returns:
        :class:`~recbole_flr.decoding.finished.Beams`. Without `top`, F may exceed `num_beams`.

    Raises:
        ConfigError: `num_beams` or `top` is below 1, or `score` is unknown.
        FLRError: the model's logits are NaN or infinite.
    """
    check_options(score, num_beams=num_beams, top=1 if top is None else top)
    dtype, block = dtype_and_block(scorer, max_logits)
    users, device = len(scorer.hidden), scorer.hidden.device
    penalise = LengthPenalty(trie, length_penalty, dtype)
    best = BestTitles(users, top, dtype, device)

    # Each user has one beam at first, the root. A beam has a node, a sum, a slot, and the state that predicts its children.
    hidden = scorer.hidden.unsqueeze(1)
    node = torch.zeros(hidden.shape[:2], dtype=torch.long, device=device)
    total = torch.zeros_like(node, dtype=dtype)
    slot, valid = torch.full_like(node, -1), torch.ones_like(node, dtype=torch.bool)
    slots, tails = 0, []
    while node.shape[1]:
        candidates, edges = _expand(scorer, trie, hidden, node, total, valid, num_beams, score, block)
        total, kept = stable_topk(candidates.flatten(1), num_beams)
        edge, parent = edges.flatten(1).gather(1, kept), slot.gather(1, kept // num_beams)
        token, node = trie.tokens(edge), trie.nodes(edge)
        tail = trie.tails(node)

        real = total > -torch.inf
        ends = real & (tail >= 0 if score == "trie" else tail == 0)
        user, place = ends.nonzero(as_tuple=True)
        leaf = (node + tail)[user, place]
        best.add(user, penalise(total[user, place], leaf), leaf)
        user, place = (real & (tail > 0) & ~ends).nonzero(as_tuple=True)
        tails.append((user, *(x[user, place] for x in (node, total, parent))))

        # Beams without a chance are dropped, but not if there is a length penalty: beams compete by their sums, so a beam with
        # a lower sum would take the free place and might end as a better title. Then `top` would change the result.
        active = real & (tail < 0)
        if not length_penalty:
            user, place = active.nonzero(as_tuple=True)
            open_nodes = node[user, place]
            active[user, place] = best.may_enter(user, penalise(total[user, place], open_nodes), open_nodes)
        # The beams that stay active move to the left and keep their order.
        width = int(active.sum(1).max()) if len(active) else 0
        front = active.to(torch.uint8).argsort(dim=1, descending=True, stable=True)[:, :width]
        node, total, token, parent, valid = (x.gather(1, front) for x in (node, total, token, parent, active))
        if width:
            hidden = scorer.extend(token.masked_fill(~valid, 0), parent.masked_fill(~valid, -1), valid)
            slot = torch.arange(slots, slots + width, device=device).expand_as(node)
            slots += width

    _finish(scorer, trie, tails, best, penalise, slots, block)
    return best.beams()


def stable_topk(values, k):
    """The k largest values of each row, descending, and their columns: [n, C] -> [n, k] twice.

    Of equal values the one further to the left comes first. `torch.topk` does not promise this.
    """
    kth = values.topk(k, dim=1).values[:, -1:]
    above, equal = values > kth, values == kth
    room = k - above.sum(dim=1, keepdim=True)
    column = (above | (equal & (equal.cumsum(dim=1) <= room))).nonzero()[:, 1].view(len(values), k)
    top, order = values.gather(1, column).sort(dim=1, descending=True, stable=True)
    return top, column.gather(1, order)


def _expand(scorer, trie, hidden, node, total, valid, num_beams, score, block):
    """The best children of every beam.

    Args:
        hidden: [U, W, D], the states that predict the beams' children.
        node, total, valid: [U, W].
        block: number of positions that are projected on the vocabulary at a time.

    Returns:
        sums (-inf where padded) and edges of the trie, both [U, W, num_beams].
    """
    real = valid.nonzero(as_tuple=True)  # once: each use of a mask as an index waits for the device
    state, before, parent = hidden[real], total[real], node[real]
    scores, edges = total.new_full((len(state), num_beams), -torch.inf), node.new_zeros((len(state), num_beams))
    for at in torch.arange(len(state), device=node.device).split(block):
        candidate, edge = child_scores(scorer, trie, state[at], parent[at], before[at], score)
        most = min(num_beams, candidate.shape[1])
        scores[at, :most], kept = stable_topk(candidate, most)
        edges[at, :most] = edge.gather(1, kept)
    out_scores = total.new_full((*node.shape, num_beams), -torch.inf)
    out_edges = node.new_zeros((*node.shape, num_beams))
    out_scores[real], out_edges[real] = scores, edges
    return out_scores, out_edges


def _finish(scorer, trie, tails, best, penalise, slots, block):
    """Score the tails and add their titles to `best`.

    If only some titles are wanted, each user's most promising tails are scored first. Of the others, those that may still come
    among the best follow in a second pass.

    Args:
        tails: list of (user, node, sum of the node, slot of the node's parent), all [n].
        best: :class:`~recbole_flr.decoding.finished.BestTitles`.
        penalise: :class:`~recbole_flr.decoding.finished.LengthPenalty`.
        slots: number of slots in use.
        block: number of positions that are projected on the vocabulary at a time.
    """
    user, node, total, slot = (torch.cat(parts) for parts in zip(*tails))
    bound = penalise(total, node)
    order = bound.argsort(descending=True, stable=True)
    order = order[user[order].argsort(stable=True)]  # by user, then the highest bound first
    user, node, total, slot, bound = (x[order] for x in (user, node, total, slot, bound))
    place = places_in_rows(user, len(scorer.hidden))
    first = place < (len(user) if best.top is None else best.top)
    for chosen in (first, ~first):
        chosen = (chosen & best.may_enter(user, bound, node)).nonzero().squeeze(1)
        of = [x[chosen] for x in (user, node, total, slot)]
        if not len(of[0]):
            continue
        left = trie.tails(of[1])
        hidden, column = extend_paths(scorer, trie, of[0], of[1], of[3], left, slots, last=True)
        leaf = of[1] + left
        best.add(of[0], penalise(tail_scores(scorer, trie, hidden, *of[:3], column, left, block), leaf), leaf)
