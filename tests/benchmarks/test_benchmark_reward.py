"""What the reinforcement stage is for, on a trained model: more of the training prompts are answered exactly."""

from pathlib import Path

from conftest import TINY_FLR

from benchmarks import reward
from recbole_flr.quick_start import run_recbole_flr


def test_the_stage_raises_the_exact_match_on_training_prompts(tiny_data, capsys):
    options = {
        **TINY_FLR, "data_path": str(tiny_data), "stages": "sft,grpo", "eval_step": 0, "epochs": 30, "learning_rate": 0.01,
        "warmup_epochs": 10, "warmup_batch_size": 2, "embedding_dropout": 0.0,
        "group_size": 16, "grpo_epochs": 20, "grpo_learning_rate": 1e-3, "kl_coef": 0.0,
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
    assert all(after[figure] > before[figure] + 0.005 for figure in (reward_, match, clean_match))
