"""What `recommend` says about an unknown title, and how a factor's attention is shared out."""

import random

import pytest

import recbole_flr
from recbole_flr.errors import ConfigError, DataError
from recbole_flr.recommendation import nearest_titles

SHOP = ["Harbour Serving Plate", "Harbour Dinner Plate", "Oak Serving Board", "Blue Tea Cup", "Blue Coffee Cup", "Red Wine Glass"]


@pytest.mark.parametrize(
    "text, first",
    [
        ("serving plate", "Harbour Serving Plate"),
        ("Harbor Serving Plate", "Harbour Serving Plate"),
        ("dinner plates", "Harbour Dinner Plate"),
        ("COFFEE CUP", "Blue Coffee Cup"),
        ("wine", "Red Wine Glass"),
        ("boards of oak", "Oak Serving Board"),
    ],
)
def test_the_nearest_title_shares_words(text, first):
    found = nearest_titles(text, SHOP)
    assert found[0] == first and len(found) == len(set(found)) == 3


def test_words_count_more_than_letters():
    """Of two texts of similar letters, the one with the same rare word is nearer: by letters alone the other would be first."""
    titles = ["The Grand Piano Book of Scales", "The Brand Diana Book of Tales", "Piano"]
    assert nearest_titles("piano", titles)[:2] == ["Piano", "The Grand Piano Book of Scales"]


def test_a_text_without_a_known_word():
    found = nearest_titles("zzz", SHOP)
    assert len(found) == 3 and set(found) <= set(SHOP)
    assert (
        nearest_titles("", SHOP)[:1] != []
        and nearest_titles("x", []) == []
        and nearest_titles("積み木", ["積み木セット"]) == ["積み木セット"]
    )


def test_titles_that_repeat_are_named_once():
    assert nearest_titles("plate", ["Plate", "Plate", "Cup"]) == ["Plate", "Cup"]


@pytest.mark.parametrize("seed", range(5))
def test_a_title_with_a_mistyped_letter_is_found(seed):
    rng = random.Random(seed)
    words = [f"{a}{b}" for a in ("lamp", "chair", "table", "shelf", "clock") for b in ("maker", "stand", "cover", "frame")]
    titles = [" ".join(rng.sample(words, 3)) for _ in range(60)]
    wanted = rng.choice(titles)
    place = rng.choice([number for number, letter in enumerate(wanted) if letter != " "])
    assert nearest_titles(wanted[:place] + wanted[place + 1 :], titles)[0] == wanted


@pytest.mark.parametrize("model", ["FLR", "FLRMix"])
def test_attention_and_rest_add_up_to_one(trained, model):
    folder, _ = trained(model)
    answer = recbole_flr.recommend(folder, ["Robot", "Paint", "Farm"], k=2)
    assert sum(factor["weight"] for factor in answer["factors"]) == pytest.approx(1, abs=1e-4)
    for factor in answer["factors"]:
        assert sum(entry["attention"] for entry in factor["history"]) + factor["rest"] == pytest.approx(1, abs=1e-4)
        assert factor["rest"] >= 0


def test_an_unknown_title_is_read_as_text(trained):
    """A text that is equal to a title is read as that title: the answer is the same, and so is the attention."""
    folder, _ = trained("FLR")
    loaded = recbole_flr.load_data_and_model(folder)
    model, catalog = loaded[1], loaded[1].catalog
    known = recbole_flr.recommend(loaded, ["Paint", "Dragon Fire"], k=3)
    before = model.collator
    with model.reading(["Paint", "Dragon Fire"]):
        from recbole_flr.recommendation import _answer

        ids = [len(catalog), len(catalog) + 1]
        read = _answer(loaded[0], model, loaded[2], catalog, ids, ["Paint", "Dragon Fire"], 3)
    assert model.collator is before
    assert [entry["item"] for entry in read["items"]] == [entry["item"] for entry in known["items"]]
    assert [entry["score"] for entry in read["items"]] == pytest.approx([entry["score"] for entry in known["items"]], abs=1e-5)
    answer = recbole_flr.recommend(loaded, ["Robot", "A Robot made of Paint"], k=3, as_text=True)
    assert len(answer["items"]) == 3 and all(entry["item"] for entry in answer["items"])
    looked = {entry["title"]: entry["item"] for entry in answer["factors"][0]["history"]}
    assert looked["A Robot made of Paint"] is None and looked["Robot"]
    other = recbole_flr.recommend(loaded, ["Robot", "Tiny Train Track Farm"], k=3, as_text=True)
    assert other["factors"][0]["history"] != answer["factors"][0]["history"]


@pytest.mark.parametrize("model", ["SASRec", "FLRMix"])
def test_a_model_of_ids_cannot_read_a_text(trained, model):
    folder, _ = trained(model)
    with pytest.raises(ConfigError, match=f"as_text: {model} ranks with the ids.*expected a model that reads titles"):
        recbole_flr.recommend(folder, ["A Robot made of Paint"], k=3, as_text=True)
    with pytest.raises(DataError, match="nearest titles are .*--as-text"):
        recbole_flr.recommend(folder, ["A Robot made of Paint"], k=3)
