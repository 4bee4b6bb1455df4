"""Which files of the package a run executes, and the arrows between them: how much a newcomer must follow.

    python -m benchmarks.executed --model=SASRec --dataset=toys_demo --epochs=1

All words go to run_recbole_flr.py. A file counts if one of its functions runs outside of an import. An arrow leads from one file
to another if a function of the first calls a function of the second.
"""

import sys
from pathlib import Path

PACKAGE = Path(__file__).resolve().parents[1] / "recbole_flr"


class Recorder:
    """A profiler for :func:`sys.setprofile`.

    Attributes:
        files: names of the files that were executed.
        arrows: pairs of names: caller, called.
    """

    def __init__(self):
        self.files, self.arrows = set(), set()

    @staticmethod
    def _name(frame):
        """File of a frame, relative to the package; None for a file outside of it."""
        path = frame.f_code.co_filename
        return path[len(str(PACKAGE)) + 1:] if path.startswith(str(PACKAGE)) else None

    def __call__(self, frame, event, argument):
        called = self._name(frame)
        if event != "call" or called is None or frame.f_code.co_name == "<module>":
            return
        caller = frame.f_back
        while caller is not None and self._name(caller) is None:
            caller = caller.f_back
        if caller is not None and caller.f_code.co_name == "<module>":
            return  # part of an import
        self.files.add(called)
        if caller is not None and self._name(caller) != called:
            self.arrows.add((self._name(caller), called))


def main(arguments=None):
    """Run, and print what was executed. Returns the recorder."""
    from recbole_flr.command import main as run

    recorder = Recorder()
    sys.setprofile(recorder)
    try:
        status = run(sys.argv[1:] if arguments is None else arguments)
    finally:
        sys.setprofile(None)
    if status:
        sys.exit(status)
    total = len(list(PACKAGE.rglob("*.py")))
    print(f"{len(recorder.files)} of {total} files, {len(recorder.arrows)} arrows")
    for name in sorted(recorder.files):
        print(f"  {name} -> {', '.join(sorted(called for caller, called in recorder.arrows if caller == name)) or '-'}")
    return recorder


if __name__ == "__main__":
    main()
