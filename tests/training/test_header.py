"""run.json and the headers of checkpoints with another content: one clear error, never a TypeError or a KeyError."""

import json

import pytest

import recbole_flr
from recbole_flr.errors import CheckpointError, FLRError
from recbole_flr.training import checkpoint


def changed(folder, change, name=checkpoint.LAST):
    """Rewrite a checkpoint's header: change(meta) changes or returns it."""
    tensors, meta = checkpoint.read(folder / name)
    found = change(meta)
    checkpoint.write(folder / name, tensors, meta if found is None else found)


@pytest.mark.parametrize(
    "content, said",
    [
        ("[1,2]", "its content: input should be a valid dictionary"),
        ("null", "its content: input should be"),
        ("{}", "model: field required"),
        ('{"model": "SASRec"}', "dataset: field required"),
        ('{"model": 3, "dataset": "tiny"}', "model: input should be a valid string"),
        ("[" * 100_000, "is not the JSON that a run writes"),
        ('{"model": "SASRec", "dataset": ["tiny"]}', "dataset: input should be a valid string"),
    ],
)
def test_another_run_json(trained, content, said):
    folder, _ = trained("SASRec", epochs=1)
    (folder / "run.json").write_text(content)
    for use in (
        lambda: recbole_flr.run_recbole_flr(config_dict={"resume": str(folder)}),
        lambda: recbole_flr.load_data_and_model(folder),
    ):
        with pytest.raises(CheckpointError) as caught:
            use()
        assert said in str(caught.value) and "run.json" in str(caught.value)


@pytest.mark.parametrize(
    "change, said",
    [
        (lambda meta: [1, 2], "meta: input should be a valid dictionary"),
        (lambda meta: {}, "data: field required"),
        (lambda meta: meta.pop("next_epoch") and None, "next_epoch: field required"),
        (lambda meta: meta.update(next_epoch="1"), "next_epoch: input should be a valid integer"),
        (lambda meta: meta.update(next_epoch=-1), "next_epoch: input should be greater than or equal to 0"),
        (lambda meta: meta.update(optimizer=[]), "optimizer: input should be a valid dictionary"),
        (lambda meta: meta.update(optimizer={}), "is damaged, or is no checkpoint of this run"),
        (lambda meta: meta["optimizer"].update(param_groups=3), "is damaged, or is no checkpoint of this run"),
        (lambda meta: meta.update(random={}), "is damaged, or is no checkpoint of this run"),
        (lambda meta: meta.update(record={}), "record.seconds: field required"),
    ],
)
def test_another_header_of_the_state(trained, change, said):
    folder, _ = trained("SASRec", epochs=2)
    changed(folder, change)
    with pytest.raises(CheckpointError) as caught:
        recbole_flr.run_recbole_flr(config_dict={"resume": str(folder), "epochs": 3})
    assert said in str(caught.value) and "last.safetensors" in str(caught.value)


def test_a_finished_run_without_the_weights_of_a_stage(trained):
    folder, _ = trained("FLR", stages="sft,grpo")
    (folder / "sft.safetensors").unlink()
    with pytest.raises(FLRError, match=r"found no .*sft.safetensors, although the run saved it: it was removed \(there are best"):
        recbole_flr.run_recbole_flr(config_dict={"resume": str(folder)})


def test_a_state_of_stages_without_their_results(trained):
    folder, _ = trained("FLR", stages="sft,grpo")
    changed(folder, lambda meta: meta.pop("results") and None)
    with pytest.raises(CheckpointError, match=r"last.safetensors is damaged, or is no checkpoint of this run \(KeyError: 'results'"):
        recbole_flr.run_recbole_flr(config_dict={"resume": str(folder)})


def test_what_a_run_writes_is_accepted(trained):
    folder, result = trained("SASRec", epochs=2)
    changed(folder, lambda meta: None)
    assert recbole_flr.run_recbole_flr(config_dict={"resume": str(folder)}) == result
    assert json.loads((folder / "run.json").read_text())["model"] == "SASRec"
