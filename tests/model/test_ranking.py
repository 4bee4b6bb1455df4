"""The rows on which FLRMix chooses the weights of its ranking."""

from types import SimpleNamespace

import pytest
import torch

from recbole_flr.model import ranking


@pytest.mark.parametrize("most, titles, expected", [
    (100, 100, [list(range(23)), list(range(23))]),
    (5, 100, [[0, 5, 11, 16, 22], [0, 5, 11, 16, 22]]),  # 0, 5.5, 11, 16.5 and 22, rounded down
    (5, 3, [[0, 5, 11, 16, 22], [0, 11, 22]]),
])  # fmt: skip
def test_the_weights_are_chosen_on_rows_from_all_over_the_validation_rows(monkeypatch, most, titles, expected):
    """`most` of 23 rows, and `titles` of these for the weight of the titles."""
    monkeypatch.setattr(ranking, "MOST_ROWS", most)
    monkeypatch.setattr(ranking, "TITLE_ROWS", titles)
    options = {"transitions_weight": 1.0, "neighbors_weight": 1.0, "repeat_weight": -1.0, "title_weight": 0.1,
               "fit_weights": True, "topk": [2], "num_candidates": 3}  # fmt: skip
    memory, asked = SimpleNamespace(tables={}, log_votes=lambda history: {}), []

    def read(rows):
        asked.append(rows.tolist())
        for part in rows.split(4):
            log_p = torch.randn(len(part), 6).log_softmax(1)
            yield log_p, torch.ones(len(part), 2, dtype=torch.long), 2 + part % 4, lambda items: -items.float()

    ranking.Ranking(options, memory, reranks=True).fit(23, read)
    assert asked == expected


def test_no_row_behind_the_last_is_chosen():
    """The last of 2 ** 24 + 4 rows has an odd number, which float32 rounds up."""
    assert ranking._spread(2**24 + 4, 2).tolist() == [0, 2**24 + 3]
