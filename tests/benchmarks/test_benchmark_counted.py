"""The benchmark of the models without training, on few rows."""

import json

import pytest

from benchmarks import counted


def test_made_up_rows_follow_zipfs_law():
    histories, targets = counted.made_up_rows(50, 4000)
    assert histories.shape == (4000, counted.HISTORY) and targets.shape == (4000,)
    items, times = counted.np.unique(histories, return_counts=True)
    assert items.min() == 1 and items.max() == 50
    assert 1.7 < sorted(times)[-1] / sorted(times)[-2] < 2.3  # the second item is met half as often as the first


@pytest.mark.parametrize("model", counted.MODELS)
def test_its_figures(model, tmp_path, capsys):
    found = counted.main([f"--model={model}", "--items=30", "--rows=200", f"--json={tmp_path / 'found.json'}"])
    assert model in capsys.readouterr().out
    written = json.loads((tmp_path / "found.json").read_text())
    assert {name: written[name] for name in found} == found and written["surroundings"]["commit"]
    assert found["rank_ms"] > 0 and 1 < found["items_reached"] <= 30
