"""Every model of RecBole, for one epoch on a tiny data set: it runs or is refused with one line, as docs/recbole_models.md says.

This takes three minutes: `python -m pytest -m slow tests/test_recbole_models.py`. tests/test_needs.py has a few of the models always.
"""

import re
from pathlib import Path

import pytest
from benchmarks.recbole_models import document, model_names, survey, write_dataset

from recbole_flr.registry import MODELS

PAGE = (Path(__file__).resolve().parents[1] / "docs" / "recbole_models.md").read_text(encoding="utf-8")
ROW = re.compile(r"^\| `(\w+)` \| ([^|]+) \| ([^|]+) \| (.*) \|$", re.MULTILINE)


def test_the_page_has_every_model():
    rows = ROW.findall(PAGE)
    assert [row[0] for row in rows] == model_names() and len(rows) > 90
    assert {row[2] for row in rows} == {"runs", "runs with options", "refused", "needs a package"}
    assert all(bool(note.strip()) == (state != "runs") for _, _, state, note in rows)  # each other state has its reason
    assert not {row[0] for row in rows} & (set(MODELS) - {"SASRec"})
    assert f"{sum(row[2].startswith('runs') for row in rows)} of {len(rows)} models run." in PAGE


@pytest.mark.slow
@pytest.mark.parametrize("name", model_names())
def test_a_model_does_what_the_page_says(name, tmp_path):
    row, = survey(write_dataset(tmp_path / "data"), [name])
    assert f"\n{ROW.search(document([row]))[0]}\n" in PAGE
