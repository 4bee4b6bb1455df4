"""The export of a trained model: vectors, ids, titles and the language model, used as other programs would use them."""

import json
import re
from pathlib import Path

import numpy as np
import pytest
from conftest import TINY_LATENT
import torch

from recbole_flr.command import export_main
from recbole_flr.errors import CheckpointError, ConfigError
from recbole_flr.export import export, query_vectors
from recbole_flr.quick_start import load_data_and_model
from recbole_flr.recommendation import history_batch, recommend

DOC = Path(__file__).resolve().parents[1] / "docs" / "serving.md"
QUIET = {"state": "ERROR", "show_progress": False}
WITHOUT_MEMORY = {"memory": None, "fit_weights": False, "repeat_weight": 0.0}
HISTORIES = [["i3", "i4", "i5"], ["i19"], ["i0", "i7", "i7", "i2"], ["i11", "i12"]]


def read(folder):
    """vectors, ids, titles of an export."""
    texts = (json.loads((Path(folder) / name).read_text(encoding="utf-8")) for name in ("item_ids.json", "item_titles.json"))
    return np.load(Path(folder) / "item_vectors.npy", allow_pickle=False), *texts


@pytest.mark.parametrize("options", [{}, {"mixture": False}, {"num_factors": 1, "item_text": "none"}])
def test_the_vectors_give_the_log_probabilities_of_flrmix(trained, options):
    """A loop over factors and items, in numpy."""
    folder, _ = trained("FLRMix", **WITHOUT_MEMORY, **options)
    export(folder, "exported", QUIET)
    vectors, ids, titles = read("exported")
    loaded = load_data_and_model(folder, QUIET)
    for history in HISTORIES:
        queries, log_weights = query_vectors(loaded, history)
        probability = np.zeros(len(ids))
        for query, weight in zip(queries.astype(np.float64), np.exp(log_weights)):
            products = np.array([query @ vector for vector in vectors])
            probability += weight * np.exp(products) / np.exp(products).sum()
        expected = {each["item"]: (each["title"], each["score"]) for each in recommend(loaded, history, 20)["items"]}
        assert {item: title for item, title in zip(ids, titles)} == {item: title for item, (title, _) in expected.items()}
        assert np.log(probability) == pytest.approx([expected[item][1] for item in ids], abs=1e-4)


@pytest.fixture
def example(capsys):
    """example(**names) -> the item ids that the docs' example of FAISS prints, and how many candidates of each factor it took."""
    pytest.importorskip("faiss")
    code = re.search(r"```python\n(import faiss.*?)```", DOC.read_text(encoding="utf-8"), re.DOTALL)[1]
    code, replaced = re.subn(r"^run, history = .*$", "", code, flags=re.MULTILINE)
    assert replaced == 1, "the example names the run and the history in one line, which the tests replace"

    def run(**names):
        exec(compile(code, "serving.md", "exec"), names)
        return json.loads(capsys.readouterr().out.replace("'", '"')), names["count"]

    return run


def test_the_example_of_the_docs_finds_the_items_of_flrmix(trained, example):
    folder, _ = trained("FLRMix", **WITHOUT_MEMORY)
    export(folder, "exported", QUIET)
    loaded = load_data_and_model(folder, QUIET)
    for history in HISTORIES:
        assert example(run=folder, history=history)[0] == [each["item"] for each in recommend(loaded, history, 10)["items"]]


def test_the_example_of_the_docs_is_exact_in_a_large_catalogue(example, monkeypatch):
    """Random mixtures, compared with the probabilities of all items. More candidates are taken where they are needed."""
    rng, counts = np.random.default_rng(0), []
    Path("exported").mkdir()
    monkeypatch.setattr("recbole_flr.load_data_and_model", lambda run: None)
    for draw in range(40):
        vectors = rng.normal(size=(3000, 8)).astype(np.float32)
        queries = (rng.normal(size=(4, 8)) * rng.uniform(0.2, 2)).astype(np.float32)
        log_weights = np.log(rng.dirichlet(np.ones(4))).astype(np.float32)
        np.save("exported/item_vectors.npy", vectors)
        Path("exported/item_ids.json").write_text(json.dumps([f"i{item}" for item in range(3000)]))
        monkeypatch.setattr("recbole_flr.export.query_vectors", lambda loaded, history: (queries, log_weights))
        products = np.exp(vectors.astype(np.float64) @ queries.astype(np.float64).T)
        probability = (products / products.sum(0)) @ np.exp(log_weights)
        found, count = example(run=None, history=None)
        assert found == [f"i{item}" for item in np.argsort(-probability)[:10]]
        counts.append(count)
    assert len(set(counts)) > 2 and min(counts) == 20 and np.median(counts) < 1000


def test_the_language_model_is_a_folder_of_hugging_face(trained):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    folder, _ = trained("FLR")
    written = export(folder, "exported", QUIET)
    assert "item_vectors.npy" not in written and sorted(path.name for path in Path("exported").iterdir()) == sorted(written)
    model, tokenizer = (kind.from_pretrained("exported/backbone") for kind in (AutoModelForCausalLM, AutoTokenizer))
    own = load_data_and_model(folder, QUIET)[1].backbone
    ids = tokenizer("Robot Wars 積み木", return_tensors="pt").input_ids
    assert ids[0].tolist() == own.encode(["Robot Wars 積み木"])[0]
    with torch.no_grad():
        assert torch.allclose(model(ids).logits, own.lm(ids).logits, atol=1e-5)


def test_lora_is_merged_into_the_weights(build, saved_models):
    from transformers import AutoModelForCausalLM

    _, model, _ = build("FLR", backbone=str(saved_models["llama"]), trainable="lora")
    torch.manual_seed(3)
    for name, parameter in model.backbone.named_parameters():
        if "lora_B" in name:  # 0 before the training
            torch.nn.init.normal_(parameter, std=0.3)
    model.eval().backbone.export("backbone")
    ids = torch.arange(4, 12).unsqueeze(0)
    with torch.no_grad():
        expected = model.backbone.lm(ids).logits
        before = AutoModelForCausalLM.from_pretrained(saved_models["llama"])(ids).logits
        found = AutoModelForCausalLM.from_pretrained("backbone")(ids).logits
    assert torch.allclose(found[..., :before.shape[-1]], expected[..., :before.shape[-1]], atol=1e-4)
    assert (expected[..., :before.shape[-1]] - before).abs().max() > 0.05


@pytest.mark.parametrize("model", ["SASRec", "BERT4Rec"])
def test_vectors_of_recboles_models(trained, model):
    """SASRec's score is the product of the user's state and the item's vector. BERT4Rec has one vector more, for its mask."""
    folder, _ = trained(model, epochs=1)
    written = export(folder, "exported", QUIET)
    vectors, ids, _ = read("exported")
    assert vectors.shape == (20, 64) and len(ids) == 20 and "backbone" not in written
    loaded = load_data_and_model(folder, QUIET)
    config, model, dataset = loaded[:3]
    if config["model"] == "SASRec":
        batch = history_batch(config, model, [[3, 4, 5]])
        with torch.no_grad():
            state = model(batch[model.ITEM_SEQ], batch[model.ITEM_SEQ_LEN])[0].numpy()
            scores = model.full_sort_predict(batch)[0]
        assert list(dataset.id2token("item_id", range(1, 21))) == ids
        assert vectors @ state == pytest.approx(scores[1:].tolist(), abs=1e-4)
    with pytest.raises(ConfigError, match="expected a model that ranks by products"):
        query_vectors(loaded, ["i1"])


def test_the_command_replaces_an_earlier_export(trained, capsys):
    folder, _ = trained("FLRMix", **WITHOUT_MEMORY)
    for _ in range(2):
        assert export_main(["--checkpoint", str(folder), "--out", "exported"]) == 0
        out = capsys.readouterr().out
        assert "exported/item_vectors.npy: 20 item vectors of 16 numbers, float32" in out and out.count("\n") == 4
    about = json.loads(Path("exported/export.json").read_text())
    assert about["model"] == "FLRMix" and about["ranking_weights"] == {"repeat": 0.0} and about["run"] == folder.name
    assert not Path("exported.tmp").exists()


def test_a_folder_with_other_files_is_left_alone(trained, capsys):
    folder, _ = trained("FLRMix", **WITHOUT_MEMORY)
    Path("mine").mkdir()
    Path("mine/notes.txt").write_text("x")
    assert export_main(["--checkpoint", str(folder), "--out", "mine"]) == 2
    assert "out: found mine, which is no earlier export" in capsys.readouterr().err
    assert [path.name for path in Path("mine").iterdir()] == ["notes.txt"]


def test_a_counted_model_has_nothing_to_export(trained):
    folder, _ = trained("SequentialRules")
    with pytest.raises(ConfigError, match="SequentialRules has neither item vectors nor a language model"):
        export(folder, "exported", QUIET)
    assert not Path("exported").exists()


def test_a_full_disk_leaves_nothing(trained, monkeypatch):
    folder, _ = trained("FLRMix", **WITHOUT_MEMORY)

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(np, "save", full)
    with pytest.raises(CheckpointError, match="out: cannot write exported .*No space left"):
        export(folder, "exported", QUIET)
    assert not list(Path().glob("exported*"))


def test_the_vectors_of_lares_rank_as_it_does(trained):
    folder, _ = trained("LARES")
    export(folder, "exported", QUIET)
    vectors, ids, _ = read("exported")
    loaded = load_data_and_model(folder, QUIET)
    for history in HISTORIES:
        queries, log_weights = query_vectors(loaded, history)
        assert queries.shape[0] == 1 and log_weights.tolist() == [0.0]
        best = [ids[place] for place in np.argsort(-(vectors @ queries[0]))[:5]]
        assert best == [each["item"] for each in recommend(loaded, history, 5)["items"]]


def test_an_export_with_a_text_backbone_has_it_too(trained):
    folder, _ = trained("FLRMix", **TINY_LATENT, backbone="compact")
    assert "backbone" in export(folder, "exported", QUIET)
    assert (Path("exported") / "backbone" / "config.json").is_file() and not list(Path().glob(".exported*"))
