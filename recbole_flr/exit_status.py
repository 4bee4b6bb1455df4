"""How a command ends: with a result, or with one line that says what went wrong, and an exit status.

If the run has several processes, all of them together print the line once.
"""

import os
import sys
from contextlib import contextmanager

from recbole_flr.errors import AlreadySaid, FLRError, Interrupted
from recbole_flr.processes import speaks


class Status:
    """The exit status of a command."""

    code = 0


@contextmanager
def one_line(program, interrupted="interrupted; nothing was saved"):
    """Inside the block, a user's mistake and Ctrl-C end the command with one line on stderr.

    Args:
        program (str): the line begins with it.
        interrupted (str): what the line says after Ctrl-C, unless an :class:`Interrupted` says more.

    Yields:
        Status: its `code` is 2 after a mistake, 130 after Ctrl-C, else 0.
    """
    status = Status()
    try:
        yield status
    except AlreadySaid as error:
        status.code = error.status
    except FLRError as error:
        if speaks(error):
            print(f"{program}: {error}", file=sys.stderr)
        status.code = 2
    except KeyboardInterrupt as error:
        message = str(error) if isinstance(error, Interrupted) else interrupted
        if speaks(message):
            print(f"\n{program}: {message}", file=sys.stderr)
        status.code = 130
    except BrokenPipeError:  # such as `... | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        status.code = 1


@contextmanager
def go_on(how):
    """Inside the block, Ctrl-C says how to go on."""
    try:
        yield
    except KeyboardInterrupt as error:
        raise Interrupted(f"interrupted; {how}") from error
