"""The times of ranking: which rows, how many beams, and their table."""

import pytest
from helpers_training import only_run

from recbole_flr.comparison.cost import cost_table
from recbole_flr.comparison.ranking_time import BEAMS, TIMES, measure


@pytest.mark.parametrize("model, beams", [("FLR", BEAMS), ("VSKNN", None), ("FLRMix", None)])
def test_a_trained_model_is_timed(trained, model, beams):
    trained(model)
    found = measure(only_run())
    assert found["beams"] == beams and found["batch"] == 4 and 1 < found["users"] <= 100
    assert len(found["seconds"]) == TIMES and min(found["seconds"]) > 0


def test_the_table():
    answers = [
        ("A", {"users": 100, "batch": 4, "beams": 10, "seconds": [3.0, 1.0, 2.0]}),
        ("B", {"users": 100, "batch": 4, "beams": None, "seconds": [0.5, 0.4, 9.0]}),
    ]
    table = cost_table(answers)
    assert [[cell.text for cell in row] for row in table.rows] == [
        ["A", "2 s", "1 to 3 s", "20 ms", "4.00", "10"],
        ["B", "0.5 s", "0.4 to 9 s", "5 ms", "1.00", "-"],
    ]
    assert [row[1].place for row in table.rows] == [2, 1]
