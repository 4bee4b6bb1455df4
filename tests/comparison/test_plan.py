"""What the words of the command line ask for."""

import pytest

from recbole_flr.comparison.plan import make_plan
from recbole_flr.comparison.studies import ABLATIONS, STUDIES
from recbole_flr.errors import ConfigError
from recbole_flr.registry import MODELS, shared_options
from recbole_flr.options import options_for, parse_text, parse_value
from recbole_flr.words import wants_comparison


@pytest.mark.parametrize(
    "options, wanted",
    [
        ({}, False),
        ({"model": "FLR"}, False),
        ({"model": "FLR", "seed": "3"}, False),
        ({"model": "FLR,SASRec"}, True),
        ({"dataset": "a,b"}, True),
        ({"model": "FLR", "seeds": "3"}, True),
        ({"study": "ablation"}, True),
        ({"FLR.num_factors": "3"}, True),
    ],
)
def test_what_is_a_comparison(options, wanted):
    assert wants_comparison(options) is wanted


def test_models_data_sets_and_seeds():
    plan = make_plan({"model": "FLR, SASRec", "dataset": "a,b", "seeds": "2", "epochs": "3", "FLR.num_factors": "7", "jobs": "4"})
    assert [(run.model, run.dataset, run.seed) for run in plan.runs] == [
        (model, dataset, seed) for dataset in "ab" for model in ("FLR", "SASRec") for seed in (2020, 2021)
    ]
    assert plan.runs[0].options == {"epochs": "3", "num_factors": "7", "seed": "2020"} and plan.runs[0].label == "FLR"
    assert plan.runs[2].options == {"epochs": "3", "seed": "2020"} and plan.jobs == 4


@pytest.mark.parametrize(
    "given, seeds",
    [
        ({}, [2020]),
        ({"seed": "7"}, [7]),
        ({"seeds": "3"}, [2020, 2021, 2022]),
        ({"seeds": "2", "seed": "5"}, [5, 6]),
        ({"seeds": "2020,7,0"}, [2020, 7, 0]),
    ],
)
def test_seeds(given, seeds):
    assert [run.seed for run in make_plan({"model": "FLR", "jobs": "1", **given}).runs] == seeds


@pytest.mark.parametrize(
    "options, message",
    [
        ({"model": "FLR,SASRec,FLR"}, "model: found FLR twice"),
        ({"dataset": "a,a"}, "dataset: found a twice"),
        ({"model": "FLR,"}, "model: found 'FLR,'"),
        ({"study": "ablations"}, "nearest is 'ablation'"),
        ({"seeds": "0"}, "seeds: found '0'"),
        ({"seeds": "two"}, "seeds: found 'two'"),
        ({"seeds": "2020"}, "write --seed=2020"),
        ({"seeds": "1,1"}, "each seed once"),
        ({"jobs": "0"}, "jobs: found '0'"),
        ({"jobs": "-1"}, "jobs"),
        ({"reuse": "all"}, "same | any"),
        ({"model": "SASRec", "FLR.num_factors": "3"}, "--FLR.num_factors"),
        ({"model": "FLR", "reference": "SASRec"}, "reference: found"),
        ({"model": "FLR,SASRec", "resume": "x"}, "resume: found it in a comparison"),
        ({"seeds": "2", "seed": "x"}, "seed: found 'x'"),
        ({"study": "ablation", "model": "SASRec"}, "study: found ablation of SASRec"),
    ],
)
def test_mistakes(options, message):
    with pytest.raises(ConfigError, match=message.replace("|", r"\|")):
        make_plan(options)


def test_every_study_has_a_plan():
    for study in STUDIES:
        runs = make_plan({"study": study}).runs
        labels = [run.label for run in runs]
        assert len(labels) == len(set(labels)) >= 3
        for run in runs:
            assert run.start is None or labels.index(run.start) < labels.index(run.label)
    assert [run.options["num_factors"] for run in make_plan({"study": "factors"}).runs] == list("123456")
    assert [run.model for run in make_plan({"study": "cost"}).runs][:3] == ["BIGRec", "LatentR3", "FLR"]


@pytest.mark.parametrize("model", ABLATIONS)
def test_options_of_ablations_exist_and_differ_from_the_default(model):
    declared = options_for(model, shared=shared_options(model))
    assert model in MODELS
    for label, options in ABLATIONS[model].items():
        for name, text in options.items():
            value = parse_text(text) if declared[name].is_text else parse_value(text)
            assert declared[name].accepts(value) and value != declared[name].value, (label, name)
