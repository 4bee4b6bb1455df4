"""The training rows as arrays, and their fingerprint. The models that are counted have tests of their own."""

import numpy as np
import pytest
from helpers_counted import padded

from recbole_flr.model.counted import TrainingRows, distances_from_end

ARRAYS = {"histories": padded([[1, 2], [3]]), "targets": np.array([3, 1]), "users": np.array([1, 2]), "times": np.array([0.5, 2.0])}


@pytest.mark.parametrize("name", ARRAYS)
def test_each_change_of_the_rows_changes_the_fingerprint(name):
    changed = ARRAYS[name].copy()
    changed.flat[0] += 1
    assert TrainingRows(**{**ARRAYS, name: changed}).fingerprint() != TrainingRows(**ARRAYS).fingerprint()


def test_the_fingerprint_does_not_depend_on_the_width_of_the_numbers():
    narrow = {name: array.astype(np.float32 if array.dtype.kind == "f" else np.int32) for name, array in ARRAYS.items()}
    assert TrainingRows(**narrow).fingerprint() == TrainingRows(**ARRAYS).fingerprint()


def test_distances_from_the_end():
    assert distances_from_end(np.array([[4, 5, 6], [4, 0, 0]])).tolist() == [[2, 1, 0], [0, -1, -2]]
