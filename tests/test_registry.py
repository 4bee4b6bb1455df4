"""Model names: the plug-in's models, RecBole's models, and names that stand for no model."""

import importlib.util
import sys

import pytest
import recbole.utils
import torch
from recbole.model.general_recommender import Random
from recbole.model.sequential_recommender import SASRec
from recbole.trainer import Trainer
from recbole.utils import InputType, ModelType

from recbole_flr.config import Config
from recbole_flr.contracts import Recommender
from recbole_flr.errors import ConfigError
from recbole_flr.registry import MODELS, get_model, model_names
from recbole_flr.trainer import SafeCheckpoints, with_safe_checkpoints


@pytest.mark.parametrize("name", MODELS)
def test_own_models(name):
    model = get_model(name)
    assert model.__name__ == name and model.__module__.startswith("recbole_flr.") and issubclass(model, Recommender)
    assert model.type == ModelType.SEQUENTIAL and model.input_type in InputType
    writes_titles = name in ("FLR", "LatentR3", "BIGRec", "Base", "CoT")
    untrained = name in ("SequentialRules", "VSKNN", "Base", "CoT")
    in_one_piece = name in ("AlphaRec", "ReaRec")  # by RecBole's own trainer
    assert model.weights_depend_on_item_ids == (not writes_titles)
    assert bool(model.stages) == (not untrained and not in_one_piece)
    assert model.needs_training == (not untrained)


@pytest.mark.parametrize("name, own", [("SASRec", SASRec), ("Random", Random)])  # Random has no yaml file
def test_other_models_are_recboles_with_the_contracts_defaults(name, own):
    model = get_model(name)
    assert issubclass(model, own) and issubclass(model, Recommender) and model is get_model(name)
    assert (model.__name__, model.__module__) == (own.__name__, own.__module__)
    assert model.weights_depend_on_item_ids and model.needs_training and model.stages == ()


def test_model_names_can_be_loaded():
    names = model_names()
    assert names[0] == "FLR" and {"SASRec", "GRU4Rec", "Caser", "Pop", "BPR"} <= set(names) and len(names) > 80
    for name in set(names) - {"lightgbm", "xgboost"}:
        assert get_model(name).__name__ == name


@pytest.mark.parametrize("name, nearest", [
    ("SASRecc", "SASRec"), ("sasrec", "SASRec"), ("flr", "FLR"), ("FRL", "FLR"), ("gru4rec", "GRU4Rec"),
    ("Casr", "Caser"), ("bpr", "BPR"),
])
def test_a_mistyped_model_is_refused_with_the_nearest(name, nearest):
    with pytest.raises(ConfigError, match=f"found '{name}'.*nearest is '{nearest}'"):
        get_model(name)


@pytest.mark.parametrize("name", ["", "nosuch", "a.b", "..", "../x", "__init__", "layers", "os.path", "SASRec ", "Modell 積"])
def test_odd_names_are_refused(name):
    with pytest.raises(ConfigError, match="neither recbole_flr nor RecBole has"):
        get_model(name)


@pytest.mark.skipif(importlib.util.find_spec("lightgbm") is not None, reason="lightgbm is installed")
def test_a_missing_package_is_named():
    with pytest.raises(ConfigError, match="lightgbm cannot be loaded .*No module named 'lightgbm'"):
        get_model("lightgbm")


@pytest.mark.parametrize("name", ["SASRec", "Pop", "BPR", "MultiVAE", "KGAT", "S3Rec"])
def test_recboles_trainers_get_safe_checkpoints(name):
    config = Config(name, "ml-100k")
    recboles = recbole.utils.get_trainer(config["MODEL_TYPE"], name)
    found = with_safe_checkpoints(recboles)
    assert issubclass(found, SafeCheckpoints) and issubclass(found, recboles) and issubclass(found, Trainer)
    assert found is with_safe_checkpoints(recboles)


def test_recboles_models_do_not_slow_down_the_process(monkeypatch):
    """SINE turns on torch's anomaly detection when it is imported; a model's class comes without that."""
    for name in list(sys.modules):
        if name.startswith("recbole.model.sequential_recommender"):
            monkeypatch.delitem(sys.modules, name)
    assert not torch.is_anomaly_enabled()
    get_model("SASRec")
    assert "recbole.model.sequential_recommender.sine" in sys.modules and not torch.is_anomaly_enabled()
