"""The command lines: `run_recbole_flr.py` and `python -m recbole_flr recommend`."""

import argparse
import json
import os
import re
import sys
from contextlib import contextmanager

from recbole_flr import __version__
from recbole_flr.errors import ConfigError, FLRError, Interrupted, printable

USAGE = """\
Train, validate and test a model of recbole_flr or of RecBole.

  python run_recbole_flr.py --model=FLR --dataset=toys_demo
  python run_recbole_flr.py -m SASRec -d movies --epochs=50 --config_files my.yaml
  python run_recbole_flr.py --resume=saved/FLR-movies-20260101-120000
  python run_recbole_flr.py --checkpoint=saved/FLR-movies-20260101-120000 --stages=grpo

  --model, -m NAME        FLR, LatentR3, BIGRec, or any RecBole model (SASRec, GRU4Rec, Caser, ...)
  --dataset, -d NAME      toys_demo (made on the spot), ml-100k, or your own (README: Your own data); toys, cds, games,
                          instruments, movies, toys-2023, ... are fetched and converted with --download=true
  --config_files A.yaml   yaml files with options; several separated by blanks
  --help, -h              this text; with --model=NAME, that model's options
  --version               the version

Any option of the plug-in or of RecBole: --key=value or --key value. Values are yaml: 1e-3, [5, 10], "{'valid': full}".
"""


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


class Status:
    """The exit status of a command."""

    code = 0


@contextmanager
def one_line(program):
    """Inside the block, a user's mistake and Ctrl-C end the command with one line on stderr.

    Args:
        program (str): the line begins with it.

    Yields:
        Status: its `code` is 2 after a mistake, 130 after Ctrl-C, else 0.
    """
    status = Status()
    try:
        yield status
    except FLRError as error:
        print(f"{program}: {error}", file=sys.stderr)
        status.code = 2
    except KeyboardInterrupt as error:
        message = str(error) if isinstance(error, Interrupted) else "interrupted; nothing was saved"
        print(f"\n{program}: {message}", file=sys.stderr)
        status.code = 130
    except BrokenPipeError:  # such as `... | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        status.code = 1


def main(arguments=None):
    """Entry point of run_recbole_flr.py.

    Returns:
        int: the exit status: 0, 2 after one line on a user's mistake, or 130 after Ctrl-C.
    """
    with one_line("run_recbole_flr") as status:
        _run(sys.argv[1:] if arguments is None else arguments)
    return status.code


def _run(arguments):
    options = parse_arguments(arguments)
    if "version" in options:
        print(f"recbole_flr {__version__}")
        return
    if "help" in options:
        from recbole_flr.options import help_text
        from recbole_flr.registry import shared_options

        model = options.get("model", "FLR")
        print(USAGE + "\nOptions of the plug-in (name, default, what is allowed, what it does and costs):")
        print(help_text(model, shared_options(model)))
        return
    from recbole_flr.quick_start import run_recbole_flr

    files = options.pop("config_files", "").replace(",", " ").split() or None
    model = options.pop("model", None)
    dataset = options.pop("dataset", None)
    if not files and not {"resume", "checkpoint"} & options.keys():
        model = "FLR" if model is None else model
        dataset = "toys_demo" if dataset is None else dataset
    run_recbole_flr(model, dataset, files, options)


def recommend_main(arguments=None):
    """Entry point of `python -m recbole_flr recommend`."""
    parser = argparse.ArgumentParser("python -m recbole_flr recommend", description="Recommend the next items for a history.")
    parser.add_argument("--checkpoint", required=True, help="folder of a run, such as saved/FLR-toys_demo-...")
    parser.add_argument("--history", required=True, nargs="+", help="titles or item ids, oldest first")
    parser.add_argument("--k", type=int, default=10, help="how many items")
    parser.add_argument("--data_path", help="where the data sets are, if not where they were at training")
    parser.add_argument("--as-text", action="store_true", help="read an unknown title as text (models that read titles)")
    parser.add_argument("--json", action="store_true", help="print JSON")
    given = parser.parse_args(arguments)
    changes = {"state": "ERROR", "show_progress": False, **({"data_path": given.data_path} if given.data_path else {})}
    with one_line("recommend") as status:
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
    lines = []
    for rank, item in enumerate(answer["items"], 1):
        lines.append(f"{rank:3d}  {item['score']:9.4f}  {printable(item['title'])}  [{printable(item['item'])}]")
        if "parts" in item:
            lines.append("     score: " + ", ".join(f"{name} {value:.3f}" for name, value in item["parts"].items()))
        if item.get("after"):
            after = ", ".join(f"{printable(entry['title'])} ({entry['share']:.0%})" for entry in item["after"])
            lines.append(f"     after: {after}")
    if answer["factors"]:
        lines += ["", "What the model looked at. The weight of a factor is its share in the thought (all weights add up to 1).",
                  "Below it is how the factor's attention is shared out (each list adds up to 1)."]
    for number, factor in enumerate(answer["factors"], 1):
        lines.append(f"factor {number}: weight {factor['weight']:.3f}")
        lines += [f"     {entry['attention']:.3f}  {printable(entry['title'])}" for entry in factor["history"]]
        lines.append(f"     {factor['rest']:.3f}  (the thought itself, and the text around the titles)")
    return "\n".join(lines)
