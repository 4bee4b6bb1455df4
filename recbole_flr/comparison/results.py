"""Finished runs as they stand on the disk, and the rows of a table, each with one run for each seed."""

import json
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from zipfile import BadZipFile

import numpy as np

from recbole_flr.errors import CheckpointError, DataError
from recbole_flr.identity import WITHOUT_EFFECT
from recbole_flr.result import EXAMPLES, FORMAT, RANKS, RESULT, ranks_file, read_ranks
from recbole_flr.training.checkpoint import CONFIG

SHOWN_OPTIONS = 3  # options in a label


@dataclass
class Run:
    """A finished run.

    Attributes:
        folder: Path.
        result: content of `result.json`.
        options: content of `run.json`.
        stage: name of the stage whose result is shown.
    """

    folder: Path
    result: dict
    options: dict
    stage: str

    @property
    def model(self):
        return self.result["model"]

    @property
    def dataset(self):
        return self.result["dataset"]

    @property
    def seed(self):
        return self.result["seed"]

    @property
    def is_kept(self):
        """Whether the run kept the stage that is shown; the examples and the statistics of the factors are of that one."""
        return self.stage == self.result["kept"]

    @property
    def has_ranks(self):
        """Whether there are ranks of the stage that is shown; runs of earlier versions have those of the kept one only."""
        return (self.folder / ranks_file(self.stage, self.result["kept"])).is_file()

    @cached_property
    def ranks(self):
        """The arrays of the ranks of the stage that is shown; if there are none, of the kept one."""
        return read_ranks(self.folder, ranks_file(self.stage, self.result["kept"]) if self.has_ranks else RANKS)

    @cached_property
    def examples(self):
        """The content of `examples.json`; empty for a run of an earlier version."""
        path = self.folder / EXAMPLES
        return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else []

    @property
    def shown_stage(self):
        """The entry of the stage that is shown."""
        return next(stage for stage in self.result["stages"] if stage["name"] == self.stage)

    @property
    def test(self):
        """Test metrics, name -> value."""
        return self.shown_stage["test_result"]

    @property
    def valid(self):
        """Validation metrics, name -> value; None without validation."""
        return self.shown_stage["best_valid_result"]

    @property
    def main_metric(self):
        """The metric by which validation chose, in lower case as in the results."""
        return self.options["valid_metric"].lower()

    def costs(self):
        """`train_seconds`, `peak_memory_bytes`, `user_seconds` (for each ranked row), `parameters`; None if not known."""
        known = [stage for stage in self.result["stages"] if stage.get("seconds") is not None]
        memory = [stage["peak_memory_bytes"] for stage in known if stage.get("peak_memory_bytes")]
        seconds, rows = self.shown_stage.get("test_seconds"), self.result["data"]["rows"]["test"]
        return {
            "train_seconds": sum(stage["seconds"] for stage in known) if known else None,
            "peak_memory_bytes": max(memory) if memory else None,
            "user_seconds": seconds / rows if seconds is not None and rows else None,
            "parameters": self.result["parameters"],
        }


@dataclass
class Row:
    """A row of a table: the same model with the same options, once for each seed.

    Attributes:
        label: what the table calls it.
        runs: list of Run, in the order of their seeds.
    """

    label: str
    runs: list = field(default_factory=list)

    @property
    def model(self):
        return self.runs[0].model

    @property
    def seeds(self):
        return [run.seed for run in self.runs]


def read_run(folder, stage=None):
    """Read the folder of a finished run.

    Args:
        folder: of the run.
        stage: name of the stage to show; None for the one that the run kept.

    Raises:
        CheckpointError: if the folder is none of a finished run, or lacks its ranks, or was written by a later version.
    """
    folder = Path(folder)
    path = folder / RESULT
    if not path.is_file():
        what = (
            "which does not exist"
            if not folder.exists()
            else "whose run has not finished"
            if (folder / CONFIG).is_file()
            else ("which is no folder of a run")
        )
        raise CheckpointError(f"found {folder}, {what} (no {RESULT}); expected a folder such as saved/FLR-movies-...")
    try:
        result = json.loads(path.read_text(encoding="utf-8"))
        options = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
        if result["format"] != FORMAT:
            raise CheckpointError(f"{path}: found format {result['format']}, expected {FORMAT}; use the version that wrote it")
        run = Run(folder, result, options, stage or result["kept"])
        if stage is not None and stage not in [each["name"] for each in result["stages"]]:
            raise CheckpointError(f"{path}: found no stage {stage!r}")
        complete = run.test is not None and run.main_metric in run.test
        if complete:  # what the tables read
            known = run.costs(), run.seed, run.dataset, result["data"]["fingerprint"], result["hardware"]["cpu"]
            if not known or not all(isinstance(value, (int, float)) for value in run.test.values()):
                raise ValueError("a metric is no number")
    except (ValueError, KeyError, TypeError, AttributeError, StopIteration, OSError) as error:
        raise CheckpointError(
            f"{path} is not what a finished run writes ({type(error).__name__}: {error}); run it again"
        ) from error
    if not complete:
        raise CheckpointError(f"{path}: found no test result; run it again with validation")
    if not (folder / RANKS).is_file():
        raise CheckpointError(f"{folder}: found no {RANKS}, which has the ranks of all targets; run it again with this version")
    try:
        lacking = {"test_row", "test_target", "test_item_rank"} - set(run.ranks)
        if lacking:
            raise ValueError(f"no {', '.join(sorted(lacking))}")
    except (ValueError, OSError, EOFError, BadZipFile) as error:
        raise CheckpointError(f"{folder / RANKS} cannot be read ({error}); run it again") from error
    return run


def check_same_data(runs):
    """Make sure that runs can stand in one table.

    Args:
        runs: list of Run.

    Raises:
        DataError: naming the difference: another data set, other rows, other targets, or other cut-offs.
    """
    first = runs[0]
    for run in runs[1:]:
        for name, of in (
            ("data set", lambda run: run.dataset),
            ("items and users (fingerprint)", lambda run: run.result["data"]["fingerprint"]),
            ("number of test rows", lambda run: run.result["data"]["rows"]["test"]),
            ("number of training rows", lambda run: run.result["data"]["rows"]["train"]),
            ("validation metric", lambda run: run.main_metric),
            ("evaluation mode", lambda run: json.dumps(run.options.get("eval_args", {}).get("mode"), sort_keys=True)),
        ):
            ours, theirs = of(first), of(run)
            if ours != theirs:
                raise DataError(
                    f"found runs on different data: {name} is {_short(ours)} in {first.folder} and {_short(theirs)} in "
                    f"{run.folder}; a table compares runs on the same rows; leave one of the two out"
                )
        for array in ("test_row", "test_target"):
            if not np.array_equal(first.ranks[array], run.ranks[array]):
                raise DataError(
                    f"found runs on different data: the targets of the test rows in {first.folder} and {run.folder} differ; "
                    "a table compares runs on the same rows; leave one of the two out"
                )


def _short(value):
    return value[:12] + "..." if isinstance(value, str) and len(value) > 60 else value


def rows_of(runs):
    """Group runs that differ in nothing but the seed. The label names the options in which the groups of one model differ.

    Args:
        runs: list of Run.

    Returns:
        list of Row.

    Raises:
        DataError: two runs have the same model, options and seed.
    """
    groups = {}
    for run in runs:
        skipped = WITHOUT_EFFECT | {"seed", "model", "dataset", "tokenizer", "checkpoint"}
        options = {name: value for name, value in run.options.items() if name not in skipped}
        key = json.dumps([run.model, options], sort_keys=True, default=str)
        groups.setdefault(key, (options, []))[1].append(run)
    rows = []
    for options, members in groups.values():
        model = members[0].model
        others = [other for other, each in groups.values() if each[0].model == model]
        names = [name for name in options if any(other.get(name) != options[name] for other in others)]
        told = ", ".join(f"{name}={options[name]}" for name in names[:SHOWN_OPTIONS]) + (
            ", ..." if len(names) > SHOWN_OPTIONS else ""
        )
        row = Row(f"{model}, {told}" if told else model, sorted(members, key=lambda run: run.seed))
        repeated = [run for run, other in zip(row.runs[1:], row.runs) if run.seed == other.seed]
        if repeated:
            raise DataError(
                f"found two runs of {row.label} with the seed {repeated[0].seed}, such as {repeated[0].folder}; expected one run "
                "for each seed; leave one of them out"
            )
        rows.append(row)
    labels = [row.label for row in rows]
    for number, row in enumerate(rows):
        if labels.count(row.label) > 1:
            row.label += f" ({number + 1})"
    return rows
