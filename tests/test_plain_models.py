"""Models of RecBole's plain shape need one line in the registry and a yaml file. None of these has a language model.

Some are trained in stages of their own, and one has a thought that the reinforcement stage trains.
"""

import json
import re
import shutil
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from conftest import TINY, TITLES, write_dataset
from helpers_training import interrupt, only_run
from recbole.model.abstract_recommender import SequentialRecommender
from recbole.utils import InputType
from torch import nn

import recbole_flr
from recbole_flr import options
from recbole_flr.contracts import LossPart, Recommender, TargetScores, Thinker
from recbole_flr.errors import CheckpointError, ConfigError
from recbole_flr.registry import MODELS, Entry
from recbole_flr.training import checkpoint
from recbole_flr.training.reinforcement import LatentGRPO
from recbole_flr.training.stage import Stage


class Retrieval(SequentialRecommender):
    """Scores an item by the product of its vector with the sum of the history's."""

    input_type = InputType.POINTWISE

    def __init__(self, config, dataset):
        super().__init__(config, dataset)
        self.items = nn.Embedding(self.n_items, config["width"], padding_idx=0)

    def full_sort_predict(self, interaction):
        return self.items(interaction[self.ITEM_SEQ]).sum(1) @ self.items.weight.T

    def predict(self, interaction):
        return self.full_sort_predict(interaction).gather(1, interaction[self.ITEM_ID].unsqueeze(1)).squeeze(1)

    def calculate_loss(self, interaction):
        return nn.functional.cross_entropy(self.full_sort_predict(interaction), interaction[self.POS_ITEM_ID])


class LastItem(Stage):
    """Learns from the last item of the history alone."""

    name, prefix = "near", "near_"

    def losses(self, batch):
        model = self.model
        last = model.items(batch[model.ITEM_SEQ].gather(1, (batch[model.ITEM_SEQ_LEN] - 1).unsqueeze(1)).squeeze(1))
        near = nn.functional.cross_entropy(last @ model.items.weight.T, batch[model.POS_ITEM_ID])
        return {"next_item": LossPart(near), "size": LossPart(last.square().mean(), 0.1)}


class WholeHistory(Stage):
    """Learns from the whole history. It does not train `scale`."""

    name, prefix = "whole", "whole_"

    def enter(self):
        self.model.scale.requires_grad_(False)


class TwoStages(Retrieval, Recommender):
    """A model without a language model, trained in two stages."""

    stages = (LastItem, WholeHistory)

    def __init__(self, config, dataset):
        super().__init__(config, dataset)
        self.scale = nn.Parameter(torch.ones(self.n_items))

    def full_sort_predict(self, interaction):
        return super().full_sort_predict(interaction) * self.scale


class Prepare(Stage):
    """Prepares the next stage, without validation. Its loss moves the item vectors towards 1."""

    name, prefix, validated = "prepare", "prepare_", False

    def losses(self, batch):
        return {"ones": LossPart((self.model.items.weight - 1).square().mean())}


class ThreeStages(TwoStages):
    """A model with a stage without validation between two stages with validation. The first two stages freeze different parts."""

    stages = (WholeHistory, Prepare, LastItem)


@dataclass
class Sum:
    """A thought."""

    embedding: torch.Tensor


class Reasoning(Retrieval, Thinker):
    """Fulfils the contract of thinkers without a language model. Its reward is the NDCG of the ranked list."""

    stages = (WholeHistory, LatentGRPO)

    def __init__(self, config, dataset):
        super().__init__(config, dataset)
        self.reasoner = nn.Linear(config["width"], config["width"])
        self.scale = nn.Parameter(torch.ones(()))

    def read_context(self, interaction, prompt_only=False):
        return self.items(interaction[self.ITEM_SEQ]).sum(1)

    def think(self, context, reasoner=None):
        return Sum((reasoner or self.reasoner)(context))

    def full_sort_predict(self, interaction):
        return self.think(self.read_context(interaction)).embedding @ self.items.weight.T

    def score_target(self, context, thoughts, target, greedy=False):
        scores = (thoughts @ self.items.weight.T).log_softmax(-1)  # [B, G, items]
        own = scores.gather(-1, target[:, None, None].expand(-1, scores.shape[1], 1))
        ndcg = 1 / ((scores > own).sum(-1) + 2).log2() if greedy else None
        return TargetScores(own, torch.ones(len(target), 1, dtype=torch.bool), reward=ndcg)

    def own_losses(self, thought, target):
        return {"length": LossPart(thought.embedding.square().mean(), 0.001)}

    def freeze_encoder(self):
        self.items.weight.requires_grad_(False)


STAGES_YAML = """\
width: 8                     # (int >= 1) Width of the item vectors.
train_neg_sample_args: null  # (dict or null) The loss compares the target with all items.
stages: null                 # (str or list or null) Stages to run; null runs all.
whole_epochs: 2              # (int >= 0) Epochs of the stage.
whole_learning_rate: 0.01    # (float > 0) Learning rate of the stage.
whole_stopping_step: 5       # (int >= 0) Validations without a gain before the stage stops.
"""
YAML = {
    "ThreeStages": STAGES_YAML + """\
near_epochs: 1               # (int >= 0) Epochs of the stage.
near_learning_rate: 1.0e-9   # (float > 0) Learning rate of the stage.
near_stopping_step: 5        # (int >= 0) Validations without a gain before the stage stops.
prepare_epochs: 3            # (int >= 0) Epochs of the stage.
prepare_learning_rate: 0.1   # (float > 0) Learning rate of the stage.
""",
    "Reasoning": STAGES_YAML,
    "Retrieval": """\
width: 8                     # (int >= 1) Width of the item vectors.
train_neg_sample_args: null  # (dict or null) The loss compares the target with all items.
learning_rate: 0.05          # (float > 0) Learning rate.
""",
    "TwoStages": """\
width: 8                     # (int >= 1) Width of the item vectors.
train_neg_sample_args: null  # (dict or null) The loss compares the target with all items.
stages: null                 # (str or list or null) Stages to run; null runs all.
near_epochs: 3               # (int >= 0) Epochs of the first stage.
near_learning_rate: 0.05     # (float > 0) Learning rate of the first stage.
near_stopping_step: 5        # (int >= 0) Validations without a gain before the first stage stops.
whole_epochs: 2              # (int >= 0) Epochs of the second stage.
whole_learning_rate: 0.01    # (float > 0) Learning rate of the second stage.
whole_stopping_step: 5       # (int >= 0) Validations without a gain before the second stage stops.
""",
}


@pytest.fixture(autouse=True)
def registered(tmp_path, monkeypatch):
    """One line in the registry and a yaml file for each of the models."""
    folder = tmp_path / "properties"
    shutil.copytree(options.properties_folder(), folder)
    monkeypatch.setattr(options, "properties_folder", lambda: folder)
    for name, text in YAML.items():
        (folder / "model" / f"{name}.yaml").write_text(text)
        monkeypatch.setitem(MODELS, name, Entry(__name__, ("latent",) if name == "Reasoning" else ()))


def run(data, model, **given):
    given = {**TINY, "epochs": 3, "data_path": str(data), **given}
    return recbole_flr.run_recbole_flr(model, "tiny", config_dict=given)


def test_a_plain_model_is_trained_saved_and_asked(tiny_data):
    result = run(tiny_data, "Retrieval", epochs=20)
    assert result["test_result"]["hit@10"] > 0.6 and "stages" not in result  # by chance: .5
    loaded = recbole_flr.load_data_and_model(only_run())
    assert isinstance(loaded[1], Retrieval) and isinstance(loaded[1], Recommender)
    answer = recbole_flr.recommend(loaded, ["Robot", "i1"], k=4)
    assert len(answer["items"]) == 4 and answer["factors"] == []
    again = run(tiny_data, "Retrieval", epochs=20, checkpoint_dir="again")
    assert again == result
    resumed = recbole_flr.run_recbole_flr(config_dict={"resume": str(only_run())})
    assert resumed == result


def test_a_plain_model_refuses_a_reversed_catalogue(tiny_data):
    run(tiny_data, "Retrieval", epochs=1)
    write_dataset(tiny_data, titles=TITLES[::-1])
    path = tiny_data / "tiny" / "tiny.item"
    head, *rows = path.read_text(encoding="utf-8").splitlines()
    path.write_text("\n".join([head, *rows[::-1]]) + "\n", encoding="utf-8")
    for part in ("train", "valid", "test"):  # the same ids, met in another order
        path = tiny_data / "tiny" / f"tiny.{part}.inter"
        head, *rows = path.read_text(encoding="utf-8").splitlines()
        path.write_text("\n".join([head, *rows[::-1]]) + "\n", encoding="utf-8")
    for use in (lambda: recbole_flr.load_data_and_model(only_run()),
                lambda: recbole_flr.run_recbole_flr(config_dict={"checkpoint": str(only_run())})):
        with pytest.raises(CheckpointError, match="not those that the run was trained on"):
            use()


def test_an_option_of_a_plain_model_is_checked(tiny_data):
    with pytest.raises(ConfigError, match="width: found 0, expected int >= 1. Width of the item vectors"):
        run(tiny_data, "Retrieval", width=0)
    with pytest.raises(ConfigError, match="'widht', which does not exist"):
        run(tiny_data, "Retrieval", widht=3)


def test_two_stages_without_a_language_model(tiny_data):
    result = run(tiny_data, "TwoStages")
    assert result["stages"].keys() == {"near", "whole"} and result["kept"] in result["stages"]
    folder = only_run()
    first, second = (checkpoint.read(folder / f"{name}.safetensors")[0] for name in ("near", "whole"))
    assert not torch.equal(first["model.items.weight"], second["model.items.weight"])
    assert torch.equal(first["model.scale"], second["model.scale"])  # frozen by the second stage
    written = json.loads((folder / "result.json").read_text())
    assert [stage["name"] for stage in written["stages"]] == ["near", "whole"]
    assert [stage["epochs"] for stage in written["stages"]] == [3, 2]
    assert len(recbole_flr.recommend(folder, ["Robot"], k=3)["items"]) == 3


@pytest.mark.parametrize("cut", [1, 3, 4])
def test_two_stages_cut_short_and_resumed(tiny_data, cut):
    whole = run(tiny_data, "TwoStages", checkpoint_dir="whole")
    interrupt(lambda: run(tiny_data, "TwoStages"), epochs=cut)
    assert recbole_flr.run_recbole_flr(config_dict={"resume": str(only_run())}) == whole


def test_one_of_two_stages(tiny_data):
    assert "stages" not in run(tiny_data, "TwoStages", stages="near")
    assert (only_run() / "near.safetensors").is_file() and not (only_run() / "whole.safetensors").exists()
    with pytest.raises(ConfigError, match="found 'whole,near', expected one or more of near, whole, in this order"):
        run(tiny_data, "TwoStages", stages="whole,near")


def test_a_stage_must_not_be_called_as_a_file_of_the_run(tiny_data, monkeypatch):
    monkeypatch.setattr(LastItem, "name", "last")  # last.safetensors is the state from which a run goes on
    with pytest.raises(ValueError, match="'last'.*is the name of a file"):
        run(tiny_data, "TwoStages")


def test_a_stage_without_validation_between_two_with_it(tiny_data):
    """The next stage begins with the weights of this stage, but the run never keeps them as its best."""
    result = run(tiny_data, "ThreeStages")
    assert result["stages"].keys() == {"whole", "near"}
    folder = only_run()
    weights = {name: checkpoint.read(folder / f"{name}.safetensors") for name in ("whole", "prepare", "near", "best")}
    items = {name: tensors["model.items.weight"][1:] for name, (tensors, _) in weights.items()}
    assert (items["prepare"] - 1).abs().mean() < 0.75 * (items["whole"] - 1).abs().mean()
    torch.testing.assert_close(items["near"], items["prepare"], rtol=1e-5, atol=1e-5)  # which hardly learns anything
    assert weights["best"][1]["stage"] == result["kept"] and torch.equal(items["best"], items[result["kept"]])


def test_what_a_stage_freezes_is_free_in_the_next(tiny_data, monkeypatch):
    monkeypatch.setattr(WholeHistory, "enter", lambda self: self.model.items.requires_grad_(False))
    run(tiny_data, "ThreeStages", stages="whole,near", near_learning_rate=0.1)
    before, after = (checkpoint.read(only_run() / f"{name}.safetensors")[0] for name in ("whole", "near"))
    assert not torch.equal(before["model.items.weight"], after["model.items.weight"])
    assert not torch.equal(before["model.scale"], torch.ones_like(before["model.scale"]))


def test_a_stage_that_does_not_run_is_not_gone_on_from(tiny_data):
    result = run(tiny_data, "ThreeStages", stages="near", prepare_epochs=0)
    assert "stages" not in result and not (only_run() / "whole.safetensors").exists()


def test_an_option_of_a_stage_must_be_declared(tiny_data, tmp_path):
    path = tmp_path / "properties" / "model" / "TwoStages.yaml"
    path.write_text("".join(line for line in path.read_text().splitlines(True) if not line.startswith("near_epochs")))
    with pytest.raises(ConfigError, match="stage near of TwoStages needs the option near_epochs; declare it in"):
        run(tiny_data, "TwoStages")


def test_reinforcement_needs_the_contract_of_thinkers_and_nothing_else(tiny_data):
    """A retrieval model with a reward of its own is reinforced by the stage that FLR has."""
    result = run(tiny_data, "Reasoning", state="INFO", grpo_epochs=2)
    assert result["stages"].keys() == {"whole", "grpo"}
    before, after = (checkpoint.read(only_run() / f"{name}.safetensors")[0] for name in ("whole", "grpo"))
    moved = {name for name in before if name.startswith("model.") and not torch.equal(before[name], after[name])}
    assert moved == {"model.reasoner.weight", "model.reasoner.bias"}
    log, = Path("log").rglob("*.log")
    line = next(line for line in log.read_text(encoding="utf-8").splitlines() if "grpo epoch 0 took" in line)
    reward = float(re.search(r"[ \[]reward: ([^,]+),", line)[1])
    assert 0.1 < reward <= 1 and "match: " not in line and "length: " in line and "surrogate: " in line


def test_the_model_that_is_reinforced_by_a_run_of_its_own(tiny_data):
    """`--stages=grpo --checkpoint=RUN` reports the model of RUN under the name of the stage that RUN ended with."""
    run(tiny_data, "Reasoning", stages="whole", checkpoint_dir="first")
    result = recbole_flr.run_recbole_flr(config_dict={
        "checkpoint": str(only_run("first")), "stages": "grpo", "grpo_epochs": 1, "checkpoint_dir": "second",
    })
    assert list(result["stages"]) == ["whole", "grpo"]
    written = json.loads((only_run("second") / "result.json").read_text())
    assert [stage["name"] for stage in written["stages"]] == ["whole", "grpo"]


def test_recommend_without_titles(tiny_data):
    """A model that reads no titles needs no `.item` file. Its recommendations show the item ids as titles."""
    (tiny_data / "tiny" / "tiny.item").unlink()
    run(tiny_data, "Retrieval", epochs=1)
    answer = recbole_flr.recommend(only_run(), ["i1", "i2"], k=2)
    assert all(item["title"] == item["item"] for item in answer["items"]) and len(answer["items"]) == 2


def test_parts_of_the_loss_are_logged(tiny_data):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    run(tiny_data, "TwoStages", state="INFO")
    log, = Path("log").rglob("*.log")
    text = log.read_text(encoding="utf-8")
    assert "near epoch 0 took" in text and "next_item: " in text and "size_weight: 0.1" in text
    folder = next(path.parent for path in Path("log_tensorboard").rglob("events*"))
    events = EventAccumulator(str(folder)).Reload()
    for name in ("loss", "next_item", "size", "size_weight"):
        assert len(events.Scalars(f"near/{name}")) == 3
    loss, near, size = (events.Scalars(f"near/{name}")[0].value for name in ("loss", "next_item", "size"))
    assert loss == pytest.approx(near + 0.1 * size, rel=1e-5)
