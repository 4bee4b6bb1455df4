"""Which stages a run has, in which order, and what a stage records of its loss."""

import copy
import math

import pytest
import torch

from recbole_flr.contracts import LossPart
from recbole_flr.errors import ConfigError
from recbole_flr.training.reinforcement import LatentGRPO
from recbole_flr.training.stage import Means, Stage, choose_stages
from recbole_flr.training.steps import batch_shares
from recbole_flr.training.supervised import Supervised
from recbole_flr.training.warmup import WarmUp


@pytest.fixture
def chosen(build, saved_models):
    """chosen(model, **options) -> the stages of a run, in their order."""

    def make(name="FLR", backbone="compact", **options):
        given = {key: options.pop(key) for key in ("stages", "checkpoint", "resume") if key in options}
        config, model, _ = build(name, backbone=str(saved_models.get(backbone, backbone)), **options)
        for key, value in given.items():  # set here, because Config checks their values and choose_stages is what is tested
            config[key] = value
        return choose_stages(model, config)

    return make


def names(stages):
    return [stage.name for stage in stages]


# choose_stages


@pytest.mark.parametrize("stages, expected", [
    (None, ["warmup", "sft", "grpo"]), ("sft,grpo", ["warmup", "sft", "grpo"]), (" sft , grpo ", ["warmup", "sft", "grpo"]),
    (["sft", "grpo"], ["warmup", "sft", "grpo"]), ("sft", ["warmup", "sft"]), (["sft"], ["warmup", "sft"]),
])
def test_stages_run_in_the_models_order(chosen, stages, expected):
    found = chosen(stages=stages)
    assert names(found) == expected
    assert [type(stage) for stage in found] == [WarmUp, Supervised, LatentGRPO][:len(expected)]


@pytest.mark.parametrize("model", ["LatentR3", "BIGRec"])
def test_null_is_all_stages_that_the_model_has(chosen, model):
    assert names(chosen(model, stages=None)) == ["warmup", "sft", "grpo"][:2 if model == "BIGRec" else 3]


@pytest.mark.parametrize("model, stages, message", [
    ("FLR", "grpo,sft", "found 'grpo,sft', expected one or more of sft, grpo, in this order: these are the stages of FLR"),
    ("FLR", "sft,sft", "found 'sft,sft', expected one or more"), ("FLR", "sft,other", "found 'sft,other', expected one or more"),
    ("FLR", "warmup,sft", "found 'warmup,sft', expected one or more of sft, grpo"), ("FLR", "", "expected one or more"),
    ("FLR", [], r"found \[\], expected one or more"),
    ("BIGRec", "sft,grpo", "found 'sft,grpo', expected sft: these are the stages of BIGRec"),  # it has no thought
    ("BIGRec", "grpo", "found 'grpo', expected sft: these are the stages of BIGRec"),
])
def test_unknown_stages_and_other_orders_are_refused(build, model, stages, message):
    config, made, _ = build(model)
    config["stages"] = stages
    with pytest.raises(ConfigError, match=f"stages: .*{message}"):
        choose_stages(made, config)


def test_the_warm_up_is_left_out_where_the_backbone_is_trained_already(chosen):
    assert names(chosen(stages="sft")) == ["warmup", "sft"]
    assert names(chosen(stages="sft", warmup_epochs=0)) == ["sft"]
    assert names(chosen(stages="sft", checkpoint="saved/run")) == ["sft"]
    assert names(chosen(stages="sft", backbone="qwen2")) == ["sft"]
    assert names(chosen(stages="sft", resume="saved/run")) == ["warmup", "sft"]  # the run may have stopped in its warm-up


@pytest.mark.parametrize("given", ["checkpoint", "resume"])
def test_reinforcement_alone_needs_a_trained_model(chosen, given):
    with pytest.raises(ConfigError, match="found grpo alone.*expected --checkpoint=PATH beside it, or --stages=sft,grpo"):
        chosen(stages="grpo")
    assert names(chosen(stages="grpo", **{given: "saved/run"})) == ["grpo"]


# the options of a stage


def test_a_stage_reads_the_options_with_its_prefix(chosen):
    warmup, sft, grpo = chosen(
        stages=None, epochs=7, learning_rate=0.5, stopping_step=3, eval_step=2, learning_rate_decay=0.9, warmup_epochs=5,
        warmup_learning_rate=0.25, grpo_epochs=4, grpo_learning_rate=0.125, grpo_stopping_step=6,
    )
    assert [(s.epochs, s.learning_rate, s.stopping_step, s.eval_step) for s in (warmup, sft, grpo)] == [
        (5, 0.25, 0, 0), (7, 0.5, 3, 2), (4, 0.125, 6, 1),  # the warm-up is not validated, reinforcement in every epoch
    ]
    assert [stage.validated for stage in (warmup, sft, grpo)] == [False, True, True]
    assert [stage.starts_from_trained for stage in (warmup, sft, grpo)] == [False, False, True]
    assert [sft.learning_rate_at(epoch) for epoch in range(3)] == pytest.approx([0.5, 0.45, 0.405])
    assert [grpo.learning_rate_at(epoch) for epoch in range(3)] == [0.125] * 3
    cosine = [0.25 * (0.1 + 0.9 * (1 + math.cos(math.pi * epoch / 5)) / 2) for epoch in range(5)]
    assert [warmup.learning_rate_at(epoch) for epoch in range(5)] == pytest.approx(cosine)


def test_reinforcement_freezes_the_encoder_and_keeps_a_reference(build):
    config, model, loaders = build(kl_coef=0.1)
    stage = LatentGRPO(model, config)
    model.calculate_loss(next(iter(loaders[0]))).backward()
    assert stage.reference is None and all(p.requires_grad for p in model.parameters())
    before = copy.deepcopy(model.reasoner.state_dict())
    stage.enter()
    for name, parameter in model.named_parameters():
        assert parameter.requires_grad == (not name.startswith("backbone.")), name
        assert (parameter.grad is None) == name.startswith("backbone."), name  # an old gradient would count when clipping
    with torch.no_grad():
        model.reasoner.initial += 1
    for name, value in stage.reference.state_dict().items():
        assert torch.equal(value, before[name])
    assert not any(p.requires_grad for p in stage.reference.parameters())


# the loss and its means


def test_means_by_hand():
    means = Means()
    assert means.read() == {}
    means.add(loss=torch.tensor(2.0, requires_grad=True) * 1, match=1)
    means.add(loss=torch.tensor(5.0))
    assert means.read() == {"loss": 3.5, "match": 1.0}  # each over the steps that added it
    assert means.read() == {"loss": 3.5, "match": 1.0}  # reading forgets nothing
    means.reset()
    assert means.read() == {}
    means.add(match=0.25)
    assert means.read() == {"match": 0.25}


def test_a_stage_sums_its_parts_and_records_them(build):
    config, model, _ = build()

    class Two(Stage):
        name = "two"

        def losses(self, batch):
            return {"title": LossPart(torch.tensor(batch)), "other": LossPart(torch.tensor(4.0), torch.tensor(0.25))}

    stage = Two(model, config)
    assert stage.loss(1.0).item() == 2.0 and stage.loss(2.0).item() == 3.0
    assert stage.means.read() == {"loss": 2.5, "title": 1.5, "other": 4.0, "other_weight": 0.25}


@pytest.mark.parametrize("parts", [1, 3])
def test_the_means_of_parts_are_those_of_the_whole_batch(build, parts):
    """A mean over tokens, a mean over rows with a weight, and a mean over rows for the log. Parts have 1 to 3 rows."""
    config, model, _ = build("SASRec")
    torch.manual_seed(7)
    tokens = [torch.randn(count, dtype=torch.float64) for count in (1, 5, 2, 4, 1, 3, 2, 6, 1, 1, 4)]
    values = torch.randn(11, dtype=torch.float64)

    class Three(Stage):
        name = "three"

        def counts(self, rows):
            return {"rows": len(rows), "tokens": sum(len(tokens[row]) for row in rows)}

        def losses(self, rows):
            self.means.add(reward=values[rows].square().mean(), clean=values[rows].mean().item())
            title = torch.cat([tokens[row] for row in rows]).mean()
            return {"title": LossPart(title, mean_over="tokens"), "other": LossPart(values[rows].mean(), 0.25)}

    stage, batches = Three(model, config), [torch.arange(7), torch.arange(7, 11)]
    for batch in batches:
        for part, shares in batch_shares(batch, parts, stage.counts):
            stage.loss(part, None if parts == 1 else shares)
    expected = {"title": 0.0, "other": 0.0, "reward": 0.0}
    for batch in batches:
        of_batch = [number for row in batch for number in tokens[row].tolist()]
        expected["title"] += sum(of_batch) / len(of_batch) / 2
        expected["other"] += sum(values[row].item() for row in batch) / len(batch) / 2
        expected["reward"] += sum(values[row].item() ** 2 for row in batch) / len(batch) / 2
    expected |= {"clean": expected["other"], "other_weight": 0.25, "loss": expected["title"] + 0.25 * expected["other"]}
    assert stage.means.read() == pytest.approx(expected, rel=1e-9)
    assert stage.means.read_all() == pytest.approx(expected, rel=1e-9)


def test_a_plain_stage_trains_with_calculate_loss(build):
    config, model, loaders = build(embedding_dropout=0.0)
    batch = next(iter(loaders[0]))
    stage = Stage(model, config)
    assert stage.loss(batch).item() == pytest.approx(model.calculate_loss(batch).item())
    assert stage.loader(loaders[0]) is loaders[0]
    assert stage.means.read().keys() == {"loss"}


def test_the_supervised_stage_records_the_parts_of_the_models_loss(build):
    config, model, loaders = build(embedding_dropout=0.0)
    batch, stage = next(iter(loaders[0])), Supervised(model, config)
    assert stage.loss(batch).item() == pytest.approx(model.calculate_loss(batch).item())
    means, parts = stage.means.read(), model.losses(batch)
    for name, part in parts.items():
        assert means[name] == pytest.approx(part.value.item()), name
    assert means["diversity_weight"] == pytest.approx(0.5) and "title_weight" not in means
