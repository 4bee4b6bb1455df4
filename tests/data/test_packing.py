"""User sequences are rebuilt from training rows, cut into pieces, and packed: against plain Python."""

import itertools
import math
from collections import Counter

import numpy as np
import pytest
import torch
from helpers_data import (
    BENCHMARK, dataset_of, make_collator, make_config, random_tokens, training_set, write_set, write_split,
)
from hypothesis import given, settings
from hypothesis import strategies as st

from recbole_flr.data.loading import load_dataset, split
from recbole_flr.data.packing import PackedLoader, pieces_that_fit, user_sequences
from recbole_flr.data.prompt import IGNORE

SEQUENCES = st.lists(st.lists(st.integers(1, 5), min_size=2, max_size=14), min_size=1, max_size=5)


def plain(sequences):
    return [sequence.tolist() for sequence in sequences]


@settings(deadline=None, max_examples=200)
@given(SEQUENCES, st.integers(1, 6), st.randoms(use_true_random=False))
def test_sequences_come_back_from_their_prefixes(sequences, max_history, random):
    """For every window, with repeated items, and with rows of different users in turn."""
    dataset = training_set(sequences, max_history)
    waiting = {}
    for row, user in enumerate(dataset.inter_feat["user_id"].tolist()):
        waiting.setdefault(user, []).append(row)
    order = []
    while waiting:
        user = random.choice(sorted(waiting))
        order.append(waiting[user].pop(0))
        if not waiting[user]:
            del waiting[user]
    dataset.inter_feat = dataset.inter_feat[order]
    assert plain(user_sequences(dataset, max_history)) == sequences


def test_a_gap_starts_a_sequence_with_its_history():
    rows = [(1, [1], 2), (1, [1, 2, 3], 4), (1, [2, 3, 4], 5), (2, [9], 8)]  # the row for item 3 was dropped
    assert plain(user_sequences(dataset_of(rows, 3), 3)) == [[1, 2], [1, 2, 3, 4, 5], [9, 8]]


def test_the_same_history_of_two_users_is_not_joined():
    rows = [(1, [1], 2), (2, [1, 2], 3), (2, [1, 2, 3], 4)]
    assert plain(user_sequences(dataset_of(rows, 5), 5)) == [[1, 2], [1, 2, 3, 4]]


def test_no_rows_no_sequences():
    assert user_sequences(dataset_of([], 3), 3) == []


def as_tokens(dataset, sequences):
    names = dataset.field2id_token["item_id"]
    return sorted([str(names[item]) for item in sequence] for sequence in sequences)


@pytest.mark.parametrize("window", [1, 2, 3, 10])
def test_split_by_recbole(tmp_path, window):
    """Leave-one-out: a user's last item is for the test and the item before it for validation, if the user has three items."""
    rng = np.random.default_rng(0)
    interactions, expected = {}, []
    for user in range(12):
        length = [1, 2, 3, 4, 5, 9, 14][user % 7]
        known = [f"i{item}" for item in rng.integers(0, 4, size=length)]  # few items: repeats, also in a row
        held = max(0, min(2, length - 2))
        known[length - held:] = [f"held_{user}_{place}" for place in range(held)]
        interactions[f"u{user}"] = known
        if length > 1:
            expected.append(known[:length - held])
    write_set(tmp_path, interactions)
    config = make_config(tmp_path, MAX_ITEM_LIST_LENGTH=window)
    dataset = load_dataset(config)
    train, valid, test = split(config, dataset)

    sequences = as_tokens(dataset, user_sequences(train._dataset, window))

    assert sequences == sorted(expected)
    names = dataset.field2id_token["item_id"]
    held = {str(names[item]) for loader in (valid, test) for item in loader._dataset.inter_feat["item_id"].tolist()}
    assert held and all(name.startswith("held_") for name in held)
    assert not held & set(itertools.chain(*sequences))


@pytest.mark.parametrize("window", [2, 4, 10])
def test_split_files(tmp_path, window):
    """The rows of all users stand in the order of time and are cut at 60% and 80%. Held-out targets occur nowhere else."""
    rng = np.random.default_rng(1)
    times = [rng.choice(1000, size=rng.integers(1, 14), replace=False) for _ in range(8)]
    events = sorted((time, user) for user in range(8) for time in times[user])
    n_rows = len(events) - len({user for _, user in events})
    parts, known, seen = {"train": [], "valid": [], "test": []}, {}, 0
    for time, user in events:
        history = known.setdefault(user, [])
        part = "train" if seen < 0.6 * n_rows else "valid" if seen < 0.8 * n_rows else "test"
        item = f"i{rng.integers(0, 6)}" if part == "train" else f"held_{time}_{user}"
        if history:
            parts[part].append((f"u{user}", history[-window:], item, time))
            seen += 1
        history.append(item)
    trained = {user for user, *_ in parts["train"]}
    expected = sorted(
        [item for item in history if not item.startswith("held_")]
        for user, history in known.items() if f"u{user}" in trained
    )
    assert len(parts["test"]) > 5 and len(expected) > 5
    write_split(tmp_path, parts)
    config = make_config(tmp_path, MAX_ITEM_LIST_LENGTH=window, **BENCHMARK)
    dataset = load_dataset(config)

    sequences = as_tokens(dataset, user_sequences(split(config, dataset)[0]._dataset, config["MAX_ITEM_LIST_LENGTH"]))

    assert sequences == expected
    assert sum(map(len, sequences)) == len(parts["train"]) + len(trained)  # each interaction once
    assert not any(item.startswith("held_") for item in itertools.chain(*sequences))


@settings(deadline=None, max_examples=200)
@given(SEQUENCES, st.lists(st.integers(1, 9), min_size=6, max_size=6), st.integers(0, 2), st.integers(4, 30))
def test_pieces_fit_and_lose_nothing(sequences, sizes, head, room):
    sizes = np.array(sizes)
    pieces = pieces_that_fit([np.array(sequence) for sequence in sequences], sizes, head, room)
    assert list(itertools.chain(*plain(pieces))) == list(itertools.chain(*sequences))
    remaining = plain(pieces)
    for sequence in sequences:  # no piece reaches into the next user
        while sequence:
            piece = remaining.pop(0)
            assert piece == sequence[:len(piece)]
            sequence = sequence[len(piece):]
            assert head + sizes[piece].sum() <= room or len(piece) == 1
            if sequence:  # as long as it can be
                assert head + sizes[piece].sum() + sizes[sequence[0]] > room
    assert not remaining


def make_loader(seed=0, pack_length=24, batch_size=3, users=40, head=(1,), n_items=12, longest=6):
    rng = np.random.default_rng(seed)
    _, titles = random_tokens(rng, n_items, longest)
    sequences = [rng.integers(1, n_items, size=rng.integers(2, 12)).tolist() for _ in range(users)]
    collator = make_collator(titles, head)
    return PackedLoader(training_set(sequences, 5), collator, pack_length, batch_size, 5, seed), sequences, titles


def segments(packed):
    """The sequences in a batch: lists of (ids, positions, labels)."""
    for ids, positions, segment, labels in zip(packed.ids, packed.positions, packed.segment, packed.labels):
        for number in range(int(segment.max()) + 1):
            chosen = segment == number
            assert chosen.any()
            yield ids[chosen].tolist(), positions[chosen].tolist(), labels[chosen].tolist()


@pytest.mark.parametrize("pack_length, batch_size", [(8, 1), (24, 3), (100, 2), (1000, 4)])
def test_every_token_is_asked_for_once_an_epoch(pack_length, batch_size):
    loader, sequences, titles = make_loader(pack_length=pack_length, batch_size=batch_size)
    batches = list(loader)
    labels = Counter(label for packed in batches for label in packed.labels.flatten().tolist())
    del labels[IGNORE]
    assert labels == Counter(token for sequence in sequences for item in sequence for token in titles[item])
    assert len(batches) == len(loader)
    assert all(packed.ids.shape[1] <= pack_length for packed in batches)


def test_batches_hold_about_the_rows_asked_for():
    loader, *_ = make_loader(users=400, pack_length=64, batch_size=8)
    rows = [len(packed.ids) for packed in loader]
    assert max(rows) <= 9 and sum(rows) / len(rows) > 7.9
    tokens = sum((packed.segment >= 0).sum().item() for packed in loader)
    assert tokens > 0.9 * 64 * sum(rows)  # well packed


def test_what_a_row_says():
    """A sequence is the head, then titles. A label is the next token, positions count from 0, no label leaves its sequence."""
    loader, sequences, titles = make_loader()
    found = Counter()
    for packed in loader:
        for ids, positions, labels in segments(packed):
            assert ids[0] == 1
            assert positions == list(range(len(ids)))
            assert labels == ids[1:] + [IGNORE]
            found[tuple(ids[1:])] += 1
        padding = packed.segment < 0
        assert (packed.labels[padding] == IGNORE).all() and (packed.ids[padding] == 0).all()
    expected = Counter(tuple(itertools.chain(*(titles[item] for item in piece.tolist()))) for piece in loader.pieces)
    assert found == expected


def test_mask_is_causal_within_a_sequence():
    loader, *_ = make_loader(users=12, pack_length=70)
    for packed in loader:
        mask, segment = packed.mask(), packed.segment.tolist()
        assert max(map(max, segment)) > 0  # several in a row, else there is nothing to keep apart
        for row in range(len(segment)):
            for query, key in itertools.product(range(packed.ids.shape[1]), repeat=2):
                if segment[row][query] >= 0:
                    assert mask[row, query, key] == (key <= query and segment[row][key] == segment[row][query])
                elif key <= query and segment[row][key] >= 0:
                    assert not mask[row, query, key]


def test_an_item_longer_than_a_row_is_cut_and_stands_alone():
    titles = [[], list(range(100, 130)), [50, 51]]
    loader = PackedLoader(training_set([[2, 1, 2]], 5), make_collator(titles), 10, 2, 5, seed=0)
    found = sorted(ids for packed in loader for ids, *_ in segments(packed))
    assert found == [[1, 50, 51], [1, 50, 51], [1, *range(100, 109)]]
    assert max(packed.ids.shape[1] for packed in loader) == 10


def test_a_tokenizer_without_a_start_token():
    """Nothing can predict the first token of a piece. Every other token is a label once."""
    loader, sequences, titles = make_loader(head=(), pack_length=1000)
    labels = Counter(label for packed in loader for label in packed.labels.flatten().tolist())
    del labels[IGNORE]
    expected = Counter()
    for sequence in sequences:
        expected.update(list(itertools.chain(*(titles[item] for item in sequence)))[1:])
    assert labels == expected


def content(batches):
    return Counter(tuple(ids) for packed in batches for ids, *_ in segments(packed))


def rows(batches):
    return [packed.ids.tolist() for packed in batches]


def test_epochs_differ_hold_the_same_and_can_be_repeated():
    loader, *_ = make_loader()
    first = list(loader)
    state = loader.generator.get_state()
    second, third = list(loader), list(loader)
    assert rows(first) != rows(second) != rows(third)
    assert content(first) == content(second) == content(third)
    assert len(first) == len(second) == len(third) == len(loader)
    loader.generator.set_state(state)
    assert rows(loader) == rows(second)
    assert rows(loader) == rows(third)
    assert rows(make_loader()[0]) == rows(first)


@pytest.mark.parametrize(
    "users, pack_length, batch_size", [(1, 500, 1), (1, 500, 16), (3, 12, 16), (50, 13, 1), (50, 13, 7), (50, 7, 2)]
)
def test_len_is_the_number_of_batches(users, pack_length, batch_size):
    loader, *_ = make_loader(users=users, pack_length=pack_length, batch_size=batch_size)
    assert len(list(loader)) == len(loader) > 0
    assert all(len(packed.ids) for packed in loader)
    tokens = sum(len(ids) for packed in loader for ids, *_ in segments(packed))
    assert len(loader) == math.ceil(tokens / (pack_length * batch_size))


def test_the_device_move_keeps_everything():
    packed = next(iter(make_loader()[0]))
    moved = packed.to("cpu")
    for name in ("ids", "positions", "segment", "labels"):
        assert torch.equal(getattr(moved, name), getattr(packed, name))
