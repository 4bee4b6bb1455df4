"""Time and peak memory of one step of the reinforcement stage: a group that shares its prompt against full prompts.

    python -m benchmarks.grpo --json grpo.json

A step reads the prompts, thinks, scores the titles of all members, rewards them, asks the reference, goes backward and
updates FLR's own weights with AdamW. The backbone is frozen and small, and its weights are random. The catalogue is made up
of words of one token each, so prompts and targets have exactly the lengths that the options ask for. The versions:

- shared: the project's, `recbole_flr.training.reinforcement`. A prompt is read once, without gradient, for all members and
  roles.
- repeated: the first idea. The prompt is repeated for each of the G members. A member's thought takes N full passes over
  [prompt, thought] with gradient, and its title one more. The old policy takes one full pass without gradient, the reference
  N + 1.
- repeated, frugal: as `repeated`, with two savings that need no shared prompts. There is one thought for a group, whose
  members differ only by noise. And where the old policy's probabilities are those of the policy's own pass (token), they are
  taken from it.

With `latent`, only the thought has a gradient, and the reference gives a thought only. So the titles are scored once, by the
old policy.

All three do the same mathematics. Before anything is timed, losses and gradients are compared in float64 for both values of
`grpo_ratio`, on prompts and targets of unequal length, with a reference that differs from the policy. The formulas of
`recbole_flr.training.grpo` and the factor step are common to all versions. The versions differ in which tokens they read
when. The repeated versions are spared what no title needs: logits before the title (`logits_to_keep`) and key/value caches.

With --backbone the model has that language model, and with a --dtype other than float32 only `shared` is measured; then a small
compact backbone in float64 is compared. The report gives the throughput of `shared`: prompts and their members' tokens a second,
the share of the device's peak, the memory of a step, and with --largest-batch the largest batch (`benchmarks.throughput`).

For times and memory see `benchmarks.harness`. Memory is measured after one step on a single short prompt.

Shapes: B prompts, G members, L prompt tokens, T title tokens, D width, V vocabulary.
"""

import gc
import statistics
import sys
import warnings
from functools import partial

import torch
from recbole.data.interaction import Interaction
from tabulate import tabulate

from benchmarks.harness import in_fresh_process, in_turns, peak, spread, start_peak, surroundings, write_json
from benchmarks.made_up import batch, build, checked_sizes, continued, in_float64, parse_sizes, think
from benchmarks.throughput import as_text, measure
from recbole_flr.contracts import LossPart, total_loss
from recbole_flr.data.prompt import IGNORE
from recbole_flr.model.flr import FLR
from recbole_flr.training import grpo
from recbole_flr.training.reinforcement import LatentGRPO

RATIOS = ("token", "latent")
TOLERANCE = 1e-7  # relative, in float64


# the versions: stage and RecBole batch -> loss


def shared(stage, interaction):
    """The project's version."""
    return total_loss(stage.rollout_losses(stage.rollout(interaction)))


def repeated(stage, interaction, frugal=False):
    """The obvious version: every member reads its whole prompt, in every role.

    Args:
        stage: LatentGRPO of an FLR, for its settings and its reference.
        interaction: RecBole batch.
        frugal: think once for a group; take the old policy's probabilities from the policy's own pass.
    """
    model, group, token = stage.model, stage.group_size, stage.ratio == "token"
    lm, thoughts = model.backbone.lm, 1 if frugal else group
    prompts = model.collator.prompts(interaction[model.ITEM_SEQ], interaction[model.ITEM_SEQ_LEN])
    titles, labels = model.collator.targets(interaction[model.POS_ITEM_ID])
    title_mask = labels != IGNORE
    each = lambda rows, times=group: rows.repeat_interleave(times, 0)
    prompt, mask, member_titles = lm.get_input_embeddings()(prompts.ids), prompts.mask, each(titles)

    def log_probs_of(thought):  # [B * G, D] -> log-probabilities [B, G, T, V]
        return write(lm, each(prompt), each(mask), thought, member_titles).unflatten(0, (-1, group))

    def of_title(log_probs):  # [B, G, T, V] -> [B, G, T]
        return log_probs.gather(-1, member_titles.unflatten(0, (-1, group)).unsqueeze(-1)).squeeze(-1)

    state = think(lm, model.reasoner, each(prompt, thoughts), each(mask, thoughts))
    thought = each(state.thought, group // thoughts)  # [B * G, D]
    noise, deviation = grpo.perturb(thought[::group], group, stage.scale, stage.relative)
    noise, deviation = noise.flatten(0, 1), each(deviation)
    with torch.set_grad_enabled(frugal and token):
        log_probs = log_probs_of(thought + noise)
    with torch.no_grad():
        old = of_title(log_probs)
        match = matches(model.trie.to("cpu"), log_probs, titles, title_mask)
        advantages = grpo.group_advantage(grpo.reward(old, match, title_mask, *stage.weights), stage.eps)
        other = think(lm, stage.reference, each(prompt, thoughts), each(mask, thoughts)).thought
        other = each(other, group // thoughts)
        reference = of_title(log_probs_of(other + noise)) if token else None
    if token:
        own = of_title(log_probs if frugal else log_probs_of(thought + noise))
        objective, _ = grpo.clipped_surrogate(own - old, advantages, *stage.clip)
        objective = grpo.group_mean(objective, title_mask)
        kl = grpo.group_mean(grpo.divergence(own, reference), title_mask)
    else:
        before = thought.detach()
        log_ratio = grpo.latent_log_ratio((before + noise).unsqueeze(1), thought, before, deviation)  # [B * G, 1]
        objective = grpo.clipped_surrogate(log_ratio.view(-1, group, 1), advantages, *stage.clip)[0].mean()
        kl = grpo.latent_divergence(thought, other, deviation).mean()
    parts = {"surrogate": LossPart(-objective), "kl": LossPart(kl, stage.kl_coef), **model.loss_weights(state.regularisers())}
    return total_loss(parts)


VERSIONS = {"shared": shared, "repeated": repeated, "repeated, frugal": partial(repeated, frugal=True)}


def write(lm, prompt, mask, thought, titles):
    """[R, L, D], [R, L], [R, D] and [R, T] -> log-probabilities of the title's tokens, [R, T, V]."""
    new = torch.cat([thought.unsqueeze(1), lm.get_input_embeddings()(titles[:, :-1])], dim=1)
    return lm(**continued(prompt, mask, new), logits_to_keep=titles.shape[1]).logits.log_softmax(-1)


def matches(trie, log_probs, titles, mask):
    """Whether greedy decoding under the trie writes the title: log_probs [B, G, T, V], titles and mask [B, T] -> [B, G]."""
    allowed = torch.zeros(*titles.shape, log_probs.shape[-1], dtype=torch.bool)
    for row, (title, length) in enumerate(zip(titles.tolist(), mask.sum(1).tolist())):
        node = 0
        for step, token in enumerate(title[:length]):
            tokens, nodes = trie.children(node)
            allowed[row, step, tokens] = True
            node = nodes[tokens == token].item()
    best = log_probs.masked_fill(~allowed.to(mask.device).unsqueeze(1), float("-inf")).argmax(-1)
    return (best.eq(titles.unsqueeze(1)) | ~mask.unsqueeze(1)).all(-1)


# model and data


def build_frozen(given):
    """RecBole's config, FLR with a frozen backbone, and a function from item names to their ids."""
    options = {"num_refinements": given.refinements, "stages": "grpo", "group_size": given.group_size}
    config, model, ids = build(FLR, given, **options)
    model.freeze_encoder()
    return config, model.train(), ids


def make_stage(model, config, ratio):
    """LatentGRPO with a reference that differs from the model. If it did not, the divergence would be 0 in every version."""
    config["grpo_ratio"] = ratio
    stage = LatentGRPO(model, config)
    stage.enter()
    with torch.no_grad():
        for parameter in stage.reference.parameters():
            parameter *= 1.1
    return stage


# equality


def gradients(version, stage, interaction, seed):
    """Loss, and name -> gradient of each trained parameter. The seed determines the noise."""
    torch.manual_seed(seed)
    stage.model.zero_grad(set_to_none=True)
    loss = VERSIONS[version](stage, interaction)
    loss.backward()
    return loss.detach(), {name: p.grad for name, p in stage.model.named_parameters() if p.requires_grad}


def check_equal(given):
    """Compare all versions in float64, with weights and noise so large that every path changes the gradient.

    There are four rows with the same history and a catalogue of three titles. Whichever title greedy decoding writes is the
    target of some row and not of another. The third and fourth row have longer targets, and the fourth has a shorter prompt.

    Returns:
        the largest relative difference.

    Raises:
        AssertionError: if a loss or a gradient differs, or if the exact match cannot make a difference.
    """
    given = checked_sizes(given, items=2, batch=4)
    config, model, ids = build_frozen(given)
    config["noise_scale"] = 3.0
    in_float64(model, std=2 * given.hidden ** -0.5)
    interaction = batch(given, model, ids)
    interaction[model.ITEM_SEQ][:] = interaction[model.ITEM_SEQ][:1].clone()
    interaction[model.ITEM_SEQ_LEN][3] -= 1
    interaction[model.POS_ITEM_ID][:] = torch.from_numpy(ids(["i0", "i1", "filler", "filler"]))
    worst = 0.0
    for ratio in RATIOS:
        for seed in range(20):
            stage = make_stage(model, config, ratio)
            loss, expected = gradients("shared", stage, interaction, seed)
            if stage.means.read()["match"] != stage.means.read()["clean_match"]:
                break  # noise changes whether some title is written, which changes the advantages
        else:
            raise AssertionError("'shared': no noise changes what greedy decoding writes, so the exact match is not checked")
        for version in list(VERSIONS)[1:]:
            other, found = gradients(version, make_stage(model, config, ratio), interaction, seed)
            for name, a, b in [("loss", other, loss), *((name, found[name], expected[name]) for name in expected)]:
                difference = ((a - b).norm() / b.norm()).item()
                if not difference < TOLERANCE:
                    raise AssertionError(f"grpo_ratio={ratio}: {name} of {version!r} differs from that of 'shared' by "
                                         f"{difference:.1e} (relative), expected less than {TOLERANCE}")
                worst = max(worst, difference)
    return worst


# measures


def steps(model, config, ratio, versions=VERSIONS):
    """version -> function that makes one optimizer step on a RecBole batch."""
    trained = [p for p in model.parameters() if p.requires_grad]

    def make(version):
        stage = make_stage(model, config, ratio)
        optimizer = torch.optim.AdamW(trained, config["grpo_learning_rate"])

        def step(interaction):
            optimizer.zero_grad()
            version(stage, interaction).backward()
            optimizer.step()

        return step

    return {name: make(VERSIONS[name]) for name in versions}


def versions_of(given):
    """The versions that are measured: all, or `shared` alone, as the others know only float32."""
    return list(VERSIONS) if given.backbone == "compact" and given.dtype == "float32" else ["shared"]


def throughput(given, ratio):
    """Figures of :func:`benchmarks.throughput.measure` for `shared`. A row has the tokens of its prompt, and the thought and the
    target of each member."""
    config, model, ids = build_frozen(given)
    step = steps(model, config, ratio, ["shared"])["shared"]
    tokens = given.prompt + given.group_size * (1 + given.target)
    return measure(lambda rows: partial(step, batch(given, model, ids, rows)), given, given.batch, tokens)


def times(given):
    """Time the steps: dict, (grpo_ratio, version) -> list of seconds."""
    config, model, ids = build_frozen(given)
    interaction = batch(given, model, ids)
    found = {}
    for ratio in RATIOS:
        made = steps(model, config, ratio, versions_of(given))
        versions = {name: partial(step, interaction) for name, step in made.items()}
        for version, seconds in in_turns(versions, given.repeats, given.device).items():
            found[ratio, version] = seconds
    return found


def memory_growth(given, version, ratio):
    """Bytes by which the memory rises in one step. To be called in a fresh process, which has no earlier peak."""
    config, model, ids = build_frozen(given)
    step, interaction = steps(model, config, ratio, [version])[version], batch(given, model, ids)
    small = Interaction({name: value[:1].clone() for name, value in interaction.interaction.items()})
    small[model.ITEM_SEQ_LEN][:] = 1
    step(small)  # so that what torch sets up once is not counted
    gc.collect()
    before = start_peak(given.device)
    step(interaction)
    return max(peak(given.device) - before, 0)


# command line


def parse(arguments):
    """Parse a command line. Returns the options."""
    return parse_sizes("benchmarks.grpo", __doc__, {
        "group-size": (8, 2, "G, members of a group"), "hidden": (256, 8, "D of the backbone, a multiple of 8"),
        "layers": (4, 1, "layers of the backbone"), "batch": (4, 1, "B, prompts in a step"),
    }, arguments)


def main(arguments=None):
    """Compare the versions, measure them, print the table. Returns what --json writes."""
    arguments = sys.argv[1:] if arguments is None else list(arguments)
    given = parse(arguments)
    warnings.filterwarnings("ignore", category=FutureWarning, module="recbole")
    if given.memory_of:
        ratio, version = given.memory_of
        growth = memory_growth(given, version, ratio)
        print(growth)
        return growth
    difference = check_equal(given)
    print(f"Loss and gradients agree in float64: largest relative difference {difference:.1e}.")
    memory = {(ratio, version): in_fresh_process("benchmarks.grpo", [*arguments, "--memory-of", ratio, version])
              for ratio in RATIOS for version in versions_of(given)}
    results, rows = [], []
    for (ratio, version), seconds in times(given).items():
        one = {"grpo_ratio": ratio, "version": version, "seconds": seconds, "median": statistics.median(seconds),
               "peak_bytes": memory[ratio, version]}
        results.append(one)
        ours = next(other for other in results if other["grpo_ratio"] == ratio)  # its first version
        one["time_ratio"] = one["median"] / ours["median"]
        one["memory_ratio"] = one["peak_bytes"] / ours["peak_bytes"] if ours["peak_bytes"] else None
        rows.append([ratio, version, spread(seconds, 1e3), f"{one['time_ratio']:.2f}",
                     f"{one['peak_bytes'] / 1e6:.1f}", one["memory_ratio"] and f"{one['memory_ratio']:.2f}"])
    headers = ["grpo_ratio", "version", "time ms (min..max)", "to shared", "peak memory MB", "to shared"]
    print(tabulate(rows, headers, disable_numparse=True, colalign=("left", "left", *["right"] * 4)))
    speeds = {ratio: throughput(given, ratio) for ratio in RATIOS}
    for ratio, speed in speeds.items():
        print(f"{ratio}: {as_text(speed, 'prompts')}")
    settings = {name: value for name, value in vars(given).items() if name not in ("json", "memory_of")}
    command = " ".join(["python -m benchmarks.grpo", *arguments])
    report = {"command": command, "settings": settings, **surroundings(device=given.device), "largest_difference": difference,
              "results": results, "throughput": speeds}  # fmt: skip
    write_json(given.json, report)
    return report


if __name__ == "__main__":
    main()
