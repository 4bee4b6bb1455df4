"""The catalogue's titles as a prefix trie in flat tensors.

A node is a number; the root is 0. Nodes are numbered in depth-first order, and the children of a node in the order of their
tokens. This has two consequences. The nodes of a chain without a branch are consecutive, so a search reads the whole tail of a
title with one ``arange``. And the leaves are ordered like the titles: a smaller leaf is a title that comes earlier in the order
of tokens.

The trie is built by sorting, not by insertion. In sorted order, a title adds exactly the nodes beyond the prefix that it shares
with the title before it. So the sorted order and the lengths of these prefixes give every array by prefix sums. The only
Python loop runs over depth, and a title leaves it as soon as no other title has the same prefix.

Shape letters: M nodes (M - 1 edges), N items.
"""

from dataclasses import dataclass, fields

import numpy as np
import torch

from recbole_flr.errors import DataError
from recbole_flr.ragged import RaggedRows, rows_and_places


@dataclass(frozen=True)
class Trie:
    """A prefix trie as compressed sparse rows; make one with :meth:`build`.

    All tensors are int32, which takes half the memory of int64 (about 200 MB for a million titles). Call ``.long()`` on values
    before you use them as an index of ``gather``.

    Attributes:
        first_child: [M + 1]; the edges of node v are ``first_child[v]:first_child[v + 1]``.
        child_token: [M - 1], an edge's token, ascending within a node.
        child_node: [M - 1], the node that an edge leads to.
        node_token: [M], the token on the edge into a node, -1 at the root. The tokens of the tail of node v are
            ``node_token[v + 1 : v + 1 + tail_length[v]]``.
        item_start: [M + 1]; the items whose title ends at v are ``items[item_start[v]:item_start[v + 1]]``.
        items: [N], item ids; items that share a leaf keep the order given to :meth:`build`.
        tail_length: [M], -1 if there is a branch at node v or below it. Otherwise the number of tokens from v to its leaf,
            0 at a leaf; the leaf is node ``v + tail_length[v]``.
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
    def device(self):
        """The device of all tensors."""
        return self.items.device

    def to(self, device):
        """The trie on `device`: the same object if it is there already, otherwise a copy."""
        moved = {field.name: getattr(self, field.name).to(device) for field in fields(self)}
        return self if all(moved[name] is getattr(self, name) for name in moved) else Trie(**moved)

    def children(self, node):
        """Tokens and nodes of the children of one node: two int64 tensors [c], in the order of the tokens."""
        edges = slice(int(self.first_child[node]), int(self.first_child[node + 1]))
        return self.child_token[edges].long(), self.child_node[edges].long()

    # Lookups of the searches. Results are int64. `node` and `edge` may have any shape, except in `edges`.

    def edges(self, node):
        """The edges from nodes to their children.

        Args:
            node: [n].

        Returns:
            edges [n, c], where c is the number of children of the widest node; and bool [n, c], False at padding.
        """
        first = self.first_child[node].long()
        degree = self.first_child[node + 1].long() - first
        column = torch.arange(int(degree.max()) if len(degree) else 1, device=node.device)
        edge = first.unsqueeze(1) + column
        return edge.clamp(max=len(self.child_token) - 1), column < degree.unsqueeze(1)

    def tokens(self, edge):
        """The token of each edge."""
        return self.child_token[edge].long()

    def nodes(self, edge):
        """The node that each edge leads to."""
        return self.child_node[edge].long()

    def own_tokens(self, node):
        """The token on the edge into each node."""
        return self.node_token[node].long()

    def tails(self, node):
        """`tail_length` of each node."""
        return self.tail_length[node].long()

    def along(self, titles):
        """The children of every node on the titles' own paths: the tokens that constrained decoding may choose from.

        Args:
            titles: int64 [B, T], token ids of titles in the trie; what stands behind their ends does not matter.

        Returns:
            three int64 tensors [E], one entry for each child: its title's row, its step, its token.
        """
        node = torch.zeros(len(titles), dtype=torch.long, device=titles.device)
        found = []
        for step in range(titles.shape[1]):
            first = self.first_child[node].long()
            row, place = rows_and_places(self.first_child[node + 1].long() - first)
            edge = first[row] + place
            token = self.tokens(edge)
            found.append((row, torch.full_like(row, step), token))
            taken = torch.where(token == titles[row, step], self.nodes(edge), -1)  # a mask as an index would wait for the device
            node = node.scatter_reduce(0, row, taken, "amax")  # the number of a child is above its parent's
        return tuple(torch.cat(parts) for parts in zip(*found))

    @classmethod
    def build(cls, sequences, items=None):
        """The trie of a catalogue, on the CPU.

        Args:
            sequences: the token ids of every entry, each ending with the end-of-title token: N rows, as a list of lists or as
                RaggedRows. Entries may be equal; then they share a leaf.
            items: item ids of the entries [N], distinct and not negative; None for 0 .. N - 1. Where entries share a leaf, the
                order of the entries is the priority of the items.

        Raises:
            DataError: there is no entry; an entry is empty; an entry is a proper prefix of another one (then a title would end
                inside another title's path); a token or item id is out of range; an item id is given twice; the starts of the
                rows do not fit their tokens.
        """
        tokens, offsets = _checked_rows(sequences)
        items = _checked_items(items, len(offsets) - 1)
        order, shared, branch = _sort(tokens, offsets)

        # Entry i (in sorted order) adds the nodes last[i] - added[i] + 1 .. last[i], at depths shared[i] + 1 and below.
        start = offsets[:-1][order]
        added = np.diff(offsets)[order] - shared
        last = np.cumsum(added)
        num_nodes = int(last[-1]) + 1
        if num_nodes >= 2**31:
            raise DataError(f"the catalogue's titles need {num_nodes} trie nodes; at most {2**31 - 1} are supported")
        first = last - added + 1
        # The nodes that an entry adds and their tokens are both consecutive: a shift leads from one to the other.
        node_token = np.empty(num_nodes, np.int32)
        node_token[0] = -1
        node_token[1:] = tokens[np.repeat(start + shared - first, added) + np.arange(1, num_nodes)]

        # The parent of an entry's first new node is the end of the prefix shared with the entry before; entry branch[i] added
        # that prefix. The parent of every other new node is the node before it.
        parent = np.arange(-1, num_nodes - 1, dtype=np.int32)
        new = added > 0
        parent[first[new]] = (first[branch] + shared - shared[branch] - 1)[new]
        degree = np.bincount(parent[1:], minlength=num_nodes)
        child_node = np.argsort(parent[1:], kind="stable").astype(np.int32) + 1
        del parent

        # A node has a tail if no branching node lies between it and the last node of its entry.
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


def _checked_rows(sequences):
    """`sequences` as two numpy arrays: tokens, and offsets, where each entry's tokens begin. Raises a DataError."""
    rows = sequences if isinstance(sequences, RaggedRows) else RaggedRows.of(sequences)
    tokens, offsets = rows.flat.numpy(), rows.start.numpy()
    if tokens.ndim != 1 or offsets.ndim != 1 or not len(offsets) or offsets[0] != 0 or offsets[-1] != len(tokens):
        raise DataError(
            f"a trie's offsets must run from 0 to the number of tokens ({tokens.size}); they are {offsets}"
        )
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


def _checked_items(items, count):
    """`items` as an int32 array [count]. Raises a DataError."""
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
    """Sort the entries by their tokens; equal entries keep their order.

    Returns:
        three arrays [N], indexed by place in the sorted order:
        - order, the entry at that place;
        - shared, the length of the prefix that the entry shares with the one before it (0 at the first place);
        - branch, the first place whose entry has that prefix.

    Raises:
        DataError: an entry is a proper prefix of another one.
    """
    start, length = offsets[:-1], np.diff(offsets)
    count = len(length)
    order, shared, branch = np.arange(count), np.zeros(count, np.int64), np.zeros(count, np.int64)
    # The places whose entries share their first `depth` tokens with another entry, and the first place of each one's group.
    place, group = np.arange(count), np.zeros(count, np.int64)
    width = int(tokens.max()) + 2
    depth = 0
    while len(place) > 1:
        entry = order[place]
        token = np.full(len(place), -1)
        longer = length[entry] > depth
        token[longer] = tokens[start[entry[longer]] + depth]
        key = group * width + token + 1
        by_key = np.argsort(key, kind="stable")  # permutes within groups only, because groups are ascending in `place`
        key, token, entry = key[by_key], token[by_key], entry[by_key]
        order[place] = entry
        head = np.concatenate([[True], key[1:] != key[:-1]])

        # Entries that end here sort first in their group. A longer entry in the same group has such an entry as its prefix.
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
