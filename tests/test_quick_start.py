"""Run, load and recommend, as a user calls them."""

import json
import logging
from pathlib import Path

import pytest
import torch
from conftest import TINY_FLR, TITLES, write_dataset
from helpers_command import python

import recbole_flr
from recbole_flr.command import recommend_main
from recbole_flr.errors import CheckpointError, ConfigError, DataError
from recbole_flr.recommendation import resolve_items

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture
def run(trained):
    return trained("FLR")[0]


def test_recommend_by_titles_and_ids(run):
    loaded = recbole_flr.load_data_and_model(run)
    answer = recbole_flr.recommend(loaded, ["Robot", "i1", "Robot Wars II"], k=5)
    assert answer == recbole_flr.recommend(run, ["i0", "Robot Wars", "i2"], k=5)
    assert len(answer["items"]) == 5
    scores = [item["score"] for item in answer["items"]]
    assert scores == sorted(scores, reverse=True)
    for item in answer["items"]:
        assert item["title"] == TITLES[int(item["item"][1:])]
    assert sum(factor["weight"] for factor in answer["factors"]) == pytest.approx(1, abs=1e-5)
    assert len(answer["factors"]) == 3
    for factor in answer["factors"]:
        assert {entry["item"] for entry in factor["history"]} == {"i0", "i1", "i2"}
        shares = [entry["attention"] for entry in factor["history"]]
        assert shares == sorted(shares, reverse=True) and 0 < sum(shares) < 1
    # the scores are those of full_sort_predict for that history
    model, dataset = loaded[1], loaded[2]
    history = torch.zeros(1, 10, dtype=torch.long)
    history[0, :3] = torch.tensor([dataset.token2id("item_id", f"i{n}") for n in range(3)])
    from recbole.data.interaction import Interaction
    with torch.no_grad():
        direct = model.full_sort_predict(Interaction({model.ITEM_SEQ: history, model.ITEM_SEQ_LEN: torch.tensor([3])}))[0]
    for item in answer["items"]:
        assert item["score"] == pytest.approx(direct[dataset.token2id("item_id", item["item"])].item(), abs=1e-5)


def test_only_the_latest_items_count(run):
    loaded = recbole_flr.load_data_and_model(run)
    longest = loaded[0]["MAX_ITEM_LIST_LENGTH"]
    latest = [f"i{n}" for n in range(longest)]
    assert recbole_flr.recommend(loaded, ["Dragon"] * 4 + latest) == recbole_flr.recommend(loaded, latest)


def test_recommend_refuses_what_it_cannot_do(run):
    loaded = recbole_flr.load_data_and_model(run)
    with pytest.raises(DataError, match="'Robot War'.*nearest titles are 'Robot Wars', 'Robot Wars II', 'Robot'"):
        recbole_flr.recommend(loaded, ["Robot War"])
    with pytest.raises(DataError, match="found none"):
        recbole_flr.recommend(loaded, [])
    for k in (0, 21):
        with pytest.raises(ConfigError, match=f"k: found {k}, expected 1 to 20"):
            recbole_flr.recommend(loaded, ["Robot"], k=k)
    with pytest.raises(CheckpointError, match="expected the folder of a run"):
        recbole_flr.recommend("nowhere", ["Robot"])


def test_shared_titles_resolve_to_the_first(run):
    _, model, dataset, *_ = recbole_flr.load_data_and_model(run)
    first, second = resolve_items(dataset, model.catalog, ["Blue Castle Set", "Blue Castle Set (2)"])
    assert first != second and model.catalog.titles[first] == model.catalog.titles[second]
    with pytest.raises(DataError, match="history: found an empty entry"):
        resolve_items(dataset, model.catalog, ["Blue Castle Set", " "])


def test_recommend_command(run, capsys):
    words = ["--checkpoint", str(run), "--history", "Robot", "i1", "--k", "3"]
    assert recommend_main([*words, "--json"]) == 0
    printed = json.loads(capsys.readouterr().out)
    assert [item["item"] for item in printed["items"]] == [
        item["item"] for item in recbole_flr.recommend(run, ["Robot", "i1"], 3)["items"]
    ]
    assert recommend_main(words) == 0
    text = capsys.readouterr().out
    assert printed["items"][0]["title"] in text and "factor 3: weight" in text
    assert recommend_main(["--checkpoint", "nowhere", "--history", "x"]) == 2
    assert "expected the folder of a run" in capsys.readouterr().err


def test_a_baseline_recommends_too(trained):
    run, _ = trained("SASRec", epochs=1)
    answer = recbole_flr.recommend(run, ["Robot", "Robot Wars"], k=4)
    assert len(answer["items"]) == 4 and answer["factors"] == []


def test_a_text_model_takes_new_items(run, tiny_data, caplog):
    write_dataset(tiny_data, titles=TITLES + ["Robot Wars III"])
    loaded = recbole_flr.load_data_and_model(run, {"data_path": str(tiny_data)})
    assert "not those that the run was trained on" in caplog.text
    answer = recbole_flr.recommend(loaded, ["Robot Wars", "Robot Wars II"], k=20)
    assert len(answer["items"]) == 20 and loaded[1].n_items == len(TITLES) + 2


@pytest.mark.parametrize("titles, users", [(TITLES + ["New"], 40), (TITLES[::-1], 41)])
def test_a_model_of_ids_does_not_take_a_changed_data_set(trained, tiny_data, titles, users):
    folder, _ = trained("SASRec", epochs=1)
    write_dataset(tiny_data, titles=titles, users=users, seed=1)
    changed = {"data_path": str(tiny_data)}
    with pytest.raises(CheckpointError, match="not those that the run was trained on"):
        recbole_flr.load_data_and_model(folder, changed)
    with pytest.raises(CheckpointError, match="not those that the run was trained on"):
        recbole_flr.run_recbole_flr(config_dict={"resume": str(folder), **changed})


def test_resuming_under_another_name_is_refused(run):
    with pytest.raises(ConfigError, match="has model=FLR, found --model=SASRec"):
        recbole_flr.run_recbole_flr("SASRec", config_dict={"resume": str(run)})


def test_all_models_see_the_same_rows(tiny_data, build):
    rows = {}
    for model in ("FLR", "SASRec", "GRU4Rec", "Caser"):
        config, built, loaders = build(model)
        assert config["metrics"] == ["Hit", "NDCG"] and config["topk"] == [5, 10]
        feats = [loader._dataset.inter_feat for loader in loaders]
        rows[model] = [{name: feat[name].tolist() for name in ("user_id", "item_id", "item_id_list", "item_length")}
                       for feat in feats]
    assert rows["FLR"] == rows["SASRec"] == rows["GRU4Rec"] == rows["Caser"]


@pytest.mark.parametrize("model", ["Pop", "BPR"])
def test_other_recbole_models_run_through_the_same_door(model):
    result = recbole_flr.run_recbole_flr(model, "ml-100k", config_dict={
        "epochs": 1, "state": "ERROR", "show_progress": False, "user_inter_num_interval": "[20,24]",
    })
    # a row of a general model is a user with several targets: no title-level metrics
    assert set(result["test_result"]) == {"hit@5", "hit@10", "ndcg@5", "ndcg@10"}


def test_sampled_negatives(tiny_data):
    mode = {**TINY_FLR["eval_args"], "mode": "uni5"}
    options = {**TINY_FLR, "epochs": 1, "warmup_epochs": 0, "data_path": str(tiny_data), "eval_args": mode}
    result = recbole_flr.run_recbole_flr("FLR", "tiny", config_dict=options)
    assert result["test_result"]["hit@10"] == 1.0  # one target and five others: always among ten
    assert 0 < result["test_result"]["ndcg@10"] < 1 and "title_hit@10" not in result["test_result"]


def test_negatives_in_training_are_refused(build):
    with pytest.raises(ConfigError, match="train_neg_sample_args.*expected null"):
        build(train_neg_sample_args={"distribution": "uniform"})


def test_ml_100k_with_one_command(capsys):
    """A data set of RecBole, on a subset of its users. Its titles are a token_seq, and RecBole splits it leave-one-out."""
    words = ["--model=FLR", "--dataset=ml-100k", "--epochs=1", "--warmup_epochs=1", "--compact_hidden_size=16",
             "--grpo_epochs=1", "--compact_vocab_size=500", "--user_inter_num_interval=[20,21]", "--show_progress=False"]
    status, printed = python(ROOT / "run_recbole_flr.py", *words), capsys.readouterr()
    assert status == 0, printed.err
    assert printed.err.count("Result") == 1 and "title_ndcg@10" in printed.err


def test_missing_data_is_explained(tmp_path, capsys):
    from recbole_flr.command import main

    assert main(["--model=FLR", "--dataset=toys", f"--data_path={tmp_path}"]) == 2
    text = capsys.readouterr().err
    assert str(tmp_path / "toys") in text and "Traceback" not in text
    for way in ("dataset_scripts.convert", "--download=true", "toys_demo"):
        assert way in text


def test_public_names():
    logging.getLogger().handlers.clear()
    assert set(recbole_flr.__all__) == {"Config", "load_data_and_model", "recommend", "recommend_many",
                                        "run_recbole_flr", "run_search"}
    for name in recbole_flr.__all__:
        assert callable(getattr(recbole_flr, name))
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        recbole_flr.nothing


@pytest.mark.parametrize("options, message", [
    ({"valid_metric": "title_ndcg@10"}, "this run reports no title-level metrics"),
])
def test_title_metrics_that_will_not_come_are_refused_at_the_start(options, message):
    with pytest.raises(ConfigError, match=message):
        recbole_flr.run_recbole_flr("BPR", "ml-100k", config_dict={"epochs": 1, "state": "ERROR", **options})


def test_recommend_needs_a_sequential_model():
    options = {"epochs": 1, "state": "ERROR", "show_progress": False, "user_inter_num_interval": "[20,24]"}
    recbole_flr.run_recbole_flr("BPR", "ml-100k", config_dict=options)
    with pytest.raises(ConfigError, match="found a BPR, expected a sequential model"):
        recbole_flr.recommend(next(Path("saved").iterdir()), ["1"])


def test_resume_takes_its_options_from_the_run(run, tmp_path):
    (tmp_path / "more.yaml").write_text("epochs: 9")
    with pytest.raises(ConfigError, match="resume: found config_files too"):
        recbole_flr.run_recbole_flr(config_file_list=["more.yaml"], config_dict={"resume": str(run)})


def test_warm_up_reads_titles_whatever_the_prompt(build):
    _, model, loaders = build(prompt="paper")
    from recbole_flr.data.packing import PackedLoader

    batch = next(iter(PackedLoader(loaders[0]._dataset, model.sequence_collator(), 64, 4, 10, 1)))
    text = model.backbone.tokenizer.decode(batch.ids[0][batch.segment[0] >= 0])
    assert "Robot" in text and "Instruction" not in text
