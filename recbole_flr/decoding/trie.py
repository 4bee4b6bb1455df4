"""The catalogue's titles as a prefix trie in flat tensors.

A node is a number, the root is 0. Nodes are numbered in depth-first order with a node's children in the order of their
tokens. So the nodes of a chain without a branch are consecutive, which is what lets beam search read a whole tail of a
title with one ``arange``, and smaller leaves are titles that come first in token order.

Built by sorting, not by insertion: in sorted order a title adds exactly the nodes beyond the prefix that it shares with
its predecessor, so the sorted order and those shared lengths give every array by prefix sums. The only Python loop runs
over depth, and a title leaves it as soon as its prefix is its own.

Shape letters: M nodes (M - 1 edges), N items.
"""

from dataclasses import dataclass, fields
from itertools import chain

import numpy as np
import torch

from recbole_flr.errors import DataError


@dataclass(frozen=True)
class Trie:
    """A prefix trie as compressed sparse rows; make one with :meth:`build`.

    All tensors are int32 (a million titles take about 200 MB, half of what int64 would); call ``.long()`` on what you
    read before using it as a ``gather`` index.

    Attributes:
        first_child: [M + 1], the edges of node v are ``first_child[v]:first_child[v + 1]``.
        child_token: [M - 1], an edge's token, ascending within a node.
        child_node: [M - 1], the node that an edge leads to.
        node_token: [M], the token on the edge into a node, -1 at the root. The tokens of the tail of node v are
            ``node_token[v + 1 : v + 1 + tail_length[v]]``.
        item_start: [M + 1], the items whose title ends at v are ``items[item_start[v]:item_start[v + 1]]``.
        items: [N], item ids; those that share a leaf stand in the order given to :meth:`build`.
        tail_length: [M], tokens from a node to its leaf if there is no branch at it or below, 0 at a leaf; -1 if there
            is a branch. The leaf is then node ``v + tail_length[v]``.
    """

    first_child: torch.Tensor
    child_token: torch.Tensor
    child_node: torch.Tensor
    node_token: torch.Tensor
    item_start: torch.Tensor
    items: torch.Tensor
    tail_length: torch.Tensor

    @property
    def num_nodes(self):
        """Nodes, the root included (M)."""
        return len(self.node_token)

    @property
    def num_items(self):
        """Items, those that share a title counted one by one (N)."""
        return len(self.items)

    @property
    def device(self):
        return self.items.device

    def to(self, device):
        """A trie on `device`; the same object if it is there already, otherwise a copy."""
        moved = {field.name: getattr(self, field.name).to(device) for field in fields(self)}
        return self if all(moved[name] is getattr(self, name) for name in moved) else Trie(**moved)

    def children(self, node):
        """Tokens and nodes of the children of one node: two int64 tensors [c], in the order of the tokens."""
        edges = slice(int(self.first_child[node]), int(self.first_child[node + 1]))
        return self.child_token[edges].long(), self.child_node[edges].long()

    # Lookups of the searches, all int64; `node` and `edge` are tensors of any shape but for `edges`.

    def edges(self, node):
        """The edges to the children of nodes [n]: [n, c], c those of the widest; and which of them are no padding, [n, c]."""
        first = self.first_child[node].long()
        degree = self.first_child[node + 1].long() - first
        column = torch.arange(int(degree.max()) if len(degree) else 1, device=node.device)
        edge = first.unsqueeze(1) + column
        return edge.clamp(max=len(self.child_token) - 1), column < degree.unsqueeze(1)

    def tokens(self, edge):
        """The tokens of edges."""
        return self.child_token[edge].long()

    def nodes(self, edge):
        """The nodes that edges lead to."""
        return self.child_node[edge].long()

    def own_tokens(self, node):
        """The tokens of the edges into nodes."""
        return self.node_token[node].long()

    def tails(self, node):
        """See `tail_length`."""
        return self.tail_length[node].long()

    def along(self, titles):
        """All children at each step of the titles' own paths: what constrained decoding may choose from there.

        Args:
            titles: int64 [B, T], token ids of titles in the trie, anything behind their end.

        Returns:
            row, step and token of each child, three int64 tensors [E].
        """
        node = torch.zeros(len(titles), dtype=torch.long, device=titles.device)
        found = []
        for step in range(titles.shape[1]):
            first = self.first_child[node].long()
            count = self.first_child[node + 1].long() - first
            row = torch.arange(len(titles), device=titles.device).repeat_interleave(count)
            edge = first[row] + torch.arange(len(row), device=titles.device) - (count.cumsum(0) - count)[row]
            token = self.child_token[edge].long()
            found.append((row, torch.full_like(row, step), token))
            taken = token == titles[row, step]
            node = node.scatter(0, row[taken], self.child_node[edge[taken]].long())
        return tuple(torch.cat(parts) for parts in zip(*found))

    @classmethod
    def build(cls, sequences, items=None):
        """The trie of a catalogue, on the CPU.

        Args:
            sequences: the token ids of every entry, each ending with the end-of-title token: a list of lists, or a
                tuple of two int64 arrays ``(flat tokens, offsets [N + 1])``. Entries may be equal: they share a leaf.
            items: the entries' item ids [N], distinct and not negative; 0 .. N - 1 if left out. Where entries share a
                leaf, the order of the entries is the priority of the items.

        Raises:
            DataError: no entry; an empty one; one that is a proper prefix of another (then a title would end inside
                another's path); a token or item id out of range; an item id given twice; offsets that do not fit.
        """
        tokens, offsets = _as_ragged(sequences)
        items = _as_items(items, len(offsets) - 1)
        order, shared, branch = _sort(tokens, offsets)

        # Entry i (in sorted order) adds the nodes last[i] - added[i] + 1 .. last[i], at depths shared[i] + 1 and below.
        start = offsets[:-1][order]
        added = np.diff(offsets)[order] - shared
        last = np.cumsum(added)
        num_nodes = int(last[-1]) + 1
        if num_nodes >= 2**31:
            raise DataError(f"the catalogue's titles need {num_nodes} trie nodes; at most {2**31 - 1} are supported")
        first = last - added + 1
        # From a node number to the place of its token: shift by the entry.
        node_token = np.empty(num_nodes, np.int32)
        node_token[0] = -1
        node_token[1:] = tokens[np.repeat(start + shared - first, added) + np.arange(1, num_nodes)]

        # An entry's first new node hangs on the prefix shared with its predecessor; that prefix was added by the entry
        # branch[i]. All its other nodes hang on their predecessor.
        parent = np.arange(-1, num_nodes - 1, dtype=np.int32)
        new = added > 0
        parent[first[new]] = (first[branch] + shared - shared[branch] - 1)[new]
        degree = np.bincount(parent[1:], minlength=num_nodes)
        child_node = np.argsort(parent[1:], kind="stable").astype(np.int32) + 1
        del parent

        # A node has an unbranched tail if no branching node lies between it and the last node of its entry.
        leaf = np.repeat(last[new].astype(np.int32), added[new])
        leaf = np.concatenate([leaf[:1], leaf])  # the root belongs to the first entry
        node = np.arange(num_nodes, dtype=np.int32)
        last_branch = np.maximum.accumulate(np.where(degree > 1, node, np.int32(-1)))
        tail_length = np.where(last_branch[leaf] >= node, np.int32(-1), leaf - node)
        del leaf, last_branch, node

        arrays = dict(
            first_child=_starts(degree),
            child_token=node_token[child_node],
            child_node=child_node,
            node_token=node_token,
            item_start=_starts(np.bincount(last, minlength=num_nodes)),
            items=items[order],
            tail_length=tail_length,
        )
        return cls(**{name: torch.from_numpy(array) for name, array in arrays.items()})


def _starts(counts):
    """Row starts [n + 1] of rows with `counts` [n] entries."""
    starts = np.zeros(len(counts) + 1, np.int32)
    np.cumsum(counts, out=starts[1:])
    return starts


def _as_ragged(sequences):
    """`sequences` as checked (flat int64, offsets int64)."""
    if isinstance(sequences, tuple):
        tokens, offsets = (np.asarray(array, dtype=np.int64) for array in sequences)
        if tokens.ndim != 1 or offsets.ndim != 1 or not len(offsets) or offsets[0] != 0 or offsets[-1] != len(tokens):
            raise DataError(
                f"a trie's offsets must run from 0 to the number of tokens ({tokens.size}); they are {offsets}"
            )
    else:
        lengths = np.fromiter(map(len, sequences), np.int64, len(sequences))
        offsets = np.concatenate([[0], np.cumsum(lengths)])
        tokens = np.fromiter(chain.from_iterable(sequences), np.int64, offsets[-1])
    if len(offsets) == 1:
        raise DataError("a trie needs at least one title; the catalogue has none")
    empty = np.flatnonzero(np.diff(offsets) < 1)
    if len(empty):
        raise DataError(
            f"{len(empty)} titles have no token (the first is entry {empty[0]}); "
            "every title needs at least the end-of-title token"
        )
    if tokens.min() < 0 or tokens.max() >= 2**31 - 1:
        raise DataError(
            f"token ids must lie in 0 .. {2**31 - 2}; the titles' are in {tokens.min()} .. {tokens.max()}"
        )
    return tokens, offsets


def _as_items(items, count):
    """`items` as a checked int32 array [count]."""
    if items is None:
        return np.arange(count, dtype=np.int32)
    items = np.asarray(items, dtype=np.int64)
    if items.shape != (count,):
        raise DataError(f"a trie needs one item id for each of its {count} titles; it got shape {items.shape}")
    if items.min() < 0 or items.max() >= 2**31:
        raise DataError(f"item ids must lie in 0 .. {2**31 - 1}; these are in {items.min()} .. {items.max()}")
    ranked = np.sort(items)
    twice = ranked[1:][ranked[1:] == ranked[:-1]]
    if len(twice):
        raise DataError(f"every item may have one title; item {twice[0]} was given more than one")
    return items.astype(np.int32)


def _sort(tokens, offsets):
    """Sort the entries by their tokens, equal ones in the given order.

    Returns:
        order [N]: the entries, sorted; shared [N]: the length of the prefix that the entry at a place shares with the
        one before it (all of it if they are equal, 0 at the first place); branch [N]: the first place whose entry has
        that prefix.
    """
    start, length = offsets[:-1], np.diff(offsets)
    count = len(length)
    order, shared, branch = np.arange(count), np.zeros(count, np.int64), np.zeros(count, np.int64)
    # Places whose entry shares its first `depth` tokens with another one, and the first place of their group.
    place, group = np.arange(count), np.zeros(count, np.int64)
    width = int(tokens.max()) + 2
    depth = 0
    while len(place) > 1:
        entry = order[place]
        token = np.full(len(place), -1)
        longer = length[entry] > depth
        token[longer] = tokens[start[entry[longer]] + depth]
        key = group * width + token + 1
        by_key = np.argsort(key, kind="stable")  # permutes within groups only: groups are ascending in `place`
        key, token, entry = key[by_key], token[by_key], entry[by_key]
        order[place] = entry
        head = np.concatenate([[True], key[1:] != key[:-1]])

        # Ended entries sort first in their group: a longer one in the same group continues an ended one.
        clash = np.flatnonzero((token[:-1] < 0) & (token[1:] >= 0) & (group[:-1] == group[1:]))
        if len(clash):
            short, long = entry[clash[0]], entry[clash[0] + 1]
            raise DataError(
                f"the title of entry {short} (tokens {tokens[start[short] : start[short] + length[short]].tolist()}) is a "
                f"proper prefix of entry {long}'s ({tokens[start[long] : start[long] + length[long]].tolist()}); "
                "every title must end with the end-of-title token, which occurs nowhere else"
            )
        split = (head | (token < 0)) & (place != group)
        shared[place[split]] = depth
        branch[place[split]] = group[split]

        alone = head & np.concatenate([head[1:], [True]])
        group = place[np.maximum.accumulate(np.where(head, np.arange(len(place)), 0))]
        keep = (token >= 0) & ~alone
        place, group = place[keep], group[keep]
        depth += 1
    return order, shared, branch
