"""Stand-ins for the converter in the tests of its benchmark. A child process imports this module, so it imports little."""

from pathlib import Path

from benchmarks.obvious_dataset import obvious


def same(**arguments):
    """Does what the benchmark expects."""
    return obvious(**arguments)


def wrong_title(**arguments):
    """Writes blanks in front of titles."""
    report = obvious(**arguments)
    path = Path(report["folder"]) / "made.item"
    path.write_bytes(path.read_bytes().replace(b"\t", b"\t ", 3))
    return report


def wrong_report(**arguments):
    """Reports a wrong count."""
    return {**obvious(**arguments), "bad_times": 1}
