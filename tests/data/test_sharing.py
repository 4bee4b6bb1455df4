"""How processes share rows and batches. What they tell each other: tests/test_distributed.py."""

import pytest
import torch

from recbole_flr import distributed
from recbole_flr.data import sharing
from recbole_flr.data.sharing import EveryNth, own_share, share_batches, share_bounds, share_rows, split_batch


@pytest.fixture
def ranks(monkeypatch):
    """ranks(count, function) -> what each of `count` processes would return, without any process."""

    def each(count, function):
        monkeypatch.setattr(distributed, "size", lambda: count)
        found = []
        for rank in range(count):
            monkeypatch.setattr(distributed, "rank", lambda rank=rank: rank)
            found.append(function())
        return found

    return each


def test_shares_are_balanced():
    """No cut can be moved by one row so that the two parts beside it become more alike."""
    torch.manual_seed(5)
    for _ in range(200):
        count = int(torch.randint(1, 6, ()))
        costs = torch.randint(1, 20, (int(torch.randint(count, 40, ())),))
        bounds = share_bounds(costs, count)
        sizes = [int(costs[first:last].sum()) for first, last in zip(bounds, bounds[1:])]
        assert bounds[0] == 0 and bounds[-1] == len(costs) and all(a < b for a, b in zip(bounds, bounds[1:]))
        if len(costs) >= 8 * count:
            assert max(sizes) - min(sizes) <= 2 * int(costs.max())


def test_equal_rows_are_shared_equally():
    assert share_bounds(torch.ones(8), 2) == [0, 4, 8]
    assert share_bounds(torch.ones(7), 3) == [0, 2, 5, 7]
    assert share_bounds([9, 1, 1, 1], 2) == [0, 1, 4]


def test_each_row_has_one_process(ranks):
    rows = torch.randperm(23)
    assert torch.cat(ranks(4, lambda: own_share(rows, rows + 1))).tolist() == rows.tolist()
    assert ranks(4, lambda: own_share([1, 2, 3])) == [[1, 2, 3]] * 4  # fewer rows than processes: each takes all
    assert own_share([1, 2, 3]) == [1, 2, 3]


def test_a_loader_gives_shares(build, ranks):
    _, model, (train, valid, _) = build("SASRec", train_batch_size=23, eval_batch_size=3)
    state = train.generator.get_state()
    expected = [batch[model.ITEM_ID].tolist() for batch in train]
    collate = train.collate_fn

    def shares():
        train.generator.set_state(state)
        train.collate_fn = collate
        shared, = share_rows(train)
        shared.costs = torch.ones(len(train._dataset))
        return [batch[model.ITEM_ID].tolist() for batch in train]

    found = ranks(2, shares)
    assert [one + two for one, two in zip(*found)] == expected
    rows = [batch[0][model.ITEM_ID].tolist() for batch in valid]
    found = ranks(3, lambda: [batch[0][model.ITEM_ID].tolist() for batch in share_batches(valid)])
    assert distributed.in_turns(found) == rows and len(rows) > 3


def test_batches_in_turns():
    assert [list(EveryNth("abcde", first, 2)) for first in (0, 1)] == [["a", "c", "e"], ["b", "d"]]
    assert len(EveryNth("a", 1, 2)) == 1 and not list(EveryNth("a", 1, 2))  # RecBole would skip a loader of length 0


def test_parts_of_a_batch():
    for rows in range(1, 12):
        for parts in range(1, rows + 1):
            found = split_batch(torch.arange(rows), parts)
            sizes = [len(part) for part in found]
            assert torch.cat(found).tolist() == list(range(rows)) and max(sizes) - min(sizes) <= 1 and len(found) == parts


def test_one_process_changes_nothing(build):
    _, _, (train, valid, _) = build("SASRec")
    before = train.collate_fn
    assert share_rows(train) == [] and train.collate_fn == before and share_batches(valid) is valid
    assert sharing.distributed.gather_rows(torch.ones(2)).tolist() == [1, 1]
