"""The flat trie against a trie of dicts."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from recbole_flr.decoding import Trie
from recbole_flr.errors import DataError
from recbole_flr.ragged import RaggedRows

END = 0
TITLES = st.lists(
    st.lists(st.integers(1, 3), max_size=6).map(lambda title: title + [END]) | st.just([2, 3, 1, 1, 2, 3, 2, END]),
    min_size=1,
    max_size=14,
)


def dict_trie(titles):
    root = {}
    for title in titles:
        node = root
        for token in title:
            node = node.setdefault(token, {})
    return root


def size(node):
    return 1 + sum(size(child) for child in node.values())


def tail(node):
    """Tokens of the unary chain below a dict node, None if there is a branch."""
    tokens = []
    while node:
        if len(node) > 1:
            return None
        ((token, node),) = node.items()
        tokens.append(token)
    return tokens


def walk(trie, number, node, path, found):
    """Compare everything below a node; collect {title: items}."""
    tokens, nodes = trie.children(number)
    assert tokens.dtype == nodes.dtype == torch.int64
    assert tokens.tolist() == sorted(node)
    expected = tail(node)
    length = int(trie.tail_length[number])
    assert length == (-1 if expected is None else len(expected))
    if expected is not None:
        assert trie.node_token[number + 1 : number + 1 + length].tolist() == expected
    items = trie.items[trie.item_start[number] : trie.item_start[number + 1]].tolist()
    assert bool(items) == (not node)
    if items:
        found[tuple(path)] = items
    for token, child in zip(tokens.tolist(), nodes.tolist()):
        assert int(trie.node_token[child]) == token
        walk(trie, child, node[token], path + [token], found)


@settings(deadline=None, max_examples=150)
@given(TITLES, st.booleans(), st.randoms(use_true_random=False))
def test_equals_a_trie_of_dicts(titles, as_rows, random):
    items = random.sample(range(100), len(titles))
    trie = Trie.build(RaggedRows.of(titles) if as_rows else titles, items)

    expected = {}
    for title, item in zip(titles, items):
        expected.setdefault(tuple(title), []).append(item)
    found, root = {}, dict_trie(titles)
    walk(trie, 0, root, [], found)
    assert found == expected  # the given order of items that share a title included
    assert (trie.num_nodes, len(trie.items)) == (size(root), len(titles))
    assert int(trie.node_token[0]) == -1
    assert len(trie.child_token) == len(trie.child_node) == trie.num_nodes - 1


def test_a_known_trie():
    #   0 -5-> 1 -0-> 2 (entries 1, 3)    0 -7-> 5 -8-> 6 -0-> 7 (entry 2)
    #          1 -6-> 3 -0-> 4 (entry 0)
    trie = Trie.build([[5, 6, 0], [5, 0], [7, 8, 0], [5, 0]])
    assert trie.first_child.tolist() == [0, 2, 4, 4, 5, 5, 6, 7, 7]
    assert trie.child_token.tolist() == [5, 7, 0, 6, 0, 8, 0]
    assert trie.child_node.tolist() == [1, 5, 2, 3, 4, 6, 7]
    assert trie.node_token.tolist() == [-1, 5, 0, 6, 0, 7, 8, 0]
    assert trie.item_start.tolist() == [0, 0, 0, 2, 2, 3, 3, 3, 4]
    assert trie.items.tolist() == [1, 3, 0, 2]
    assert trie.tail_length.tolist() == [-1, -1, 0, 1, 0, 2, 1, 0]


def test_one_title():
    trie = Trie.build([[4, 4, 0]], [9])
    assert trie.tail_length.tolist() == [3, 2, 1, 0]
    assert trie.items.tolist() == [9]


def test_token_ids_as_large_as_they_may_be():
    largest = 2**31 - 2
    trie = Trie.build([[largest, largest, 0], [largest, 1, 0], [0]])
    assert trie.children(0)[0].tolist() == [0, largest]


def test_to_keeps_what_is_there_and_copies_elsewhere():
    trie = Trie.build([[1, 0], [2, 0]])
    assert trie.to("cpu") is trie and trie.device.type == "cpu"
    moved = trie.to("meta")
    assert moved.device.type == "meta" and moved.tail_length.shape == trie.tail_length.shape
    assert trie.device.type == "cpu"


def ragged(flat, start):
    return RaggedRows(torch.tensor(flat), torch.tensor(start))


@pytest.mark.parametrize(
    "sequences, items, message",
    [
        ([], None, "at least one title"),
        ([[1, 0], [], []], None, r"2 titles have no token \(the first is entry 1\)"),
        ([[2, 0], [1, 3], [5, 0], [1, 3, 0]], None, r"entry 1 \(tokens \[1, 3\]\) is a proper prefix of entry 3"),
        ([[1, 0], [1], [1], [1, 2, 0]], None, r"entry 2 \(tokens \[1\]\) is a proper prefix of entry"),
        ([[1, -1]], None, r"-1 \.\. 1"),
        ([[2**31 - 1, 0]], None, "token ids must lie"),
        ([[1, 0], [2, 0]], [1], "one item id for each of its 2 titles"),
        ([[1, 0], [2, 0]], [4, 4], "item 4 was given more than one"),
        ([[1, 0]], [-1], "item ids must lie"),
        (ragged([1, 0], [1, 2]), None, "offsets must run from 0"),
        (ragged([1, 0], []), None, "offsets must run from 0"),
        (ragged([1, 0], [0, 3]), None, "offsets must run from 0"),
        (ragged([1, 0], [0, 3, 2]), None, "no token"),
    ],
)
def test_errors_say_what_is_wrong(sequences, items, message):
    with pytest.raises(DataError, match=message):
        Trie.build(sequences, items)
