"""The benchmark of steps and rankings, on the tiny data set."""

import json

import pytest

from benchmarks import steps


def test_its_figures(session_data, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(steps, "Config", lambda name, dataset, config_dict: config(name, dataset, config_dict))
    file = tmp_path / "found.json"
    words = ["--dataset=tiny", "--models=SASRec,FLRMix", "--anomaly", "--repeats=2", f"--data={session_data}", f"--json={file}"]
    found = steps.main(words)
    timed = ("step", "step, anomaly detection", "rank", "evaluation")
    assert set(found) == {f"{name} {what}" for name in ("SASRec", "FLRMix") for what in timed}
    assert all(value > 0 for value in found.values()) and json.loads(file.read_text())["ms"] == pytest.approx(found)
    assert "FLRMix rank" in capsys.readouterr().out


def config(name, dataset, options):
    """With the protocol of the tiny data set."""
    from conftest import TINY

    from recbole_flr.config import Config

    return Config(name, dataset, config_dict={**TINY, **options})
