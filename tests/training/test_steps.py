"""A batch that is read in parts gives the gradients of the whole batch. Several processes: tests/test_distributed.py."""

import json

import pytest
import torch
from helpers_distributed import IN_PARTS, run_case
from helpers_training import only_run

from recbole_flr.command import main
from recbole_flr.training import checkpoint
from recbole_flr.training.steps import batch_shares


@pytest.mark.parametrize("name, options", [
    ("FLR", {"gate_balance": 0}), ("FLRMix, titles", {"gate_balance": 0}), ("SASRec", {}), ("BPR", {}),
])
def test_parts_of_a_batch_are_the_whole(session_data, tmp_path, name, options):
    folders = [tmp_path / "whole", tmp_path / "parts"]
    results = []
    for folder, more in zip(folders, ({}, IN_PARTS)):
        results.append(run_case(name, folder, {"data_path": str(session_data), "state": "WARNING", **options, **more}))
    assert results[0] == results[1]
    for whole, parts in zip(*(torch.load(folder / "gradients.pt", weights_only=True) for folder in folders)):
        assert whole.abs().max() > 1e-4 and torch.allclose(whole, parts, rtol=1e-9, atol=1e-11)
    whole, parts = (checkpoint.read(only_run(folder / "saved") / "last.safetensors") for folder in folders)
    for key in whole[0]:
        if key.startswith("model."):
            assert torch.allclose(whole[0][key].double(), parts[0][key].double(), rtol=1e-8, atol=1e-10), key
    assert json.dumps(whole[1]["best_valid_result"]) == json.dumps(parts[1]["best_valid_result"])


def test_shares_add_up():
    """The sum over the parts of share * mean is the mean over the batch, for rows and for tokens."""
    torch.manual_seed(3)
    for _ in range(20):
        rows = int(torch.randint(1, 12, ()))
        tokens = torch.randint(1, 5, (rows,))
        values = [torch.randn(int(count), dtype=torch.float64) for count in tokens]

        def counts(batch):
            return {"rows": len(batch), "tokens": tokens[batch].sum()}

        pairs = batch_shares(torch.arange(rows), 4, counts)
        assert len(pairs) == min(4, rows) and torch.cat([part for part, _ in pairs]).tolist() == list(range(rows))
        by_row = sum(shares["rows"] * torch.stack([values[row].sum() for row in part]).mean() for part, shares in pairs)
        by_token = sum(shares["tokens"] * torch.cat([values[row] for row in part]).mean() for part, shares in pairs)
        assert torch.isclose(by_row, torch.stack([each.sum() for each in values]).mean())
        assert torch.isclose(by_token, torch.cat(values).mean())


@pytest.mark.parametrize("words, said", [
    (["--accumulate_steps=3", "--enable_scaler=True"], "accumulate_steps: found 3 with enable_scaler, which scales the loss of a whole batch"),
    (["--accumulate_steps=0"], "accumulate_steps: found 0, expected int >= 1"),
])
def test_what_cannot_be_taken_in_parts(session_data, capsys, words, said):
    assert main(["--model=SASRec", *words, "--dataset=tiny", f"--data_path={session_data}"]) == 2
    assert said in capsys.readouterr().err
