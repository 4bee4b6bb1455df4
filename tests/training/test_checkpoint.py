"""Checkpoint files are written completely or not at all, and hold no code (no pickle)."""

import json
import random

import numpy as np
import pytest
import scipy.sparse
import torch

from recbole_flr.errors import CheckpointError, DiskError
from recbole_flr.training import checkpoint


def test_round_trip_with_tied_weights(tmp_path):
    tied = torch.randn(3, 2)
    tensors = {"a": tied, "b": tied, "c": torch.arange(4), "view": torch.randn(4, 4).t(), "empty": torch.zeros(0),
               "half": torch.randn(2).bfloat16()}
    checkpoint.write(tmp_path / "x.safetensors", tensors, {"epoch": 3, "name": "Ü"})
    back, meta = checkpoint.read(tmp_path / "x.safetensors")
    assert meta == {"epoch": 3, "name": "Ü"} and back.keys() == tensors.keys()
    for name in tensors:
        assert torch.equal(back[name], tensors[name])
    assert [p.name for p in tmp_path.iterdir()] == ["x.safetensors"]
    assert (tmp_path / "x.safetensors").read_bytes()[8:9] == b"{"  # a safetensors header, no pickle


def test_a_failed_write_keeps_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "x.safetensors"
    checkpoint.write(path, {"a": torch.ones(2)}, {})

    def full_disk(tensors, name, metadata):
        open(name, "wb").write(b"half")
        raise OSError("no space left on device")

    monkeypatch.setattr(checkpoint, "save_file", full_disk)
    with pytest.raises(DiskError, match="no space left on device; it needs 35 bytes, .* are free there"):
        checkpoint.write(path, {"a": torch.zeros(2)}, {})
    assert [each.name for each in tmp_path.iterdir()] == ["x.safetensors"]
    assert torch.equal(checkpoint.read(path)[0]["a"], torch.ones(2))


@pytest.mark.parametrize("content", [b"", b"garbage" * 10, b"\x80\x04\x95pickle"])
def test_another_file_is_one_clear_error(tmp_path, content):
    path = tmp_path / "x.safetensors"
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match="no checkpoint of recbole_flr"):
        checkpoint.read(path)


def test_a_truncated_file_and_missing_files_are_clear_errors(tmp_path):
    path = tmp_path / "x.safetensors"
    checkpoint.write(path, {"a": torch.randn(100)}, {})
    path.write_bytes(path.read_bytes()[:200])
    with pytest.raises(CheckpointError, match="cut short"):
        checkpoint.read(path)
    with pytest.raises(CheckpointError, match=r"although the run saved it: it was removed \(there are x.safetensors\)"):
        checkpoint.read(tmp_path / "none.safetensors")
    path.unlink()
    with pytest.raises(CheckpointError, match="before it first saved; start it anew"):
        checkpoint.read(tmp_path / "none.safetensors")
    with pytest.raises(CheckpointError, match="found no checkpoint"):
        checkpoint.read(tmp_path / "nowhere" / "none.safetensors")
    with pytest.raises(CheckpointError, match="expected the folder of a run"):
        checkpoint.read_config(tmp_path)
    (tmp_path / checkpoint.CONFIG).write_text("{")
    with pytest.raises(CheckpointError, match="not the JSON"):
        checkpoint.read_config(tmp_path)


@pytest.mark.parametrize("optimizer_class", [torch.optim.Adam, torch.optim.AdamW, torch.optim.SGD, torch.optim.Adagrad,
                                             torch.optim.RMSprop])
def test_a_restored_optimizer_makes_the_same_steps(tmp_path, optimizer_class):
    def start():
        torch.manual_seed(0)
        model = torch.nn.Linear(3, 2)
        return model, optimizer_class(model.parameters(), lr=0.01)

    def steps(model, optimizer, count, seed):
        torch.manual_seed(seed)
        for _ in range(count):
            optimizer.zero_grad()
            model(torch.randn(4, 3)).square().mean().backward()
            optimizer.step()

    whole, optimizer = start()
    steps(whole, optimizer, 3, 1)
    tensors, meta = checkpoint.pack_optimizer(optimizer)
    checkpoint.write(tmp_path / "o.safetensors", {**tensors, **whole.state_dict()}, meta)
    steps(whole, optimizer, 3, 2)

    tensors, meta = checkpoint.read(tmp_path / "o.safetensors")
    again, optimizer = start()
    again.load_state_dict({name: tensors[name] for name in again.state_dict()})
    checkpoint.unpack_optimizer(optimizer, tensors, meta)
    steps(again, optimizer, 3, 2)
    for one, two in zip(whole.parameters(), again.parameters()):
        assert torch.equal(one, two)


def test_optimizer_of_another_model_is_refused():
    tensors, meta = checkpoint.pack_optimizer(torch.optim.Adam(torch.nn.Linear(3, 2).parameters()))
    with pytest.raises(CheckpointError, match="does not fit"):
        checkpoint.unpack_optimizer(torch.optim.Adam([torch.nn.Parameter(torch.ones(1))]), tensors, meta)


def test_restored_random_states_draw_the_same_numbers(tmp_path):
    generator = torch.Generator().manual_seed(4)

    def draw():
        return random.random(), np.random.rand(), torch.rand(1).item(), torch.rand(1, generator=generator).item()

    draw()
    np.random.randn()  # leaves a cached Gaussian behind
    tensors, meta = checkpoint.pack_random(generator)
    checkpoint.write(tmp_path / "r.safetensors", tensors, meta)
    first, gauss = draw(), np.random.randn()
    tensors, meta = checkpoint.read(tmp_path / "r.safetensors")
    checkpoint.unpack_random(tensors, meta, generator)
    assert (draw(), np.random.randn()) == (first, gauss)


def test_other_parameters_of_recbole_models(tmp_path):
    matrix = scipy.sparse.random(4, 5, density=0.3, format="csr", random_state=0)
    other = {"t": torch.ones(2), "n": np.arange(3), "m": matrix, "x": [1, "a", None], "f": 2.5}
    tensors, meta = checkpoint.pack_other(other)
    checkpoint.write(tmp_path / "o.safetensors", tensors, meta)
    back = checkpoint.unpack_other(*checkpoint.read(tmp_path / "o.safetensors"))
    assert torch.equal(back["t"], other["t"]) and (back["n"] == other["n"]).all()
    assert (back["m"] != matrix).nnz == 0 and back["x"] == other["x"] and back["f"] == 2.5
    with pytest.raises(CheckpointError, match="cannot be saved without a pickle"):
        checkpoint.pack_other({"f": lambda: 1})


def test_a_model_that_does_not_fit_is_refused(build):
    _, model, _ = build()
    tensors, meta = checkpoint.pack_model(model)
    json.dumps(meta)
    _, wider, _ = build(num_factors=2)
    with pytest.raises(CheckpointError, match="does not fit the model: it has .* of the shape .*, and this model of "):
        checkpoint.unpack_model(wider, tensors, meta)
    del tensors["model.reasoner.initial"]
    with pytest.raises(CheckpointError, match="it has no reasoner.initial, which this model has"):
        checkpoint.unpack_model(model, tensors, meta)


@pytest.mark.parametrize("trainable", ["full", "lora", "frozen"])
def test_frozen_weights_of_a_pretrained_backbone_are_not_written(build, saved_models, trainable):
    _, model, _ = build(backbone=str(saved_models["qwen2"]), trainable=trainable)
    tensors, meta = checkpoint.pack_model(model)
    trained = {f"model.{name}" for name, p in model.named_parameters() if p.requires_grad}
    assert trained <= set(tensors)
    if trainable != "full":
        assert {name for name in tensors if name.startswith("model.backbone.")} == {n for n in trained if ".lora_" in n}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            parameter.data.add_(1.0)
    checkpoint.unpack_model(model, tensors, meta)
    for name, value in model.state_dict().items():
        if f"model.{name}" in tensors:
            assert torch.equal(value, tensors[f"model.{name}"])
