import numpy as np
import pytest
import torch
from helpers_data import make_collator, random_tokens
from hypothesis import given, settings
from hypothesis import strategies as st

from recbole_flr.data.catalog import Tokens
from recbole_flr.data.collate import IGNORE, gather_rows

PAD = 7777
ROWS = st.integers(1, 4).flatmap(
    lambda columns: st.lists(st.lists(st.integers(-1, 4), min_size=columns, max_size=columns), min_size=1, max_size=5)
)


def joined(lists, rows):
    """The oracle: for each row of row numbers the tokens and the columns they come from."""
    tokens = [[token for number in row if number >= 0 for token in lists[number]] for row in rows]
    columns = [[place for place, number in enumerate(row) if number >= 0 for _ in lists[number]] for row in rows]
    return tokens, columns


def padded(rows, value, left):
    width = max(map(len, rows))
    pads = [[value] * (width - len(row)) for row in rows]
    return [pad + row if left else row + pad for row, pad in zip(rows, pads)]


@settings(deadline=None, max_examples=150)
@given(st.lists(st.lists(st.integers(0, 99), max_size=4), min_size=5, max_size=5), ROWS, st.booleans())
def test_gather_rows_is_the_plain_loop(lists, rows, left):
    ids, mask, origin = gather_rows(Tokens.of(lists), torch.tensor(rows), PAD, left)
    tokens, columns = joined(lists, rows)
    assert ids.tolist() == padded(tokens, PAD, left)
    assert origin.tolist() == padded(columns, -1, left)
    assert mask.tolist() == [[value >= 0 for value in row] for row in padded(columns, -1, left)]


@pytest.mark.parametrize("left", [True, False])
def test_gather_rows_of_nothing(left):
    tokens = Tokens.of([[1, 2], []])
    for rows, shape in (([[-1, -1], [1, -1]], (2, 0)), (np.zeros((0, 2), dtype=int).tolist(), (0, 0))):
        rows = torch.tensor(rows, dtype=torch.long).reshape(-1, 2)
        assert all(part.shape == shape for part in gather_rows(tokens, rows, PAD, left))


@settings(deadline=None, max_examples=60)
@given(st.integers(0, 10_000), st.integers(1, 6), st.integers(1, 5), st.booleans(), st.booleans())
def test_prompts_are_the_plain_loop(seed, batch, width, left, with_tail):
    rng = np.random.default_rng(seed)
    _, titles = random_tokens(rng, 9)
    head, tail = ([1, 2], [3]) if with_tail else ([1], [])
    collator = make_collator(titles, head, tail, pad=PAD)
    lengths = rng.integers(0, width + 1, size=batch)
    history = np.zeros((batch, width), dtype=np.int64)
    expected, owners = [], []
    for row, length in enumerate(lengths):
        history[row, :length] = rng.integers(1, 9, size=length)
        items = history[row, :length].tolist()
        expected.append(head + [token for item in items for token in titles[item]] + tail)
        places = [place for place, item in enumerate(items) for _ in titles[item]]
        owners.append([-1] * len(head) + places + [-1] * len(tail))

    history, lengths = torch.from_numpy(history), torch.from_numpy(lengths)
    prompts = collator.prompts(history, lengths, left)

    assert prompts.ids.tolist() == padded(expected, PAD, left)
    assert prompts.item.tolist() == padded(owners, -1, left)
    assert prompts.mask.sum(1).tolist() == [len(row) for row in expected]
    assert not prompts.mask[prompts.ids == PAD].any()
    assert collator.prompt_lengths(history, lengths).tolist() == [len(row) for row in expected]


def test_what_lies_behind_the_length_of_a_history_is_not_read():
    collator = make_collator([[], [11, 12], [21], [31, 32, 33]], pad=PAD)
    prompts = collator.prompts(torch.tensor([[2, 1, 3]]), torch.tensor([1]))
    assert prompts.ids.tolist() == [[1, 21]]
    assert collator.prompt_lengths(torch.tensor([[2, 1, 3]]), torch.tensor([1])).tolist() == [2]


def test_targets_are_titles_padded_on_the_right():
    collator = make_collator([[], [11, 12, 9], [21, 9]], pad=PAD)
    ids, labels = collator.targets(torch.tensor([2, 1, 2]))
    assert ids.tolist() == [[21, 9, PAD], [11, 12, 9], [21, 9, PAD]]
    assert labels.tolist() == [[21, 9, IGNORE], [11, 12, 9], [21, 9, IGNORE]]


def test_a_title_token_equal_to_the_padding_keeps_its_label():
    collator = make_collator([[], [5, 8, 5], [6, 5]], pad=5)  # a tokenizer without a padding token pads with its end
    ids, labels = collator.targets(torch.tensor([1, 2]))
    assert labels.tolist() == [[5, 8, 5], [6, 5, IGNORE]]
    prompts = collator.prompts(torch.tensor([[1, 2], [2, 0]]), torch.tensor([2, 1]))
    assert prompts.mask.tolist() == [[True] * 6, [False] * 3 + [True] * 3]
