"""Makes the runs of a plan: takes over finished ones, goes on with killed ones, and starts the rest, each in its own process."""

import json
import os
import subprocess
import sys
import tempfile
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from queue import SimpleQueue
from time import perf_counter

from recbole.utils import ModelType

from recbole_flr.comparison.worker import RUN
from recbole_flr.config import Config
from recbole_flr.data.loading import prepare_files
from recbole_flr.errors import ConfigError, FLRError
from recbole_flr.identity import read_key, run_key
from recbole_flr.result import RANKS, RESULT, duration
from recbole_flr.training import checkpoint
from recbole_flr.training.lock import is_in_progress

PACKAGE_PARENT = Path(__file__).resolve().parents[2]


@dataclass
class Done:
    """What became of a planned run: the folder of the finished run, or the error.

    Attributes:
        planned: :class:`recbole_flr.comparison.plan.Planned`.
        folder: Path, or None if the run failed.
        error: text, or None.
        reused: whether the run was finished before.
    """

    planned: object
    folder: Path | None = None
    error: str | None = None
    reused: bool = False


class Slots:
    """What runs at the same time share: threads, and where there are GPUs, one GPU each.

    Args:
        jobs: how many run at a time.
        environment: of the processes that are started.
        gpus: list of GPU ids, empty without.
    """

    def __init__(self, jobs, environment, gpus):
        self.gpus, self.environment = gpus, dict(environment)
        if jobs > 1:
            threads = int(self.environment.get("OMP_NUM_THREADS") or 0) or os.cpu_count() or 1
            self.environment["OMP_NUM_THREADS"] = str(max(1, threads // jobs))
        self._free = SimpleQueue()
        for number in range(jobs):
            self._free.put(number)

    def take(self):
        """Number of a free slot; waits for one."""
        return self._free.get()

    def give_back(self, number):
        """The slot is free again."""
        self._free.put(number)

    def options(self, number):
        """Options of a run in a slot."""
        return {"gpu_id": str(self.gpus[number % len(self.gpus)])} if self.gpus else {}


class Runner:
    """Makes the runs of a plan.

    Args:
        plan: :class:`recbole_flr.comparison.plan.Plan`.
        folder: of the comparison; the output of runs that go on side by side is kept in its folder `logs`.
        say: function that prints a line.

    Raises:
        ConfigError, DataError: for options of a run that are wrong, or data that is missing. Nothing has been started then.
    """

    def __init__(self, plan, folder, say=print):
        self.plan, self.folder, self.say = plan, Path(folder), say
        environment = dict(os.environ)  # RecBole's Config sets CUDA_VISIBLE_DEVICES
        self._check_kinds([self._config(run) for run in plan.runs])
        self.configs = [self._config(run, prepare=True) for run in plan.runs]
        self.slots = Slots(plan.jobs, environment, self._gpus(environment))
        self._stopping, self._processes, self._lock = threading.Event(), set(), threading.Lock()

    def _config(self, run, prepare=False):
        """The options of a run, checked. With `prepare` the data set's files are there afterwards."""
        try:
            config = Config(run.model, run.dataset, run.files, run.options)
            if prepare:
                prepare_files(config)  # which may bring options, in a file in the data set's own folder
                config = Config(run.model, run.dataset, run.files, run.options)
            return config
        except ConfigError as error:
            hint = (
                f" (an option of one model is --{run.model}.NAME=VALUE)"
                if len({each.model for each in self.plan.runs}) > 1
                else ""
            )
            raise ConfigError(f"{run.label}: {error}{hint}") from error

    def _check_kinds(self, configs):
        """Refuse models that are tested on different rows."""
        kinds = {run.model: config["MODEL_TYPE"] for run, config in zip(self.plan.runs, configs)}
        sequential = [name for name, kind in kinds.items() if kind == ModelType.SEQUENTIAL]
        others = [name for name in kinds if name not in sequential]
        if sequential and others:
            raise ConfigError(
                f"model: found {', '.join(sequential)}, which rank for a history, and {', '.join(others)}, which rank for a "
                "user; they are tested on different rows and cannot share a table; compare them separately"
            )

    def _gpus(self, environment):
        """Ids of the GPUs that the runs may use; empty if they use none, or if they run one after the other."""
        import torch

        if self.plan.jobs == 1 or not all(config["use_gpu"] for config in self.configs) or not torch.cuda.is_available():
            return []
        visible = environment.get("CUDA_VISIBLE_DEVICES")
        return [part.strip() for part in visible.split(",")] if visible else list(range(torch.cuda.device_count()))

    def run_all(self):
        """Make all runs. A run that fails does not stop the others.

        Returns:
            list of :class:`Done`, in the order of the plan.
        """
        places, futures = {(run.label, run.dataset, run.seed): number for number, run in enumerate(self.plan.runs)}, []

        def make(number):
            run = self.plan.runs[number]
            before = futures[places[run.start, run.dataset, run.seed]].result() if run.start else None
            return self._make(number, before)

        with ThreadPoolExecutor(self.plan.jobs) as pool:
            try:
                for number in range(len(self.plan.runs)):
                    futures.append(pool.submit(make, number))
                return [future.result() for future in futures]
            except BaseException:
                self.stop()
                for future in futures:
                    future.cancel()
                raise

    def stop(self):
        """End all processes."""
        self._stopping.set()
        with self._lock:
            for process in self._processes:
                process.kill()

    def _make(self, number, before):
        """Find or make one run -> Done. before: Done of the run that it starts from, or None."""
        run, config = self.plan.runs[number], self.configs[number]
        place = f"[{number + 1}/{len(self.plan.runs)}] {run.name}"
        if self._stopping.is_set():
            return Done(run, error="stopped")
        options = dict(run.options)
        if before is not None:
            if before.folder is None:
                return self._failed(place, run, f"{before.planned.name} failed, from whose weights this run starts")
            options["checkpoint"] = str(before.folder)
        try:
            key = run_key(config, options.get("checkpoint"))
            finished, unfinished = find_runs(config["checkpoint_dir"], run, key, self.plan.reuse)
            if finished:
                self.say(f"{place}: taken over from {finished}")
                return Done(run, finished, reused=True)
            if unfinished and is_in_progress(unfinished):
                return self._failed(
                    place, run, f"this run is in progress in another process, in {unfinished}; give the command again later"
                )
            start = perf_counter()
            self.say(f"{place}: " + (f"goes on in {unfinished}" if unfinished else "starts"))
            job = (
                {"kind": RUN, "model": None, "dataset": None, "files": None, "options": {"resume": str(unfinished)}}
                if unfinished
                else {"kind": RUN, "model": run.model, "dataset": run.dataset, "files": run.files, "options": options}
            )
            outcome = self.work(job, f"{run.label}-{run.dataset}-{run.seed}")
            if "error" in outcome:
                return self._failed(place, run, outcome["error"])
            # the latest, of whatever version: the code may have been changed since this comparison began
            finished, _ = find_runs(config["checkpoint_dir"], run, key, "any-version")
            if finished is None:
                return self._failed(place, run, "the run ended, but its folder is not to be found")
        except (FLRError, OSError) as error:
            return self._failed(place, run, str(error))
        self.say(f"{place}: finished in {duration(perf_counter() - start)}")
        return Done(run, finished)

    def _failed(self, place, run, error):
        self.say(f"{place}: FAILED: {error}")
        return Done(run, error=error)

    def work(self, job, name):
        """Do a job in a process of its own.

        Args:
            job: see :mod:`recbole_flr.comparison.worker`.
            name: of the file for its output, which is used if jobs run side by side.

        Returns:
            dict: what the worker says, or `error`.
        """
        slot = self.slots.take()
        try:
            with tempfile.TemporaryDirectory() as temporary:
                outcome = Path(temporary) / "outcome.json"
                job = {**job, "outcome": str(outcome)}
                if job["kind"] == RUN:
                    job["options"] = {**job["options"], **self.slots.options(slot)}
                status, log = self._process(job, name)
                found = json.loads(outcome.read_text(encoding="utf-8")) if outcome.is_file() else {}
        finally:
            self.slots.give_back(slot)
        if found:
            return found
        ended = f"signal {-status}" if status < 0 else f"exit status {status}"
        return {"error": f"the process ended with {ended}" + (f"; its output is in {log}" if log else "")}

    def _process(self, job, name):
        """Start a worker and wait for it. Returns its exit status and the path of its output, or None if that is the terminal."""
        environment = {**self.slots.environment}
        environment["PYTHONPATH"] = os.pathsep.join([str(PACKAGE_PARENT), *filter(None, [environment.get("PYTHONPATH")])])
        words = [sys.executable, "-m", "recbole_flr.comparison.worker"]
        log, output = None, None
        if self.plan.jobs > 1:
            log = (
                self.folder
                / "logs"
                / ("".join(letter if letter.isalnum() or letter in "-_=" else "_" for letter in name) + ".log")
            )
            log.parent.mkdir(parents=True, exist_ok=True)
            output = open(log, "ab")
        try:
            process = subprocess.Popen(words, stdin=subprocess.PIPE, stdout=output, stderr=output, env=environment)
            with self._lock:
                self._processes.add(process)
            try:
                process.stdin.write(json.dumps(job).encode() + b"\n")
                process.stdin.flush()
                return process.wait(), log  # the input stays open: its end would end the worker
            except BrokenPipeError:
                return process.wait(), log
            finally:
                with self._lock:
                    self._processes.discard(process)
                process.kill()
                try:
                    process.stdin.close()
                except BrokenPipeError:
                    pass
        finally:
            if output is not None:
                output.close()


def find_runs(folder, run, key, reuse):
    """Look for a run that was made before.

    Args:
        folder: where the folders of runs are.
        run: Planned.
        key: what its `key.json` must say.
        reuse: `same`, `any-version` (whatever the version) or `none`.

    Returns:
        (folder of a finished run or None, folder of one that can be resumed or None); the latest of each.
    """
    finished = unfinished = None
    if reuse == "none":
        return finished, unfinished
    for path in sorted(Path(folder).glob(f"{run.model}-{run.dataset}-*")):
        found = read_key(path)
        if found is None or not _fits(found, key, reuse):
            continue
        if (path / RESULT).is_file() and (path / RANKS).is_file():
            finished = path
        elif (path / checkpoint.LAST).is_file() and found == key:
            unfinished = path
    return finished, unfinished


def _fits(found, key, reuse):
    return found == key or (reuse == "any-version" and {**found, "version": None} == {**key, "version": None})
