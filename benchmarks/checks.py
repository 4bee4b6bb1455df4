"""Comparisons that the benchmarks of decoding make before they time anything: tries with their titles, scores with full passes.

A trie is compared with its titles in numpy, without another trie, so that this works for a million titles
(:func:`check_trie`); a small one also with a trie of dicts, node by node (:func:`check_against_dicts`). The scores of all titles
that decoding finds are compared with full passes over prompt and title, without a cache (:func:`check_scores`).

Shapes: B users, H titles of a history, T title tokens, M nodes, N titles.
"""

from dataclasses import fields

import numpy as np
import torch

from benchmarks.made_up import interaction
from recbole_flr.data.prompt import IGNORE
from recbole_flr.model.reasoner import Context, Thought
from recbole_flr.model.title_scores import precise

TOLERANCE = 1e-4  # largest relative difference of two scores in float32
TOLERANCES = {"float32": TOLERANCE, "mixed": 0.05, "bfloat16": 0.05}  # of the option torch_dtype; a number of bfloat16 has 8 bits


def check_trie(trie, titles, items):
    """Compare a trie with its titles: every title is found by walking, at the right leaf, and there are no other nodes.

    Args:
        trie: Trie.
        titles, items: what the trie was built from, as RaggedRows and a numpy array [N].

    Returns:
        number of nodes; number of leaves, which is that of distinct titles; number of nodes that have a branch at them or below.

    Raises:
        AssertionError: the trie does not belong to these titles and items.
    """
    tokens, offsets = titles.flat.numpy(), titles.start.numpy()
    array = {field.name: getattr(trie, field.name).numpy().astype(np.int64) for field in fields(trie)}
    width, count, size = int(tokens.max()) + 1, trie.num_nodes, len(items)
    parent = np.repeat(np.arange(count), np.diff(array["first_child"]))
    key = parent * width + array["child_token"]
    _require(len(key) == count - 1 and (np.diff(key) > 0).all(), "its edges are out of order")
    _require(np.array_equal(np.sort(array["child_node"]), np.arange(1, count)), "a node does not have exactly one parent")
    _require(array["node_token"][0] == -1, "its root has a token")

    node, prefix, path = np.zeros(size, np.int64), np.zeros(size, np.int64), []
    depth_of, prefixes, distinct = np.zeros(count, np.int64), 1, 0
    left = np.arange(size)  # titles that have not ended
    for depth in range(int(np.diff(offsets).max())):
        left = left[offsets[left + 1] - offsets[left] > depth]
        token = tokens[offsets[left] + depth]
        wanted = node[left] * width + token
        edge = np.searchsorted(key, wanted).clip(max=len(key) - 1)
        _require(np.array_equal(key[edge], wanted), "a title cannot be walked")
        node[left] = array["child_node"][edge]
        _require(np.array_equal(array["node_token"][node[left]], token), "a node has another token than its edge")
        depth_of[node[left]] = depth + 1
        path.append((left, node[left].astype(np.int32)))
        # Count distinct prefixes without the trie: a prefix is numbered by the number of the shorter prefix and its last token.
        names, number = np.unique(prefix[left] * width + token, return_inverse=True)
        prefixes, prefix[left] = prefixes + len(names), number
        distinct += len(np.unique(number[offsets[left + 1] - offsets[left] == depth + 1]))
    _require(count == prefixes, f"it has {count} nodes for {prefixes} distinct prefixes")

    _require(np.array_equal(np.sort(array["items"]), np.sort(items)), "its items are others")
    leaf_of = np.zeros(int(items.max()) + 1, np.int64)
    leaf_of[array["items"]] = np.repeat(np.arange(count), np.diff(array["item_start"]))
    _require(np.array_equal(leaf_of[items], node), "an item is at another leaf than its title's")
    given = np.argsort(node, kind="stable")
    _require(np.array_equal(array["items"], items[given]), "items that share a title are out of order")
    leaves = int((np.diff(array["first_child"]) == 0).sum())
    _require(leaves == distinct, f"it has {leaves} leaves for {distinct} distinct titles")

    low, high = np.full(count, count), np.full(count, -1)  # smallest and largest leaf at or below each node
    for entries, nodes in [(np.arange(size), np.zeros(size, np.int32)), *path]:
        np.minimum.at(low, nodes, node[entries])
        np.maximum.at(high, nodes, node[entries])
    tail = np.where(low == high, depth_of[low] - depth_of, -1)
    _require(np.array_equal(array["tail_length"], tail), "a tail is not where one title is left")
    one = tail >= 0
    _require(np.array_equal((np.arange(count) + tail)[one], low[one]), "a tail is not consecutive")
    return count, leaves, int((~one).sum())


def _require(true, what):
    if not true:
        raise AssertionError(f"the trie is wrong: {what}")


def check_against_dicts(trie, titles, items):
    """Compare a trie with a trie of dicts, node by node.

    Args:
        trie: Trie.
        titles: list of lists of tokens.
        items: numpy array [N], their items.

    Raises:
        AssertionError: the two differ.
    """
    root, ends = {}, None  # None is the key of a title's items
    for title, item in zip(titles, items.tolist()):
        node = root
        for token in title:
            node = node.setdefault(token, {})
        node.setdefault(ends, []).append(item)
    open_nodes, seen = [(0, root)], 0
    while open_nodes:
        number, node = open_nodes.pop()
        seen += 1
        found = trie.items[trie.item_start[number] : trie.item_start[number + 1]].tolist()
        _require(found == node.pop(ends, []), f"the items of node {number} are not those of the trie of dicts")
        tokens, children = trie.children(number)
        _require(tokens.tolist() == sorted(node), f"the children of node {number} are not those of the trie of dicts")
        open_nodes += [(child, node[token]) for token, child in zip(tokens.tolist(), children.tolist())]
    _require(seen == trie.num_nodes, f"it has {trie.num_nodes} nodes, the trie of dicts {seen}")


@torch.no_grad()
def check_scores(model, collator, trie, rows, tolerance=TOLERANCE):
    """Compare the scores of all titles that decoding finds with full passes over prompt and title.

    Args:
        model: of recbole_flr, with a thought; its collator and trie become those given.
        collator: of the catalogue.
        trie: of the same catalogue.
        rows: int64 [B, H + 1], histories of users; the last item is not read.
        tolerance: largest relative difference of two scores.

    Returns:
        the largest relative difference.

    Raises:
        AssertionError: a score differs, or a user has too few titles, or has a title twice.
    """
    model.collator, model.trie = collator, trie
    thought = model.think(model.read_context(interaction(model, rows)))
    beams = model.decode(thought)
    found = beams.nodes >= 0
    fewest = min(model.num_beams, int((trie.tail_length == 0).sum()))
    if (found.sum(1) < fewest).any() or any(len(set(row)) < fewest for row in beams.nodes.tolist()):
        raise AssertionError(f"decoding found fewer than {fewest} titles for a user")
    user, place = found.nonzero(as_tuple=True)
    titles, labels = model.collator.targets(trie.items[trie.item_start[beams.nodes[user, place]].long()].long())
    context = thought.context
    each = {name: getattr(context, name)[user] for name in ("hidden", "mask", "positions", "length", "embeddings")}
    hidden = model.title_states(Thought(Context(**each, cache=None), thought.embedding[user]), titles)
    log_probs = precise(model.backbone.logits(hidden)).log_softmax(-1).gather(2, titles.unsqueeze(2)).squeeze(2)
    expected = log_probs.masked_fill(labels == IGNORE, 0).sum(1)
    difference = ((beams.scores[user, place] - expected) / expected).abs().max().item()
    if not difference < tolerance:
        raise AssertionError(f"the score of a title differs from that of a full pass by {difference:.1e} (relative), expected "
                             f"less than {tolerance}")  # fmt: skip
    return difference
