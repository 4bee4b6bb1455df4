"""Every model trains, ranks and recommends on a device that is not the CPU. See `helpers_device.py`."""

import numpy as np
import pytest
import torch
from conftest import TINY, TINY_LM, TINY_OPTIONS
from helpers_device import FAR, FarTensor, TwoDevices, runs_on_far
from helpers_training import only_run

import recbole_flr
from recbole_flr.registry import MODELS

READS_TITLES = {"backbone": "compact", **{name: value for name, value in TINY_LM.items() if name.startswith("compact")}}
OPTIONS = {  # of some cases; the first word is the model
    "FLR": {"stages": "sft,grpo"}, "FLR shared": {"share_prefixes": True}, "LatentR3": {"stages": "sft,grpo"},
    "LARES": {"stages": "spt,grpo"}, "ReaRec prl": {"learning": "prl"}, "FLRMix": {"stages": "sft,grpo"},
    "FLRMix words": {"item_text": "words"}, "FLRMix both": {**READS_TITLES, "rank": "both"},
    "FLRMix write": {**READS_TITLES, "rank": "write"},
}
FEW_ROWS = {"train_rows": 40, "valid_rows": 8, "test_rows": 8}  # each operator takes longer here
EPOCHS = ("epochs", "warmup_epochs", "grpo_epochs")
NEED_PRETRAINED = ("Base", "CoT")


@pytest.mark.parametrize("case", sorted({*MODELS, "SASRec", *OPTIONS}))
def test_a_model_works_on_another_device(case, session_data, saved_models, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    name = case.split()[0]
    options = TINY_OPTIONS.get(name, {**TINY, "epochs": 1})
    options = {**options, "data_path": str(session_data), "topk": [1, 5], "valid_metric": "NDCG@5", **FEW_ROWS,
               **dict.fromkeys(set(EPOCHS) & set(options), 1), **OPTIONS.get(case, {})}
    if name in NEED_PRETRAINED:
        options["backbone"] = str(saved_models["qwen2"])
    with runs_on_far():
        result = recbole_flr.run_recbole_flr(name, "tiny", config_dict=options)
        run = recbole_flr.load_data_and_model(only_run())
        assert {parameter.device for parameter in run[1].parameters()} <= {FAR}
        answer = recbole_flr.recommend(run, ["i1", "i2"], k=3)
    assert 0 <= result["test_result"]["ndcg@5"] <= 1 and len(answer["items"]) == 3


def test_two_devices_do_not_mix():
    near = torch.arange(6.0).view(2, 3)
    with TwoDevices():
        far = near.to(FAR)
        assert isinstance(far, FarTensor) and far.device == FAR == torch.zeros(2, device=FAR).device
        for mixed in (lambda: far + near, lambda: torch.cat([near, far]), lambda: near[torch.tensor([0]).to(FAR)],
                      lambda: torch.rand(2, device=FAR, generator=torch.Generator())):
            with pytest.raises(RuntimeError, match="two devices|a generator on cpu"):
                mixed()
        with pytest.raises((RuntimeError, TypeError)):
            np.asarray(far)
        assert ((far + 1) * torch.tensor(2.0)).cpu().tolist() == ((near + 1) * 2).tolist()
        assert far[torch.tensor([1])].tolist() == [[3, 4, 5]] and far[far > 3].tolist() == [4, 5] and far.sum().item() == 15
        assert far.add_(1) is far and near[0, 0] == 0


def test_gradients_reach_another_device():
    with TwoDevices():
        weight = torch.nn.Parameter(torch.tensor([1.0, 2.0]).to(FAR))
        (weight * torch.tensor([3.0, 4.0]).to(FAR)).sum().backward()
        assert weight.grad.device == FAR and weight.grad.tolist() == [3, 4]
