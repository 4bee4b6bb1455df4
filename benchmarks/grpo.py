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
import json
import platform
import re
import resource
import statistics
import subprocess
import sys
import tempfile
import warnings
from functools import partial
from pathlib import Path
from time import perf_counter

import numpy as np
import psutil
import torch
import transformers
from recbole.data.interaction import Interaction
from recbole.utils import init_seed
from tabulate import tabulate
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast
from transformers.models.qwen2.modeling_qwen2 import Qwen2RMSNorm

from recbole_flr.config import Config
from recbole_flr.data.collate import IGNORE
from recbole_flr.data.loading import load_dataset, split
from recbole_flr.model.backbone import END_OF_TITLE, PAD, START, THOUGHT
from recbole_flr.model.flr import FLR
from recbole_flr.training import grpo
from recbole_flr.training.rollout import LatentGRPO

ROOT = Path(__file__).resolve().parents[1]
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


def think(lm, reasoner, prompt, mask):
    """Refine thoughts by N full passes. Prompts [R, L, D] and their mask [R, L] -> FactorState."""
    thought = reasoner.initial.expand(len(prompt), -1)
    for _ in range(reasoner.num_refinements):
        text = continued(prompt, mask, thought.unsqueeze(1))
        hidden = lm.base_model(**text).last_hidden_state
        keys = reasoner.step.keys(hidden, text["position_ids"])
        state = reasoner.step(keys, hidden, text["attention_mask"])
        thought = state.thought
    return state


def write(lm, prompt, mask, thought, titles):
    """[R, L, D], [R, L], [R, D] and [R, T] -> log-probabilities of the title's tokens, [R, T, V]."""
    new = torch.cat([thought.unsqueeze(1), lm.get_input_embeddings()(titles[:, :-1])], dim=1)
    return lm(**continued(prompt, mask, new), logits_to_keep=titles.shape[1]).logits.log_softmax(-1)


def continued(prompt, mask, new):
    """What transformers wants for [R, L, D] with [R, S, D] behind."""
    mask = torch.cat([mask, mask.new_ones(new.shape[:2])], dim=1)
    positions = (mask.long().cumsum(1) - 1).clamp_min(0)
    return dict(inputs_embeds=torch.cat([prompt, new], dim=1), attention_mask=mask, position_ids=positions, use_cache=False)


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


def write_files(folder, given):
    """A catalogue whose words are one token each, and a tokenizer that knows them.

    Item `filler` makes up what whole titles leave of the prompt; all others have T tokens with their end.
    """
    rng = np.random.default_rng(0)
    special = [PAD, START, END_OF_TITLE, THOUGHT]
    words = [f"w{number}" for number in range(given.vocabulary - len(special))]
    tokenizer = Tokenizer(models.WordLevel({word: number for number, word in enumerate(special + words)}, words[0]))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token=PAD, bos_token=START, eos_token=END_OF_TITLE,
        additional_special_tokens=[THOUGHT],
    ).save_pretrained(folder / "tokenizer")
    lengths = {"filler": filler(given), **{f"i{number}": given.target for number in range(given.items)}}
    titles = [f"{item}\t{' '.join(rng.choice(words, length - 1))}" for item, length in lengths.items()]
    history = [f"user\ti{step % given.items}\t{step}" for step in range(5)]  # RecBole wants some interaction
    data = folder / "made_up"
    data.mkdir()
    (data / "made_up.item").write_text("\n".join(["item_id:token\ttitle:token", *titles]) + "\n")
    (data / "made_up.inter").write_text("\n".join(["user_id:token\titem_id:token\ttimestamp:float", *history]) + "\n")


def filler(given):
    """Tokens of a history's first item: one title's, and what whole titles leave of L - 1 (there is a start token)."""
    return given.target + (given.prompt - 1) % given.target


def build(given):
    """Options -> RecBole's config, FLR with a frozen backbone, and a function from item names to their ids."""
    with tempfile.TemporaryDirectory() as folder:
        write_files(Path(folder), given)
        config = Config(FLR, "made_up", config_dict={
            "data_path": folder, "state": "ERROR", "use_gpu": given.device == "cuda",
            "eval_args": {"split": {"LS": "valid_and_test"}, "order": "TO", "group_by": "user", "mode": "full"},
            "MAX_ITEM_LIST_LENGTH": given.prompt // given.target, "max_title_tokens": 2 * given.target,
            "duplicate_titles": "share", "tokenizer": str(Path(folder) / "tokenizer"), "prompt": "compact",
            "compact_hidden_size": given.hidden, "compact_layers": given.layers, "num_refinements": given.refinements,
            "stages": "grpo", "group_size": given.group_size,
        })
        dataset = load_dataset(config)
        init_seed(config["seed"], True)
        model = FLR(config, split(config, dataset)[0]._dataset).to(config["device"])
    model.freeze_backbone()
    return config, model.train(), lambda names: dataset.token2id(dataset.iid_field, names)


def batch(given, model, ids):
    """RecBole batch of B prompts of L tokens and targets of T.

    Raises:
        AssertionError: if the lengths are not what was asked for.
    """
    length = (given.prompt - 1) // given.target
    names = np.random.default_rng(1).integers(given.items, size=(given.batch, length)).astype(str)
    items = ids(np.char.add("i", names))
    first = np.full((given.batch, 1), ids("filler"))
    interaction = Interaction({
        model.ITEM_SEQ: torch.from_numpy(np.concatenate([first, items[:, 1:]], axis=1)),
        model.ITEM_SEQ_LEN: torch.full((given.batch,), length), model.POS_ITEM_ID: torch.from_numpy(items[:, 0]),
    }).to(model.device)
    found = [model.prompt_lengths(interaction)[0].item(), model.collator.targets(interaction[model.POS_ITEM_ID])[0].shape[1]]
    if found != [given.prompt, given.target]:
        raise AssertionError(f"prompt and target have {found} tokens, expected {[given.prompt, given.target]}")
    return interaction


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
    config, model, ids = build(given)
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


def in_float64(model, std):
    """Draw the weights anew and make all of the model compute in float64."""
    model.double()
    for parameter in model.parameters():
        if parameter.dim() > 1:
            torch.nn.init.normal_(parameter, std=std)
    for parent in list(model.modules()):
        for name, norm in parent.named_children():
            if isinstance(norm, Qwen2RMSNorm):  # rounds to float32, whatever it gets
                exact = torch.nn.RMSNorm(norm.weight.shape, norm.variance_epsilon).to(norm.weight)
                setattr(parent, name, exact.requires_grad_(False))  # weights are 1 in both


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
    config, model, ids = build(given)
    interaction = batch(given, model, ids)
    found = {}
    for ratio in RATIOS:
        made = steps(model, config, ratio)
        for step in made.values():
            step(interaction)
        for _ in range(given.repeats):
            for version, step in made.items():
                synchronize(given)
                start = perf_counter()
                step(interaction)
                synchronize(given)
                found.setdefault((ratio, version), []).append(perf_counter() - start)
    return found


def synchronize(given):
    """Wait for the device."""
    if given.device == "cuda":
        torch.cuda.synchronize()


def memory_growth(given, version, ratio):
    """Bytes by which the peak of one step lies above what was in use before it. Only a fresh process gives its own peak."""
    config, model, ids = build(given)
    step, interaction = steps(model, config, ratio)[version], batch(given, model, ids)
    small = Interaction({name: value[:1].clone() for name, value in interaction.interaction.items()})
    small[model.ITEM_SEQ_LEN][:] = 1
    step(small)  # what torch sets up once belongs to no version
    gc.collect()
    before = start_peak(given)
    step(interaction)
    return max(peak(given) - before, 0)


def start_peak(given):
    """Forget the peak so far. Returns the bytes that are in use now."""
    if given.device == "cuda":
        torch.cuda.reset_peak_memory_stats()
        return torch.cuda.memory_allocated()
    if Path("/proc/self/clear_refs").exists():
        Path("/proc/self/clear_refs").write_text("5")
    return psutil.Process().memory_info().rss


def peak(given):
    """Bytes that were in use at most."""
    if given.device == "cuda":
        return torch.cuda.max_memory_allocated()
    status = Path("/proc/self/status")
    found = re.search(r"VmHWM:\s+(\d+) kB", status.read_text()) if status.exists() else None
    if found:  # ru_maxrss of a process on Linux begins with that of the process that started it
        return int(found[1]) * 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def in_fresh_process(arguments):
    """Bytes that this script prints with --memory-of."""
    command = [sys.executable, "-m", "benchmarks.grpo", *arguments]
    return int(subprocess.run(command, cwd=ROOT, check=True, stdout=subprocess.PIPE, text=True).stdout.split()[-1])


def surroundings(given):
    """What the figures depend on beside the options."""
    git = lambda *words: subprocess.run(["git", "--no-optional-locks", *words], cwd=ROOT, capture_output=True, text=True)
    commit = git("rev-parse", "HEAD")
    cpus = re.findall(r"model name\s*: (.*)", Path("/proc/cpuinfo").read_text()) if Path("/proc/cpuinfo").exists() else []
    return {
        "commit": commit.stdout.strip() if commit.returncode == 0 else "unknown",
        "changed_since": bool(git("status", "--porcelain", "--", "recbole_flr", "properties", "benchmarks").stdout.strip()),
        "torch": torch.__version__, "transformers": transformers.__version__, "threads": torch.get_num_threads(),
        "cpu": cpus[0] if cpus else platform.processor(),
        "device": torch.cuda.get_device_name() if given.device == "cuda" else "cpu",
    }


# command line


def parse(arguments):
    """Words -> options."""
    parser = argparse.ArgumentParser("python -m benchmarks.grpo", description=__doc__.split("\n\n")[0])
    numbers = {  # name: default, least, meaning
        "group-size": (8, 2, "G, members of a group"), "prompt": (200, 5, "L, tokens of a prompt, more than two targets"),
        "target": (12, 2, "T, tokens of a target with its end"), "hidden": (256, 8, "D of the backbone, a multiple of 8"),
        "layers": (4, 1, "of the backbone"), "batch": (4, 1, "B, prompts a step"), "refinements": (2, 1, "N, of a thought"),
        "repeats": (5, 1, "timed steps of each version"), "items": (1000, 1, "titles of the made-up catalogue"),
        "vocabulary": (4000, 8, "V, tokens of the made-up vocabulary"), "threads": (None, 1, "of torch, or its own choice"),
    }
    for name, (default, least, meaning) in numbers.items():
        parser.add_argument(f"--{name}", type=int, default=default, help=meaning + (f" ({default})" if default else ""))
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--json", type=Path, help="file to be written with all figures")
    parser.add_argument("--memory-of", nargs=2, metavar=("RATIO", "VERSION"), help=argparse.SUPPRESS)
    given = parser.parse_args(arguments)
    for name, (_, least, _) in numbers.items():
        found = getattr(given, name.replace("-", "_"))
        if found is not None and found < least:
            parser.error(f"--{name}: found {found}, expected at least {least}")
    if given.prompt <= 2 * given.target:
        parser.error(f"--prompt: found {given.prompt}, expected more than two targets, {2 * given.target}")
    if given.device == "cuda" and not torch.cuda.is_available():
        parser.error("--device: found cuda, but torch sees no GPU")
    return given


def main(arguments=None):
    """Compare, measure, print the table; returns what --json writes."""
    arguments = sys.argv[1:] if arguments is None else list(arguments)
    given = parse(arguments)
    warnings.filterwarnings("ignore", category=FutureWarning, module="recbole")
    if given.threads:
        torch.set_num_threads(given.threads)
    if given.memory_of:
        ratio, version = given.memory_of
        growth = memory_growth(given, version, ratio)
        print(growth)
        return growth
    difference = check_equal(given)
    print(f"Loss and gradients agree in float64: largest relative difference {difference:.1e}.")
    memory = {(ratio, version): in_fresh_process([*arguments, "--memory-of", ratio, version])
              for ratio in RATIOS for version in VERSIONS}
    results, rows = [], []
    for (ratio, version), seconds in times(given).items():
        one = {"grpo_ratio": ratio, "version": version, "seconds": seconds, "median": statistics.median(seconds),
               "peak_bytes": memory[ratio, version]}
        results.append(one)
        ours = next(other for other in results if other["grpo_ratio"] == ratio)  # the first of them
        one["time_ratio"] = one["median"] / ours["median"]
        one["memory_ratio"] = one["peak_bytes"] / ours["peak_bytes"] if ours["peak_bytes"] else None
        middle, low, high = (1e3 * value for value in (one["median"], min(seconds), max(seconds)))
        rows.append([ratio, version, f"{middle:.1f} ({low:.1f}..{high:.1f})", f"{one['time_ratio']:.2f}",
                     f"{one['peak_bytes'] / 1e6:.1f}", one["memory_ratio"] and f"{one['memory_ratio']:.2f}"])
    headers = ["grpo_ratio", "version", "time ms (min..max)", "to shared", "peak memory MB", "to shared"]
    print(tabulate(rows, headers, disable_numparse=True, colalign=("left", "left", *["right"] * 4)))
    settings = {name: value for name, value in vars(given).items() if name not in ("json", "memory_of")}
    report = {"settings": settings, **surroundings(given), "largest_difference": difference, "results": results}
    if given.json:
        given.json.write_text(json.dumps(report, indent=1) + "\n")
    return report


if __name__ == "__main__":
    main()
