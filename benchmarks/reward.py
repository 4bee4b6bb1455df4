"""Reward of a reinforced run on training prompts, before the stage and after it.

    python -m benchmarks.reward saved/FLR-toys_demo-...

The same prompts and the same noise for both: the run's own group size, noise and kind of reward.
"""

import argparse

import torch
from tabulate import tabulate

from recbole_flr.data.batching import LengthBatches
from recbole_flr.quick_start import load_data_and_model
from recbole_flr.training.checkpoint import run_folder
from recbole_flr.training.rollout import LatentGRPO


@torch.no_grad()
def training_reward(file, rows, batch_size=64, seed=0):
    """Mean figures of the members on the training prompts.

    Args:
        file: weights of a stage.
        rows: how many training rows, drawn at random; 0 for all.
        batch_size: prompts at once.
        seed: of rows and noise.

    Returns:
        name -> float, and the number of rows: reward, confidence, match over all members, clean_... of those without noise.
    """
    config, model, _, train_data, *_ = load_data_and_model(file, {"state": "ERROR", "show_progress": False})
    policy = LatentGRPO(model, config)
    model.freeze_backbone()
    train_data.generator.manual_seed(seed)
    lengths = model.prompt_lengths(train_data._dataset.inter_feat)
    loader = LengthBatches(train_data, lengths, batch_size=batch_size, rows=rows)
    torch.manual_seed(seed)
    for interaction in loader:
        policy.loss(policy.rollout(interaction.to(model.device)))
    return policy.figures.means(), loader.rows


def main(arguments=None):
    """Print a table: before and after."""
    parser = argparse.ArgumentParser("python -m benchmarks.reward", description=__doc__.splitlines()[0])
    parser.add_argument("run", help="folder of a run with the stage grpo")
    parser.add_argument("--rows", type=int, default=0, help="training rows, drawn at random; 0: all")
    given = parser.parse_args(arguments)
    if not (run_folder(given.run) / "grpo.safetensors").is_file():
        parser.error(f"{given.run} has no grpo.safetensors; expected the folder of a run with the stage grpo")
    names = ["reward", "confidence", "match", "clean_reward", "clean_confidence", "clean_match"]
    table = []
    for stage in ("sft", "grpo"):
        figures, rows = training_reward(run_folder(given.run) / f"{stage}.safetensors", given.rows)
        table.append([stage, rows, *(figures[name] for name in names)])
    print(tabulate(table, headers=["weights", "rows", *names], floatfmt=".4f"))
    return table


if __name__ == "__main__":
    main()
