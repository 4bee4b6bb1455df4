"""A training step, a ranking and an evaluation of several models on one data set, in turns.

    python -m benchmarks.steps --dataset=movies --models=SASRec,FLRMix

The models have their default options and untrained weights. A step is forward pass, backward pass and Adam on one batch of
`train_batch_size` rows. A ranking is a batch of validation rows, with scores for all items. An evaluation is that of all validation
rows by RecBole's evaluator: rankings, the best items, and item metrics. With `--anomaly` the steps of each model are also timed with
torch's anomaly detection, which RecBole's SINE turns on when it is imported.
"""

import statistics
import sys
from pathlib import Path

import torch
from tabulate import tabulate

from benchmarks.harness import in_turns, parser, spread, surroundings, write_json
from recbole_flr.config import Config
from recbole_flr.console import no_foreign_warnings
from recbole_flr.data.loading import load_dataset, split
from recbole_flr.quick_start import build_trainer
from recbole_flr.registry import get_model


def versions_of(name, dataset, options, anomaly):
    """The timed functions of one model.

    Returns:
        three dicts, name -> function: steps, rankings and evaluations; and a dict, name -> number of rows that are ranked.
    """
    config = Config(name, dataset, config_dict={"show_progress": False, "use_gpu": False, **options})
    with no_foreign_warnings():
        train, valid, _ = split(config, load_dataset(config))
    model = get_model(name)(config, train._dataset)
    trainer = build_trainer(config, model)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.001)
    rows, asked = next(iter(train)), next(iter(valid))[0]

    def step(detect=False):
        with torch.autograd.set_detect_anomaly(detect):
            model.train()
            optimizer.zero_grad()
            model.calculate_loss(rows).backward()
            optimizer.step()

    @torch.no_grad()
    def rank():
        model.eval()
        model.full_sort_predict(asked)

    steps = {f"{name} step": step}
    if anomaly:
        steps[f"{name} step, anomaly detection"] = lambda: step(True)

    def evaluate():
        trainer.evaluate(valid, load_best_model=False)

    sizes = {f"{name} rank": len(asked), f"{name} evaluation": len(valid.dataset)}
    return steps, {f"{name} rank": rank}, {f"{name} evaluation": evaluate}, sizes


def main(arguments):
    """Print the figures. Returns them: name -> median of the milliseconds of a step, or of ranking or evaluating a row."""
    command = parser("benchmarks.steps", __doc__, {
        "repeats": (15, 1, "timed calls of each"), "threads": (1, 1, "of torch"),
    })  # fmt: skip
    command.add_argument("--dataset", default="toys_demo", help="name (default: toys_demo)")
    command.add_argument("--models", default="SASRec,FLRMix", help="names; the first is what the others are compared with")
    command.add_argument("--anomaly", action="store_true", help="also time steps with anomaly detection")
    command.add_argument("--data", type=Path, help="folder of the data sets (default: dataset)")
    given = command.parse_args(arguments)
    torch.set_num_threads(given.threads)
    options = {"data_path": str(given.data)} if given.data else {}
    steps, ranks, evaluations, rows = {}, {}, {}, {}
    for name in given.models.split(","):
        for all_models, one in zip((steps, ranks, evaluations, rows), versions_of(name, given.dataset, options, given.anomaly)):
            all_models.update(one)
    table, medians = [], {}
    for versions in (steps, ranks, evaluations):
        seconds = in_turns(versions, given.repeats)
        first = seconds[next(iter(seconds))]
        for name, values in seconds.items():
            scale = 1000 / rows.get(name, 1)
            medians[name] = statistics.median(values) * scale
            ratios = [(value / rows.get(name, 1)) / (other / rows.get(next(iter(seconds)), 1)) for value, other in zip(values, first)]
            table.append([name, spread(values, scale, 2), spread(ratios, 1, 2)])
    print(tabulate(table, headers=["", "ms a step, or a ranked row (min..max)", "to the first"]))
    write_json(given.json, {"ms": medians, "surroundings": surroundings(("torch", "numpy"))})
    return medians


if __name__ == "__main__":
    main(sys.argv[1:])
