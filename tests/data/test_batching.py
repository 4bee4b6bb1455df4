"""Batches of rows whose prompts have about the same length."""

from types import SimpleNamespace

import pytest
import torch

from recbole_flr.data.batching import LengthBatches, PrefixBatches

ROWS, BATCH = 1003, 16
LENGTHS = torch.randint(5, 120, (ROWS,), generator=torch.Generator().manual_seed(1))


def make(seed=3, window=32, lengths=LENGTHS, batch_size=BATCH):
    loader = SimpleNamespace(batch_size=batch_size, generator=torch.Generator().manual_seed(seed), sampler=object(),
                             _dataset=object(), collate_fn=lambda rows: rows)
    return LengthBatches(loader, lengths, window)


def padding(batches):
    return sum((LENGTHS[rows].max() - LENGTHS[rows]).sum().item() for rows in batches)


@pytest.mark.parametrize("rows", [1, 15, 16, 17, 512, 513, ROWS])
def test_every_row_once_an_epoch_in_full_batches(rows):
    batches = list(make(lengths=LENGTHS[:rows]))
    assert sorted(row for batch in batches for row in batch) == list(range(rows))
    sizes = sorted(map(len, batches), reverse=True)
    assert sizes == [BATCH] * (rows // BATCH) + ([rows % BATCH] if rows % BATCH else [])
    assert len(make(lengths=LENGTHS[:rows])) == len(batches)


def test_less_padding_than_batches_at_random():
    order = torch.randperm(ROWS, generator=torch.Generator().manual_seed(5))
    by_length = make().batches()
    assert padding(by_length) < 0.2 * padding(order.split(BATCH))
    assert padding(make(window=1).batches()) > 0.8 * padding(order.split(BATCH))  # RecBole's batches


def test_batches_are_not_in_order_of_length():
    means = torch.tensor([LENGTHS[rows].float().mean() for rows in make(window=100).batches()])
    first, second = means[:len(means) // 2].mean(), means[len(means) // 2:].mean()
    assert (first - second).abs() < 0.4 * LENGTHS.float().std()


def test_epochs_differ_and_the_generator_state_brings_one_back():
    loader = make()
    first = list(loader)
    state = loader.generator.get_state()
    second, third = list(loader), list(loader)
    assert first != second != third
    loader.generator.set_state(state)
    assert list(loader) == second
    assert list(loader) == third
    assert list(make()) == first
    assert list(make(seed=4)) != first


def test_looks_like_the_loader_it_wraps():
    loader = make()
    assert loader.dataset is loader._dataset is loader.loader._dataset
    assert loader.generator is loader.loader.generator and loader.sampler is loader.loader.sampler
    assert loader.batch_size == BATCH


def test_without_shuffling_rows_come_in_order():
    loader = SimpleNamespace(batch_size=3, generator=torch.Generator(), sampler=None, _dataset=None, collate_fn=lambda rows: rows)
    batches = LengthBatches(loader, torch.tensor([5, 1, 4, 2, 3, 9, 7]), shuffle=False)
    assert list(batches) == [[0, 1, 2], [3, 4, 5], [6]] and len(batches) == 3


@pytest.mark.parametrize("shuffle", [True, False])
def test_each_epoch_draws_other_rows_of_all(shuffle):
    loader = SimpleNamespace(batch_size=BATCH, generator=torch.Generator().manual_seed(3), sampler=None, _dataset=None,
                             collate_fn=lambda rows: rows)
    batches, epochs = LengthBatches(loader, LENGTHS[:200], shuffle=shuffle, rows=40), []
    for _ in range(60):
        epoch = [row for batch in batches for row in batch]
        assert len(set(epoch)) == len(epoch) == 40 and (shuffle or epoch == sorted(epoch))
        epochs.append(frozenset(epoch))
    assert len(batches) == 3 and len(set(epochs)) == 60
    assert frozenset.union(*epochs) == set(range(200))  # a row is missed with a probability of 0.8 ** 60: 2 in a million


# groups of rows that share a prefix

GROUPS = torch.randint(0, 300, (ROWS,), generator=torch.Generator().manual_seed(2)) * 7


def make_groups(seed=3, shuffle=True):
    loader = SimpleNamespace(batch_size=BATCH, generator=torch.Generator().manual_seed(seed), sampler=object(),
                             _dataset=object(), collate_fn=lambda rows: rows)
    return PrefixBatches(loader, LENGTHS, GROUPS, shuffle=shuffle)


def test_rows_of_a_group_stand_together():
    loader = make_groups()
    batches = list(loader)
    assert sorted(row for batch in batches for row in batch) == list(range(ROWS)) and len(batches) == len(loader)
    assert sorted(map(len, batches)) == [ROWS % BATCH] + [BATCH] * (ROWS // BATCH)
    parts = sum(len(set(GROUPS[batch].tolist())) for batch in batches)
    assert parts <= len(set(GROUPS.tolist())) + len(batches)  # at most one group is cut at each border


def test_groups_of_similar_length_make_a_batch():
    longest = {group: LENGTHS[GROUPS == group].max().item() for group in set(GROUPS.tolist())}

    def waste(batches):
        return sum(max(longest[g] for g in GROUPS[rows].tolist()) - longest[g] for rows in batches for g in GROUPS[rows].tolist())

    order = torch.randperm(ROWS, generator=torch.Generator().manual_seed(5))
    assert waste(make_groups().batches()) < 0.3 * waste(order.split(BATCH))


def test_epochs_of_groups_differ_and_can_be_repeated():
    loader = make_groups()
    first, second = list(loader), list(loader)
    assert first != second and list(make_groups()) == first and list(make_groups(seed=4)) != first


def test_groups_without_shuffling_keep_the_order():
    assert [row for batch in make_groups(shuffle=False) for row in batch] == list(range(ROWS))
