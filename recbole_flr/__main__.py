"""`python -m recbole_flr COMMAND ...`: run, recommend, report, export, backbone."""

import sys

from recbole_flr.command import backbone_main, export_main, main, recommend_main


def report(arguments):
    """Compare runs that exist."""
    from recbole_flr.comparison.command import report_main

    return report_main(arguments)


COMMANDS = {"run": main, "recommend": recommend_main, "report": report, "export": export_main, "backbone": backbone_main}

if __name__ == "__main__":
    if len(sys.argv) < 2 or sys.argv[1] not in COMMANDS:
        sys.exit(f"usage: python -m recbole_flr {{{','.join(COMMANDS)}}} ... (each takes --help)")
    sys.exit(COMMANDS[sys.argv[1]](sys.argv[2:]))
