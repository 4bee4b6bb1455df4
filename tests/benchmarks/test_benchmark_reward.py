"""What the reinforcement stage is for: it raises the share of training prompts that a trained model answers exactly."""

from pathlib import Path

import pytest
from conftest import TINY_FLR

from benchmarks import reward
from recbole_flr.quick_start import run_recbole_flr


def test_the_stage_raises_the_exact_match_on_training_prompts(tiny_data, capsys):
    options = {
        **TINY_FLR, "data_path": str(tiny_data), "stages": "sft,grpo", "eval_step": 0, "checkpoint_every": 0,
        "warmup_epochs": 0, "epochs": 12, "learning_rate": 0.02, "embedding_dropout": 0.0,  # far enough, but not to the end
        "group_size": 16, "grpo_epochs": 6, "grpo_learning_rate": 3e-3, "kl_coef": 0.0,
    }
    run_recbole_flr("FLR", "tiny", config_dict=options)
    before, after = reward.main([str(next(Path("saved").iterdir()))])
    printed = capsys.readouterr().out
    assert printed.splitlines()[0].split() == [
        "weights", "rows", "reward", "confidence", "match", "clean_reward", "clean_confidence", "clean_match"
    ]
    assert before[0] == "sft" and after[0] == "grpo" and before[1] == after[1] > 100
    reward_, match, clean_match = 2, 4, 7
    assert before[match] < 0.9  # there is something to gain
    assert all(after[column] > before[column] + 0.005 for column in (reward_, match, clean_match))


def test_a_run_without_the_stage_is_refused(tmp_path, capsys):
    with pytest.raises(SystemExit):
        reward.main([str(tmp_path)])
    assert "has no grpo.safetensors; expected the folder of a run with the stage grpo" in capsys.readouterr().err
