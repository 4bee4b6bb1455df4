"""Time and peak memory of one step of the supervised stage: FLR against full passes, and against no reasoning at all.

    python -m benchmarks.training --json training.json

A step reads B prompts of L tokens, refines the thought N times, writes targets of T tokens, takes the loss, goes backward and
updates all weights with AdamW. The weights are random. The catalogue is made up of words of one token each, so prompts and
targets have exactly the lengths that the options ask for. The versions:

- ours: the project's FLR. It reads a prompt once. N - 1 passes of one token and one pass over the target follow on the
  prompt's cache. Only the target's positions are projected on the vocabulary.
- obvious: N + 1 full passes of the language model, each with the logits of all positions. The loss is the one of
  transformers, with labels of -100 where there is no target.
- obvious, frugal: as `obvious`, but the N thoughts call the trunk alone. Only the last pass has logits, of all positions.
- no thought: the same language model without reasoning. One full pass over prompt and target; target positions are projected.
- BIGRec: the project's. The mathematics is that of `no thought`. BIGRec reads the target with the prompt's cache, and nothing
  uses the last states of the prompt. So the last layer has no backward pass over the prompt, which FLR's factors do need. At
  the compact size that saves a third of the work, in a large language model very little (2 of 3 n parts of n layers).

With --backbone the models have that language model; prompts and targets keep their lengths, because their words are one token
each. With a --backbone only `ours` is measured, and with a --dtype other than float32 only the project's versions. The report
gives the throughput of `ours`: tokens a second, the share of the device's peak, the memory of a step, and with --largest-batch
the largest batch (`benchmarks.throughput`).

    python -m benchmarks.training --device=cuda --backbone=qwen2.5-1.5b --dtype=bfloat16 --largest-batch=1024

With --compile there is also `ours, compiled`: the same with `torch_compile`. Its first step, which compiles, is timed
separately.

Before anything is timed, losses and gradients are compared in float64, on prompts and targets of unequal length: `ours` with
both `obvious` versions, and `BIGRec` with `no thought`. There is no dropout. Where there is a --backbone, a small compact one is
compared.

For times and memory see `benchmarks.harness`. Memory is measured after one step on a single short prompt.

Shapes: B prompts, L prompt tokens, T title tokens, D width, V vocabulary.
"""

import gc
import statistics
import sys
import warnings
from functools import partial
from time import perf_counter

import torch
from recbole.data.interaction import Interaction
from tabulate import tabulate
from torch import nn

from benchmarks.harness import in_fresh_process, in_turns, peak, spread, start_peak, surroundings, write_json
from benchmarks.made_up import batch, build, checked_sizes, continued, in_float64, parse_sizes, think
from benchmarks.throughput import as_text, flops_of, measure
from recbole_flr.contracts import LossPart, total_loss
from recbole_flr.data.prompt import IGNORE
from recbole_flr.model.bigrec import BIGRec
from recbole_flr.model.flr import FLR

TOLERANCE = 1e-7  # relative, in float64
OPTIONS = {"embedding_dropout": 0.0, "lora_dropout": 0.0}


# the versions: model and RecBole batch -> loss


def ours(model, interaction):
    """The project's version, for FLR and BIGRec."""
    return model.calculate_loss(interaction)


def obvious(model, interaction, frugal=False):
    """Full passes over [prompt, thought] and over [prompt, thought, target]."""
    lm = model.backbone.lm
    prompts = model.collator.prompts(interaction[model.ITEM_SEQ], interaction[model.ITEM_SEQ_LEN])
    prompt = lm.get_input_embeddings()(prompts.ids)
    trunk = lm.base_model if frugal else partial(_with_logits, lm)
    state = think(lm, model.reasoner, prompt, prompts.mask, trunk)
    loss = _full_pass(model, interaction, torch.cat([prompt, state.thought.unsqueeze(1)], dim=1), prompts.mask)
    return total_loss({"title": LossPart(loss), **model.loss_weights(state.regularisers())})


def no_thought(model, interaction):
    """One full pass over [prompt, target], for BIGRec."""
    prompts = model.collator.prompts(interaction[model.ITEM_SEQ], interaction[model.ITEM_SEQ_LEN])
    titles, labels = model.collator.targets(interaction[model.POS_ITEM_ID])
    lm = model.backbone.lm
    text = continued(lm.get_input_embeddings()(prompts.ids), prompts.mask, lm.get_input_embeddings()(titles[:, :-1]))
    hidden = lm.base_model(**text).last_hidden_state[:, -titles.shape[1]:]
    labelled = labels != IGNORE
    return nn.functional.cross_entropy(model.backbone.logits(hidden[labelled]), labels[labelled])


def _with_logits(lm, **text):
    """Run the language model with its logits, like a trunk: the output has `last_hidden_state`."""
    out = lm(**text, output_hidden_states=True)
    out.last_hidden_state = out.hidden_states[-1]
    return out


def _full_pass(model, interaction, prefix, mask):
    """Mean cross entropy of the title after a prefix [B, P, D], computed as transformers does it."""
    lm = model.backbone.lm
    titles, labels = model.collator.targets(interaction[model.POS_ITEM_ID])
    mask = torch.cat([mask, mask.new_ones(len(mask), prefix.shape[1] - mask.shape[1])], dim=1)
    text = continued(prefix, mask, lm.get_input_embeddings()(titles))
    ignored = labels.new_full(mask.shape, IGNORE)
    logits = lm(**text).logits[:, :-1]
    labels = torch.cat([ignored, labels], dim=1)[:, 1:]
    return nn.functional.cross_entropy(logits.flatten(0, 1), labels.flatten(), ignore_index=IGNORE)


COMPILED = "ours, compiled"
VERSIONS = {  # name: model, function
    "ours": (FLR, ours), "obvious": (FLR, obvious), "obvious, frugal": (FLR, partial(obvious, frugal=True)),
    "no thought": (BIGRec, no_thought), "BIGRec": (BIGRec, ours),
}  # fmt: skip
WITH_COMPILED = {**VERSIONS, COMPILED: VERSIONS["ours"]}


# equality


def check_equal(given):
    """Compare losses and gradients in float64, on prompts and targets of several lengths.

    Returns:
        the largest relative difference.

    Raises:
        AssertionError: if a loss or a gradient differs.
    """
    given = checked_sizes(given, items=3, batch=4)
    worst = 0.0
    for name, other_name in (("ours", "obvious"), ("ours", "obvious, frugal"), ("BIGRec", "no thought")):
        model_class, version = VERSIONS[name]
        _, model, ids = build(model_class, given, **_options(model_class, given))
        in_float64(model, std=2 * given.hidden**-0.5)
        interaction = batch(given, model, ids)
        interaction[model.ITEM_SEQ_LEN][2:] -= 1
        interaction[model.POS_ITEM_ID][1::2] = int(ids("filler"))
        found, expected = (_gradients(one, model, interaction) for one in (version, VERSIONS[other_name][1]))
        for part in expected:
            difference = ((found[part] - expected[part]).norm() / expected[part].norm()).item()
            if not difference < TOLERANCE:
                raise AssertionError(f"{part} of {name!r} differs from that of {other_name!r} by {difference:.1e} (relative), "
                                     f"expected less than {TOLERANCE}")  # fmt: skip
            worst = max(worst, difference)
    return worst


def _gradients(version, model, interaction):
    """dict: `loss`, and the gradient of each parameter by its name."""
    model.zero_grad(set_to_none=True)
    loss = version(model, interaction)
    loss.backward()
    return {"loss": loss.detach(), **{name: p.grad for name, p in model.named_parameters() if p.grad is not None}}


# measures


def _options(model_class, given):
    return {**OPTIONS, "num_refinements": given.refinements, "stages": "sft"} if model_class is FLR else OPTIONS


def step_maker(given, version):
    """A model of a version, and how it trains.

    Returns:
        the model, and two functions: a batch -> None, makes one optimizer step; a number of rows -> a batch of so many.
    """
    model_class, loss_of = WITH_COMPILED[version]
    config, model, ids = build(model_class, given, **_options(model_class, given), torch_compile=version == COMPILED)
    model.train()
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], config["learning_rate"])

    def step(rows):
        optimizer.zero_grad()
        loss_of(model, rows).backward()
        optimizer.step()

    return model, step, lambda rows: batch(given, model, ids, rows)


def make_step(given, version):
    """Two functions that make one optimizer step: on the benchmark's batch, and on a single short prompt."""
    model, step, batch_of = step_maker(given, version)
    interaction = batch_of(given.batch)
    small = Interaction({name: value[:1].clone() for name, value in interaction.interaction.items()})
    small[model.ITEM_SEQ_LEN][:] = 1
    return partial(step, interaction), partial(step, small)


def throughput(given):
    """Figures of :func:`benchmarks.throughput.measure` for `ours`, or for the compiled one if it is asked for.

    A row has the tokens of its prompt, thought and target. The FLOPs of compiled code are those of the same step without compiling.
    """
    flops = None
    if given.compile:
        _, step, batch_of = step_maker(given, "ours")
        flops = flops_of(partial(step, batch_of(given.batch))) / given.batch
        del step, batch_of
        gc.collect()
    _, step, batch_of = step_maker(given, COMPILED if given.compile else "ours")
    return measure(lambda rows: partial(step, batch_of(rows)), given, given.batch, given.prompt + 1 + given.target, flops)


def memory_growth(given, version):
    """Bytes by which the memory rises in one step. To be called in a fresh process, which has no earlier peak."""
    step, small = make_step(given, version)
    small()  # so that what torch sets up once is not counted
    gc.collect()
    before = start_peak(given.device)
    step()
    return max(peak(given.device) - before, 0)


# command line


def parse(arguments):
    """Parse a command line. Returns the options."""
    return parse_sizes("benchmarks.training", __doc__, {
        "hidden": (128, 8, "D of the backbone, a multiple of 8"), "batch": (32, 1, "B, prompts in a step"),
    }, arguments, switches={"compile": "also time a compiled backbone"}, trainable=True)


def versions_of(given):
    """The versions that are measured: all; in other precisions the project's, as the obvious ones know only float32."""
    if given.backbone != "compact":
        chosen = ["ours"]  # one large model is in memory at a time
    else:
        chosen = list(VERSIONS) if given.dtype == "float32" else ["ours", "BIGRec"]
    return [*chosen, *([COMPILED] if given.compile else [])]


def main(arguments=None):
    """Compare the versions, measure them, print the table. Returns what --json writes."""
    arguments = sys.argv[1:] if arguments is None else list(arguments)
    given = parse(arguments)
    warnings.filterwarnings("ignore", category=FutureWarning, module="recbole")
    if given.memory_of:
        growth = memory_growth(given, *given.memory_of)
        print(growth)
        return growth
    difference = check_equal(given)
    print(f"Loss and gradients agree in float64: largest relative difference {difference:.1e}.")
    versions = versions_of(given)
    memory = {version: in_fresh_process("benchmarks.training", [*arguments, "--memory-of", version]) for version in versions}
    steps = {version: make_step(given, version)[0] for version in versions}
    if given.compile:
        start = perf_counter()
        steps[COMPILED]()
        print(f"The first compiled step took {perf_counter() - start:.1f} s.")
    seconds = in_turns(steps, given.repeats, given.device)
    results = {}
    for version in versions:
        each = [other / own for other, own in zip(seconds[version], seconds["ours"])]  # turn by turn
        results[version] = {
            "seconds": seconds[version], "median": statistics.median(seconds[version]), "peak_bytes": memory[version],
            "time_ratios": each, "time_ratio": statistics.median(each),
            "memory_ratio": memory[version] / memory["ours"] if memory["ours"] else None,
        }  # fmt: skip
    rows = [[version, spread(one["seconds"], 1e3), spread(one["time_ratios"], digits=2), f"{one['peak_bytes'] / 1e6:.1f}",
             one["memory_ratio"] and f"{one['memory_ratio']:.2f}"] for version, one in results.items()]  # fmt: skip
    headers = ["version", "time ms (min..max)", "to ours (min..max)", "peak memory MB", "to ours"]
    print(tabulate(rows, headers, disable_numparse=True, colalign=("left", *["right"] * 4)))
    steps.clear()  # their models make room for one
    speed = throughput(given)
    print(as_text(speed))
    settings = {name: value for name, value in vars(given).items() if name not in ("json", "memory_of")}
    command = " ".join(["python -m benchmarks.training", *arguments])
    report = {"command": command, "settings": settings, **surroundings(device=given.device), "largest_difference": difference,
              "results": results, "throughput": speed}  # fmt: skip
    write_json(given.json, report)
    return report


if __name__ == "__main__":
    main()
