"""Rows, batches and tiny data sets for the models that are counted from the training rows."""

import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import recbole_flr
import torch
from conftest import TINY
from hypothesis import strategies as st
from recbole.data.interaction import Interaction

LENGTH = 4  # of the longest history


@st.composite
def counted_rows(draw):
    """n_items, training rows (history, target, user, time), and histories to rank. Items repeat within a history."""
    n_items = draw(st.integers(2, 7))
    item = st.integers(1, n_items - 1)
    history = st.lists(item, min_size=1, max_size=LENGTH)
    rows = draw(st.lists(st.tuples(history, item, st.integers(0, 3), st.integers(0, 4)), max_size=12))
    return n_items, rows, draw(st.lists(history, min_size=1, max_size=4))


def padded(histories):
    """Lists of item ids -> [R, LENGTH] int64, padded with 0 on the right."""
    return np.array([history + [0] * (LENGTH - len(history)) for history in histories], dtype=np.int64).reshape(-1, LENGTH)


def interaction_of(histories):
    """A RecBole batch of histories."""
    return Interaction({"item_id_list": torch.from_numpy(padded(histories))})


def model_of(model_class, rows, n_items, options):
    """A counted model on rows (history, target, user, time).

    RecBole's data set is a stand-in with the fields that a counted model reads.
    """
    histories, targets, users, times = zip(*rows) if rows else ((), (), (), ())
    feat = Interaction({
        "item_id_list": torch.from_numpy(padded(list(histories))), "item_id": torch.tensor(targets, dtype=torch.int64),
        "user_id": torch.tensor(users, dtype=torch.int64), "timestamp": torch.tensor(times, dtype=torch.float32),
    })
    fields = {"iid_field": "item_id", "uid_field": "user_id", "time_field": "timestamp"}
    dataset = SimpleNamespace(inter_feat=feat, num=lambda _: n_items, **fields)
    config = {
        "USER_ID_FIELD": "user_id", "ITEM_ID_FIELD": "item_id", "LIST_SUFFIX": "_list", "ITEM_LIST_LENGTH_FIELD": "item_length",
        "NEG_PREFIX": "neg_", "MAX_ITEM_LIST_LENGTH": LENGTH, "device": torch.device("cpu"), **options,
    }
    return model_class(config, dataset)


def assert_scores_equal(model_class, drawn, options, plain_scores):
    """The scores of a counted model are those that its definition gives, and they are float32.

    Args:
        model_class: class of the model.
        drawn: an example of `counted_rows`.
        options (dict): of the model.
        plain_scores: plain_scores(rows, n_items, history, options) -> list of n_items scores, by the definition.
    """
    n_items, rows, histories = drawn
    model = model_of(model_class, rows, n_items, options)
    expected = [plain_scores(rows, n_items, history, options) for history in histories]
    scores = model.full_sort_predict(interaction_of(histories))
    np.testing.assert_allclose(scores, expected, rtol=1e-5, atol=1e-7)
    assert scores.dtype == torch.float32


def assert_batch_equals_rows(model_class, drawn, options):
    """A history has the same scores alone and in a batch. `drawn` is an example of `counted_rows`."""
    n_items, rows, histories = drawn
    model = model_of(model_class, rows, n_items, options)
    together = model.full_sort_predict(interaction_of(histories))
    for number, history in enumerate(histories):
        assert torch.equal(together[number], model.full_sort_predict(interaction_of([history]))[0])


def assert_predict_equals_full_ranking(built):
    """`predict` gives each row's entry of `full_sort_predict`. `built` is what the fixture `build` returns."""
    _, model, (*_, test_data) = built
    batch = next(iter(test_data))[0]
    everything = model.full_sort_predict(batch)
    assert torch.equal(model.predict(batch), everything[torch.arange(len(batch)), batch["item_id"]])


def assert_no_rows_no_scores(model_class, options):
    """Without training rows every score is 0. Returns the model."""
    model = model_of(model_class, [], 5, options)
    assert not model.full_sort_predict(interaction_of([[1, 2], [3]])).any()
    return model


def assert_unseen_items_score_0(model_class, options):
    """Items that are in no training row have the score 0, and give no other item a score."""
    model = model_of(model_class, [([1], 2, 0, 0)], 5, options)
    scores = model.full_sort_predict(interaction_of([[1, 3], [4]]))
    assert scores[0].tolist()[3:] == [0, 0] and scores[0, 2] > 0 and not scores[1].any() and scores.isfinite().all()


def assert_runs_on_little_data(model, folder, items, users, length, options=None, parameters=0):
    """Run, load and recommend. The items stand in a circle: a history has `length` items, and the target is the next one."""
    target = folder / "data" / "little"
    target.mkdir(parents=True)
    names = [f"i{number}" for number in range(items)]
    lines = ["item_id:token\ttitle:token", *(f"{name}\tTitle {name}" for name in names)]
    (target / "little.item").write_text("\n".join(lines) + "\n")
    head = "user_id:token\titem_id_list:token_seq\titem_id:token\ttimestamp:float"
    rows = []
    for user in range(users):
        *history, following = [names[(user + step) % items] for step in range(length + 1)]
        rows.append(f"u{user}\t{' '.join(history)}\t{following}\t{user}")
    for part in ("train", "valid", "test"):
        (target / f"little.{part}.inter").write_text("\n".join([head, *rows]) + "\n")
    given = options or {"repeat_weight": 0.5}
    options = {**TINY, "data_path": str(folder / "data"), "topk": [1], "valid_metric": "NDCG@1", **given}
    result = recbole_flr.run_recbole_flr(model, "little", config_dict=options)
    run, = Path("saved").iterdir()
    assert result["test_result"]["hit@1"] == 1
    assert parameters is None or json.loads((run / "result.json").read_text())["parameters"] == parameters
    answer = recbole_flr.recommend(run, names[:1], k=items)
    assert {entry["item"] for entry in answer["items"]} == set(names)
