"""Statistics of factors against hand-worked numbers, and what a run leaves of them."""

import json

import numpy as np
import pytest

import recbole_flr
from recbole_flr.factor_statistics import correlations, entropy, evenly_spaced, summarise
from recbole_flr.result import read_ranks


def test_correlations_against_numpy():
    vectors = np.random.default_rng(0).normal(size=(5, 3, 16))
    expected = np.mean([np.corrcoef(row) for row in vectors], axis=0)
    np.testing.assert_allclose(correlations(vectors), expected, atol=1e-12)
    vectors[:, 1] = 2.5  # without spread
    assert correlations(vectors)[0, 1] == 0 and correlations(vectors)[1, 1] == 1


def test_entropy_by_hand():
    assert entropy(np.array([[0.5, 0.5], [1.0, 0.0]])) == pytest.approx([np.log(2), 0])


def test_summary_by_hand():
    """Two rows, two factors of opposite direction, a history of two items."""
    alpha = np.array([[0.75, 0.25], [0.25, 0.75]])
    attention = np.array([[[0.6, 0.2, 0.2], [0.1, 0.3, 0.6]], [[0.5, 0.5, 0.0], [0.0, 0.2, 0.8]]])
    vectors = np.array([[[1.0, -1, 0], [-1, 1, 0]]] * 2)
    found = summarise(alpha, attention, vectors)
    assert found["correlation"] == [[1.0, -1.0], [-1.0, 1.0]] and found["mean_abs_correlation"] == pytest.approx(1)
    assert found["max_attention"] == pytest.approx((0.6 + 0.3 + 0.5 + 0.2) / 4)
    assert found["disentanglement"] == pytest.approx(0)
    gate = found["gate"]
    assert gate["mean"] == [0.5, 0.5] and gate["largest"] == [0.5, 0.5] and gate["entropy_of_mean"] == pytest.approx(np.log(2))
    assert gate["entropy"] == pytest.approx(-0.75 * np.log(0.75) - 0.25 * np.log(0.25))
    assert gate["histogram"][0] == [0, 0, 0.5, 0, 0, 0, 0, 0.5, 0, 0]


def test_one_factor_and_no_vectors():
    one = summarise(np.ones((3, 1)), np.full((3, 1, 2), 0.5), np.random.default_rng(1).normal(size=(3, 1, 4)))
    assert one["mean_abs_correlation"] == 0 and one["disentanglement"] == pytest.approx(0.5)
    none = summarise(np.ones((3, 1)), np.full((3, 1, 2), 0.5), None)
    assert none["correlation"] is None and none["disentanglement"] is None and none["max_attention"] == 0.5


@pytest.mark.parametrize("rows, number, expected", [(100, 5, [0, 25, 50, 74, 99]), (3, 10, [0, 1, 2]), (1, 4, [0])])
def test_evenly_spaced(rows, number, expected):
    assert evenly_spaced(rows, number).tolist() == expected


@pytest.mark.parametrize("model", ["FLR", "FLRMix", "LatentR3", "VSKNN"])
def test_what_a_run_leaves(trained, model):
    folder, _ = trained(model)
    result = json.loads((folder / "result.json").read_text(encoding="utf-8"))
    shown, ranks = json.loads((folder / "examples.json").read_text(encoding="utf-8")), read_ranks(folder)
    _, loaded, dataset, _, _, test_data = recbole_flr.load_data_and_model(folder)
    factors = result["factors"]
    tokens = dataset.field2id_token["item_id"]
    assert len(shown) == min(10, len(test_data._dataset)) and shown[0]["row"] == 0
    for each in shown:
        row = each["row"]
        assert [item["item"] for item in each["history"]] == [tokens[item] for item in ranks["test_history"][row] if item]
        assert each["target"]["item"] == tokens[ranks["test_target"][row]] and each["rank"] == ranks["test_item_rank"][row]
        assert each["recommended"][0]["item"] == tokens[ranks["test_top_items"][row][0]]
    if model == "VSKNN":
        assert factors is None and "factors" not in shown[0]
        return
    interaction = test_data._dataset.inter_feat
    alpha, attention = loaded.explain(interaction)
    assert factors["gate"]["mean"] == pytest.approx(alpha.mean(0).tolist(), abs=1e-4)
    for each in shown:
        length = len(each["history"])
        for number, factor in enumerate(each["factors"]):
            assert factor["attention"] == pytest.approx(attention[each["row"], number, :length].tolist(), abs=2e-4)
    assert factors["maps"][0]["attention"] == [factor["attention"] for factor in shown[0]["factors"]]
    assert factors["maps"][0]["history"] == [item["title"] for item in shown[0]["history"]]
    vectors = loaded.factor_vectors(interaction)
    if model == "LatentR3":
        assert vectors is None and factors["correlation"] is None and factors["num_factors"] == 1
    else:
        assert factors["num_factors"] == 3 == len(factors["correlation"])
        expected = np.mean([np.corrcoef(row) for row in vectors.detach().numpy()], axis=0)
        np.testing.assert_allclose(factors["correlation"], expected, atol=1e-3)
