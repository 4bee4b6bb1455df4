"""What a language model costs in a training step and in a ranking, by parts.

    python -m benchmarks.backbone --dataset=movies --set backbone=smollm2-135m --set trainable=lora --set item_noun=movie

A step is forward pass, backward pass and Adam on `train_batch_size` rows whose prompts have about the median length. A ranking is
of `eval_batch_size` validation rows, spread over all of them: reading the prompts, thinking, and the search for titles. The weights
are untrained, so the search is at its slowest. Times are seconds of the processor. A busy machine makes them up to half as long again.
"""

import sys
from pathlib import Path
from time import process_time

import torch
from recbole.utils import init_seed
from tabulate import tabulate

from benchmarks.harness import parser, peak, start_peak, surroundings, write_json
from recbole_flr.config import Config
from recbole_flr.console import no_foreign_warnings
from recbole_flr.data.loading import load_dataset, split
from recbole_flr.registry import get_model

GIB = 2**30


def built(name, dataset, options):
    """A model that writes titles, RecBole's training loader, a batch of training rows and one of validation rows."""
    config = Config(name, dataset, config_dict={"show_progress": False, "use_gpu": False, **options})
    with no_foreign_warnings():
        train, valid, _ = split(config, load_dataset(config))
    init_seed(config["seed"], True)
    model = get_model(name)(config, train._dataset)
    lengths = model.prompt_lengths(train._dataset.inter_feat)
    size = min(config["train_batch_size"], len(lengths))
    first = (len(lengths) - size) // 2
    rows = valid._dataset.inter_feat
    spread = torch.linspace(0, len(rows) - 1, min(config["eval_batch_size"], len(rows))).long()
    return model, train.collate_fn(lengths.argsort(stable=True)[first:first + size].tolist()), rows[spread]


def timed(function, *arguments):
    """Call a function. Returns its result and the seconds of the processor."""
    start = process_time()
    result = function(*arguments)
    return result, process_time() - start


def saved_bytes(model, batch):
    """Bytes of all tensors that a forward pass keeps for the backward pass, weights included."""
    storages = {}

    def pack(tensor):
        storage = tensor.untyped_storage()
        storages[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        loss = model.calculate_loss(batch)  # alive while it is counted, so that no address comes twice
    total = sum(storages.values())
    del loss
    return total


def step_costs(model, batch, repeats):
    """Least seconds of forward pass, backward pass and optimizer; GiB at the peak of a step; GiB kept for the backward pass."""
    optimizer = torch.optim.AdamW([parameter for parameter in model.parameters() if parameter.requires_grad], lr=1e-4)
    model.train()
    found, most = [], 0
    for _ in range(repeats + 1):
        optimizer.zero_grad()
        start_peak()
        loss, forward = timed(model.calculate_loss, batch)
        _, backward = timed(loss.backward)
        _, update = timed(optimizer.step)
        most = max(most, peak())
        found.append((forward, backward, update))
    least = [min(values) for values in zip(*found[1:])]
    names = ("forward", "backward", "optimizer")
    return {**{f"step: {name}, s": value for name, value in zip(names, least)}, "step: in all, s": sum(least),
            "step: peak memory, GiB": most / GIB, "step: kept for backward, GiB": saved_bytes(model, batch) / GIB}


@torch.no_grad()
def ranking_costs(model, rows, repeats):
    """Least seconds of each part of a ranking, and GiB at its peak."""
    model.eval()
    found, most = [], 0
    for _ in range(repeats):
        start_peak()
        context, read = timed(model.read_context, rows)
        thought, think = timed(model.think, context)
        _, search = timed(model.decode, thought)
        most = max(most, peak())
        found.append((read, think, search))
    least = [min(values) for values in zip(*found)]
    names = ("read prompts", "think", "search")
    return {**{f"ranking: {name}, s": value for name, value in zip(names, least)}, "ranking: in all, s": sum(least),
            "ranking: peak memory, GiB": most / GIB}


def main(arguments):
    """Print the figures. Returns them: name -> number."""
    command = parser("benchmarks.backbone", __doc__, {
        "repeats": (2, 1, "times; the least is taken"), "threads": (1, 1, "of torch"),
    })  # fmt: skip
    command.add_argument("--dataset", default="toys_demo", help="name (default: toys_demo)")
    command.add_argument("--model", default="FLR", help="a model that writes titles (default: FLR)")
    command.add_argument("--set", action="append", default=[], metavar="NAME=VALUE", help="an option of the model")
    command.add_argument("--data", type=Path, help="folder of the data sets (default: dataset)")
    given = command.parse_args(arguments)
    torch.set_num_threads(given.threads)
    options = dict(word.split("=", 1) for word in given.set)
    if given.data:
        options["data_path"] = str(given.data)
    model, batch, rows = built(given.model, given.dataset, options)
    found = {**step_costs(model, batch, given.repeats), **ranking_costs(model, rows, given.repeats)}
    print(tabulate([[name, f"{value:.2f}"] for name, value in found.items()]))
    write_json(given.json, {"costs": found, "rows": [len(batch), len(rows)], "surroundings": surroundings()})
    return found


if __name__ == "__main__":
    main(sys.argv[1:])
