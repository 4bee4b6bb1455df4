"""Time and memory of training steps that share the prefixes of prompts, beside steps that read each row by itself.

    python -m benchmarks.prefixes --dataset=toys_demo --model=FLR
    python -m benchmarks.prefixes --dataset=movies --model=FLR --option backbone=smollm2-135m --option trainable=lora --batch=16

The training rows of a user are prefixes of one another. `share_prefixes` puts such rows into one batch and reads the longest prompt
once for all of them. Both versions train on the same rows, each in its own batches: rows of one group together, or rows of similar
length together. A turn is the same number of steps with each version. The table gives the time per row.

First, losses and gradients are compared: one batch is read in both ways, without dropout.

For times and memory see `benchmarks.harness`.
"""

import argparse
import statistics
import sys
import warnings
from pathlib import Path

import torch
from tabulate import tabulate

from benchmarks.harness import (
    add_device, check_device, in_fresh_process, in_turns, parser, peak, spread, start_peak, surroundings, write_json,
)
from recbole_flr.config import Config
from recbole_flr.data.loading import load_dataset, split
from recbole_flr.data.prefixes import prefix_sources
from recbole_flr.options import parse_value
from recbole_flr.registry import get_model
from recbole_flr.training.supervised import Supervised

VERSIONS = {"row by row": False, "shared": True}
TOLERANCE = 1e-4  # relative, in float32


def options_of(given):
    """The run's options: name -> value."""
    own = dict(option.partition("=")[::2] for option in given.option)
    return {"train_batch_size": given.batch, "show_progress": False, "state": "ERROR", "data_path": str(given.data.resolve()),
            "title_metrics": False, "use_gpu": given.device == "cuda", **{name: parse_value(value) for name, value in own.items()}}


def prepare(given, share, **options):
    """Model, its optimizer, and the batches of one epoch."""
    config = Config(given.model, given.dataset, config_dict={**options_of(given), "share_prefixes": share, **options})
    torch.manual_seed(config["seed"])
    train = split(config, load_dataset(config))[0]
    model = get_model(given.model)(config, train._dataset).to(config["device"])
    loader = Supervised(model, config).loader(train)
    optimizer = torch.optim.AdamW((p for p in model.parameters() if p.requires_grad), lr=1e-4)
    return model.train(), optimizer, loader


class Steps:
    """Training steps of one version, one batch after the other."""

    def __init__(self, given, share):
        self.model, self.optimizer, self.loader = prepare(given, share)
        self.batches, self.rows, self.given = iter(self.loader), 0, given

    def __call__(self):
        """A turn: `steps` steps."""
        for _ in range(self.given.steps):
            batch = next(self.batches, None)
            if batch is None:
                self.batches = iter(self.loader)
                batch = next(self.batches)
            self.rows += len(batch)
            self.optimizer.zero_grad(set_to_none=True)
            self.model.calculate_loss(batch.to(self.model.device)).backward()
            self.optimizer.step()


def check_equal(given):
    """Compare the loss and the gradients of one batch. Returns the largest relative difference.

    Raises:
        AssertionError: if one differs.
    """
    model, _, loader = prepare(given, True, embedding_dropout=0.0, lora_dropout=0.0, compact_dropout=0.0)
    for batch in loader:
        source = prefix_sources(batch[model.ITEM_SEQ], batch[model.ITEM_SEQ_LEN])
        size = source.bincount()[source]  # of each row's group
        if size.max() > 1:
            break
    else:
        raise AssertionError("no two rows of a batch share a prefix; there is nothing to measure")
    batch = batch[size.argsort(descending=True, stable=True)[:8]].to(model.device)
    reader = model.reader if given.model == "FLRMix" else model
    if given.model == "FLRMix":
        model.head.drop.p = 0.0
    found = []
    for share in VERSIONS.values():
        reader.sharing = share
        model.zero_grad(set_to_none=True)
        loss = model.calculate_loss(batch)
        loss.backward()
        found.append([loss.detach(), *(p.grad for p in model.parameters() if p.grad is not None)])
    scale = max(float(part.norm()) for part in found[0][1:])
    worst = max(float((one - other).norm()) / max(float(one.norm()), 1e-3 * scale) for one, other in zip(*found))
    if not worst < TOLERANCE:
        raise AssertionError(f"the versions differ by {worst:.1e} (relative), expected less than {TOLERANCE}")
    return worst


def memory_growth(given, version):
    """Bytes by which the memory rises in `steps` steps. To be called in a fresh process."""
    steps = Steps(given, VERSIONS[version])
    before = start_peak(given.device)
    steps()
    return max(peak(given.device) - before, 0)


def parse(arguments):
    """Parse a command line. Returns the options."""
    command = parser("benchmarks.prefixes", __doc__, {
        "batch": (128, 1, "rows in a batch"), "steps": (4, 1, "steps in a turn"), "repeats": (5, 1, "turns"),
        "threads": (1, 1, "of torch"),
    })  # fmt: skip
    command.add_argument("--model", default="FLR", help="a model that reads titles (default: FLR)")
    command.add_argument("--dataset", default="toys_demo", help="name (default: toys_demo)")
    command.add_argument("--data", type=Path, default=Path("dataset"), help="folder of the data sets (default: dataset)")
    command.add_argument("--option", action="append", default=[], help="an option of the run, name=value; may be repeated")
    command.add_argument("--memory-of", choices=VERSIONS, help=argparse.SUPPRESS)
    add_device(command)
    given = command.parse_args(arguments)
    check_device(command, given.device)
    return given


def main(arguments=None):
    """Compare, measure, print the table. Returns what --json writes."""
    arguments = sys.argv[1:] if arguments is None else list(arguments)
    given = parse(arguments)
    torch.set_num_threads(given.threads)
    warnings.filterwarnings("ignore")
    if given.memory_of:
        growth = memory_growth(given, given.memory_of)
        print(growth)
        return growth
    difference = check_equal(given)
    print(f"Loss and gradients agree: largest relative difference {difference:.1e}.")
    memory = {name: in_fresh_process("benchmarks.prefixes", [*arguments, "--memory-of", name]) for name in VERSIONS}
    steps = {name: Steps(given, share) for name, share in VERSIONS.items()}
    seconds = in_turns(steps, given.repeats, given.device)
    results = {}
    for name, one in steps.items():
        turns = len(seconds[name])
        ratios = [other / own for other, own in zip(seconds["row by row"], seconds[name])]
        results[name] = {"seconds": seconds[name], "ms_per_row": 1e3 * statistics.median(seconds[name]) / (given.steps * given.batch),
                         "ratios": ratios, "ratio": statistics.median(ratios), "peak_bytes": memory[name], "turns": turns}
    rows = [[name, f"{one['ms_per_row']:.2f}", spread(one["ratios"], digits=2), f"{one['peak_bytes'] / 1e6:.0f}"]
            for name, one in results.items()]
    headers = ["version", "ms per row", "times as fast (min..max)", "peak memory MB"]
    print(tabulate(rows, headers, disable_numparse=True, colalign=("left", "right", "right", "right")))
    report = {"command": " ".join(["python -m benchmarks.prefixes", *arguments]), **surroundings(device=given.device),
              "largest_difference": difference, "results": results}
    write_json(given.json, report)
    return report


if __name__ == "__main__":
    main()
