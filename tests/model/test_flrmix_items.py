"""FLRMix and its data: cold and added items, other rows, titles or encoders than those of the training, little data."""

import shutil
from pathlib import Path

import pytest
import torch
from conftest import TINY, TINY_OPTIONS, write_dataset
from helpers_counted import assert_runs_on_little_data
from helpers_data import batch_of_histories, ranking_parts
from recbole.data.interaction import Interaction
from safetensors.torch import load_file, save_file

import recbole_flr
from recbole_flr.errors import CheckpointError
from recbole_flr.model.flrmix import FLRMix

ALONE = {"memory": None, "fit_weights": False, "repeat_weight": 0.0}  # the mixture ranks without anything else


def test_an_item_of_a_history_has_an_id_vector_even_if_it_is_never_a_target(build):
    config, model, loaders = build("FLRMix")
    dataset = loaders[0]._dataset
    dataset.inter_feat[model.ITEM_ID][:], dataset.inter_feat[model.ITEM_SEQ][:] = 1, 2
    assert FLRMix(config, dataset).vectors.known.squeeze(1).nonzero().flatten().tolist() == [1, 2]


def test_a_cold_item_is_ranked_by_its_text(tmp_path, monkeypatch):
    """The last item has no row at all, and the title of item i1 with one more word."""
    data = tmp_path / "data"
    folder = write_dataset(data, titles=["Robot Wars", "Blue Castle", "Tiny Train", "Green Farm", "Paint Box", "Old Dragon"])
    with open(folder / "tiny.item", "a", encoding="utf-8") as file:
        file.write("cold\tBlue Castle New\n")
    options = {**TINY, "data_path": str(data), "epochs": 40, "learning_rate": 0.002, "hidden_size": 16, "topk": [3], **ALONE,
               "valid_metric": "NDCG@3", "use_ids": False, "dropout": 0.0, "stopping_step": 40}
    recbole_flr.run_recbole_flr("FLRMix", "tiny", config_dict=options)
    run, = Path("saved").iterdir()
    _, model, dataset, *_ = recbole_flr.load_data_and_model(run)
    ids = dataset.field2token_id["item_id"]
    assert not model.vectors.known[ids["cold"]] and model.vectors.known[ids["i1"]]
    answer = recbole_flr.recommend(run, ["Old Dragon", "Robot Wars"], k=2)  # i1 comes after i0
    assert {item["item"] for item in answer["items"]} == {"i1", "cold"}


def test_an_item_that_was_added_after_the_training(trained, session_data, tmp_path):
    """Its text is that of an item which the run knows. So it is ranked beside that item; all others keep their scores."""
    folder, _ = trained("FLRMix", **ALONE, use_ids=False, item_text="words")
    before = recbole_flr.recommend(folder, ["Robot"], k=20)["items"]
    data = tmp_path / "more"
    shutil.copytree(session_data, data)
    with open(data / "tiny" / "tiny.item", "a", encoding="utf-8") as file:
        file.write("added\tRobot Wars\n")
    after = recbole_flr.recommend(folder, ["Robot"], k=21, config_dict={"data_path": str(data)})["items"]
    assert {item["item"] for item in after} - {item["item"] for item in before} == {"added"}
    names = [item["item"] for item in after]
    assert abs(names.index("added") - names.index("i1")) == 1
    assert [item["title"] for item in after if item["item"] != "added"] == [item["title"] for item in before]


def test_an_added_item_has_no_id_vector_and_is_known_by_its_text(trained, session_data, tmp_path):
    folder, _ = trained("FLRMix")
    data = tmp_path / "more"
    shutil.copytree(session_data, data)
    with open(data / "tiny" / "tiny.item", "a", encoding="utf-8") as file:
        file.write("added\tRobot Wars\n")
    _, old, *_ = recbole_flr.load_data_and_model(folder)
    _, model, dataset, *_ = recbole_flr.load_data_and_model(folder, {"data_path": str(data)})
    number = dataset.field2token_id["item_id"]["added"]
    assert number == old.n_items and not model.vectors.known[number]
    assert torch.equal(model.vectors.ids.weight[:number], old.vectors.ids.weight)
    torch.testing.assert_close(model.vectors()[:number], old.vectors())  # nothing else has changed
    torch.testing.assert_close(model.vectors()[number], model.vectors.project(model.vectors.texts[number]))
    assert model.vectors.texts[number].any()


def changed_data(session_data, folder, name, change):
    """A copy of the data set in which one file is changed: a function from its text to the new text. Gives the options for it."""
    shutil.copytree(session_data, folder)
    file = folder / "tiny" / name
    file.write_text(change(file.read_text(encoding="utf-8")), encoding="utf-8")
    return {"data_path": str(folder)}


def test_other_training_rows_are_refused(trained, session_data, tmp_path):
    def swapped(text):
        head, first, second, *others = text.splitlines()
        return "\n".join([head, second, first, *others]) + "\n"

    folder, _ = trained("FLRMix")
    options = changed_data(session_data, tmp_path / "other", "tiny.train.inter", swapped)
    with pytest.raises(CheckpointError, match="training rows|items of the data set"):
        recbole_flr.load_data_and_model(folder, options)


def test_other_titles_are_refused(trained, session_data, tmp_path):
    folder, _ = trained("FLRMix")
    options = changed_data(session_data, tmp_path / "other", "tiny.item", lambda text: text.replace("Red Castle Set", "Red House"))
    with pytest.raises(CheckpointError, match="titles of the data set, or item_text, are not those"):
        recbole_flr.load_data_and_model(folder, options)
    with pytest.raises(CheckpointError):
        recbole_flr.load_data_and_model(folder, {"item_text": "none"})


@pytest.mark.parametrize("model, options", [("FLRMix", {}), ("AlphaRec", TINY_OPTIONS["AlphaRec"])])
def test_another_encoder_of_the_same_width_is_refused(trained, saved_models, tmp_path, model, options):
    folder, _ = trained(model, **{**options, "item_text": str(saved_models["qwen2"]), "epochs": 1})
    other = tmp_path / "other"
    shutil.copytree(saved_models["qwen2"], other)
    weights = load_file(other / "model.safetensors")
    save_file({name: value.flip(0).contiguous() for name, value in weights.items()}, other / "model.safetensors", {"format": "pt"})
    recbole_flr.load_data_and_model(folder)
    with pytest.raises(CheckpointError, match="item_text: the text vectors are not those that the run was trained on"):
        recbole_flr.load_data_and_model(folder, {"item_text": str(other)})


def test_another_seed_leaves_the_vectors_as_they_are(trained):
    folder, _ = trained("FLRMix")
    _, one, *_ = recbole_flr.load_data_and_model(folder)
    _, other, *_ = recbole_flr.load_data_and_model(folder, {"seed": 7})
    assert torch.equal(one.vectors(), other.vectors())


@pytest.mark.parametrize("items, users, length", [(2, 1, 1), (3, 5, 1), (4, 6, 3)])
def test_little_data(tmp_path, items, users, length):
    options = {"hidden_size": 8, "epochs": 30, "learning_rate": 0.03, "dropout": 0.0, "stopping_step": 30, "eval_step": 30}
    assert_runs_on_little_data("FLRMix", tmp_path, items, users, length, options, parameters=None)


def test_without_titles(tmp_path):
    folder = write_dataset(tmp_path / "data")
    (folder / "tiny.item").unlink()
    options = {**TINY, "data_path": str(tmp_path / "data"), "epochs": 1, "hidden_size": 8, "title_metrics": False}
    result = recbole_flr.run_recbole_flr("FLRMix", "tiny", config_dict=options)
    assert "ndcg@10" in result["test_result"]
    run, = Path("saved").iterdir()
    answer = recbole_flr.recommend(run, ["i1"], k=3)
    assert len(answer["items"]) == 3
    with pytest.raises(Exception, match="title"):
        recbole_flr.run_recbole_flr("FLRMix", "tiny", config_dict={**options, "use_ids": False})


def test_item_number_0_is_never_recommended(build):
    _, model, loaders = build("FLRMix")
    model.eval()
    with torch.no_grad():
        scores = model.full_sort_predict(next(iter(loaders[2]))[0])
    assert (scores[:, 0] == -torch.inf).all()


def test_a_history_of_an_unknown_item(tmp_path):
    """The tables say the same about all items; the text still says something."""
    titles = ["Robot Wars", "Blue Castle", "Tiny Train", "Green Farm"]
    folder = write_dataset(tmp_path / "data", titles=titles)
    with open(folder / "tiny.item", "a", encoding="utf-8") as file:
        file.write("new\tBlue Robot\n")
    options = {**TINY, "data_path": str(tmp_path / "data"), "epochs": 1, "hidden_size": 8, "topk": [3], "valid_metric": "NDCG@3"}
    recbole_flr.run_recbole_flr("FLRMix", "tiny", config_dict=options)
    run, = Path("saved").iterdir()
    _, model, dataset, *_ = recbole_flr.load_data_and_model(run)
    number = dataset.field2token_id["item_id"]["new"]
    batch = Interaction({model.ITEM_SEQ: torch.zeros(1, 10, dtype=torch.long), model.ITEM_SEQ_LEN: torch.tensor([1])})
    batch[model.ITEM_SEQ][0, 0] = number
    with torch.no_grad():
        parts = ranking_parts(model, batch)
    assert not model.vectors.known[number]
    assert all(len(parts[name].unique()) == 1 for name in ("transitions", "neighbors"))
    assert len(parts["mixture"][0, 1:].unique()) > 1 and parts["mixture"][:, 1:].isfinite().all()


@torch.no_grad()
def test_an_explanation_gives_each_place_of_the_history_its_own_attention(build):
    """Places behind a history have none; the rest is the thought's own place."""
    _, model, _ = build("FLRMix")
    torch.manual_seed(0)
    for parameter in model.double().eval().parameters():
        torch.nn.init.normal_(parameter, std=0.5)
    histories = [[3, 5, 1, 8], [2], [7, 7, 4]]
    batch = batch_of_histories(model, histories)
    alpha, shares = model.explain(batch)
    state = model.think(model.read_context(batch)).state
    assert shares.shape == (3, 3, model.max_seq_length + 1) and torch.equal(alpha, state.alpha)
    for row, history in enumerate(histories):
        for factor in range(3):
            attention = state.attention[row, factor].tolist()
            expected = [attention[place] if place < len(history) else 0.0 for place in range(model.max_seq_length)]
            assert shares[row, factor].tolist() == [*expected, attention[-1]]
            assert len(set(attention[:len(history)])) == len(history) and sum(attention) == pytest.approx(1)
