"""`python -m recbole_flr COMMAND ...`: run, recommend, report, export, backbone."""

import sys

from recbole_flr import __version__
from recbole_flr.command import backbone_main, export_main, main, recommend_main


def report(arguments):
    """Compare runs that exist."""
    from recbole_flr.comparison.command import report_main

    return report_main(arguments)


COMMANDS = {  # name -> its function, and what it does
    "run": (main, "train, validate and test a model, as run_recbole_flr.py does"),
    "recommend": (recommend_main, "recommend the next items for a history, or for many users in a file"),
    "report": (report, "compare finished runs: tables and report.html"),
    "export": (export_main, "write item vectors and the language model of a run for other programs"),
    "backbone": (backbone_main, "convert a language model that comes as a Python package"),
}
OTHERS = {  # other modules with a command line
    "dataset_scripts.convert": "convert a log or Amazon's reviews to a data set",
    "dataset_scripts.download": "download Amazon's reviews",
    "dataset_scripts.toys_demo": "make the data set toys_demo",
    "recbole_flr.options": "print all options as a document",
}


def usage():
    """What --help prints."""
    lines = [f"recbole_flr {__version__}: recommenders that are language models and reason in latent space, for RecBole", ""]
    lines += ["usage: python -m recbole_flr COMMAND ..., where each command takes --help", ""]
    lines += [f"  {name:<12} {what}" for name, (_, what) in COMMANDS.items()]
    lines += ["", "  --help, -h   this text", "  --version    the version", "", "Other commands:", ""]
    lines += [f"  python -m {name:<26} {what}" for name, what in OTHERS.items()]
    return "\n".join(lines)


def run_command(words):
    """Run `python -m recbole_flr WORDS`. Returns the exit status."""
    if words and words[0] in COMMANDS:
        return COMMANDS[words[0]][0](words[1:])
    if words and words[0] in ("--help", "-h", "help"):
        print(usage())
        return 0
    if words and words[0] == "--version":
        print(f"recbole_flr {__version__}")
        return 0
    found = f"found {words[0]!r}" if words else "found no command"
    print(f"recbole_flr: {found}, expected {', '.join(COMMANDS)} (python -m recbole_flr --help)", file=sys.stderr)
    return 2


if __name__ == "__main__":
    sys.exit(run_command(sys.argv[1:]))
