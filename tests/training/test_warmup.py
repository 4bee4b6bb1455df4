"""The warm-up of a backbone that starts from random weights: when it runs, and its learning rate."""

import pytest

from recbole_flr.training.warmup import WarmUp


def test_the_learning_rate_falls_to_a_tenth_along_a_cosine(build):
    config, model, _ = build(warmup_epochs=4, warmup_learning_rate=0.01)
    stage = WarmUp(model, config)
    shares = [1, 0.1 + 0.9 * (2 + 2**0.5) / 4, 0.55, 0.1 + 0.9 * (2 - 2**0.5) / 4, 0.1]  # (1 + cos) / 2 at 0, 45, 90, 135, 180 degrees
    assert [stage.learning_rate_at(epoch) for epoch in range(5)] == pytest.approx([0.01 * share for share in shares])


def test_it_runs_for_random_weights_in_front_of_the_supervised_stage(build, saved_models):
    config, model, _ = build()
    assert WarmUp.chosen(["sft"], model, config) and not WarmUp.chosen(["grpo"], model, config)
    for option, value in (("warmup_epochs", 0), ("checkpoint", "saved/run")):
        assert not WarmUp.chosen(["sft"], model, {**config.final_config_dict, option: value})
    config, model, _ = build(backbone=str(saved_models["qwen2"]))
    assert not WarmUp.chosen(["sft"], model, config)
