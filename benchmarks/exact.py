"""How often beam search misses the titles that the model finds best, and what it costs to find them for certain.

    python -m benchmarks.exact saved/FLR-toys_demo-... --json exact.json

The test users of a trained run are ranked by beams of several widths and by exact search (`recbole_flr.decoding.exact`), under
the run's own `score` and `length_penalty`, with the same number of titles wanted. A title counts as missed if it is not among
the best of the beam and its score is higher than that of their last one by more than rounding.

For every user the benchmark checks that titles that both searches found have equal scores, and that no title of a beam which
exact search left out is better than the last one that exact search kept.

Times are those of the search alone, after the prompts have been read. The searches take turns on each batch, after one call of
each that does not count. "Tokens" are those that the model was asked to read behind the prompt.

Shapes: U users, F titles (padded).
"""

import argparse
import statistics
import sys

import torch
from tabulate import tabulate

from benchmarks.harness import at_least, in_turns, parser, spread, surroundings, write_json
from recbole_flr.decoding import beam_search
from recbole_flr.decoding.exact import exact_search
from recbole_flr.decoding.scorer import SCORES
from recbole_flr.errors import FLRError
from recbole_flr.model.tree import TreeDecoder
from recbole_flr.model.writer import Writer
from recbole_flr.quick_start import load_data_and_model

EXACT = "exact"


class Counted:
    """A scorer that counts the tokens it is asked for."""

    def __init__(self, scorer):
        self.scorer, self.hidden, self.tokens = scorer, scorer.hidden, 0

    def extend(self, tokens, parents, valid, last=False):
        self.tokens += int(valid.sum())
        return self.scorer.extend(tokens, parents, valid, last)

    def logits(self, hidden, tokens=None):
        return self.scorer.logits(hidden, tokens)


def tolerance(scores, precision):
    """How much rounding may change the scores of a model of that precision (a dtype); the shape of `scores`."""
    return min(1000 * torch.finfo(precision).eps, 0.1) * (1 + scores.abs())


def compare(exact, beam, top, precision=torch.float32):
    """Count the titles that a beam missed.

    Args:
        exact, beam: Beams of the same users; `exact` has the `top` best titles.
        top: number of titles that count.
        precision: the model's dtype.

    Returns:
        number of titles missed, int64 [U]; and whether the best title was missed, bool [U].

    Raises:
        AssertionError: the two contradict each other.
    """
    same = (exact.nodes.unsqueeze(2) == beam.nodes.unsqueeze(1)) & (exact.nodes >= 0).unsqueeze(2)  # [U, F, F']
    apart = (exact.scores.unsqueeze(2) - beam.scores.unsqueeze(1)).abs().masked_fill(~same, 0).amax(2)
    if not bool((apart <= tolerance(exact.scores, precision)).all()):
        raise AssertionError(f"exact and beam search give the same title scores that differ by {float(apart.max()):.1e}")
    last = exact.scores[:, -1:]
    foreign = beam.scores.masked_fill(same.any(1), -torch.inf)
    if exact.nodes.shape[1] == top and not bool((foreign <= last + tolerance(last, precision)).all()):
        raise AssertionError("a beam found a title that exact search should have kept")
    if exact.nodes.shape[1] < top and not bool((foreign == -torch.inf).all()):
        raise AssertionError("a beam found a title that exact search, which has all, does not have")
    worst = beam.scores[:, top - 1:top] if beam.scores.shape[1] >= top else torch.full_like(last, -torch.inf)
    slack = tolerance(exact.scores, precision)
    missed = ~same[:, :, :top].any(2) & (exact.scores > worst + slack)
    return missed.sum(1), exact.scores[:, 0] > beam.scores[:, 0] + slack[:, 0]


def batches(rows, size):
    """Split an interaction into parts of `size` rows."""
    return [rows[at] for at in torch.arange(len(rows)).split(size)]


@torch.no_grad()
def measure(model, parts, beams, top, repeats):
    """Search for all users.

    Args:
        model: Writer in evaluation mode.
        parts: list of RecBole batches.
        beams: list of beam widths.
        top: titles wanted for each user.
        repeats: number of timed calls of each search.

    Returns:
        dict: name of the search -> dict of its results; exact search is first.
    """
    options = dict(score=model.score, length_penalty=model.length_penalty)
    searches = {EXACT: lambda scorer: exact_search(scorer, model.trie, top, **options)}
    for width in beams:
        searches[str(width)] = lambda scorer, width=width: beam_search(scorer, model.trie, width, top=top, **options)
    seconds = {name: [0.0] * repeats for name in searches}
    tokens, missed, best = (dict.fromkeys(searches, 0), {name: [] for name in searches}, {name: [] for name in searches})
    for part in parts:
        thought, found = model.think(model.read_context(part.to(model.device))), {}

        def run(name, search):
            scorer = Counted(TreeDecoder(model.backbone, thought))
            found[name] = search(scorer), scorer.tokens

        versions = {name: lambda name=name, search=search: run(name, search) for name, search in searches.items()}
        for name, times in in_turns(versions, repeats, model.device.type).items():
            seconds[name] = [before + time for before, time in zip(seconds[name], times)]
        precision = model.backbone.embed(torch.zeros(1, dtype=torch.long, device=model.device)).dtype
        for name, (result, count) in found.items():
            titles, first = compare(found[EXACT][0], result, top, precision)
            tokens[name] += count
            missed[name].append(titles)
            best[name].append(first)
    users, results = sum(map(len, parts)), {}
    for name in searches:
        titles = torch.cat(missed[name])
        results[name] = {
            "users_differ": float((titles > 0).double().mean()), "titles_missed": float(titles.double().mean()),
            "best_missed": float(torch.cat(best[name]).double().mean()), "tokens_per_user": tokens[name] / users,
            "seconds_per_user": [time / users for time in seconds[name]],
        }  # fmt: skip
        own, exact = (statistics.median(results[one]["seconds_per_user"]) for one in (name, EXACT))
        results[name]["time_ratio"] = own / exact
    return results


def parse(arguments):
    """Parse a command line. Returns the parser and the options."""
    command = parser("benchmarks.exact", __doc__, {
        "users": (None, 1, "number of test rows, drawn at random (default: all)"), "top": (10, 1, "titles for each user"),
        "batch": (None, 1, "users that are ranked at once (default: the run's eval_batch_size)"),
        "repeats": (3, 1, "timed calls of each search on each batch"),
    })  # fmt: skip
    command.add_argument("run", help="folder of a trained run of a model that writes titles")
    command.add_argument("--beams", default="10,20,50", help="widths of the beams (default: 10,20,50)")
    command.add_argument("--score", choices=SCORES, help="how titles are scored (default: as in the run)")
    given = command.parse_args(arguments)
    try:
        given.beams = [at_least(1)(word) for word in given.beams.split(",")]
    except (ValueError, argparse.ArgumentTypeError):
        command.error(f"argument --beams: found {given.beams}, expected whole numbers of at least 1, such as 10,20,50")
    return command, given


def main(arguments=None):
    """Measure and print the table. Returns what --json writes."""
    arguments = sys.argv[1:] if arguments is None else list(arguments)
    command, given = parse(arguments)
    try:
        options = {"state": "ERROR", "show_progress": False, **({"score": given.score} if given.score else {})}
        config, model, *_, test_data = load_data_and_model(given.run, options)
    except FLRError as error:
        command.error(str(error))
    if not isinstance(model, Writer):
        command.error(f"{given.run} is a run of {config['model']}, which writes no titles; expected a run of a model that does")
    rows = test_data._dataset.inter_feat
    order = torch.randperm(len(rows), generator=torch.Generator().manual_seed(0))
    parts = batches(rows[order[:given.users]], given.batch or config["eval_batch_size"])
    results = measure(model, parts, given.beams, given.top, given.repeats)
    table = [
        [name if name == EXACT else f"beam {name}", f"{100 * one['users_differ']:.1f} %", f"{one['titles_missed']:.3f}",
         f"{100 * one['best_missed']:.1f} %", spread(one["seconds_per_user"], 1e3, 2), f"{one['time_ratio']:.2f}",
         f"{one['tokens_per_user']:.1f}"] for name, one in results.items()
    ]  # fmt: skip
    headers = ["search", f"users whose top {given.top} differs", "titles missed a user", "best title missed",
               "ms a user (min..max)", "to exact", "tokens a user"]  # fmt: skip
    print(tabulate(table, headers, disable_numparse=True, colalign=("left", *["right"] * 6)))
    settings = {"run": str(given.run), "model": config["model"], "dataset": config["dataset"], "score": model.score,
                "length_penalty": model.length_penalty, "users": sum(map(len, parts)), "top": given.top, "beams": given.beams,
                "batch": given.batch or config["eval_batch_size"], "repeats": given.repeats,
                "titles": int((model.trie.tail_length == 0).sum()), "nodes": model.trie.num_nodes}  # fmt: skip
    report = {"command": " ".join(["python -m benchmarks.exact", *map(str, arguments)]), "settings": settings,
              **surroundings(device=model.device.type), "results": results}  # fmt: skip
    write_json(given.json, report)
    return report


if __name__ == "__main__":
    main()
