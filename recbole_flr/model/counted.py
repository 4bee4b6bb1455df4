"""Models that are counted from the training rows: no weights, no loss, no optimizer.

A checkpoint of such a model holds no tables. They are counted again when the model is built, for three reasons: counting takes
seconds, the tables of a large catalogue take gigabytes on the disk, and an option that is changed beside `checkpoint` has an
effect. The checkpoint holds a fingerprint of the training rows instead, and refuses other rows.

Shapes: R training rows, B rows of a batch, L places of a history (right-padded with item 0).
"""

import hashlib
from abc import ABC, abstractmethod
from dataclasses import dataclass

import numpy as np
import torch
from recbole.model.abstract_recommender import SequentialRecommender
from recbole.utils import InputType

from recbole_flr.contracts import ByFullRanking, Recommender
from recbole_flr.errors import CheckpointError


@dataclass
class TrainingRows:
    """The training rows as arrays. A row is a history and the item that came next, the target.

    Attributes:
        histories: [R, L] int, item ids, oldest first, padded with 0 on the right.
        targets: [R] int, item ids.
        users: [R] int, user ids.
        times: [R] float, times of the targets; the numbers of the rows if the data set has no times.
    """

    histories: np.ndarray
    targets: np.ndarray
    users: np.ndarray
    times: np.ndarray

    @classmethod
    def of(cls, dataset, history_field):
        """The rows of RecBole's training dataset.

        Args:
            dataset: RecBole's.
            history_field: name of its field with the histories.
        """
        rows = dataset.inter_feat
        times = rows[dataset.time_field].numpy() if dataset.time_field in rows else np.arange(len(rows))
        return cls(rows[history_field].numpy(), rows[dataset.iid_field].numpy(), rows[dataset.uid_field].numpy(), times)

    def fingerprint(self):
        """sha256 of histories, targets, users and times, as text."""
        digest = hashlib.sha256()
        for array in (self.histories, self.targets, self.users, self.times):
            digest.update(np.ascontiguousarray(array, dtype=np.float64 if array.dtype.kind == "f" else np.int64))
        return digest.hexdigest()


def distances_from_end(histories):
    """How many items come after each place of a history: 0 for the last item, -1 or less for padding.

    Args:
        histories: [B, L] item ids, padded with 0 on the right.

    Returns:
        [B, L] int.
    """
    lengths = (histories != 0).sum(1, keepdims=True)
    return lengths - 1 - np.arange(histories.shape[1])


class OnTrainingRows:
    """Mixin for a model that counts the training rows when it is built: its checkpoints fit these rows only."""

    def remember_rows(self, rows):
        """Keep the fingerprint of :class:`TrainingRows`."""
        self.rows_fingerprint = rows.fingerprint()

    def other_parameter(self):
        """What a checkpoint keeps of the model."""
        return {"rows_fingerprint": self.rows_fingerprint}

    def load_other_parameter(self, para):
        """Compare the training rows with those of a checkpoint.

        Raises:
            CheckpointError: if they differ.
        """
        if para and para["rows_fingerprint"] != self.rows_fingerprint:
            raise CheckpointError("the training rows of the data set are not those that the run was counted on; put the old "
                                  "files back, or run the model anew")


class Counted(OnTrainingRows, ByFullRanking, SequentialRecommender, Recommender, ABC):
    """Base of the models that are counted from the training rows. It ranks all items for histories.

    Args:
        config: option `repeat_weight`.
        dataset: RecBole's training dataset.
    """

    input_type = InputType.POINTWISE
    needs_training = False

    def __init__(self, config, dataset):
        super().__init__(config, dataset)
        self.repeat_weight = config["repeat_weight"]
        rows = TrainingRows.of(dataset, self.ITEM_SEQ)
        self.remember_rows(rows)
        self.count(rows, config)

    @abstractmethod
    def count(self, rows, config):
        """Build the tables.

        Args:
            rows: :class:`TrainingRows`.
            config: the model's options.
        """

    @abstractmethod
    def score(self, histories):
        """Scores of all items, before items of the history get `repeat_weight` times their score.

        Args:
            histories: [B, L] numpy array of item ids, padded with 0 on the right.

        Returns:
            scipy sparse matrix [B, n_items].
        """

    def full_sort_predict(self, interaction):
        """Scores of all items: [B, n_items] float32, 0 for items that the tables do not reach."""
        histories = interaction[self.ITEM_SEQ]
        found = self.score(histories.cpu().numpy()).toarray().astype(np.float32, copy=False)
        scores = torch.from_numpy(found).to(histories.device)
        return scores.scatter(1, histories, self.repeat_weight * scores.gather(1, histories))
