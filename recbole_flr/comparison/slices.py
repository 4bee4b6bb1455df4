"""Slices of the test rows: which rows belong to each, from the arrays in `ranks.npz`.

`docs/comparison.md` says why results come in slices. Read "new items" and "later day" before you compare models.
"""

import numpy as np

LENGTHS = ((1, 2), (3, 5), (6, 9), (10, None))  # of the history, both ends included


def slices(ranks):
    """The slices of the test rows of a sequential model.

    Args:
        ranks: arrays of `ranks.npz`, with `test_target` [R] and the arrays of :func:`recbole_flr.rows.describe_rows`.

    Returns:
        dict, name of the slice -> [R] bool, without slices that have no row. Only `all rows` if the arrays are missing, as in
        runs of earlier versions and of models that are not sequential.
    """
    target = ranks["test_target"]
    found = {"all rows": np.ones(len(target), dtype=bool)}
    if "test_history" not in ranks:
        return found
    history, days = ranks["test_history"], ranks["test_days"]
    new = ~(history == target[:, None]).any(1)
    length = (history != 0).sum(1)
    user_seen, target_seen = ranks["test_user_rows"] > 0, ranks["test_target_seen"]
    found |= {
        "new items": new,
        "repeated items": ~new,
        "same day": days == 0,
        "later day": days > 0,
        "time not known": np.isnan(days),
        "popular items (top 20%)": ranks["test_target_popular"],
        "other items": ~ranks["test_target_popular"],
        "users seen in training": user_seen,
        "users not seen": ~user_seen,
        "targets seen in training": target_seen,
        "targets not seen": ~target_seen,
    }
    for first, last in LENGTHS:
        name = f"history of {first} to {last} items" if last else f"history of {first} items or more"
        found[name] = (length >= first) & (length <= (last or np.inf))
    return {name: rows for name, rows in found.items() if rows.any()}


def metric_of_rows(ranks, metric):
    """A metric of each test row, from its rank.

    Args:
        ranks: arrays of `ranks.npz`.
        metric: such as `ndcg@10` or `title_hit@5`.

    Returns:
        [P] float64; None for a metric that does not follow from the rank of one target, or if a row has several targets.
    """
    name, _, cutoff = metric.partition("@")
    kind, name = ("title", name[len("title_") :]) if name.startswith("title_") else ("item", name)
    array = f"test_{kind}_rank"
    if array not in ranks or not cutoff.isdecimal() or len(np.unique(ranks["test_row"])) != len(ranks["test_row"]):
        return None
    rank = ranks[array].astype(np.float64)
    value = {"hit": np.ones_like(rank), "recall": np.ones_like(rank), "ndcg": 1 / np.log2(rank + 1), "mrr": 1 / rank}.get(name)
    return None if value is None else np.where(rank <= int(cutoff), value, 0.0)
