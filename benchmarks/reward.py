"""Reward of a reinforced run on training prompts, before the stage and after it.

    python -m benchmarks.reward saved/FLR-toys_demo-...

Both are measured on the same prompts with the same noise. Group size, noise and the kind of reward are those of the run.
"""

import argparse

import torch
from tabulate import tabulate

from recbole_flr.data.batching import LengthBatches
from recbole_flr.quick_start import load_data_and_model
from recbole_flr.training.checkpoint import run_folder
from recbole_flr.training.reinforcement import LatentGRPO


@torch.no_grad()
def training_reward(file, rows, batch_size=64, seed=0):
    """Mean reward, confidence and match of a group's members on training prompts.

    Args:
        file: weights of a stage.
        rows: number of training rows, drawn at random; 0 for all.
        batch_size: number of prompts that are read at once.
        seed: for the choice of rows and for the noise.

    Returns:
        name -> float, and the number of rows. `reward`, `confidence` and `match` are means over all members; `clean_reward`,
        `clean_confidence` and `clean_match` are those of the members without noise.
    """
    config, model, _, train_data, *_ = load_data_and_model(file, {"state": "ERROR", "show_progress": False})
    stage = LatentGRPO(model, config)
    stage.enter()
    train_data.generator.manual_seed(seed)
    lengths = model.prompt_lengths(train_data._dataset.inter_feat)
    loader = LengthBatches(train_data, lengths, batch_size=batch_size, rows=rows)
    torch.manual_seed(seed)
    for interaction in loader:
        stage.rollout_losses(stage.rollout(interaction.to(model.device)))
    return stage.means.read(), loader.rows


def main(arguments=None):
    """Print a table with a line for the weights before the stage and one for those after it. Returns its rows."""
    parser = argparse.ArgumentParser("python -m benchmarks.reward", description=__doc__.splitlines()[0])
    parser.add_argument("run", help="folder of a run that had the stage grpo")
    parser.add_argument("--rows", type=int, default=0, help="number of training rows, drawn at random (default: 0, all rows)")
    given = parser.parse_args(arguments)
    if not (run_folder(given.run) / "grpo.safetensors").is_file():
        parser.error(f"{given.run} has no grpo.safetensors; expected the folder of a run with the stage grpo")
    names = ["reward", "confidence", "match", "clean_reward", "clean_confidence", "clean_match"]
    table = []
    for stage in ("sft", "grpo"):
        means, rows = training_reward(run_folder(given.run) / f"{stage}.safetensors", given.rows)
        table.append([stage, rows, *(means[name] for name in names)])
    print(tabulate(table, headers=["weights", "rows", *names], floatfmt=".4f"))
    return table


if __name__ == "__main__":
    main()
