"""Titles that a search has finished: the best ones of each user, and the length penalty of their scores.

Shape letters: U users, F finished titles (padded), P entries of a padded row, M nodes of the trie.
"""

from dataclasses import dataclass
from weakref import WeakKeyDictionary

import torch

from recbole_flr.decoding.scorer import clamp_to_finite
from recbole_flr.ragged import places_in_rows, rows_and_places


@dataclass(frozen=True)
class Beams:
    """The titles that a search found for each user, best first.

    Attributes:
        nodes: int64 [U, F], leaves of the trie, -1 where padded.
        scores: [U, F] float32 or float64, finite, -inf where padded.
    """

    nodes: torch.Tensor
    scores: torch.Tensor


class BestTitles:
    """Collects finished titles and keeps the best of each user.

    Titles of equal score are ordered by their leaves, whatever the order in which they were found. So the result does not
    depend on the order of the search.

    Args:
        users: U.
        top: number of titles to keep for each user; None to keep all.
        dtype, device: of the scores.

    Attributes:
        scores: [U, P], descending, -inf where there is no title yet. P is `top`, or grows if `top` is None.
        leaves: int64 [U, P], the titles' leaves, -1 where there is no title yet.
    """

    def __init__(self, users, top, dtype, device):
        self.top = top
        self.scores = torch.full((users, top or 0), -torch.inf, dtype=dtype, device=device)
        self.leaves = torch.full((users, top or 0), -1, device=device)

    def may_enter(self, user, bound, node):
        """Whether a title may still come among the best ones of its user.

        All titles below a node lie on the same side of any finished leaf. So if a node's bound equals the score of the last
        title that is kept, the node matters only if it stands before that title's leaf.

        Args:
            user: users.
            bound: upper bounds of the scores of all titles below `node`.
            node: nodes of the trie; a leaf stands for its own title.

        Returns:
            bool. All four have one shape.
        """
        if self.top is None:
            return torch.ones_like(user, dtype=torch.bool)
        score, leaf = self.scores[user, -1], self.leaves[user, -1]
        return (bound > score) | ((bound == score) & (node < leaf))

    def add(self, user, score, leaf):
        """Add finished titles: users (ascending), scores and leaves, all [n]. No title may be added twice for a user."""
        enters = self.may_enter(user, score, leaf).nonzero().squeeze(1)
        user, leaf, score = user[enters], leaf[enters], score[enters]
        if not len(user):
            return
        scores, leaves = append_entries((self.scores, self.leaves), user, (score, leaf))
        leaves, order = leaves.masked_fill(scores == -torch.inf, -1).sort(dim=1)
        scores, order = scores.gather(1, order).sort(dim=1, descending=True, stable=True)
        self.scores, self.leaves = scores[:, :self.top], leaves.gather(1, order)[:, :self.top]

    def beams(self):
        """The titles kept, as :class:`Beams` without columns that are padding for every user."""
        real = int((self.leaves >= 0).sum(1).max()) if self.leaves.numel() else 0
        return Beams(self.leaves[:, :real], self.scores[:, :real])


class LengthPenalty:
    """Turns sums of log-probabilities into final scores: sum / length^penalty. The end of title counts as a token.

    It also gives upper bounds. A sum is at most 0 and only falls along a path. So if the penalty is positive, no title below a
    node scores higher than the node's own sum with the length of the longest title below; otherwise, that of the shortest.

    Args:
        trie: :class:`~recbole_flr.decoding.trie.Trie` of M nodes.
        penalty: float; 0 leaves the sums as they are.
        dtype: of the sums.
    """

    def __init__(self, trie, penalty, dtype):
        self._divisor = None
        if penalty:
            known = _LENGTHS.setdefault(trie, {})
            longest = penalty > 0
            if longest not in known:
                known[longest] = _title_lengths(trie, longest)
            self._divisor = known[longest].to(dtype) ** penalty

    def __call__(self, total, node):
        """Scores of leaves, and upper bounds of all titles below other nodes.

        Args:
            total, node: sums and nodes, of one shape.

        Returns:
            scores or bounds of that shape.
        """
        return total if self._divisor is None else clamp_to_finite(total / self._divisor[node])


_LENGTHS = WeakKeyDictionary()  # trie -> {longest: lengths}, so that they are computed once for each trie


def _title_lengths(trie, longest):
    """Tokens of the longest (or the shortest) title below each node, its end included: int64 [M]."""
    levels, node = [], torch.zeros(1, dtype=torch.long, device=trie.device)
    parent = node
    while len(node):
        levels.append((parent, node))
        first = trie.first_child[node].long()
        above, step = rows_and_places(trie.first_child[node + 1].long() - first)
        parent, node = node[above], trie.nodes(first[above] + step)
    length = torch.full((trie.num_nodes,), 0 if longest else len(levels), device=trie.device)
    for depth, (parent, node) in reversed(list(enumerate(levels))):
        ends = node[trie.tail_length[node] == 0]
        length[ends] = depth
        if depth:
            length.scatter_reduce_(0, parent, length[node], "amax" if longest else "amin")
    return length


def append_entries(rows, user, values):
    """Append entries to padded rows. Every row is widened by as many columns as the user with the most entries needs.

    Args:
        rows: tuple of tensors [U, P]. Floating-point ones are padded by -inf, integer ones by -1.
        user: [n], the users of the entries, ascending.
        values: tuple of [n], the entries, one tensor for each tensor of `rows`.

    Returns:
        tuple of tensors [U, P + most entries of a user].
    """
    users, old = rows[0].shape
    place = places_in_rows(user, users)
    width = old + (int(place.max()) + 1 if len(place) else 0)
    out = []
    for row, value in zip(rows, values):
        wider = row.new_full((users, width), -torch.inf if row.is_floating_point() else -1)
        wider[:, :old] = row
        wider[user, old + place] = value
        out.append(wider)
    return tuple(out)
