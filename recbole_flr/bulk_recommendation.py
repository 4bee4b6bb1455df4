"""Recommendations for many users, in a file.

The users are ranked in batches. After each 10,000 users a part is written beside the output, so that a command that was
stopped goes on with the next part. At the end the parts are joined, and the output appears in one step. Beside the model and its
data set, one part at a time is in memory.
"""

import json
import os
import shutil
from dataclasses import dataclass
from itertools import islice
from logging import getLogger
from pathlib import Path
from time import perf_counter

import duckdb
import numpy as np
import pandas as pd
import torch
from tqdm import tqdm

from recbole_flr.errors import ConfigError, DataError, first_line
from recbole_flr.files import write_json, writing
from recbole_flr.quick_start import load_data_and_model
from recbole_flr.recommendation import check_count, history_batch, prepare
from recbole_flr.result import duration
from recbole_flr.training import checkpoint as checkpoints
from recbole_flr.user_files import check_user_file, count_users, quoted, read_users

FORMATS = {  # of the output, by its ending
    ".parquet": "FORMAT parquet", ".csv": "FORMAT csv, HEADER", ".tsv": "FORMAT csv, HEADER, DELIMITER '\t'",
    ".jsonl": "FORMAT json",
}
ROWS_PER_PART = 10_000


@dataclass
class Counts:
    """Rows that were ranked, users that were left out, and unknown items in histories."""

    users: int = 0
    skipped_users: int = 0
    unknown_items: int = 0

    def add(self, other):
        """Add those of a part."""
        for name, value in vars(other).items():
            setattr(self, name, getattr(self, name) + value)


def recommend_many(checkpoint, users, out, k=10, skip_unknown=False, config_dict=None, show_progress=True,
                   rows_per_part=ROWS_PER_PART):
    """Write the best items of many users to a file.

    Args:
        checkpoint: folder of a run.
        users: ``test``: the rows of the test data, as they were tested. ``all``: every user of the data set with the whole
            sequence, so that the next item is recommended. Or the path of a file (:mod:`recbole_flr.user_files`).
        out: path of the output: .parquet, .csv, .tsv or .jsonl. It has a row for each recommended item: row (number of the user's
            row, from 1), user_id, rank (from 1), item_id, title, score.
        k: items for each user. A model that writes titles with beams may reach fewer.
        skip_unknown: leave out items that the catalogue does not have, and users of whom no item is left, and count them.
        config_dict: options to change when loading.
        show_progress: whether to show a progress bar.
        rows_per_part: users in a part.

    Returns:
        dict: users (ranked rows), skipped_users, unknown_items, seconds, and ranking_seconds, which leave out the loading.

    Raises:
        ConfigError: for an output or a number of items that cannot be.
        DataError: for a file of users that cannot be read, for an unknown item in it (the message names the line), or for an
            output that cannot be written.
    """
    start, out = perf_counter(), Path(out)
    if out.suffix not in FORMATS:
        raise ConfigError(f"out: found {out.name!r}, expected a name that ends with {', '.join(FORMATS)}")
    if not out.parent.is_dir():
        raise ConfigError(f"out: found no folder {out.parent}; create it first")
    if users not in ("test", "all"):
        check_user_file(users)
    loaded = load_data_and_model(checkpoint, config_dict)
    config, model, dataset, *loaders = loaded
    prepare(config, model, loaders[0])
    check_count(model, k)
    if users == "test":
        source = _TestRows(dataset, loaders[2])
    elif users == "all":
        source = _AllUsers(config, model, dataset, loaders)
    else:
        source = _FileRows(config, model, dataset, Path(users), skip_unknown)
    weights = checkpoints.run_folder(checkpoint) / checkpoints.BEST
    parts = _Parts(out, {
        "run": str(weights.parent.resolve()), "weights": _state_of(weights), "data": config["data_fingerprint"], "k": k,
        "users": source.identity, "skip_unknown": skip_unknown, "rows_per_part": rows_per_part,
    })
    ranker, done = _Ranker(config, model, dataset, k), parts.done * rows_per_part
    if done:
        getLogger().warning(f"{out}: an earlier command was stopped; going on after {done} users.")
    loading = perf_counter() - start
    with tqdm(total=source.total, initial=done, unit=" users", dynamic_ncols=True, disable=not show_progress) as bar:
        for batch, counts in source.parts(done, rows_per_part):
            parts.add(None if batch is None else ranker.rank(batch, bar), counts)
            bar.update(counts.skipped_users)
    parts.join(out)
    seconds = perf_counter() - start
    return {**vars(parts.total), "seconds": round(seconds, 2), "ranking_seconds": round(seconds - loading, 2)}


def describe(summary, out):
    """The result of :func:`recommend_many` in a sentence or two."""
    text = f"Recommended to {summary['users']} users in {duration(summary['seconds'])}: {out}."
    if summary["skipped_users"] or summary["unknown_items"]:
        text += f" Left out: {summary['unknown_items']} unknown items, {summary['skipped_users']} users without a known item."
    return text


def _state_of(path):
    """Size and time of a file: whether it is still the same."""
    state = Path(path).stat()
    return [state.st_size, state.st_mtime_ns]


# users


@dataclass
class _Users:
    """Some users: the number of each one's row (from 1), their names, and RecBole's batch of their histories."""

    rows: np.ndarray
    names: np.ndarray
    interaction: object


class _InDataSet:
    """Users whose histories are in memory already, as RecBole has the data set there."""

    def parts(self, start, size):
        """Yield (users, counts) of each part from row `start` (from 0) on."""
        for first in range(start, self.total, size):
            chosen = np.arange(first, min(first + size, self.total))
            yield _Users(chosen + 1, self.names[chosen], self.interaction(chosen)), Counts(users=len(chosen))


class _TestRows(_InDataSet):
    """The rows of the test data, as they are evaluated."""

    identity = "test"

    def __init__(self, dataset, test_data):
        self._rows = test_data._dataset.inter_feat
        self.total = len(self._rows)
        self.names = dataset.id2token(dataset.uid_field, self._rows[dataset.uid_field].numpy()).astype(object)

    def interaction(self, chosen):
        return self._rows[torch.from_numpy(chosen)]


class _AllUsers(_InDataSet):
    """Every user with the whole sequence, which is the history and the target of the user's latest row."""

    identity = "all"

    def __init__(self, config, model, dataset, loaders):
        sampled = next((name for name in ("train_rows", "valid_rows", "test_rows") if config[name]), None)
        if sampled:
            raise ConfigError(f"users: found all, and {sampled}={config[sampled]} in the run, which hides rows of users; expected test, "
                              "or a file with the histories")
        self._config, self._model = config, model
        features = [loader._dataset.inter_feat for loader in loaders]

        def joined(field):
            return np.concatenate([feature[field].numpy() for feature in features])

        users, length = joined(dataset.uid_field), joined(model.ITEM_SEQ_LEN)
        keys = [np.arange(len(users))]  # rows of the test data stand behind those of the training data
        if all(config["TIME_FIELD"] in feature for feature in features):
            keys.append(joined(config["TIME_FIELD"]))
        order = np.lexsort([*keys, users])
        last = order[np.append(users[order][1:] != users[order][:-1], True)]
        self._length = length[last]
        self._histories = np.pad(joined(model.ITEM_SEQ)[last], ((0, 0), (0, 1)))
        self._histories[np.arange(len(last)), self._length] = joined(dataset.iid_field)[last]
        self._ids, self.total = users[last], len(last)
        self.names = dataset.id2token(dataset.uid_field, self._ids).astype(object)

    def interaction(self, chosen):
        histories = [self._histories[row, :self._length[row] + 1] for row in chosen]
        return history_batch(self._config, self._model, histories, self._ids[chosen])


class _FileRows:
    """The users of a file."""

    def __init__(self, config, model, dataset, path, skip_unknown):
        self._config, self._model, self._path, self._skip = config, model, path, skip_unknown
        self._item_of, self._user_of = dataset.field2token_id[dataset.iid_field], dataset.field2token_id[dataset.uid_field]
        self.identity = [str(path.resolve()), *_state_of(path)]
        self.total = count_users(path)

    def parts(self, start, size):
        """Yield (users, counts) of each part from row `start` (from 0) on. A user whom the data set does not have gets id 0."""
        lines = enumerate(read_users(self._path), 1)
        next(islice(lines, start, start), None)  # leaves out the first rows
        while part := list(islice(lines, size)):
            counts, rows, names, histories = Counts(), [], [], []
            for row, (place, name, history) in part:
                known = self._known(place, history, counts)
                if known:
                    rows.append(row)
                    names.append(name)
                    histories.append(known)
            counts.users, counts.skipped_users = len(rows), len(part) - len(rows)
            if not rows:
                yield None, counts
                continue
            ids = np.array([self._user_of.get(name, 0) for name in names])
            interaction = history_batch(self._config, self._model, histories, ids)
            yield _Users(np.array(rows), np.array(names, dtype=object), interaction), counts

    def _known(self, place, history, counts):
        """Internal ids of the items of a history. Unknown ones are refused, or left out and counted."""
        known = []
        for item in history:
            number = self._item_of.get(item, 0)
            if number:
                known.append(number)
            elif self._skip:
                counts.unknown_items += 1
            else:
                raise DataError(f"{place}: found the item {item!r}, which the catalogue does not have; correct it, or leave out "
                                "unknown items with --skip-unknown")
        if not known and not self._skip:
            raise DataError(f"{place}: found an empty history, expected at least one item id; correct it, or leave out such users "
                            "with --skip-unknown")
        return known


# ranking


class _Ranker:
    """Users -> a table of their best k items."""

    def __init__(self, config, model, dataset, k):
        self.model, self.k, self.device, self.size = model, k, config["device"], config["eval_batch_size"]
        self.items = np.array([str(token) for token in dataset.field2id_token[dataset.iid_field]], dtype=object)
        self.titles = np.array(model.catalog.titles, dtype=object)

    @torch.no_grad()
    def rank(self, users, bar):
        """A data frame with a row for each user and rank. Items that the model did not reach are left out."""
        values, items = [], []
        for places in torch.arange(len(users.rows)).split(self.size):
            scores = self.model.best_scores(users.interaction[places].to(self.device), self.k)
            scores[:, 0] = -torch.inf
            best = scores.topk(self.k)
            values.append(best.values.float().cpu())
            items.append(best.indices.cpu())
            bar.update(len(places))
        values, items = torch.cat(values).numpy().ravel(), torch.cat(items).numpy().ravel()
        frame = pd.DataFrame({
            "row": np.repeat(users.rows, self.k), "user_id": np.repeat(users.names, self.k),
            "rank": np.tile(np.arange(1, self.k + 1, dtype=np.int32), len(users.rows)), "item_id": self.items[items],
            "title": self.titles[items], "score": values,
        })
        return frame[values > -np.inf]


# the output


class _Parts:
    """The parts of an output, in a folder beside it, until they are joined.

    Attributes:
        done: how many parts there are.
        total: Counts of all parts.
    """

    def __init__(self, out, request):
        self.folder = out.with_name(f"{out.name}.parts")
        self._request, self._counts = json.loads(json.dumps(request)), []
        state = self.folder / "progress.json"
        if state.is_file():
            try:
                found = json.loads(state.read_text(encoding="utf-8"))
                same, counts = found["request"] == self._request, [Counts(**each) for each in found["parts"]]
            except (ValueError, KeyError, TypeError):  # not ours, or damaged
                same = False
            if same:
                self._counts = counts
            else:
                getLogger().warning(f"{out}: the parts of another command in {self.folder} are removed.")
                shutil.rmtree(self.folder)
        with writing(self.folder):
            self.folder.mkdir(exist_ok=True)

    @property
    def done(self):
        return len(self._counts)

    @property
    def total(self):
        total = Counts()
        for counts in self._counts:
            total.add(counts)
        return total

    def _file(self, number):
        return self.folder / f"{number:06d}.parquet"

    def add(self, frame, counts):
        """Write a part. `frame` is None if it has no users."""
        if frame is not None:
            self._copy("SELECT * FROM frame", self._file(self.done), FORMATS[".parquet"], frame)
        self._counts.append(counts)
        write_json(self.folder / "progress.json", {"request": self._request, "parts": [vars(each) for each in self._counts]})

    def join(self, out):
        """Write the output and remove the parts.

        Raises:
            DataError: if no user is left.
        """
        files = [str(self._file(number)) for number in range(self.done) if self._file(number).is_file()]
        if not files:
            shutil.rmtree(self.folder)
            raise DataError("users: found no user with a known item, expected at least one")
        self._copy(f"SELECT * FROM read_parquet([{', '.join(map(quoted, files))}])", out, FORMATS[out.suffix])
        shutil.rmtree(self.folder)

    def _copy(self, query, path, form, frame=None):
        """Write the rows of a query to a temporary name, and move the file into place."""
        temporary = self.folder / f"{path.name}.tmp"
        try:
            settings = {"temp_directory": str(self.folder / "spilled"), "memory_limit": "500MB", "threads": 1}
            with duckdb.connect(config=settings) as database:
                if frame is not None:
                    database.register("frame", frame)
                database.execute(f"COPY ({query}) TO {quoted(temporary)} ({form})")
            os.replace(temporary, path)
        except (duckdb.Error, OSError) as error:
            raise DataError(f"out: cannot write {path} ({first_line(error)}); the parts so far are in {self.folder}, and the "
                            "same command goes on with them") from error
