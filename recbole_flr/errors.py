"""Errors whose message is meant for the person at the keyboard.

Each says what was found, what was expected and what to do; the command line prints the message alone and exits with
status 2. Anything else that is raised is a bug and keeps its traceback.
"""


class FLRError(Exception):
    """Base of all errors that a user can mend."""


class ConfigError(FLRError):
    """An option that does not exist, or has a value that it cannot have."""


class DataError(FLRError):
    """A data set that is missing, or is not what it should be."""


class CheckpointError(FLRError):
    """A checkpoint that is missing, incomplete, or does not fit the model or the data."""


def first_line(error):
    """The first line of an error's message, for a message of ours that has to stay on one line."""
    return str(error).split("\n")[0]
