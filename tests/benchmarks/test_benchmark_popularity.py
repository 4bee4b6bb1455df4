"""The popularity ranking against a count in plain Python."""

import ast
from collections import Counter

import numpy as np
import pytest
from conftest import TINY

from benchmarks import popularity
from recbole_flr.config import Config


def rows(data, part):
    """Histories and targets of the tiny data."""
    lines = (data / "tiny" / f"tiny.{part}.inter").read_text().splitlines()[1:]
    return [(line.split("\t")[1].split(), line.split("\t")[2]) for line in lines]


def test_hits_are_those_of_counting_targets(tiny_data, capsys, monkeypatch):
    counts = Counter(target for _, target in rows(tiny_data, "train"))
    ordered = sorted(counts.values(), reverse=True)
    cutoff = next(k for k in range(2, len(ordered)) if ordered[k - 1] > ordered[k])  # no tie between the items above and below it
    best = {item for item, count in counts.items() if count >= ordered[cutoff - 1]}

    def config(model, dataset, config_dict):
        return Config(model, dataset, config_dict={**TINY, **config_dict, "topk": [cutoff], "valid_metric": f"Hit@{cutoff}"})

    monkeypatch.setattr(popularity, "Config", config)
    result = popularity.main([f"--data_path={tiny_data}", "--dataset=tiny"])
    printed = dict(line.split(" {") for line in capsys.readouterr().out.splitlines())
    assert list(printed) == ["valid", "valid, new items", "test", "test, new items"]
    hits = [(target in best, target not in history) for history, target in rows(tiny_data, "test")]
    expected = np.mean([hit for hit, _ in hits])
    of_new = np.mean([hit for hit, new in hits if new])
    assert 0 < of_new != expected > 0
    assert result[f"hit@{cutoff}"] == pytest.approx(expected, abs=1e-4)
    assert ast.literal_eval("{" + printed["test, new items"])[f"hit@{cutoff}"] == pytest.approx(of_new, abs=1e-4)
    assert result.keys() >= {f"title_hit@{cutoff}", f"title_ndcg@{cutoff}"}
