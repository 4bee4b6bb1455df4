"""What is known about the evaluated rows beside the ranks: user, history, and how often user and target occur in training.

The slices of a comparison are computed from these arrays, so that it needs neither the data set nor the model.

Shapes: R evaluated rows, L places of a history (right-padded with item 0), n items.
"""

from pathlib import Path

import numpy as np
from recbole.utils import ModelType

from recbole_flr.data.atomic import header, read_columns

DAY = 86_400  # seconds
POPULAR_SHARE = 0.2  # of the items, those with the most training rows
MILLISECONDS = 1e11  # times above this are not in seconds (it would be the year 5138)


def describe_rows(config, dataset, train_loader, loader):
    """Arrays about the rows of an evaluated loader of a sequential model, in its order.

    Args:
        config: RecBole's.
        dataset: RecBole's whole data set.
        train_loader: whose rows are counted.
        loader: of the validation or test rows.

    Returns:
        dict of arrays; empty for a model that is not sequential.

        - `user` [R] int32, internal user ids.
        - `history` [R, L] int32, internal item ids, oldest first, padded with 0 on the right.
        - `days` [R] float32, calendar days (UTC) from the last item of the history to the target; NaN if a time is not known.
        - `user_rows`, `target_rows` [R] int32, training rows of the user, and training rows whose target is this row's target.
        - `target_seen` [R] bool, whether the target occurs in a training row, as target or in the history.
        - `target_popular` [R] bool, whether the target is among the 20% of the items with the most training rows.
    """
    if config["MODEL_TYPE"] != ModelType.SEQUENTIAL:
        return {}
    train, rows = train_loader._dataset.inter_feat, loader._dataset.inter_feat
    user_field, item_field = dataset.uid_field, dataset.iid_field
    history_field = item_field + config["LIST_SUFFIX"]
    users, targets, history = (rows[name].numpy() for name in (user_field, item_field, history_field))
    items_of_training, users_of_training = train[item_field].numpy(), train[user_field].numpy()
    counts = np.bincount(items_of_training, minlength=dataset.item_num)
    seen = counts > 0
    seen[train[history_field].numpy()] = True
    return {
        "user": users.astype(np.int32),
        "history": history.astype(np.int32),
        "days": days_since_last(config, dataset, loader, users, history, targets),
        "user_rows": np.bincount(users_of_training, minlength=dataset.user_num)[users].astype(np.int32),
        "target_rows": counts[targets].astype(np.int32),
        "target_seen": seen[targets],
        "target_popular": popular_items(counts)[targets],
    }


def describe_ranked_rows(config, dataset, train_loader, loader, ranks):
    """:func:`describe_rows`, if the ranks are those of the loader's rows in their order; else an empty dict (sampled negatives).

    Args:
        ranks: arrays of :meth:`recbole_flr.evaluation.RankCollector.take_ranks`.
    """
    targets = loader._dataset.inter_feat[dataset.iid_field].numpy()
    aligned = len(ranks.get("top_items", ())) == len(targets) and np.array_equal(ranks["target"], targets)
    return describe_rows(config, dataset, train_loader, loader) if aligned else {}


def popular_items(counts):
    """The items with the most training rows, POPULAR_SHARE of all. Of equal counts the lower ids come first.

    Args:
        counts: [n] training rows of each item; item 0 is the padding.

    Returns:
        [n] bool.
    """
    number = int(round(POPULAR_SHARE * (len(counts) - 1)))
    best = 1 + np.argsort(-counts[1:], kind="stable")[:number]
    popular = np.zeros(len(counts), dtype=bool)
    popular[best[counts[best] > 0]] = True
    return popular


def days_since_last(config, dataset, loader, users, history, targets):
    """See `days` of :func:`describe_rows`. RecBole keeps times as float32, which is right to about a minute."""
    rows = loader._dataset.inter_feat
    unknown = np.full(len(users), np.nan, dtype=np.float32)
    if dataset.time_field is None or dataset.time_field not in rows:
        return unknown
    times = rows[dataset.time_field].numpy().astype(np.float32)
    length = (history != 0).sum(1)
    last = np.take_along_axis(history, np.maximum(length - 1, 0)[:, None], 1)[:, 0]
    list_field = dataset.time_field + config["LIST_SUFFIX"]
    if list_field in rows:
        before = np.take_along_axis(rows[list_field].numpy(), np.maximum(length - 1, 0)[:, None], 1)[:, 0]
    else:
        before = _times_in_log(config, dataset, users, last, times, last == targets)
    scale = DAY * (1000 if np.nanmax(times, initial=0) > MILLISECONDS else 1)
    days = _day(times, scale) - _day(before, scale)
    return np.where(length > 0, days, np.nan).astype(np.float32)


def _day(times, scale):
    """Number of the day of float32 times. Midnight may have been rounded to a moment before it; this is made up for."""
    return np.floor((times.astype(np.float64) + np.spacing(times) / 2) / scale)


def _times_in_log(config, dataset, users, items, times, repeats):
    """When the users had the items: the times in NAME.inter, the file of all interactions; NaN if it does not have them.

    Args:
        users, items: [R] internal ids.
        times: [R] float32, of the targets. The latest time up to this one is taken.
        repeats: [R] bool, whether the target is the same item; then the time before that is taken.
    """
    path = Path(config["data_path"]) / f"{config['dataset']}.inter"
    fields = [dataset.uid_field, dataset.iid_field, dataset.time_field]
    separator, encoding = config["field_separator"], config["encoding"] or "utf-8"
    found = np.full(len(users), np.nan, dtype=np.float32)
    if not path.is_file() or not set(fields) <= set(header(path, separator, encoding)):
        return found
    columns = read_columns(path, fields, separator, encoding)
    ids = [np.fromiter((dataset.field2token_id[name].get(token, 0) for token in columns[name]), np.int64) for name in fields[:2]]
    log_times = np.array([float(text) if text else np.nan for text in columns[fields[2]]], dtype=np.float64).astype(np.float32)
    known = (ids[0] > 0) & (ids[1] > 0) & ~np.isnan(log_times)
    log_pairs, log_times = (ids[0] * dataset.item_num + ids[1])[known], log_times[known]
    order = np.lexsort((log_times, log_pairs))
    log_pairs, log_times = log_pairs[order], log_times[order]
    pairs = users.astype(np.int64) * dataset.item_num + items
    is_query = np.repeat([False, True], [len(log_pairs), len(pairs)])
    order = np.lexsort((is_query, np.concatenate([log_times, times]), np.concatenate([log_pairs, pairs])))
    logged = np.cumsum(~is_query[order])  # how many interactions of the log stand before each place
    before = np.empty(len(pairs), dtype=np.int64)
    before[order[is_query[order]] - len(log_pairs)] = logged[is_query[order]]
    place = before - 1 - repeats
    same = (place >= 0) & (log_pairs[np.maximum(place, 0)] == pairs) if len(log_pairs) else np.zeros(len(pairs), dtype=bool)
    found[same] = log_times[place[same]]
    return found
