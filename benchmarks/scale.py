"""What grows with the catalogue, from 1,000 to 1,000,000 titles: the trie, and the time of constrained decoding.

    python -m benchmarks.scale --json scale.json

The titles are made up like those of a shop (`benchmarks.made_up.shop_titles`); a catalogue consists of the first titles of the
largest one. All sizes share the tokenizer (learned from the first 10,000 titles, as the compact backbone learns its own), the
same FLR of the default sizes, and the same users. The users' histories of ten titles come from the smallest catalogue, so the
prompts and thoughts are the same at all sizes. At each size the benchmark measures:

- preparation: the steps that a run does once for a catalogue (`benchmarks.preparation`), in a process of its own.
- trie: seconds of `Trie.build`, all sizes in turn; and its memory, in a process of its own that holds only the tokens, their
  offsets and the item ids (int64, not counted). The finished trie is part of the memory.
- decoding: seconds of `model.decode` for each user, on prompts that have been read, all sizes in turn. The ratio to 10,000
  titles is taken turn by turn. "Passes" are those of the backbone behind the thought. "Tokens" are those that a user's beams
  tried.
- all scores: seconds of `item_scores` for each user, which spreads the titles found over RecBole's [users, items]. It is linear
  in the number of items, like its result.

There are two models. `warmed up` has taken some hundred steps of language modelling and of FLR's own loss, on histories of users
who keep to a brand. Its beams stay among few beginnings, as those of a trained model do; this is what users see. `random` has
fresh weights. All tokens are about equally probable, so the beams scatter, and more titles with longer tails have to be scored;
this is the worst case.

With --backbone there is one model, `as it is`: that language model, with the weights that it has. With random weights that is the
worst case.

Nothing is timed before it is compared (`benchmarks.checks`): each trie with its titles, the smallest one also with a trie of
dicts, and for the first users of each size and model the scores of all titles found with full passes without a cache.

Shapes: B users, H titles of a history.
"""

import argparse
import statistics
import sys
import tempfile
import warnings
from dataclasses import fields
from functools import partial
from pathlib import Path

import torch
from tabulate import tabulate

from benchmarks.checks import TOLERANCES, check_against_dicts, check_scores, check_trie
from benchmarks.harness import add_device, check_device, in_fresh_process, in_turns, parser, spread, surroundings, write_json
from benchmarks.made_up import (
    build_model, histories, interaction, language_model_loss, shop_titles, warm_up, write_dataset,
)  # fmt: skip
from benchmarks.preparation import build_memory, load, prepare
from benchmarks.shapes import SHAPES, add_backbone, model_options
from recbole_flr.decoding import Trie, beam_search, item_scores
from recbole_flr.model.backbone import load_tokenizer, train_tokenizer
from recbole_flr.model.flr import FLR
from recbole_flr.model.tree import TreeDecoder
from recbole_flr.pretrained import find_model

SAMPLE = 10_000  # titles from which the tokenizer and the model learn; the other sizes are compared with this one
VOCABULARY = 4000  # compact_vocab_size of properties/generative.yaml
CHECKED = 4  # users whose scores are compared with full passes
MODELS = ("warmed up", "random")
AS_IT_IS = ("as it is",)  # with another backbone than the compact one


def make_models(given, folder, texts, sample):
    """The two models, FLR of the default sizes; with --backbone one model.

    Args:
        given: options; `beams` and `warmup` are read.
        folder: Path of the folder that holds `tokenizer`.
        texts: the first SAMPLE titles, from which the model learns.
        sample: the Shop of these titles.

    Returns:
        two dicts, name -> model, and name -> mean cross entropy of a token in sequences of users that the model has not seen.
    """
    models, losses = {}, {}
    for name in model_names(given):
        with tempfile.TemporaryDirectory() as data:
            write_dataset(data, {f"i{number}": text for number, text in enumerate(texts[:50])})
            model = build_model(
                FLR, data, given.device, tokenizer=str(folder / "tokenizer"), num_beams=given.beams, topk=[given.beams],
                valid_metric=f"NDCG@{given.beams}", prompt="compact", **model_options(given, "frozen"),
            )[1]
        model.collator = sample.collator.to(given.device)
        if name == "warmed up":
            warm_up(model, histories(texts, 16 * given.warmup, seed=2).split(16))
        with torch.no_grad():
            losses[name] = language_model_loss(model.eval(), histories(texts, 64, seed=3)).item()
        models[name] = model
    return models, losses


def model_names(given):
    """Names of the models."""
    return MODELS if given.backbone == "compact" else AS_IT_IS


class Counting(TreeDecoder):
    """Counts the passes and the tokens of all users that beam search asks for."""

    passes = tokens = 0

    def extend(self, tokens, parents, valid, last=False):
        self.passes += 1
        self.tokens += int(valid.sum())
        return super().extend(tokens, parents, valid, last)


@torch.no_grad()
def time_decoding(given, model, shops, tries, rows):
    """Figures of decoding with one model, for the users' histories `rows` [B, H + 1]: dict size -> figures."""
    model.collator = shops[given.sizes[0]].collator
    thought = model.think(model.read_context(interaction(model, rows)))  # it is the same at all sizes

    def decode(trie):
        model.trie = trie
        return model.decode(thought)

    beams = {size: decode(tries[size]) for size in given.sizes}
    seconds = in_turns({size: partial(decode, tries[size]) for size in given.sizes}, given.repeats, given.device)
    spreading = {size: partial(item_scores, beams[size], tries[size], size + 1) for size in given.sizes}
    spreading = in_turns(spreading, given.repeats, given.device)
    base, results = base_size(given), {}
    for size in given.sizes:
        counted = Counting(model.backbone, thought)
        beam_search(counted, tries[size], given.beams, top=model.top_texts, score=model.score)
        a_user = [second / given.users for second in seconds[size]]
        ratios = [one / other for one, other in zip(seconds[size], seconds[base])]
        results[size] = {
            "seconds_a_user": a_user, "median": statistics.median(a_user), "ratios": ratios,
            "ratio": statistics.median(ratios), "passes": counted.passes, "tokens_a_user": counted.tokens / given.users,
            "titles_a_user": float((beams[size].nodes >= 0).sum(1).float().mean()),
            "item_scores_seconds_a_user": [second / given.users for second in spreading[size]],
        }  # fmt: skip
    return results


def base_size(given):
    """The size with which the others are compared."""
    return SAMPLE if SAMPLE in given.sizes else given.sizes[0]


# command line


def _sizes(words):
    sizes = sorted({int(word) for word in words.split(",")})
    if sizes[0] < 20:
        raise argparse.ArgumentTypeError(f"found {words}, expected at least 20 titles")
    return sizes


def parse(arguments):
    """Words -> options."""
    command = parser("benchmarks.scale", __doc__, {
        "users": (32, 1, "decoded at once"), "beams": (10, 1, "of the search"), "repeats": (5, 1, "that count, of each size"),
        "warmup": (300, 1, "steps of the model that is warmed up"), "threads": (None, 1, "of torch, or its own choice"),
    })  # fmt: skip
    command.add_argument("--sizes", type=_sizes, default="1000,10000,100000,1000000", help="titles, with commas")
    command.add_argument("--part", nargs=3, help=argparse.SUPPRESS)  # name, folder, size: runs in its own process
    add_device(command)
    add_backbone(command)
    given = command.parse_args(arguments)
    check_device(command, given.device)
    if given.threads:
        torch.set_num_threads(given.threads)
    return given


PARTS = {"prepare": prepare, "memory": build_memory}


def main(arguments=None):
    """Compare, measure, print the tables; returns what --json writes."""
    arguments = sys.argv[1:] if arguments is None else list(arguments)
    given = parse(arguments)
    warnings.filterwarnings("ignore", category=FutureWarning, module="recbole")
    if given.part:
        name, folder, size = given.part
        found = PARTS[name](Path(folder), int(size))
        print(found)
        return found
    with tempfile.TemporaryDirectory() as folder:
        results, losses = measure(given, arguments, Path(folder))
    show(given, results, losses)
    settings = {name: value for name, value in vars(given).items() if name not in ("json", "part")}
    report = {
        "command": " ".join(["python -m benchmarks.scale", *arguments]), "settings": settings,
        **surroundings(("torch", "numpy", "transformers", "tokenizers"), given.device), "compared_with": base_size(given),
        "cross_entropy_of_a_token": losses, "results": results,
    }  # fmt: skip
    write_json(given.json, report)
    return report


def measure(given, arguments, folder):
    """All figures: a list with one dict for each size, and the cross entropy of each model."""
    titles = shop_titles(max(given.sizes))
    (folder / "titles.txt").write_text("\n".join(titles) + "\n", encoding="utf-8")
    texts = titles[:SAMPLE]
    own = given.backbone != "compact" and given.backbone not in SHAPES
    most = SHAPES.get(given.backbone, {}).get("vocab_size", VOCABULARY)
    tokenizer = load_tokenizer(find_model(given.backbone)) if own else train_tokenizer(texts, min(VOCABULARY, most))
    tokenizer.save_pretrained(folder / "tokenizer")
    del titles
    part = lambda name, size: in_fresh_process("benchmarks.scale", [*arguments, "--part", name, str(folder), str(size)])
    for size in {*given.sizes, len(texts)}:
        part("prepare", size)
    memory = {size: part("memory", size) for size in given.sizes}

    shops = {size: load(folder, size) for size in given.sizes}
    entries = {size: shop.entries() for size, shop in shops.items()}
    seconds = in_turns({size: partial(Trie.build, *entries[size]) for size in given.sizes}, given.repeats, given.device)
    tries, results = {}, []
    for size, (titles, items) in entries.items():
        tries[size] = trie = Trie.build(titles, items)
        nodes, leaves, branching = check_trie(trie, titles, items)
        if size == given.sizes[0]:
            check_against_dicts(trie, [titles.row(number) for number in range(size)], items)
        degree = trie.first_child.diff()
        results.append({
            "titles": size, "tokens": len(titles.flat), "longest": int(titles.lengths().max()), "nodes": nodes, "leaves": leaves,
            "branching_nodes": branching, "children_of_root": int(degree[0]), "most_children": int(degree.max()),
            "input_bytes": titles.flat.nbytes + titles.start.nbytes + items.nbytes, "build_seconds": seconds[size],
            "build_peak_bytes": memory[size], "trie_bytes": sum(getattr(trie, f.name).nbytes for f in fields(trie)),
            "preparation": shops[size].steps, "decoding": {},
        })  # fmt: skip
    del entries

    tries = {size: trie.to(given.device) for size, trie in tries.items()}
    for shop in shops.values():
        shop.collator.to(given.device)
    models, losses = make_models(given, folder, texts, load(folder, len(texts)))
    rows = histories(texts[: given.sizes[0]], given.users, seed=1)
    for name, model in models.items():
        differences = {size: check_scores(model, shops[size].collator, tries[size], rows[:CHECKED], TOLERANCES[given.dtype])
                       for size in given.sizes}
        for one, figures in zip(results, time_decoding(given, model, shops, tries, rows).values()):
            one["decoding"][name] = {**figures, "largest_difference": differences[one["titles"]]}
    return results, losses


def show(given, results, losses):
    """Print the tables."""
    right = lambda headers: {"headers": headers, "disable_numparse": True, "colalign": ["right"] * len(headers)}
    table = lambda rows, headers: print(tabulate(rows, **right(headers)), "\n")
    print("The tries hold their titles and nothing else; the smallest equals one of dicts. Scores equal full passes'.\n")
    table([[f"{one['titles']:,}", f"{one['tokens']:,}", f"{one['nodes']:,}", f"{one['children_of_root']:,}",
            spread(one["build_seconds"], digits=3), _mb(one["build_peak_bytes"]), _mb(one["trie_bytes"]),
            _mb(one["input_bytes"])] for one in results],
          ["titles", "tokens", "nodes", "at root", "Trie.build s (min..max)", "peak MB", "trie MB", "input MB"])  # fmt: skip
    steps = list(results[0]["preparation"])
    table([[f"{one['titles']:,}", *(f"{s:.2f} s, {_mb(b)} MB" for s, b in one["preparation"].values())] for one in results],
          ["once a catalogue", *steps])  # fmt: skip
    for name in model_names(given):
        print(f"Model: {name}, cross entropy of a token {losses[name]:.2f}; {given.users} users at once, {given.beams} beams")
        base = f"to {base_size(given):,}"
        table([[f"{one['titles']:,}", spread(of["seconds_a_user"], 1e3, 2), spread(of["ratios"], digits=2), of["passes"],
                f"{of['tokens_a_user']:.0f}", f"{of['titles_a_user']:.1f}",
                spread(of["item_scores_seconds_a_user"], 1e3, 3)] for one in results for of in [one["decoding"][name]]],
              ["titles", "decode ms a user (min..max)", base, "passes", "tokens", "found", "all scores ms a user"])  # fmt: skip


def _mb(number):
    return f"{number / 1e6:.1f}"


if __name__ == "__main__":
    main()
