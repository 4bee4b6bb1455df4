"""Learning rates of steps: against the schedules of transformers, and through both stages of a run."""

import pytest
import torch
from transformers import get_scheduler

from recbole_flr.config import Config
from recbole_flr.options import properties_folder
from recbole_flr.training.schedule import rate_factor
from recbole_flr.training.staged import StagedTrainer


@pytest.mark.parametrize("kind, name", [("constant", "constant_with_warmup"), ("linear", "linear"), ("cosine", "cosine")])
@pytest.mark.parametrize("warmup, steps", [(0, 10), (4, 10), (10, 10), (25, 10)])
def test_the_factors_are_those_of_transformers(kind, name, warmup, steps):
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    schedule = get_scheduler(name, optimizer, num_warmup_steps=warmup, num_training_steps=steps)
    for step in range(steps):
        assert rate_factor(kind, step, warmup, steps) == pytest.approx(schedule.get_last_lr()[0])
        optimizer.step()
        schedule.step()


@pytest.mark.parametrize("epoch", [0, 1])
def test_each_step_of_a_stage_has_its_rate(build, epoch):
    """Also when a run goes on at a later epoch, where the steps of the epochs before count."""
    options = {"stages": "sft,grpo", "epochs": 2, "schedule": "linear", "schedule_warmup": 2, "learning_rate": 0.01,
               "learning_rate_decay": 0.5, "grpo_schedule": "cosine", "grpo_learning_rate": 0.1, "grpo_epochs": 2}
    config, model, (train, *_) = build("LatentR3", **options)
    trainer = StagedTrainer(config, model)
    for name, kind, warmup in (("sft", "linear", 2), ("grpo", "cosine", 0)):
        trainer._enter_stage(name)
        stage, seen = trainer.stage, []
        trainer.optimizer.register_step_pre_hook(lambda optimizer, *_, seen=seen: seen.append(optimizer.param_groups[0]["lr"]))
        loader = stage.loader(train)
        stage.begin_epoch(epoch)
        for _ in range(len(loader)):
            trainer.optimizer.step()
        steps, base = len(loader), stage.learning_rate * (0.5 ** epoch if name == "sft" else 1)
        assert seen == [pytest.approx(base * rate_factor(kind, epoch * steps + step, warmup, 2 * steps)) for step in range(steps)]


def test_the_published_settings_of_latentr3_are_options_of_it():
    """32 groups of 8 are the 256 members of a published step."""
    preset = properties_folder() / "presets" / "latentr3.yaml"
    config = Config("LatentR3", "toys_demo", config_file_list=[str(preset)])
    assert (config["title_format"], config["num_beams"], config["length_penalty"]) == ("quoted", 10, 1.0)
    assert config["grpo"] == "latentr3" and config["grpo_batch_size"] * config["group_size"] == 256
    assert (config["grpo_schedule"], config["grpo_schedule_warmup"]) == ("cosine", 200)
