"""Errors whose message is meant for the person at the keyboard, and what helps to write one.

Each says what was found, what was expected and what to do; the command line prints the message alone and exits with
status 2. Anything else that is raised is a bug and keeps its traceback. A message may quote text of a data set, which is data:
control characters in it are shown as escapes.
"""

import re
from contextlib import contextmanager
from difflib import SequenceMatcher

# Control characters, which a terminal obeys; marks that turn the direction of text around; halves of surrogate pairs
_UNPRINTABLE = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")
_ON_ONE_LINE = re.compile(_UNPRINTABLE.pattern[:-1] + "\t\n]")
_NO_MEMORY = re.compile("can't allocate memory|not enough memory|out of memory|unable to allocate|size calculation overflow|"
                        "integer multiplication overflow|array is too big", re.IGNORECASE)


def printable(text, lines=False):
    r"""Text in which control characters are escapes, such as `\x1b`, so that no terminal obeys them.

    Args:
        text: anything; it is turned into text.
        lines (bool): whether line ends and tabs stay.
    """
    pattern = _UNPRINTABLE if lines else _ON_ONE_LINE
    return pattern.sub(lambda match: match[0].encode("unicode_escape").decode("ascii"), str(text))


class FLRError(Exception):
    """Base of all errors that a user can mend."""

    def __str__(self):
        return printable(super().__str__(), lines=True)


class ConfigError(FLRError):
    """An option that does not exist, or has a value that it cannot have."""


class DataError(FLRError):
    """A data set that is missing, or is not what it should be."""


class CheckpointError(FLRError):
    """A checkpoint that is missing, incomplete, or does not fit the model or the data."""


class TrainingError(FLRError):
    """A training that cannot go on, because its loss or its weights are no finite numbers."""


class DiskError(FLRError):
    """A file that cannot be written, because the disk is full or refuses it."""


class LostProcess(FLRError):
    """Another process of the same run has ended, so this one cannot go on."""


class AlreadySaid(FLRError):
    """A process that was started for the run has ended with a message of its own, which is printed.

    Args:
        message (str): for those who call from Python.
        status (int): the exit status of that process.
    """

    def __init__(self, message, status=2):
        super().__init__(message)
        self.status = status


class Interrupted(KeyboardInterrupt):
    """Ctrl-C, with a message that says how to go on."""


def nearest(name, known):
    """Find the known name that is most like a mistyped one; upper and lower case count as equal."""
    return max(sorted(known), key=lambda other: SequenceMatcher(None, str(name).lower(), other.lower()).ratio())


def first_line(error):
    """The first line of an error's message, for a message of ours that has to stay on one line."""
    return str(error).strip().split("\n")[0]


@contextmanager
def enough_memory(what):
    """Inside the block, a lack of memory is a ConfigError.

    Args:
        what (str): what needs the memory, such as "the model".

    Raises:
        ConfigError: torch, numpy or Python could not get the memory.
    """
    try:
        yield
    except (MemoryError, RuntimeError, ValueError) as error:  # numpy says ValueError, torch RuntimeError
        if not (isinstance(error, MemoryError) or _NO_MEMORY.search(str(error))):
            raise
        raise ConfigError(f"{what} needs more memory than there is ({first_line(error) or 'MemoryError'}); lower the options of "
                          "sizes, such as train_batch_size, eval_batch_size, num_factors or the model's widths") from error
