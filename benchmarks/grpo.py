"""Time and peak memory of one step of the reinforcement stage: a group that shares its prompt against full prompts.

    python -m benchmarks.grpo --json grpo.json

A step: read the prompts, think, score the members' titles, judge them, ask the reference, backward, AdamW on what FLR
trains. The backbone is frozen and small, its weights are random, the catalogue is made up (words of one token each, so that
prompts and targets have the very lengths that are asked for). Versions:

- shared: the project's, `recbole_flr.training.rollout`: a prompt is read once, without gradient, for all members and roles.
- repeated: what comes first to mind. The prompt is repeated for each of the G members; a member's thought takes N full
  passes over [prompt, thought] with gradient, its title one more; the old policy one full pass without, the reference N + 1.
- repeated, frugal: the same with two savings that need no sharing of prompts: one thought a group, whose members differ only
  by noise, and no pass of its own for the old policy where it is the policy's own (token).

With `latent` only the thought has a gradient and is asked of the reference: the titles are scored once, by the old policy.

All three do the same mathematics: before anything is timed, loss and gradients are compared in float64, for both values of
`grpo_ratio`, on prompts and targets of unequal length and a reference that differs from the policy. The formulas of
`recbole_flr.training.grpo` and the factor step are common to all; who reads which tokens when is not. The repeated versions
are spared what no title needs: vocabulary logits in front of it (`logits_to_keep`), and key/value caches.

Times: the versions take turns in one process, after one step each that does not count. Memory: how far a step raises the
resident memory of a fresh process (on CUDA, the memory that torch has allocated), after one step on a single short prompt.

Shapes: B prompts, G members, L prompt tokens, T title tokens, D width, V vocabulary.
"""

import argparse
import gc
import statistics
import sys
import warnings
from functools import partial

import torch
from recbole.data.interaction import Interaction
from tabulate import tabulate

from benchmarks.harness import in_fresh_process, in_turns, peak, spread, start_peak, surroundings, write_json
from benchmarks.made_up import batch, build, continued, in_float64, parse_sizes, think
from recbole_flr.data.prompt import IGNORE
from recbole_flr.model.flr import FLR
from recbole_flr.training import grpo
from recbole_flr.training.rollout import LatentGRPO

RATIOS = ("token", "latent")
TOLERANCE = 1e-7  # relative, in float64


# the versions: policy and RecBole batch -> loss


def shared(policy, interaction):
    """The project's version."""
    return policy.loss(policy.rollout(interaction))


def repeated(policy, interaction, frugal=False):
    """The obvious version: every member reads its whole prompt, in every role.

    Args:
        policy: LatentGRPO of an FLR, for its settings and its reference.
        interaction: RecBole batch.
        frugal: think once a group; take the old policy's probabilities from the policy's own pass.
    """
    model, group, token = policy.model, policy.group_size, policy.ratio == "token"
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
    noise, deviation = grpo.perturb(thought[::group], group, policy.scale, policy.relative)
    noise, deviation = noise.flatten(0, 1), each(deviation)
    with torch.set_grad_enabled(frugal and token):
        log_probs = log_probs_of(thought + noise)
    with torch.no_grad():
        old = of_title(log_probs)
        match = matches(model.trie.to("cpu"), log_probs, titles, title_mask)
        advantages = grpo.group_advantage(grpo.reward(old, match, title_mask, *policy.weights), policy.eps)
        other = think(lm, policy.reference, each(prompt, thoughts), each(mask, thoughts)).thought
        other = each(other, group // thoughts)
        reference = of_title(log_probs_of(other + noise)) if token else None
    if token:
        own = of_title(log_probs if frugal else log_probs_of(thought + noise))
        objective, _ = grpo.clipped_surrogate(own - old, advantages, *policy.clip)
        objective = grpo.group_mean(objective, title_mask)
        kl = grpo.group_mean(grpo.divergence(own, reference), title_mask)
    else:
        before = thought.detach()
        log_ratio = grpo.latent_log_ratio((before + noise).unsqueeze(1), thought, before, deviation)  # [B * G, 1]
        objective = grpo.clipped_surrogate(log_ratio.view(-1, group, 1), advantages, *policy.clip)[0].mean()
        kl = grpo.latent_divergence(thought, other, deviation).mean()
    return model.loss_weights(policy.kl_coef * kl - objective, state.regularisers())


VERSIONS = {"shared": shared, "repeated": repeated, "repeated, frugal": partial(repeated, frugal=True)}


def write(lm, prompt, mask, thought, titles):
    """[R, L, D], [R, L], [R, D] and [R, T] -> log-probabilities of the title's tokens, [R, T, V]."""
    new = torch.cat([thought.unsqueeze(1), lm.get_input_embeddings()(titles[:, :-1])], dim=1)
    return lm(**continued(prompt, mask, new), logits_to_keep=titles.shape[1]).logits.log_softmax(-1)


def matches(trie, log_probs, titles, mask):
    """Whether greedy decoding among the trie's children writes the title: [B, G, T, V], [B, T], [B, T] -> [B, G]."""
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
    model.freeze_backbone()
    return config, model.train(), ids


def make_policy(model, config, ratio):
    """LatentGRPO whose reference differs from the model; else the divergence and its gradient would be 0 in any version."""
    config["grpo_ratio"] = ratio
    policy = LatentGRPO(model, config)
    with torch.no_grad():
        for parameter in policy.reference.parameters():
            parameter *= 1.1
    return policy


# equality


def gradients(version, policy, interaction, seed):
    """Loss, and name -> gradient of what is trained. The noise is that of the seed."""
    torch.manual_seed(seed)
    policy.model.zero_grad(set_to_none=True)
    loss = VERSIONS[version](policy, interaction)
    loss.backward()
    return loss.detach(), {name: p.grad for name, p in policy.model.named_parameters() if p.requires_grad}


def check_equal(given):
    """Compare all versions in float64, with weights and noise so large that every path shows in the gradient.

    Four rows, one history, a catalogue of three titles: whichever of them greedy decoding writes, it is the target of some
    row and not of another. The third row's target is longer, and so is the fourth's, whose prompt is shorter.

    Returns:
        the largest relative difference.

    Raises:
        AssertionError: if a loss or a gradient differs, or none could by the exact match.
    """
    given = argparse.Namespace(**{**vars(given), "items": 2, "batch": 4})
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
            policy = make_policy(model, config, ratio)
            loss, expected = gradients("shared", policy, interaction, seed)
            if policy.figures.means()["match"] != policy.figures.means()["clean_match"]:
                break  # some title is written with noise and not without, or the reverse: it tells in the advantages
        else:
            raise AssertionError("'shared': no noise changes what greedy decoding writes, so the exact match is not checked")
        for version in list(VERSIONS)[1:]:
            other, found = gradients(version, make_policy(model, config, ratio), interaction, seed)
            for name, a, b in [("loss", other, loss), *((name, found[name], expected[name]) for name in expected)]:
                difference = ((a - b).norm() / b.norm()).item()
                if not difference < TOLERANCE:
                    raise AssertionError(f"grpo_ratio={ratio}: {name} of {version!r} differs from that of 'shared' by "
                                         f"{difference:.1e} (relative), expected less than {TOLERANCE}")
                worst = max(worst, difference)
    return worst


# measures


def steps(model, config, ratio):
    """version -> function that makes one optimizer step on a RecBole batch."""
    trained = [p for p in model.parameters() if p.requires_grad]

    def make(version):
        policy = make_policy(model, config, ratio)
        optimizer = torch.optim.AdamW(trained, config["grpo_learning_rate"])

        def step(interaction):
            optimizer.zero_grad()
            version(policy, interaction).backward()
            optimizer.step()

        return step

    return {name: make(version) for name, version in VERSIONS.items()}


def times(given):
    """grpo_ratio, version -> seconds of each of the steps."""
    config, model, ids = build_frozen(given)
    interaction = batch(given, model, ids)
    found = {}
    for ratio in RATIOS:
        made = steps(model, config, ratio)
        versions = {name: partial(step, interaction) for name, step in made.items()}
        for version, seconds in in_turns(versions, given.repeats, given.device).items():
            found[ratio, version] = seconds
    return found


def memory_growth(given, version, ratio):
    """Bytes by which the peak of one step lies above what was in use before it. Only a fresh process gives its own peak."""
    config, model, ids = build_frozen(given)
    step, interaction = steps(model, config, ratio)[version], batch(given, model, ids)
    small = Interaction({name: value[:1].clone() for name, value in interaction.interaction.items()})
    small[model.ITEM_SEQ_LEN][:] = 1
    step(small)  # what torch sets up once belongs to no version
    gc.collect()
    before = start_peak(given.device)
    step(interaction)
    return max(peak(given.device) - before, 0)


# command line


def parse(arguments):
    """Words -> options."""
    return parse_sizes("benchmarks.grpo", __doc__, {
        "group-size": (8, 2, "G, members of a group"), "hidden": (256, 8, "D of the backbone, a multiple of 8"),
        "layers": (4, 1, "of the backbone"), "batch": (4, 1, "B, prompts a step"),
    }, arguments)


def main(arguments=None):
    """Compare, measure, print the table; returns what --json writes."""
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
              for ratio in RATIOS for version in VERSIONS}
    results, rows = [], []
    for (ratio, version), seconds in times(given).items():
        one = {"grpo_ratio": ratio, "version": version, "seconds": seconds, "median": statistics.median(seconds),
               "peak_bytes": memory[ratio, version]}
        results.append(one)
        ours = next(other for other in results if other["grpo_ratio"] == ratio)  # the first of them
        one["time_ratio"] = one["median"] / ours["median"]
        one["memory_ratio"] = one["peak_bytes"] / ours["peak_bytes"] if ours["peak_bytes"] else None
        rows.append([ratio, version, spread(seconds, 1e3), f"{one['time_ratio']:.2f}",
                     f"{one['peak_bytes'] / 1e6:.1f}", one["memory_ratio"] and f"{one['memory_ratio']:.2f}"])
    headers = ["grpo_ratio", "version", "time ms (min..max)", "to shared", "peak memory MB", "to shared"]
    print(tabulate(rows, headers, disable_numparse=True, colalign=("left", "left", *["right"] * 4)))
    settings = {name: value for name, value in vars(given).items() if name not in ("json", "memory_of")}
    report = {"settings": settings, **surroundings(device=given.device), "largest_difference": difference, "results": results}
    write_json(given.json, report)
    return report


if __name__ == "__main__":
    main()
