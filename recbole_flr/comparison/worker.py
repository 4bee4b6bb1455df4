"""One job of a comparison, in a process of its own: `python -m recbole_flr.comparison.worker`.

A process of its own has its own peak of memory, its own threads and its own random numbers, and cannot take the others with it.

The job comes as one line of JSON on the standard input. The input stays open; when it ends, the comparison is gone, and this
process ends too. Otherwise a resumed comparison would meet runs that are still being written.
"""

import json
import os
import sys
import threading
import traceback

from recbole_flr.errors import FLRError, first_line
from recbole_flr.files import write_json

RUN, COST = "run", "cost"


def end_with(stream):
    """From now on, end this process at once when a stream ends."""

    def wait():
        while stream.read(1):
            pass
        os._exit(1)

    threading.Thread(target=wait, daemon=True).start()


def run(job):
    """Make a run, or go on with one.

    Args:
        job: `model`, `dataset`, `files`, `options` of :func:`recbole_flr.quick_start.run_recbole_flr`.
    """
    from recbole_flr.quick_start import run_recbole_flr

    options = job["options"]
    files = ["--config_files=" + ",".join(job["files"])] if job["files"] else []
    named = [f"--{name}={job[name]}" for name in ("model", "dataset") if job[name]]
    sys.argv = ["run_recbole_flr.py", *named, *files, *(f"--{name}={value}" for name, value in options.items())]
    run_recbole_flr(job["model"], job["dataset"], job["files"], options)


def cost(job):
    """Time the ranking of a trained model, see :func:`recbole_flr.comparison.ranking_time.measure`."""
    from recbole_flr.comparison.ranking_time import measure

    return measure(job["folder"], job["data_path"])


def main():
    """Do the job, and write the outcome to the file that the job names: {error} or {answer}. Returns the exit status."""
    job = json.loads(sys.stdin.readline())
    end_with(sys.stdin)
    try:
        answer = {RUN: run, COST: cost}[job["kind"]](job)
    except FLRError as error:
        write_json(job["outcome"], {"error": str(error)})
        print(error, file=sys.stderr)
        return 2
    except Exception as error:
        traceback.print_exc()
        write_json(job["outcome"], {"error": f"{type(error).__name__}: {first_line(error)}"})
        return 1
    write_json(job["outcome"], {"answer": answer})
    return 0


if __name__ == "__main__":
    status = main()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)  # the thread may still wait for the end of the input
