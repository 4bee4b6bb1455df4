"""The best titles of a trie under a model, found for certain: best-first search with an upper bound.

Log-probabilities are at most 0, so the sum along a path only falls. Therefore the sum of a node is an upper bound of the score
of every title below it. In each round the search expands a few nodes of each user, those with the highest bounds. A user is done
when enough titles are finished and no open node has a bound that is better than the last of them. Stahlberg and Byrne (EMNLP
2019, arXiv 1908.10090) search translations with this bound, depth first. With a length penalty the bound is the sum divided by
a power of a length, see :class:`~recbole_flr.decoding.finished.LengthPenalty`.

As in beam search, a user's tokens form one tree behind the prompt, and a node with only one title left is scored to its end in
one pass. Ties are broken as in :class:`~recbole_flr.decoding.finished.BestTitles`.

The width of a round is measured in tokens, not in nodes. A node with one title left needs a token for each token of that
title, so a round of as many nodes would be much wider for some users, and all other users would be padded to that width.

The amount of work grows when the model is uncertain: any search that is sure of its result must expand every node whose bound
is better than the score of the last title. On toys_demo this took less work than 20 beams once the model was trained
(results/speed.md). Before training, with score `full`, it took nearly the whole catalogue. The number of rounds is that of the
hardest user of a batch; users who are done are padding in the rounds that follow.

Shape letters: U users, P open nodes (padded), N chosen nodes, D hidden width, F finished titles.
"""

import torch

from recbole_flr.decoding.finished import BestTitles, LengthPenalty, append_entries
from recbole_flr.decoding.scorer import check_options, child_scores, dtype_and_block, extend_paths, tail_scores


@torch.no_grad()
def exact_search(scorer, trie, top, *, score="full", length_penalty=0.0, max_logits=2**26, width=16):
    """The `top` titles with the highest scores, for each user.

    Args:
        scorer: a :class:`~recbole_flr.decoding.scorer.PrefixScorer`.
        trie: a :class:`~recbole_flr.decoding.trie.Trie` on the scorer's device.
        top: number of titles wanted, at least 1.
        score, length_penalty, max_logits: as for :func:`~recbole_flr.decoding.beam.beam_search`, which gives the same titles
            the same scores.
        width: tokens that each user may try in a round, at least 1; the rest of a single title may exceed it. The result does
            not depend on it. A larger width needs fewer rounds, but tries some tokens that the bound would have spared. 16 was
            the fastest of 4 .. 64 on a trained toys_demo (CPU, "full"; with "trie" all of 4 .. 24 took the same time).

    Returns:
        :class:`~recbole_flr.decoding.finished.Beams` with F = min(top, titles of the trie), without padding.

    Raises:
        ConfigError: `top` or `width` is below 1, or `score` is unknown.
        FLRError: the model's logits are NaN or infinite.
    """
    check_options(score, top=top, width=width)
    dtype, block = dtype_and_block(scorer, max_logits)
    penalise = LengthPenalty(trie, length_penalty, dtype)
    users, device = len(scorer.hidden), scorer.hidden.device
    best = BestTitles(users, top, dtype, device)
    # Open nodes: the sum of log-probabilities (-inf: no node), the node, the slot of its parent.
    pool = best.scores[:, :0], best.leaves[:, :0], best.leaves[:, :0]
    user = torch.arange(users, device=device)
    node, slot = torch.zeros_like(user), torch.full_like(user, -1)
    total, state, slots = torch.zeros(users, dtype=dtype, device=device), scorer.hidden, 0
    while True:
        # The children of the chosen nodes are finished titles, or they join the open nodes.
        user, node, total, slot = _children(scorer, trie, state, user, node, total, slot, score, block)
        tail = trie.tails(node)
        ends = tail >= 0 if score == "trie" else tail == 0
        leaf = node[ends] + tail[ends]
        best.add(user[ends], penalise(total[ends], leaf), leaf)
        new = ~ends & best.may_enter(user, penalise(total, node), node)
        pool = append_entries(pool, user[new], (total[new], node[new], slot[new]))

        pool, (user, total, node, slot) = _choose(pool, trie, penalise, best, width)
        if not len(user):
            return best.beams()

        # Read the tokens of the chosen nodes. Nodes with only one title left are read and finished to their ends.
        tail = trie.tails(node)
        hidden, column = extend_paths(scorer, trie, user, node, slot, tail.clamp(min=1), slots)
        single = tail > 0
        ended, left = (user[single], node[single], total[single], column[single]), tail[single]
        leaf = node[single] + left
        best.add(user[single], penalise(tail_scores(scorer, trie, hidden, *ended, left, block), leaf), leaf)
        user, node, total, column = (x[~single] for x in (user, node, total, column))
        state, slot = hidden[user, column], slots + column
        slots += hidden.shape[1]


def _choose(pool, trie, penalise, best, width):
    """Take each user's open nodes with the highest bounds out of the pool, and drop those that no longer matter.

    Args:
        pool: sums, nodes, slots of the nodes' parents, all [U, P].
        penalise: :class:`~recbole_flr.decoding.finished.LengthPenalty`.
        best: :class:`~recbole_flr.decoding.finished.BestTitles`.
        width: tokens that the nodes taken of one user may need together; a single node may need more.

    Returns:
        the pool that is left; and (user, sum, node, slot) of the nodes taken, all [N], users ascending.
    """
    total, node, slot = pool
    bound = penalise(total, node).masked_fill(total == -torch.inf, -torch.inf)
    user = torch.arange(len(bound), device=bound.device).unsqueeze(1).expand_as(bound)
    bound = bound.masked_fill(~best.may_enter(user, bound, node), -torch.inf)
    alive = int((bound > -torch.inf).sum(1).max()) if bound.numel() else 0
    if 2 * alive <= bound.shape[1]:
        bound, order = bound.topk(alive, dim=1)
        total, node, slot = (x.gather(1, order) for x in (total, node, slot))
    high, place = bound.topk(min(width, alive), dim=1)  # the order of equal bounds changes the work, not the result
    tokens = trie.tails(node.gather(1, place)).clamp(min=1)
    fits = (tokens.cumsum(1) <= width) | (torch.arange(tokens.shape[1], device=tokens.device) == 0)
    user, rank = (fits & (high > -torch.inf)).nonzero(as_tuple=True)
    place = place[user, rank]
    chosen = user, total[user, place], node[user, place], slot[user, place]
    total[user, place] = -torch.inf
    return (total, node, slot), chosen


def _children(scorer, trie, state, user, node, total, slot, score, block):
    """All children of nodes.

    Args:
        state: [N, D], the states that predict the nodes' children.
        user, node, total, slot: [N], slot is the node's own.
        block: number of positions that are projected on the vocabulary at a time.

    Returns:
        (user, node, sum, slot of the parent) of all children, in the order of their parents.
    """
    found = []
    for at in torch.arange(len(node), device=node.device).split(block):
        below, edge = child_scores(scorer, trie, state[at], node[at], total[at], score)
        parent, column = (below > -torch.inf).nonzero(as_tuple=True)
        edge, parent = edge[parent, column], at[parent]
        found.append((user[parent], trie.nodes(edge), below[below > -torch.inf], slot[parent]))
    return tuple(torch.cat(parts) for parts in zip(*found))
