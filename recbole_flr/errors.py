"""Errors whose message is meant for the person at the keyboard, and `nearest`, which helps to write one.

Each says what was found, what was expected and what to do; the command line prints the message alone and exits with
status 2. Anything else that is raised is a bug and keeps its traceback.
"""

from difflib import SequenceMatcher


class FLRError(Exception):
    """Base of all errors that a user can mend."""


class ConfigError(FLRError):
    """An option that does not exist, or has a value that it cannot have."""


class DataError(FLRError):
    """A data set that is missing, or is not what it should be."""


class CheckpointError(FLRError):
    """A checkpoint that is missing, incomplete, or does not fit the model or the data."""


class OutputError(FLRError):
    """A file or folder that cannot be written."""


def nearest(name, known):
    """Find the known name that is most like a mistyped one; upper and lower case count as equal."""
    return max(sorted(known), key=lambda other: SequenceMatcher(None, str(name).lower(), other.lower()).ratio())


def first_line(error):
    """The first line of an error's message, for a message of ours that has to stay on one line."""
    return str(error).strip().split("\n")[0]
