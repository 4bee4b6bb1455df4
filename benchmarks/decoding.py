"""Users per second of constrained decoding: the project's tree search against transformers' `generate`.

    python -m benchmarks.decoding --json decoding.json

The same FLR of the compact size for all, warmed up on made-up users of a made-up shop (`benchmarks.made_up.shop_titles`), its
tokenizer learned from the titles; the same users, the same number of beams, scores over the whole vocabulary. Versions:

- ours: read the prompts, think, `decode`. All beams of a user are one tree behind one prompt cache. A title without a rival below
  its node leaves the search and is scored at once, or not at all. Only the children of a node are looked at.
- textbook: read and think as in ours; then the algorithm of transformers' beam search, step for step, on the project's tree.
- generate: read and think as in ours; then transformers' `generate` on [prompt, thought] with `prefix_allowed_tokens_fn`, which
  asks a trie of dicts for the tokens that may follow.
- no thought: ours without reasoning (BIGRec with the same backbone), which shows what the thought costs a ranking.

Nothing is timed before it is compared. Textbook must give the ranking and the scores of generate. Ours is another search with as
many beams: titles that leave it make room for others, so it drops fewer titles. The titles that ours and generate both find must
have the same scores; for the first users, all scores of ours must be those of full passes; and on the whole the lists of ours
may not be worse than those of generate. The report gives the share of users for whom both lists are the same.
`benchmarks.exact` measures how far beams are from the true best titles, on trained models.

With --backbone only `ours` is measured, with that language model. Random weights are its worst case: the beams scatter, and
nearly every title that they try has a long tail. With a --dtype other than float32 only `ours` and `no thought` are measured.
Then only the scores of the first users are compared with full passes, and for bfloat16 the tolerance is wide. The report gives
the throughput of `ours`: users a second, the memory, and with --largest-batch how many users fit at once
(`benchmarks.throughput`).

    python -m benchmarks.decoding --device=cuda --backbone=qwen2.5-1.5b --dtype=bfloat16 --users=128 --beams=20

Parts of `decode`: seconds within the language model (backbone, projection on the vocabulary, softmax) and within the lookups of
the trie. The rest is sorting and bookkeeping. On CUDA a part is timed until the device has finished it.
"""

import statistics
import sys
import tempfile
import warnings
from contextlib import ExitStack
from functools import partial
from time import perf_counter
from unittest.mock import patch

import torch
from tabulate import tabulate

from benchmarks.checks import TOLERANCE, TOLERANCES, check_scores
from benchmarks.harness import add_device, check_device, in_turns, parser, spread, surroundings, synchronize, write_json
from benchmarks.made_up import build_model, histories, interaction, shop_titles, warm_up, write_dataset
from benchmarks.shapes import SHAPES, add_backbone, model_options
from benchmarks.throughput import add_throughput, as_text, check_throughput, measure
from recbole_flr.decoding import Trie
from recbole_flr.decoding import scorer as scoring
from recbole_flr.decoding.finished import BestTitles
from recbole_flr.model.backbone import train_tokenizer
from recbole_flr.model.bigrec import BIGRec
from recbole_flr.model.flr import FLR
from recbole_flr.model.tree import TreeDecoder

PARTS = {  # of `decode`: (owner, function); None is the backbone
    "language model": [(None, "forward"), (None, "logits"), (scoring, "log_normaliser")],
    "trie": [(Trie, name) for name in ("edges", "tokens", "nodes", "own_tokens", "tails")],
}
CHECKED = 8  # users whose scores are compared with full passes


VOCABULARY = 4000  # tokens that are learned from the titles for a backbone without a tokenizer
PROMPT = "compact"  # for all backbones: the prompts then have the same titles and nothing else


def make_models(given):
    """A BIGRec (None with another backbone than the compact one), a FLR with the same backbone, the titles, and RecBole's config."""
    texts = shop_titles(given.titles, seed=0)
    compact = given.backbone == "compact"
    with tempfile.TemporaryDirectory() as folder:
        write_dataset(folder, {f"i{number}": text for number, text in enumerate(texts)})
        options = {"num_beams": given.beams, "topk": [given.beams], "valid_metric": f"NDCG@{given.beams}", "prompt": PROMPT,
                   **model_options(given, "frozen")}
        if given.backbone in SHAPES:
            train_tokenizer(texts, min(VOCABULARY, SHAPES[given.backbone]["vocab_size"])).save_pretrained(f"{folder}/tokenizer")
            options["tokenizer"] = f"{folder}/tokenizer"
        config, flr, _ = build_model(FLR, folder, given.device, **options)
        plain = build_model(BIGRec, folder, given.device, **options)[1].eval() if compact else None
    if compact:
        warm_up(flr, histories(texts, 16 * given.warmup, seed=2).split(16))
        plain.backbone.load_state_dict(flr.backbone.state_dict())
    return plain, flr.eval(), texts, config


# the versions: model and RecBole batch -> titles (their leaves) and scores, [users, beams or more]


@torch.no_grad()
def ours(model, batch):
    """The project's version: Beams."""
    return model.decode(model.think(model.read_context(batch)))


@torch.no_grad()
def textbook(model, batch):
    """transformers' algorithm on the project's tree decoder and trie: Beams.

    Each step takes the 2 K best children of the running beams. Those among the first K that end a title are finished. The first
    K of the others run on. The search ends when no running beam can come among the K best finished titles.
    """
    scorer, trie, beams = TreeDecoder(model.backbone, model.think(model.read_context(batch))), model.trie, model.num_beams
    users = len(scorer.hidden)
    best = BestTitles(users, beams, scorer.hidden.dtype, scorer.hidden.device)
    node = torch.zeros(users, 1, dtype=torch.long, device=scorer.hidden.device)
    total, slot, hidden, slots = torch.zeros_like(node, dtype=scorer.hidden.dtype), node - 1, scorer.hidden.unsqueeze(1), 0
    user = torch.arange(users, device=node.device).unsqueeze(1)
    while node.shape[1]:
        candidates, edges = scoring.child_scores(scorer, trie, hidden.flatten(0, 1), node.flatten(), total.flatten(), "full")
        per_beam = candidates.shape[1]
        candidates, edges = candidates.view(users, -1), edges.view(users, -1)
        total, kept = candidates.topk(min(2 * beams, candidates.shape[1]), dim=1)
        edge, slot = edges.gather(1, kept), slot.gather(1, kept // per_beam)
        node = trie.nodes(edge)
        ends = (trie.tail_length[node] == 0) & (total > -torch.inf)
        row, place = ends[:, :beams].nonzero(as_tuple=True)
        best.add(row, total[row, place], node[row, place])
        total = total.masked_fill(ends, -torch.inf)
        total, kept = total.topk(min(beams, total.shape[1]), dim=1)
        node, edge, slot = (x.gather(1, kept) for x in (node, edge, slot))
        runs = best.may_enter(user.expand_as(node), total, node)
        if not runs.any():
            return best.beams()
        hidden = scorer.extend(trie.tokens(edge), slot, torch.ones_like(runs))
        slot = torch.arange(slots, slots + node.shape[1], device=node.device).expand_as(node)
        slots += node.shape[1]


class Generate:
    """transformers' beam search under a trie of dicts.

    Args:
        model: of recbole_flr.
        beams: of the search; as many titles come back.
    """

    def __init__(self, model, beams):
        self.model, self.beams = model, beams
        self.root, self.longest = {}, 0
        trie, titles = model.trie.to("cpu"), model.collator.titles.to("cpu")
        leaves = torch.arange(trie.num_nodes).repeat_interleave(trie.item_start.diff())
        leaf_of = dict(zip(trie.items.tolist(), leaves.tolist()))
        for item, leaf in leaf_of.items():
            node, title = self.root, titles.row(item)
            for token in title:
                node = node.setdefault(token, {})
            node[None] = leaf
            self.longest = max(self.longest, len(title))

    def _node(self, tokens):
        node = self.root
        for token in tokens:
            node = node[token]
        return node

    def _allowed(self, _, tokens):
        try:
            return [token for token in self._node(tokens.tolist()) if token is not None] or [self.model.backbone.pad_id]
        except KeyError:  # padding after the end of a title
            return [self.model.backbone.pad_id]

    @torch.no_grad()
    def __call__(self, batch):
        """RecBole batch -> leaves and scores, [users, beams]."""
        backbone = self.model.backbone
        context = self.model.read_context(batch)
        thought = self.model.think(context).embedding.to(context.embeddings.dtype)
        found = backbone.lm.generate(
            inputs_embeds=torch.cat([context.embeddings, thought.unsqueeze(1)], dim=1),
            attention_mask=torch.cat([context.mask, context.mask.new_ones(len(batch), 1)], dim=1).long(),
            num_beams=self.beams, num_return_sequences=self.beams, max_new_tokens=self.longest, do_sample=False,
            length_penalty=0.0, early_stopping=False, prefix_allowed_tokens_fn=self._allowed, pad_token_id=backbone.pad_id,
            eos_token_id=backbone.end_id, return_dict_in_generate=True, output_scores=True,
        )  # fmt: skip
        end = backbone.end_id
        leaves = [self._node(row[: row.index(end) + 1])[None] for row in found.sequences.tolist()]
        leaves = torch.tensor(leaves, device=found.sequences.device)
        return leaves.view(-1, self.beams), found.sequences_scores.view(-1, self.beams)


# equality


def check_same(beams, leaves, scores):
    """Check that the lists of textbook are those of generate, up to the order of titles with equal scores.

    Raises:
        AssertionError: they differ.
    """
    close = (beams.scores - scores).abs() <= TOLERANCE * scores.abs()
    same = beams.nodes.sort(1).values == leaves.sort(1).values
    if beams.nodes.shape != leaves.shape or not close.all() or not same.all():
        raise AssertionError("the ranking of textbook is not that of generate: "
                             f"{(~close).sum()} scores and {(~same).sum()} titles of {same.numel()} differ")  # fmt: skip


def compare(beams, leaves, scores):
    """Compare ours with generate's lists.

    Args:
        beams: Beams of ours.
        leaves, scores: [users, beams] of generate's.

    Returns:
        dict with `same`, the share of users with the same titles; and `gain`, the mean score of a title minus generate's.

    Raises:
        AssertionError: the scores of a common title differ, or ours are worse on the whole.
    """
    common = beams.nodes.unsqueeze(2) == leaves.unsqueeze(1)  # [users, F, beams]
    difference = (beams.scores.unsqueeze(2) - scores.unsqueeze(1)).abs() / scores.unsqueeze(1).abs()
    if not difference[common].max() < TOLERANCE:
        raise AssertionError(f"the score of a title differs from generate's by {difference[common].max():.1e} (relative), "
                             f"expected less than {TOLERANCE}")  # fmt: skip
    gain = (beams.scores - scores).mean().item()
    if gain < -TOLERANCE * scores.abs().mean().item():
        raise AssertionError(f"the titles found are worse than generate's by {-gain:.3g} on the mean")
    same = (beams.nodes.sort(1).values == leaves.sort(1).values).all(1).float().mean().item()
    return {"same": same, "gain": gain}


# measures


def shares(model, batch, repeats):
    """Shares of the time of `decode` that its parts take: dict part -> list with one share for each repeat."""
    spent = dict.fromkeys(PARTS, 0.0)

    def timed(part, whole):
        def call(*args, **kwargs):
            synchronize(model.device.type)
            start = perf_counter()
            try:
                return whole(*args, **kwargs)
            finally:
                synchronize(model.device.type)
                spent[part] += perf_counter() - start

        return call

    found = {part: [] for part in PARTS}
    with torch.no_grad(), ExitStack() as patches:
        thought = model.think(model.read_context(batch))
        for part, places in PARTS.items():
            for owner, name in places:
                owner = model.backbone if owner is None else owner
                patches.enter_context(patch.object(owner, name, timed(part, getattr(owner, name))))
        for number in range(repeats + 1):
            spent.update(dict.fromkeys(PARTS, 0.0))
            start = perf_counter()
            model.decode(thought)
            synchronize(model.device.type)
            seconds = perf_counter() - start
            for part in PARTS:
                found[part] += [spent[part] / seconds] * (number > 0)  # the first does not count
    return found


# command line


def parse(arguments):
    """Words -> options."""
    command = parser("benchmarks.decoding", __doc__, {
        "titles": (6000, 50, "titles of the catalogue"), "users": (64, 1, "users ranked at once"), "beams": (10, 1, "beams"),
        "repeats": (5, 1, "timed calls of each version"), "warmup": (600, 1, "training steps of the model"),
        "threads": (None, 1, "threads of torch (default: torch's own choice)"),
    })  # fmt: skip
    add_device(command)
    add_backbone(command)
    add_throughput(command, "users ranked at once")
    given = command.parse_args(arguments)
    check_device(command, given.device)
    check_throughput(command, given)
    if given.threads:
        torch.set_num_threads(given.threads)
    return given


def throughput(given, model, texts):
    """Figures of :func:`benchmarks.throughput.measure` for `ours`: rows are users."""
    rows = histories(texts, max(given.users, given.largest_batch), seed=5)
    return measure(lambda users: partial(ours, model, interaction(model, rows[:users])), given, given.users)


def main(arguments=None):
    """Compare the versions, measure them, print the tables. Returns what --json writes."""
    arguments = sys.argv[1:] if arguments is None else list(arguments)
    given = parse(arguments)
    warnings.filterwarnings("ignore", category=FutureWarning, module="recbole")
    plain, flr, texts, _ = make_models(given)
    rows = histories(texts, given.users, seed=5)
    batch, versions, found = interaction(flr, rows), {"ours": partial(ours, flr)}, {}
    if plain is not None and given.dtype == "float32":
        generate = Generate(flr, given.beams)
        leaves, scores = generate(batch)
        check_same(textbook(flr, batch), leaves, scores)
        found = compare(ours(flr, batch), leaves, scores)
        print("textbook ranks as generate.\n"
              f"For {found['same']:.1%} of the users, ours finds exactly the list of generate. The mean score of its titles is higher "
              f"by {found['gain']:.2g}.")
        versions.update(textbook=partial(textbook, flr), generate=generate)
    difference = check_scores(flr, flr.collator, flr.trie, rows[:CHECKED], TOLERANCES[given.dtype])
    print(f"Scores agree with full passes: largest relative difference {difference:.1e}.")
    if plain is not None:
        versions["no thought"] = partial(ours, plain)
    versions = {name: partial(version, batch) for name, version in versions.items()}
    results = {}
    seconds = in_turns(versions, given.repeats, given.device)
    for version in versions:
        ratios = [one / own for one, own in zip(seconds[version], seconds["ours"])]  # turn by turn
        results[version] = {"seconds": seconds[version], "ratios": ratios, "ratio": statistics.median(ratios),
                            "users_a_second": given.users / statistics.median(seconds[version])}  # fmt: skip
    table = [[version, spread([each / given.users for each in one["seconds"]], 1e3, 2), f"{one['users_a_second']:.0f}",
              spread(one["ratios"], digits=2)] for version, one in results.items()]  # fmt: skip
    headers = ["version", "ms a user (min..max)", "users a second", "time to ours (min..max)"]
    print(tabulate(table, headers, disable_numparse=True, colalign=("left", *["right"] * 3)))
    parts = shares(flr, batch, given.repeats)
    print("Of `decode`: " + ", ".join(f"{part} {spread(each, 100)}%" for part, each in parts.items()) + ".")
    speed = throughput(given, flr, texts)
    print(as_text(speed, "users"))
    settings = {name: value for name, value in vars(given).items() if name != "json"}
    command = " ".join(["python -m benchmarks.decoding", *arguments])
    equality = {**found, "largest_difference": difference}
    report = {"command": command, "settings": settings, **surroundings(device=given.device), "equality": equality,
              "results": results, "parts": parts, "throughput": speed}  # fmt: skip
    write_json(given.json, report)
    return report


if __name__ == "__main__":
    main()
