"""What grows with the catalogue, from 1,000 to 1,000,000 titles: the trie, and the time of constrained decoding.

    python -m benchmarks.scale --json scale.json

The titles are made up as a shop has them (`benchmarks.made_up.shop_titles`); a catalogue is the first so many of the largest
one. All sizes have the same tokenizer (learned from the first 10,000 titles as the compact backbone learns its own), the same
FLR of the default sizes, and the same users, whose histories of ten titles come from the smallest catalogue. So the prompts
and what the model thinks of them are the same at all sizes. Measured at each size:

- preparation, once each: what a run does once a catalogue, step by step, in a process of its own. Memory is how far a step
  raises the process's resident memory above what was in use before it; what the step returns is part of it.
- trie: seconds of `Trie.build`, all sizes in turn, and its memory, in a process of its own that holds nothing but the
  tokens, their offsets and the item ids (int64; not counted). The finished trie is part of it.
- decoding: seconds of `model.decode` on prompts that have been read, for a user, all sizes in turn; the ratio to 10,000
  titles is taken turn by turn. Passes are those of the backbone behind the thought, tokens those that a user's beams tried.
- all scores: seconds of `item_scores`, which spreads the titles found over RecBole's [users, items], for a user. This is
  linear, as its result is.

Two models. `warmed up`: language modelling and FLR's own loss on histories of users who keep to a brand, for some hundred
steps. Its beams stay among few beginnings, as a trained model's do; this is what users see. `random`: fresh weights. All
tokens are about as probable, so the beams scatter, and more titles with longer tails have to be scored: the worst case.

A wrong path is not timed. Each trie is compared with its titles: all are found by walking and stand at the right leaf; the
nodes are as many as there are distinct prefixes, counted by numpy without a trie; tails are where one title is left. The
smallest trie is compared with one of dicts, node by node. For the first users of each size and model, the scores of all titles
found are compared with full passes over prompt and title, without a cache.

Shapes: B users, H titles of a history, T title tokens, M nodes, N titles, V vocabulary.
"""

import argparse
import gc
import statistics
import sys
import tempfile
import warnings
from dataclasses import dataclass, fields, replace
from functools import partial
from pathlib import Path
from time import perf_counter

import numpy as np
import torch
from tabulate import tabulate

from benchmarks.harness import in_fresh_process, in_turns, parser, peak, spread, start_peak, surroundings, write_json
from benchmarks.made_up import (
    build_model, histories, interaction, language_model_loss, shop_titles, warm_up, write_dataset,
)  # fmt: skip
from recbole_flr.data.catalog import Catalog
from recbole_flr.data.prompt import IGNORE, Collator, Template
from recbole_flr.decoding import Trie, beam_search, item_scores
from recbole_flr.model.backbone import Backbone, compact_lm, load_tokenizer, train_tokenizer
from recbole_flr.model.flr import FLR
from recbole_flr.model.tree import TreeDecoder
from recbole_flr.ragged import RaggedRows

SAMPLE = 10_000  # titles from which the tokenizer and the model learn; also what the other sizes are compared with
VOCABULARY, LONGEST = 4000, 64  # compact_vocab_size and max_title_tokens of properties/generative.yaml
CHECKED = 4  # users whose scores are compared
TOLERANCE = 1e-4  # relative, in float32
MODELS = ("warmed up", "random")


@dataclass
class Shop:
    """A catalogue of N titles, ready for a model.

    Attributes:
        collator: Collator of its titles and prompts.
        items: [N] int64 tensor, item ids 1 .. N, the most popular first.
        steps: name -> [seconds, bytes of memory] of the preparation.
    """

    collator: Collator
    items: torch.Tensor
    steps: dict

    def entries(self):
        """The arguments of Trie.build: titles (RaggedRows) and items (numpy), the most popular first."""
        return self.collator.titles.take(self.items), self.items.numpy()


# preparation of a catalogue, in a process of its own


def prepare(folder, size):
    """All that a run does once a catalogue, of the first `size` lines of `titles.txt`; writes `<size>.npz`."""
    tokenizer = load_tokenizer(folder / "tokenizer")
    backbone = Backbone(compact_lm({  # the smallest: only its tokenizer is used
        "compact_hidden_size": 8, "compact_layers": 1, "compact_heads": 1, "compact_dropout": 0.0,
        "attn_implementation": "sdpa",
    }, tokenizer), tokenizer, pretrained=False)  # fmt: skip
    with open(folder / "titles.txt", encoding="utf-8") as lines:
        texts = [""] + [next(lines).rstrip("\n") for _ in range(size)]
    popularity = np.random.default_rng(0).zipf(1.5, size + 1)
    backbone.encode(texts[:10])
    Trie.build([[1, 0]])  # what is set up once belongs to no step
    steps = {}

    def step(name, work):
        gc.collect()
        before, start = start_peak(), perf_counter()
        found = work()
        steps[name] = perf_counter() - start, max(peak() - before, 0)
        return found

    catalog = step("catalogue", lambda: Catalog(texts, popularity=popularity))
    titles = step("tokenize", lambda: catalog.tokenize(backbone, LONGEST))
    chunks = step("chunks", lambda: Template.named("compact", "").chunks(backbone, titles))
    items = step("order", lambda: torch.from_numpy(catalog.by_popularity()))
    entries = step("take", lambda: titles.take(items))
    step("trie", lambda: Trie.build(entries, items.numpy()))
    np.savez(
        folder / f"{size}.npz", flat=titles.flat, start=titles.start, chunks=chunks.flat, chunk_start=chunks.start,
        items=items, pad=backbone.pad_id, steps=list(steps), figures=list(steps.values()),
    )  # fmt: skip
    return 0


def load(folder, size):
    """Shop that :func:`prepare` wrote."""
    with np.load(folder / f"{size}.npz") as found:
        ragged = lambda flat, start: RaggedRows(torch.from_numpy(found[flat]), torch.from_numpy(found[start]))
        collator = Collator(ragged("flat", "start"), ragged("chunks", "chunk_start"), int(found["pad"]))
        steps = {str(name): [float(s), int(b)] for name, (s, b) in zip(found["steps"], found["figures"])}
        return Shop(collator, torch.from_numpy(found["items"]), steps)


def build_memory(folder, size):
    """Bytes by which Trie.build raises the resident memory of a process that holds its arguments."""
    entries = load(folder, size).entries()
    Trie.build([[1, 0]])
    gc.collect()
    before = start_peak()
    Trie.build(*entries)
    return max(peak() - before, 0)


# equality: the trie


def check_trie(trie, titles, items):
    """Compare a trie with its titles.

    Args:
        trie: Trie.
        titles, items: the arguments of Trie.build, as RaggedRows and a numpy array [N].

    Returns:
        number of nodes; of leaves, which is that of distinct titles; of nodes behind which titles still branch.

    Raises:
        AssertionError: if they do not belong together.
    """
    tokens, offsets = titles.flat.numpy(), titles.start.numpy()
    array = {field.name: getattr(trie, field.name).numpy().astype(np.int64) for field in fields(trie)}
    width, count, size = int(tokens.max()) + 1, trie.num_nodes, len(items)
    parent = np.repeat(np.arange(count), np.diff(array["first_child"]))
    key = parent * width + array["child_token"]
    _require(len(key) == count - 1 and (np.diff(key) > 0).all(), "its edges are out of order")
    _require(np.array_equal(np.sort(array["child_node"]), np.arange(1, count)), "a node has not one parent")
    _require(array["node_token"][0] == -1, "its root has a token")

    node, prefix, path = np.zeros(size, np.int64), np.zeros(size, np.int64), []
    depth_of, prefixes, distinct = np.zeros(count, np.int64), 1, 0
    left = np.arange(size)  # titles that have not ended
    for depth in range(int(np.diff(offsets).max())):
        left = left[offsets[left + 1] - offsets[left] > depth]
        token = tokens[offsets[left] + depth]
        wanted = node[left] * width + token
        edge = np.searchsorted(key, wanted).clip(max=len(key) - 1)
        _require(np.array_equal(key[edge], wanted), "a title cannot be walked")
        node[left] = array["child_node"][edge]
        _require(np.array_equal(array["node_token"][node[left]], token), "a node has another token than its edge")
        depth_of[node[left]] = depth + 1
        path.append((left, node[left].astype(np.int32)))
        # distinct prefixes, without the trie: each is the number of its own prefix and a token
        names, number = np.unique(prefix[left] * width + token, return_inverse=True)
        prefixes, prefix[left] = prefixes + len(names), number
        distinct += len(np.unique(number[offsets[left + 1] - offsets[left] == depth + 1]))
    _require(count == prefixes, f"it has {count} nodes for {prefixes} distinct prefixes")

    _require(np.array_equal(np.sort(array["items"]), np.sort(items)), "its items are others")
    leaf_of = np.zeros(int(items.max()) + 1, np.int64)
    leaf_of[array["items"]] = np.repeat(np.arange(count), np.diff(array["item_start"]))
    _require(np.array_equal(leaf_of[items], node), "an item is at another leaf than its title's")
    given = np.argsort(node, kind="stable")
    _require(np.array_equal(array["items"], items[given]), "items that share a title are out of order")
    leaves = int((np.diff(array["first_child"]) == 0).sum())
    _require(leaves == distinct, f"it has {leaves} leaves for {distinct} distinct titles")

    low, high = np.full(count, count), np.full(count, -1)  # of the leaves behind a node
    for entries, nodes in [(np.arange(size), np.zeros(size, np.int32)), *path]:
        np.minimum.at(low, nodes, node[entries])
        np.maximum.at(high, nodes, node[entries])
    tail = np.where(low == high, depth_of[low] - depth_of, -1)
    _require(np.array_equal(array["tail_length"], tail), "a tail is not where one title is left")
    one = tail >= 0
    _require(np.array_equal((np.arange(count) + tail)[one], low[one]), "a tail is not consecutive")
    return count, leaves, int((~one).sum())


def _require(true, what):
    if not true:
        raise AssertionError(f"the trie is wrong: {what}")


def check_against_dicts(trie, titles, items):
    """Compare a trie, node by node, with one of dicts made of `titles`, lists of tokens, and their items.

    Raises:
        AssertionError: if they differ.
    """
    root, ends = {}, None  # None is the key of a title's items
    for title, item in zip(titles, items.tolist()):
        node = root
        for token in title:
            node = node.setdefault(token, {})
        node.setdefault(ends, []).append(item)
    open_nodes, seen = [(0, root)], 0
    while open_nodes:
        number, node = open_nodes.pop()
        seen += 1
        found = trie.items[trie.item_start[number] : trie.item_start[number + 1]].tolist()
        _require(found == node.pop(ends, []), f"the items of node {number} are not those of the trie of dicts")
        tokens, children = trie.children(number)
        _require(tokens.tolist() == sorted(node), f"the children of node {number} are not those of the trie of dicts")
        open_nodes += [(child, node[token]) for token, child in zip(tokens.tolist(), children.tolist())]
    _require(seen == trie.num_nodes, f"it has {trie.num_nodes} nodes, the trie of dicts {seen}")


# model, users, decoding


def make_models(given, folder, texts, sample):
    """name -> FLR of the default sizes.

    Args:
        given: `beams`, `warmup`.
        texts: the first SAMPLE titles, from which the model learns.
        sample: their Shop.

    Returns:
        the models, and for each the mean cross entropy of a token in users' sequences that it was not shown.
    """
    models, losses = {}, {}
    for name in MODELS:
        with tempfile.TemporaryDirectory() as data:
            write_dataset(data, {f"i{number}": text for number, text in enumerate(texts[:50])})
            model = build_model(FLR, data, tokenizer=str(folder / "tokenizer"), num_beams=given.beams, topk=[given.beams],
                                valid_metric=f"NDCG@{given.beams}")[1]  # fmt: skip
        model.collator = sample.collator
        if name == "warmed up":
            warm_up(model, histories(texts, 16 * given.warmup, seed=2).split(16))
        with torch.no_grad():
            losses[name] = language_model_loss(model.eval(), histories(texts, 64, seed=3)).item()
        models[name] = model
    return models, losses


class Counting(TreeDecoder):
    """Counts what the beam search asks for: passes, and tokens of all users."""

    passes = tokens = 0

    def extend(self, tokens, parents, valid, last=False):
        self.passes += 1
        self.tokens += int(valid.sum())
        return super().extend(tokens, parents, valid, last)


@torch.no_grad()
def check_scores(model, shop, trie, rows):
    """Compare the scores of all titles that decoding finds for users [B, H + 1] with full passes over prompt and title.

    Returns:
        the largest relative difference.

    Raises:
        AssertionError: if a score differs, or there are too few titles, or one twice.
    """
    model.collator, model.trie = shop.collator, trie
    prompts = model.collator.prompts(rows[:, :-1], torch.full((len(rows),), rows.shape[1] - 1))
    reading = model.read(prompts)
    beams = model.decode(reading)
    found = beams.nodes >= 0
    fewest = min(model.num_beams, int((trie.tail_length == 0).sum()))
    if (found.sum(1) < fewest).any() or any(len(set(row)) < fewest for row in beams.nodes.tolist()):
        raise AssertionError(f"decoding found fewer than {fewest} titles for a user")
    user, place = found.nonzero(as_tuple=True)
    titles, labels = model.collator.targets(trie.items[trie.item_start[beams.nodes[user, place]].long()].long())
    uncached = replace(reading, cache=None, prefix=model.backbone.embed(prompts.ids))
    each = {name: getattr(uncached, name)[user] for name in ("mask", "length", "seed", "prefix")}
    hidden = model.title_hidden(replace(uncached, state=None, **each), titles)
    log_probs = model.backbone.logits(hidden).log_softmax(-1).gather(2, titles.unsqueeze(2)).squeeze(2)
    expected = log_probs.masked_fill(labels == IGNORE, 0).sum(1)
    difference = ((beams.scores[user, place] - expected) / expected).abs().max().item()
    if not difference < TOLERANCE:
        raise AssertionError(f"the score of a title differs from that of a full pass by {difference:.1e} (relative), expected "
                             f"less than {TOLERANCE}")  # fmt: skip
    return difference


@torch.no_grad()
def time_decoding(given, model, shops, tries, rows):
    """size -> figures of decoding with one model, for users [B, H + 1]."""
    model.collator = shops[given.sizes[0]].collator
    reading = model.read_history(interaction(model, rows))  # the same at all sizes

    def decode(trie):
        model.trie = trie
        return model.decode(reading)

    beams = {size: decode(tries[size]) for size in given.sizes}
    seconds = in_turns({size: partial(decode, tries[size]) for size in given.sizes}, given.repeats)
    spreading = {size: partial(item_scores, beams[size], tries[size], size + 1) for size in given.sizes}
    spreading = in_turns(spreading, given.repeats)
    base, results = base_size(given), {}
    for size in given.sizes:
        counted = Counting(model.backbone, reading)
        beam_search(counted, tries[size], given.beams, top=model.top, score=model.score)
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
    """The size that the others are compared with."""
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
    command.add_argument("--part", nargs=3, help=argparse.SUPPRESS)  # in a process of its own: name, folder, size
    given = command.parse_args(arguments)
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
        **surroundings(("torch", "numpy", "transformers", "tokenizers")), "compared_with": base_size(given),
        "cross_entropy_of_a_token": losses, "results": results,
    }  # fmt: skip
    write_json(given.json, report)
    return report


def measure(given, arguments, folder):
    """All figures: a list with one dict a size, and each model's cross entropy."""
    titles = shop_titles(max(given.sizes))
    (folder / "titles.txt").write_text("\n".join(titles) + "\n", encoding="utf-8")
    texts = titles[:SAMPLE]
    train_tokenizer(texts, VOCABULARY).save_pretrained(folder / "tokenizer")
    del titles
    part = lambda name, size: in_fresh_process("benchmarks.scale", [*arguments, "--part", name, str(folder), str(size)])
    for size in {*given.sizes, len(texts)}:
        part("prepare", size)
    memory = {size: part("memory", size) for size in given.sizes}

    shops = {size: load(folder, size) for size in given.sizes}
    entries = {size: shop.entries() for size, shop in shops.items()}
    seconds = in_turns({size: partial(Trie.build, *entries[size]) for size in given.sizes}, given.repeats)
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

    models, losses = make_models(given, folder, texts, load(folder, len(texts)))
    rows = histories(texts[: given.sizes[0]], given.users, seed=1)
    for name, model in models.items():
        differences = {size: check_scores(model, shops[size], tries[size], rows[:CHECKED]) for size in given.sizes}
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
    for name in MODELS:
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
