"""The command lines: `run_recbole_flr.py`, and `python -m recbole_flr` with recommend, export and backbone.

The command `report` is in `recbole_flr/comparison/command.py`.
"""

import argparse
import json
import re
import sys

from recbole_flr import __version__
from recbole_flr.errors import ConfigError, printable
from recbole_flr.exit_status import go_on, one_line
from recbole_flr.processes import check_alone, quiet_torch
from recbole_flr.words import wants_comparison

USAGE = """\
Train, validate and test a model of recbole_flr or of RecBole.

  python run_recbole_flr.py --model=FLR --dataset=toys_demo
  python run_recbole_flr.py -m SASRec -d movies --epochs=50 --config_files my.yaml
  python run_recbole_flr.py --resume=saved/FLR-movies-20260101-120000
  python run_recbole_flr.py --checkpoint=saved/FLR-movies-20260101-120000 --stages=grpo

  --model, -m NAME        FLRMix, FLR, LatentR3, BIGRec, Base, CoT, LARES, ReaRec, AlphaRec, SequentialRules, VSKNN,
                          or any RecBole model (SASRec, GRU4Rec, Caser, ...)
  --dataset, -d NAME      toys_demo (made on the spot), ml-100k, or your own (README: Your own data); toys, cds, games,
                          instruments, movies, toys-2023, ... are fetched and converted with --download=true
  --config_files A.yaml   yaml files with options; several separated by blanks
  --search=FILE           search for good options in the ranges of a file, or of the plug-in: --search=default (needs Optuna)
  --trials=30             how many trials a search has; --search_seconds=N begins no trial after N seconds
  --help, -h              this text; with --model=NAME, that model's options
  --version               the version

Several models, seeds or data sets make a comparison, with tables and report.html (docs/comparison.md):

  python run_recbole_flr.py --model=FLR,FLRMix,SASRec --dataset=toys_demo --seeds=5 --jobs=2 --FLR.num_factors=3

  --seeds=5 or 2020,2021  how many seeds (from --seed on), or which;  --jobs=N  runs at a time;  --out=FOLDER  for the result
  --study=NAME            ablation, grpo, factors, refinements, cost or longtail
  --reuse=same            take over finished runs: same (options, data, version), any-version, none
  --reference=LABEL       row that the others are compared with; else the best baseline

Any option of the plug-in or of RecBole: --key=value or --key value. Values are yaml: 1e-3, [5, 10], "{'valid': full}".
"""

SEARCH_OPTIONS = {"search": "search", "trials": "trials", "search_seconds": "seconds"}  # of the command, not of a run


def parse_arguments(arguments):
    """Words of the command line -> dict of options, as text.

    Raises:
        ConfigError: for a word that is no option, an option without value, or one given twice with two values.
    """
    short = {"-m": "--model", "-d": "--dataset", "-h": "--help"}
    options, words = {}, list(arguments)
    while words:
        word = words.pop(0)
        name, equals, value = word.partition("=")
        name = short.get(name, name)
        if not name.startswith("--") or name == "--":
            raise ConfigError(f"found {word!r}, expected --key=value or --key value (values with blanks need quotes)")
        name = name[2:]
        if name in ("help", "version") and not equals:
            options[name] = True
            continue
        if not equals:
            if not words or words[0].startswith("--"):
                raise ConfigError(f"--{name}: found no value, expected --{name}=value")
            value = words.pop(0)
            while name == "config_files" and words and not words[0].startswith("-"):
                value += " " + words.pop(0)
        if options.get(name, value) != value:
            raise ConfigError(f"--{name}: found {options[name]!r} and {value!r}; give it once")
        options[name] = value
    return options


def main(arguments=None):
    """Entry point of run_recbole_flr.py.

    Returns:
        int: the exit status: 0, 2 after one line on a user's mistake, or 130 after Ctrl-C.
    """
    with one_line("run_recbole_flr") as status:
        quiet_torch()
        status.code = _run(sys.argv[1:] if arguments is None else arguments)
    return status.code


def _run(arguments):
    """What the words of the command line ask for. Returns the exit status."""
    options = parse_arguments(arguments)
    if "version" in options:
        print(f"recbole_flr {__version__}")
        return 0
    if "help" in options:
        from recbole_flr.options import help_text
        from recbole_flr.registry import shared_options

        model = options.get("model", "FLR")
        print(USAGE + "\nOptions of the plug-in (name, default, what is allowed, what it does and costs):")
        print(help_text(model, shared_options(model)))
        return 0
    if wants_comparison(options) and SEARCH_OPTIONS.keys() & options.keys():
        raise ConfigError("search: found words of a comparison too (several models or data sets, or --seeds, --jobs, --study, --out, "
                          "--reuse, --reference); expected one model and one data set for a search")
    if wants_comparison(options):
        from recbole_flr.comparison.command import compare

        check_alone("a comparison")
        return compare(options)
    from recbole_flr.quick_start import run_recbole_flr

    files = options.pop("config_files", "").replace(",", " ").split() or None
    model = options.pop("model", None)
    dataset = options.pop("dataset", None)
    if not files and not {"resume", "checkpoint"} & options.keys():
        model = "FLR" if model is None else model
        dataset = "toys_demo" if dataset is None else dataset
    searched = {name: options.pop(key) for key, name in SEARCH_OPTIONS.items() if key in options}
    if not searched:
        run_recbole_flr(model, dataset, files, options)
        return 0
    check_alone("a search")
    from recbole_flr.search import run_search

    if "search" not in searched:
        raise ConfigError("trials, search_seconds: found without a search; expected --search=FILE with ranges too")
    with go_on("the search keeps its finished trials; the same command goes on with it"):
        run_search(model, dataset, files, options, **searched)
    return 0


def recommend_main(arguments=None):
    """Entry point of `python -m recbole_flr recommend`."""
    parser = argparse.ArgumentParser("python -m recbole_flr recommend", description="Recommend the next items for a history.")
    parser.add_argument("--checkpoint", required=True, help="folder of a run, such as saved/FLR-toys_demo-...")
    asked = parser.add_mutually_exclusive_group(required=True)
    asked.add_argument("--history", nargs="+", help="titles or item ids, oldest first")
    asked.add_argument("--users", help="test, all, or a csv, tsv, jsonl or parquet file with the columns user_id and history")
    parser.add_argument("--k", type=int, default=10, help="how many items")
    parser.add_argument("--out", help="with --users: file to write, .parquet, .csv, .tsv or .jsonl")
    parser.add_argument("--skip-unknown", action="store_true", help="with --users: leave out unknown items and count them")
    parser.add_argument("--data_path", help="where the data sets are, if not where they were at training")
    parser.add_argument("--as-text", action="store_true", help="with --history: read an unknown title as text (FLR, LatentR3, BIGRec, Base, CoT)")
    parser.add_argument("--json", action="store_true", help="print JSON")
    given = parser.parse_args(arguments)
    if (given.users is None) != (given.out is None):
        parser.error("argument --out: --users and --out belong together")
    if given.users is not None and given.as_text:
        parser.error("argument --as-text: it belongs to --history; a file of --users has item ids")
    if given.users is None and given.skip_unknown:
        parser.error("argument --skip-unknown: it belongs to --users")
    changes = {"state": "ERROR", "show_progress": False, **({"data_path": given.data_path} if given.data_path else {})}
    with one_line("recommend") as status:
        check_alone("a recommendation")
        if given.users is not None:
            from recbole_flr.bulk_recommendation import describe, recommend_many

            with go_on("finished parts are kept; the same command goes on with them"):
                summary = recommend_many(given.checkpoint, given.users, given.out, given.k, given.skip_unknown, changes)
            print(json.dumps(summary) if given.json else describe(summary, given.out))
            return 0
        from recbole_flr.recommendation import recommend

        answer = recommend(given.checkpoint, given.history, given.k, changes, **({"as_text": True} if given.as_text else {}))
        print(_as_json(answer) if given.json else _as_text(answer))
    return status.code


def _as_json(answer):
    """JSON in which every character that a terminal obeys is an escape."""
    text = json.dumps(answer, ensure_ascii=False, indent=1)
    obeyed = r"[\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]"  # json.dumps escapes those below \x20
    return re.sub(obeyed, lambda found: f"\\u{ord(found[0]):04x}", text)


def _as_text(answer):
    """The answer of :func:`recbole_flr.recommendation.recommend` as lines for a person."""
    lines = [f"thought: {printable(answer['thought'])}"] if "thought" in answer else []
    for rank, item in enumerate(answer["items"], 1):
        lines.append(f"{rank:3d}  {item['score']:9.4f}  {printable(item['title'])}  [{printable(item['item'])}]")
        if "parts" in item:
            lines.append("     score: " + ", ".join(f"{name} {round(value, 3) + 0.0:.3f}" for name, value in item["parts"].items()))
        if item.get("after"):
            after = ", ".join(f"{printable(entry['title'])} ({entry['share']:.0%})" for entry in item["after"])
            lines.append(f"     after: {after}")
    if answer["factors"]:
        lines += ["", "What the model looked at. The weight of a factor says how much it counts (all weights add up to 1).",
                  "Below it is how the factor's attention is shared out (each list adds up to 1)."]
    for number, factor in enumerate(answer["factors"], 1):
        lines.append(f"factor {number}: weight {factor['weight']:.3f}")
        lines += [f"     {entry['attention']:.3f}  {printable(entry['title'])}" for entry in factor["history"]]
        lines.append(f"     {factor['rest']:.3f}  (what else it read: the thought itself, and text around the titles)")
    return "\n".join(lines)


def backbone_main(arguments=None):
    """Entry point of `python -m recbole_flr backbone`. Returns the exit status, as :func:`main`."""
    from recbole_flr import pretrained

    parser = argparse.ArgumentParser(
        "python -m recbole_flr backbone", description="Convert a pretrained language model that a Python package ships, once, "
        "for --backbone=NAME. The environment variable RECBOLE_FLR_CACHE names the folder of converted models.")
    parser.add_argument("name", choices=sorted(pretrained.PACKAGES), help="the model")
    parser.add_argument("--again", action="store_true", help="convert it also if this was done before")
    given = parser.parse_args(arguments)
    folder, package = pretrained.cache_folder() / given.name, pretrained.PACKAGES[given.name]
    with one_line("backbone") as status:
        check_alone("the conversion of a backbone")
        if given.again or not pretrained.is_converted(folder, package):
            pretrained.convert(package, folder)
        print(f"{given.name} is in {folder}. Use it with --backbone={given.name}")
    return status.code


def export_main(arguments=None):
    """Entry point of `python -m recbole_flr export`."""
    parser = argparse.ArgumentParser("python -m recbole_flr export", description="Write a trained model for other programs.")
    parser.add_argument("--checkpoint", required=True, help="folder of a run, such as saved/FLRMix-toys_demo-...")
    parser.add_argument("--out", required=True, help="folder to write; an earlier export in it is replaced")
    parser.add_argument("--data_path", help="where the data sets are, if not where they were at training")
    given = parser.parse_args(arguments)
    changes = {"state": "ERROR", "show_progress": False, **({"data_path": given.data_path} if given.data_path else {})}
    with one_line("export") as status:
        check_alone("an export")
        from recbole_flr.export import export

        for name, meaning in export(given.checkpoint, given.out, changes).items():
            print(f"{given.out}/{name}: {meaning}")
    return status.code
