"""Prefixes of histories, against a loop over all pairs."""

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from recbole_flr.data.prefixes import prefix_sources

HISTORIES = st.lists(st.lists(st.integers(1, 3), min_size=1, max_size=5), min_size=1, max_size=12)


def padded(histories, garbage=0):
    """[R, H] with something behind the histories that must not count, and [R]."""
    width = max(map(len, histories)) + 1
    length = torch.tensor([len(items) for items in histories])
    return torch.tensor([items + [garbage] * (width - len(items)) for items in histories]), length


@settings(max_examples=200, deadline=None)
@given(HISTORIES, st.integers(0, 3))
def test_a_source_begins_with_the_history_and_goes_no_further(histories, garbage):
    source = prefix_sources(*padded(histories, garbage)).tolist()
    for row, items in enumerate(histories):
        found = histories[source[row]]
        assert found[:len(items)] == items
        assert not any(len(other) > len(found) and other[:len(found)] == found for other in histories)
        assert source[source[row]] == source[row]
        assert len({source[other] for other, same in enumerate(histories) if same == items}) == 1  # equal rows: one source


def test_by_hand():
    histories = [[1, 2], [1], [1, 2, 3], [2, 3], [1, 4], [2]]
    assert prefix_sources(*padded(histories)).tolist() == [2, 2, 2, 3, 4, 3]


def test_one_row():
    assert prefix_sources(torch.tensor([[5, 0]]), torch.tensor([1])).tolist() == [0]
