"""The comparison of a trie with its titles, which the benchmarks make, notices every kind of broken trie."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from benchmarks.checks import check_against_dicts, check_trie
from recbole_flr.decoding import Trie
from recbole_flr.ragged import RaggedRows


def a_catalogue():
    """Titles that share beginnings (the last two are equal) and shuffled items: the arguments of Trie.build."""
    rng = np.random.default_rng(0)
    titles = [[*rng.integers(1, 4, rng.integers(1, 6)), 0] for _ in range(30)] + [[2, 2, 2, 2, 2, 2, 2, 0]] * 2
    return titles, rng.permutation(len(titles)) + 1


def test_a_trie_is_compared_with_its_titles():
    titles, items = a_catalogue()
    trie = Trie.build(titles, items)
    prefixes = {tuple(title[:end]) for title in titles for end in range(len(title) + 1)}
    distinct = {tuple(title) for title in titles}
    branching = sum(sum(title[: len(prefix)] == prefix for title in distinct) > 1 for prefix in prefixes)
    assert check_trie(trie, RaggedRows.of(titles), items) == (len(prefixes), len(distinct), branching)
    check_against_dicts(trie, titles, items)


def changed(name, change):
    """A break of one array of the trie."""
    return lambda trie: replace(trie, **{name: change(getattr(trie, name).clone())})


def put(place, value):
    def change(array):
        array[place] = value
        return array

    return change


def swap(array):
    return array[torch.tensor([1, 0, *range(2, len(array))])]


TRIES = {
    "edges": (changed("first_child", put(1, 1)), "cannot be walked|out of order"),
    "tokens of edges": (changed("child_token", put(0, 0)), "out of order|cannot be walked"),
    "nodes of edges": (changed("child_node", put(0, 2)), "exactly one parent"),
    "nodes of edges swapped": (changed("child_node", swap), "another token"),
    "tokens of nodes": (changed("node_token", put(3, 7)), "another token"),
    "token of the root": (changed("node_token", put(0, 0)), "root"),
    "items": (changed("items", put(0, 99)), "items"),
    "items swapped": (changed("items", swap), "another leaf|out of order"),
    "tail missed": (changed("tail_length", lambda tail: tail.masked_fill(tail == 1, -1)), "tail"),
    "tail too long": (changed("tail_length", lambda tail: tail + (tail == 2)), "tail"),
}


@pytest.mark.parametrize("name", TRIES)
def test_a_broken_trie_is_noticed(name):
    change, message = TRIES[name]
    titles, items = a_catalogue()
    with pytest.raises(AssertionError, match=f"the trie is wrong: .*({message})"):
        check_trie(change(Trie.build(titles, items)), RaggedRows.of(titles), items)


@pytest.mark.parametrize("missing", [0, 29, 31])
def test_a_trie_of_other_titles_is_noticed(missing):
    """A title too few or too many, one that another equals included."""
    titles, items = a_catalogue()
    fewer, others = titles[:missing] + titles[missing + 1 :], np.delete(items, missing)
    whole, part = Trie.build(titles, items), Trie.build(fewer, others)
    for trie, listed, ids in [(whole, fewer, others), (part, titles, items)]:
        with pytest.raises(AssertionError, match="the trie is wrong"):
            check_trie(trie, RaggedRows.of(listed), ids)
        with pytest.raises(AssertionError, match="the trie is wrong"):
            check_against_dicts(trie, listed, ids)
