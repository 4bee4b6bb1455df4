"""The true best titles of a trie under a model, by best-first search with a bound.

Log-probabilities are at most 0, so the sum along a path only falls: what a node's prefix has is an upper bound of every
title below it. In a round each user's nodes with the best bounds are expanded, a few at once; a user is done when as many
titles are finished as are wanted and none that is still open can be better. (Stahlberg and Byrne, EMNLP 2019, arXiv
1908.10090, search translations with this bound, depth first.) Where the length penalty is not 0 the bound is the prefix's sum
divided by the power of that length of a title below the node that suits it best.

A round is measured in tokens, not in nodes: users whose nodes are ends of titles would else be as wide as these are long, and
all others padding beside them.

As in beam search a user's tokens form one tree behind the prompt, and a node with one title left is scored to its end in one
pass. Ties: of titles with equal scores those with smaller leaves, whatever the order in which they were found. All titles
below an open node lie to the same side of a finished leaf, so an open node whose bound equals the last score matters only if
it stands before that leaf.

The work is what the model's doubts ask for: every node whose bound beats the last score must be expanded by any search that is
sure. On toys_demo that was less than 20 beams ask for once the model was trained (results/speed.md), before that ("full")
nearly the whole catalogue.
Rounds are as many as the hardest user of the batch needs, and whoever is done is padding in them.

Shape letters: U users, P open nodes (padded), N chosen nodes, S new tokens a user (padded), M nodes of the trie, F finished
titles.
"""

import torch

from recbole_flr.decoding.scoring import Best, Final, append, check_options, child_scores, extend_paths, finish_tails, precision


@torch.no_grad()
def exact_search(scorer, trie, top, *, score="full", length_penalty=0.0, max_logits=2**26, width=16):
    """The `top` titles with the highest scores, per user.

    Args:
        scorer: a :class:`~recbole_flr.decoding.scoring.PrefixScorer`.
        trie: a :class:`~recbole_flr.decoding.trie.Trie` on the scorer's device.
        top: how many titles, at least 1.
        score, length_penalty, max_logits: as for :func:`~recbole_flr.decoding.beam.beam_search`, which gives the same titles
            the same scores.
        width: tokens of a user that are asked for in a round (or those of one title's rest, if they are more), at least 1. More
            take fewer rounds and some tokens that the bound would have spared; the result is the same. Of 4 .. 64 the fastest
            on a trained toys_demo (CPU, "full"; with "trie" 4 .. 24 cost alike).

    Returns:
        :class:`~recbole_flr.decoding.scoring.Beams` with F = min(top, titles of the trie), none of it padded.

    Raises:
        ConfigError: `top`, `width` or `score` has a value that it cannot have.
        FLRError: the model's logits are not numbers.
    """
    check_options(score, top=top, width=width)
    dtype, rows = precision(scorer, max_logits)
    final = Final(trie, length_penalty, dtype)
    users, device = len(scorer.hidden), scorer.hidden.device
    done = Best(users, top, dtype, device)
    # Open nodes: the sum of log-probabilities (-inf: no node), the node, the slot of its parent.
    pool = done.scores[:, :0], done.leaves[:, :0], done.leaves[:, :0]
    user = torch.arange(users, device=device)
    node, slot = torch.zeros_like(user), torch.full_like(user, -1)
    total, state, slots = torch.zeros(users, dtype=dtype, device=device), scorer.hidden, 0
    while True:
        # The children of the chosen nodes: they end, or they join the pool.
        user, node, total, slot = _children(scorer, trie, state, user, node, total, slot, score, rows)
        tail = trie.tails(node)
        ends = tail >= 0 if score == "trie" else tail == 0
        leaf = node[ends] + tail[ends]
        done.add(user[ends], final(total[ends], leaf), leaf)
        new = ~ends & done.beaten_by(user, final(total, node), node)
        pool = append(pool, user[new], (total[new], node[new], slot[new]))

        pool, (user, total, node, slot) = _choose(pool, trie, final, done, width)
        if not len(user):
            return done.beams()

        # Those with one title left end here, too.
        tail = trie.tails(node)
        hidden, column = extend_paths(scorer, trie, user, node, slot, tail.clamp(min=1), slots)
        single = tail > 0
        ended, left = (user[single], node[single], total[single], column[single]), tail[single]
        leaf = node[single] + left
        done.add(user[single], final(finish_tails(scorer, trie, hidden, *ended, left, rows), leaf), leaf)
        user, node, total, column = (x[~single] for x in (user, node, total, column))
        state, slot = hidden[user, column], slots + column
        slots += hidden.shape[1]


def _choose(pool, trie, final, done, width):
    """Take each user's open nodes with the highest bounds out of the pool, as many as have `width` tokens (or one), and drop
    those that cannot matter.

    Args:
        pool: sums, nodes, slots, all [U, P].
        final: sums and nodes -> bounds.
        done: :class:`Best`.

    Returns:
        the pool that is left, and user, sum, node, slot of the chosen, all [N], users ascending.
    """
    total, node, slot = pool
    bound = final(total, node).masked_fill(total == -torch.inf, -torch.inf)
    user = torch.arange(len(bound), device=bound.device).unsqueeze(1).expand_as(bound)
    bound = bound.masked_fill(~done.beaten_by(user, bound, node), -torch.inf)
    alive = int((bound > -torch.inf).sum(1).max()) if bound.numel() else 0
    if 2 * alive <= bound.shape[1]:
        bound, order = bound.topk(alive, dim=1)
        total, node, slot = (x.gather(1, order) for x in (total, node, slot))
    high, place = bound.topk(min(width, alive), dim=1)  # which of equal bounds is first changes the work, not the result
    tokens = trie.tails(node.gather(1, place)).clamp(min=1)
    fits = (tokens.cumsum(1) <= width) | (torch.arange(tokens.shape[1], device=tokens.device) == 0)
    user, rank = (fits & (high > -torch.inf)).nonzero(as_tuple=True)
    place = place[user, rank]
    chosen = user, total[user, place], node[user, place], slot[user, place]
    total[user, place] = -torch.inf
    return (total, node, slot), chosen


def _children(scorer, trie, state, user, node, total, slot, score, rows):
    """All children of nodes.

    Args:
        state: [N, D], predicts a node's children.
        user, node, total, slot: [N]; the slots are the nodes' own.

    Returns:
        user, node, sum, slot of the parent: of each child, in the order of the parents.
    """
    found = []
    for at in torch.arange(len(node), device=node.device).split(rows):
        below, edge = child_scores(scorer, trie, state[at], node[at], total[at], score)
        parent, column = (below > -torch.inf).nonzero(as_tuple=True)
        edge, parent = edge[parent, column], at[parent]
        found.append((user[parent], trie.nodes(edge), below[below > -torch.inf], slot[parent]))
    return tuple(torch.cat(parts) for parts in zip(*found))
