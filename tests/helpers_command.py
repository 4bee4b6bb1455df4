"""For the tests of commands: `python ...` within this process. A process of its own takes seconds to import torch and RecBole."""

import runpy
import sys
import warnings

import pytest


def python(*words):
    """Do what `python WORDS` does, for `python SCRIPT ...` and `python -m MODULE ...`.

    Returns:
        int: the exit status.
    """
    words = [str(word) for word in words]
    is_module = words[0] == "-m"
    name, arguments = (words[1], words[2:]) if is_module else (words[0], words[1:])
    with pytest.MonkeyPatch.context() as patch, warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # other tests have imported the module already
        patch.setattr(sys, "argv", [name, *arguments])
        try:
            if is_module:
                runpy.run_module(name, run_name="__main__", alter_sys=True)
            else:
                runpy.run_path(name, run_name="__main__")
        except SystemExit as end:
            return end.code or 0
    return 0
