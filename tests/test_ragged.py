"""Ragged rows against plain Python lists."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from recbole_flr.ragged import RaggedRows, places_in_rows, rows_and_places

PAD = 7777
LISTS = st.lists(st.lists(st.integers(0, 99), max_size=4), min_size=1, max_size=6)
PIECES = st.integers(1, 4).flatmap(  # numbers of five rows, or -1: for each user as many
    lambda columns: st.lists(st.lists(st.integers(-1, 4), min_size=columns, max_size=columns), min_size=1, max_size=5)
)


@settings(deadline=None, max_examples=100)
@given(st.lists(st.integers(0, 4), max_size=8))
def test_row_and_place_of_every_entry(lengths):
    row, place = rows_and_places(torch.tensor(lengths, dtype=torch.long))
    assert row.dtype == place.dtype == torch.int64
    expected = [(number, at) for number, length in enumerate(lengths) for at in range(length)]
    assert list(zip(row.tolist(), place.tolist())) == expected
    assert places_in_rows(row, len(lengths)).tolist() == place.tolist()


@settings(deadline=None, max_examples=100)
@given(LISTS, LISTS, st.data())
def test_rows_come_back(lists, others, data):
    rows = RaggedRows.of(lists)
    assert rows.flat.dtype == rows.start.dtype == torch.int64
    assert len(rows) == len(lists) and [rows.row(index) for index in range(len(rows))] == lists
    assert rows.lengths().tolist() == [len(row) for row in lists]
    chosen = data.draw(st.lists(st.integers(0, len(lists) - 1), max_size=6))
    taken = rows.take(torch.tensor(chosen, dtype=torch.long))
    assert [taken.row(index) for index in range(len(taken))] == [lists[index] for index in chosen]
    joined = RaggedRows.joined([rows, RaggedRows.of(others)])
    assert [joined.row(index) for index in range(len(joined))] == lists + others
    assert rows.to("cpu").row(0) == lists[0] and rows.to("meta").flat.device.type == "meta"


def test_no_rows():
    rows = RaggedRows.of([])
    assert len(rows) == 0 and rows.start.tolist() == [0] and rows.flat.tolist() == []


def padded(rows, value, left):
    width = max(map(len, rows))
    pads = [[value] * (width - len(row)) for row in rows]
    return [pad + row if left else row + pad for row, pad in zip(rows, pads)]


@settings(deadline=None, max_examples=150)
@given(st.lists(st.lists(st.integers(0, 99), max_size=4), min_size=5, max_size=5), PIECES, st.booleans())
def test_joined_and_padded_rows_are_the_plain_loop(lists, pieces, left):
    entries, mask, origin = RaggedRows.of(lists).join_and_pad(torch.tensor(pieces), PAD, left)
    expected = [[entry for number in row if number >= 0 for entry in lists[number]] for row in pieces]
    columns = [[place for place, number in enumerate(row) if number >= 0 for _ in lists[number]] for row in pieces]
    assert entries.tolist() == padded(expected, PAD, left)
    assert origin.tolist() == padded(columns, -1, left)
    assert mask.tolist() == [[value >= 0 for value in row] for row in padded(columns, -1, left)]


@pytest.mark.parametrize("left", [True, False])
def test_joining_nothing(left):
    rows = RaggedRows.of([[1, 2], []])
    for pieces, shape in (([[-1, -1], [1, -1]], (2, 0)), ([], (0, 0))):
        pieces = torch.tensor(pieces, dtype=torch.long).reshape(-1, 2)
        assert all(part.shape == shape for part in rows.join_and_pad(pieces, PAD, left))
