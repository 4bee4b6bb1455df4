"""The benchmark of a backbone, on the tiny data set with a tiny language model."""

import json

import pytest
import torch
from conftest import TINY_FLR

from benchmarks import backbone
from recbole_flr.config import Config


def test_its_figures(session_data, saved_models, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(backbone, "Config", lambda name, dataset, config_dict: Config(
        name, dataset, config_dict={**TINY_FLR, **config_dict}))
    file = tmp_path / "found.json"
    words = ["--dataset=tiny", f"--data={session_data}", f"--json={file}", "--repeats=1",
             "--set", f"backbone={saved_models['llama']}", "--set", "trainable=lora", "--set", "train_batch_size=6"]
    found = backbone.main(words)
    written = json.loads(file.read_text())
    assert written["costs"] == pytest.approx(found) and written["rows"] == [6, 16]
    assert all(value >= 0 for value in found.values()) and found["step: in all, s"] > 0
    parts = sum(found[f"ranking: {part}, s"] for part in ("read prompts", "think", "search"))
    assert found["ranking: in all, s"] == pytest.approx(parts)
    assert "kept for backward" in capsys.readouterr().out


def test_bytes_that_are_kept():
    """Of x @ w, each kept once: both factors for the product, and its result for the square."""
    class Model:
        weight = torch.ones(3, 5, requires_grad=True)

        def calculate_loss(self, batch):
            return (batch @ self.weight).square().sum()

    assert backbone.saved_bytes(Model(), torch.ones(2, 3)) == 4 * (2 * 3 + 2 * 5)
