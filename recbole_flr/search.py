"""Search for good options with Optuna: `--search=properties/search/FLRMix.yaml --trials=30`.

Each trial is a run that is trained and validated, but not tested. Optuna's TPE sampler (Bergstra et al., "Algorithms for
hyper-parameter optimization", NeurIPS 2011) proposes the options of a trial. Optuna's median pruner ends a trial whose best
validation so far is below the median of the finished trials after as many validations. The first trial has the options as given.
Therefore the chosen trial is never worse in validation than the options that the search began with. Only the chosen trial is
tested, once.

All trials are kept in an SQLite file. The same command continues a search that was stopped, and several processes of one machine
share a search if each of them is started with the same command.
"""

import gc
import hashlib
import json
import shutil
import sys
from logging import getLogger
from pathlib import Path
from time import perf_counter, sleep

import torch
from tqdm import tqdm

from recbole_flr.allowed_values import accepts
from recbole_flr.console import FILE_ONLY, quiet_console, shared_log
from recbole_flr.errors import CheckpointError, ConfigError, DataError, FLRError, first_line
from recbole_flr.evaluation import metrics_table
from recbole_flr.identity import WITHOUT_EFFECT
from recbole_flr.options import parse_value, properties_folder
from recbole_flr.paths import check_folder
from recbole_flr.quick_start import configure, run_recbole_flr, train_only
from recbole_flr.result import RESULT, duration
from recbole_flr.search_process import is_lost, owner_of, says_disk_is_full, this_process
from recbole_flr.search_result import STUDY, best_trial, describe_values, trials_table, write_options, write_table
from recbole_flr.search_space import fit_space, read_space

STARTUP_TRIALS = 10  # trials with random options before TPE proposes some
UNPRUNED_TRIALS, UNPRUNED_VALIDATIONS = 5, 3  # no trial is pruned before so many trials, and none before so many validations
FAILURES = 5  # so many failed trials without any that finished end the search
LOCAL = WITHOUT_EFFECT | {"eval_batch_size"}  # a search may go on with others


def run_search(model=None, dataset=None, config_file_list=None, config_dict=None, *, search, trials=30, seconds=None):
    """Search for the options of a model that are best in validation, and test the best trial.

    Args:
        model, dataset, config_file_list, config_dict: as for :func:`recbole_flr.quick_start.run_recbole_flr`.
        search: path of a file with ranges (:mod:`recbole_flr.search_space`); ``default`` for the plug-in's ranges for this model.
        trials: how many trials the search has in the end, those of earlier and other processes included.
        seconds: after so many seconds this process begins no further trial; None for no limit.

    Returns:
        dict of the chosen run, as from :func:`run_recbole_flr`, and ``search``: {folder, trial, options}. None if other processes
        still work on trials of this search; the last of them tests the best trial.

    Raises:
        ConfigError: for wrong ranges or options, if Optuna is not installed, or if no trial succeeds.
        DataError: if the data set is not the one that the search began with.
        CheckpointError: if the disk is full.
    """
    return Search(model, dataset, config_file_list, config_dict, search, trials, seconds).run()


def _optuna():
    """The package, which is an extra."""
    try:
        import optuna
        import sqlalchemy  # noqa: F401 (Optuna needs it for SQLite, and imports it late)
    except ImportError as error:
        raise ConfigError(f"search: found no {error.name}, which a search needs; run  pip install optuna") from error
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    return optuna


class Search:
    """A search in a folder below `checkpoint_dir`. The arguments are those of :func:`run_search`.

    Attributes:
        folder: of the search: the trials (study.db), the table of the best (trials.md), the chosen options (best.yaml).
        study: Optuna's.
        ranges: name -> Choice or Range.
    """

    def __init__(self, model, dataset, config_file_list, config_dict, search, trials, seconds):
        trials, seconds = (parse_value(value) if isinstance(value, str) else value for value in (trials, seconds))
        if not accepts("int >= 1", trials):
            raise ConfigError(f"trials: found {trials!r}, expected a whole number of at least 1")
        if not accepts("float > 0 or null", seconds):
            raise ConfigError(f"search_seconds: found {seconds!r}, expected a number above 0")
        if (config_dict or {}).get("resume"):
            raise ConfigError("search: found --resume too; a search that was stopped continues with the command that began it")
        self.optuna, self.limit, self.seconds = _optuna(), trials, seconds
        path = Path(search)
        if search == "default":
            path = self._ranges_file(model, configure(model, dataset, config_file_list, config_dict))
        ranges, fixed = read_space(path)
        self.given = model, dataset, config_file_list, {**fixed, **(config_dict or {})}
        self.config = configure(*self.given)
        self.ranges = fit_space(ranges, self.config)
        self.bigger = bool(self.config["valid_metric_bigger"])
        options = {name: value for name, value in self.config.snapshot().items() if name not in LOCAL}
        ranges_text = {name: str(each) for name, each in self.ranges.items()}
        identity = hashlib.sha256(json.dumps([options, ranges_text], sort_keys=True, default=str).encode()).hexdigest()[:8]
        self.saved = Path(self.config["checkpoint_dir"])
        self.folder = self.saved / f"search-{self.config['model']}-{self.config['dataset']}-{identity}"
        check_folder(self.config["checkpoint_dir"], "checkpoint_dir")
        self.folder.mkdir(parents=True, exist_ok=True)
        self.study = self._open_study()

    @staticmethod
    def _ranges_file(model, config):
        """The plug-in's ranges for a model; those with `-text` in their name for a model that could read items and reads titles.

        Raises:
            ConfigError: if it has none.
        """
        folder = properties_folder() / "search"
        known = sorted(path.stem for path in folder.glob("*.yaml") if "-" not in path.stem)  # others are named by their path
        if model not in known:
            raise ConfigError(f"search: found default for the model {model}, which has no ranges; expected a file with ranges, or "
                              f"--model as one of {', '.join(known)}")
        text = folder / f"{model}-text.yaml"
        return text if text.is_file() and config["backbone"] != "items" else folder / f"{model}.yaml"

    def _storage(self):
        """Optuna's storage of the trials: an SQLite file, whose lock processes wait for."""
        address = f"sqlite:///{(self.folder / STUDY).resolve()}"
        return self.optuna.storages.RDBStorage(address, engine_kwargs={"connect_args": {"timeout": 120}})

    def _open_study(self):
        """Open or create the study. Two processes that begin at once may disturb each other; then this tries again."""
        optuna = self.optuna
        for attempt in range(10):
            try:
                study = optuna.create_study(
                    storage=self._storage(), study_name="search", load_if_exists=True,
                    direction="maximize" if self.bigger else "minimize",
                    pruner=optuna.pruners.MedianPruner(UNPRUNED_TRIALS, UNPRUNED_VALIDATIONS),
                )
                break
            except Exception:
                if attempt == 9:
                    raise
                sleep(0.3 * (attempt + 1))
        for name, value in {
            "model": self.config["model"], "dataset": self.config["dataset"], "valid_metric": self.config["valid_metric"],
            "ranges": {name: str(each) for name, each in self.ranges.items()},
            "command": " ".join([Path(sys.argv[0]).name, *sys.argv[1:]]),
        }.items():
            study.set_user_attr(name, value)
        return study

    # the search

    def run(self):
        """Run trials until there are enough, then test the best one. Returns what :func:`run_search` returns."""
        start, logger = perf_counter(), getLogger()
        with shared_log(self.config):
            logger.info(f"Search for {self.config['model']} on {self.config['dataset']} in {self.folder}. "
                        f"Trials so far: {len(self._counted())} of {self.limit}. Ranges:\n"
                        + "\n".join(f"  {name}: {each}" for name, each in self.ranges.items()))
            while self.seconds is None or perf_counter() - start < self.seconds:
                trial = self._next_trial()
                if trial is None:
                    break
                self._run_trial(trial)
            self._release_lost()
            if best_trial(self.study) is None and not self._running():
                errors = [trial.user_attrs["error"] for trial in self._counted() if "error" in trial.user_attrs]
                reason = f"the last error was: {errors[-1]}" if errors else "the time was over before a trial was"
                raise ConfigError(f"search: none of the {len(self._counted())} trials finished; {reason}")
            write_table(self.study, self.folder, None)
            if best_trial(self.study) is not None:
                logger.info(f"The best trials by {self.config['valid_metric']} in validation:\n{trials_table(self.study)}")
            running = self._running()
            if running:
                who = ", ".join(f"trial {trial.number} ({owner_of(trial)})" for trial in running)
                logger.info(f"Other processes still work on {who}. The last process tests the best trial.")
                return None
        return self._test()

    def _next_trial(self):
        """Begin a trial; None if there are enough. With several processes, the trials with the lowest numbers count."""
        self._release_lost()
        counted = self._counted()
        failed = [trial for trial in counted if "error" in trial.user_attrs]
        if len(counted) >= self.limit or (len(failed) >= FAILURES and len(failed) == len(counted)):
            return None
        if not any(trial.user_attrs.get("given") for trial in [*counted, *self._in_state("WAITING")]):
            stored = {name: each.stored(self.config[name]) for name, each in self.ranges.items() if self.config[name] in each}
            self.study.enqueue_trial(stored, user_attrs={"given": True})
        trial = self.study.ask()
        trial.set_user_attr("process", this_process())
        if sum(other.number < trial.number for other in self._counted()) >= self.limit:
            self._tell(trial, "FAIL")  # another process was faster
            return None
        self.study.sampler = self.optuna.samplers.TPESampler(
            n_startup_trials=STARTUP_TRIALS, seed=(self.config["seed"] + 7919 * trial.number) % 2**32, constant_liar=True
        )  # a seed for each trial, so that neither a resumed search nor a second process repeats the proposals of another
        return trial

    def _run_trial(self, trial):
        """Train and validate one trial, and record how it ended."""
        given = bool(trial.user_attrs.get("given"))
        ranges = self.ranges if not given else {name: each for name, each in self.ranges.items() if self.config[name] in each}
        values = {name: each.suggest(trial, name) for name, each in ranges.items()}
        if given:
            values = {name: self.config[name] for name in self.ranges}
        trial.set_user_attr("options", values)
        start, logger = perf_counter(), getLogger()
        state, text, result = "FAIL", "", None
        try:
            score, result = self._train(trial, {} if given else values)
            state, text = "COMPLETE", f"{self.config['valid_metric']} {score:.4f}"
        except self.optuna.TrialPruned:
            state, text = "PRUNED", "pruned"
        except Exception as error:
            logger.info("", exc_info=True, extra=FILE_ONLY)
            if says_disk_is_full(error):
                self._give_back(trial)
                raise CheckpointError(f"search: the disk is full ({first_line(error)}); free some space and give the same "
                                      f"command again: the search goes on with trial {trial.number}") from error
            if isinstance(error, DataError) or (given and isinstance(error, FLRError)):
                self._give_back(trial)  # no other trial can do better
                raise
            text = f"failed: {type(error).__name__}: {first_line(error)}"
            trial.set_user_attr("error", text.removeprefix("failed: "))
        except BaseException:  # Ctrl-C
            self._give_back(trial)
            raise
        trial.set_user_attr("seconds", round(perf_counter() - start, 1))
        if result:
            trial.set_user_attr("valid", {name: float(value) for name, value in result.items()})
        self._tell(trial, state, score if state == "COMPLETE" else None)
        self._remove_losers(trial)
        if torch.cuda.is_available():  # room for the next model
            gc.collect()
            torch.cuda.empty_cache()
        best = best_trial(self.study)
        best = "" if best is None else f" Best: {best.value:.4f}, trial {best.number}."
        logger.info(f"Trial {trial.number}{' (as given)' if given else ''}: {text} after {duration(perf_counter() - start)}: "
                    f"{describe_values(values)}.{best}")

    def _train(self, trial, values):
        """Train with the values of a trial. Returns the best score and result in validation."""
        model, dataset, files, options = self.given
        resumable = {"checkpoint_every": self.config["checkpoint_every"] or 1}  # the test of the chosen trial resumes it
        config = configure(model, dataset, files, {**options, **values, **resumable})
        validations = []

        def on_start(folder):
            trial.set_user_attr("run", folder.name)
            known = self.study.user_attrs.get("data")
            if known not in (None, config["data_fingerprint"]):
                raise DataError(f"search: the data set {config['dataset']} has changed since the search in {self.folder} began; "
                                "put the old files back, or remove that folder to begin anew")
            self.study.set_user_attr("data", config["data_fingerprint"])

        def on_validation(epoch, score):
            trial.report(score, len(validations))
            validations.append(score)
            shown.set_postfix({self.config["valid_metric"]: f"{score:.4f}"}, refresh=False)
            shown.update()
            if trial.should_prune() and not trial.user_attrs.get("given"):
                raise self.optuna.TrialPruned

        bar = {"desc": f"trial {trial.number}", "unit": " validations", "leave": False, "dynamic_ncols": True}
        with quiet_console(), tqdm(disable=not config["show_progress"], **bar) as shown:
            return train_only(config, on_start, on_validation)

    def _test(self):
        """Test the best trial, unless that was done before, and write what the search found."""
        best = best_trial(self.study)
        options = dict(best.user_attrs["options"])
        run = self.saved / best.user_attrs["run"]
        logger = getLogger()
        if (run / RESULT).is_file():
            result = json.loads((run / RESULT).read_text(encoding="utf-8"))
            shown = {"valid": result["best_valid_result"] or {}, "test": result["test_result"]}
            logger.info(f"Trial {best.number} is chosen. It was tested before:\n{metrics_table(shown)}")
        else:
            local = {name: value for name, value in self.given[3].items() if name in LOCAL}
            logger.info(f"Trial {best.number} is chosen. Its test:")
            if (run / "last.safetensors").is_file():
                result = run_recbole_flr(config_dict={**local, "resume": str(run)})
            else:  # somebody has removed the run
                model, dataset, files, given = self.given
                result = run_recbole_flr(model, dataset, files, {**given, **({} if best.user_attrs.get("given") else options)})
        file = write_options(self.folder, self.config, best, self.given[3])
        table = write_table(self.study, self.folder, result["test_result"])
        logger.info(f"Chosen: trial {best.number}, {describe_values(options)}. Options for --config_files: {file}. "
                    f"Table: {table}.")
        names = ("best_valid_score", "best_valid_result", "test_result")
        return {**{name: result[name] for name in names}, "valid_score_bigger": self.bigger,
                "search": {"folder": str(self.folder), "trial": best.number, "options": options}}

    # trials and processes

    def _in_state(self, *names):
        return [trial for trial in self.study.get_trials(deepcopy=False) if trial.state.name in names]

    def _counted(self):
        """The trials that count: all but those that wait, and those whose process was killed."""
        return [trial for trial in self._in_state("COMPLETE", "PRUNED", "RUNNING", "FAIL")
                if trial.state.name != "FAIL" or "error" in trial.user_attrs]

    def _running(self):
        return self._in_state("RUNNING")

    def _tell(self, trial, state, value=None):
        self.study.tell(trial.number, value, self.optuna.trial.TrialState[state])

    def _give_back(self, trial):
        """Stop a trial that says nothing about its options; another one with the same options takes its place."""
        trial = next(each for each in self.study.get_trials(deepcopy=False) if each.number == trial.number)
        try:
            self._tell(trial, "FAIL")
        except ValueError:  # another process has given it back
            return
        attributes = {"given": True} if trial.user_attrs.get("given") else {}
        if trial.params or attributes:
            self.study.enqueue_trial(trial.params, user_attrs=attributes)
        self._remove_run(trial)

    def _release_lost(self):
        """Give back the trials of processes that were killed."""
        for trial in self._running():
            if is_lost(trial):
                getLogger().info(f"Trial {trial.number} was cut short ({owner_of(trial)} has ended); it begins anew.")
                self._give_back(trial)

    def _remove_losers(self, trial):
        """Keep the weights of the best trial only."""
        best = best_trial(self.study)
        for other in self.study.get_trials(deepcopy=False):
            if other.number != (best and best.number) and (other.state.name == "COMPLETE" or other.number == trial.number):
                self._remove_run(other)

    def _remove_run(self, trial):
        name = trial.user_attrs.get("run")
        if name and Path(name).name == name:
            shutil.rmtree(self.saved / name, ignore_errors=True)
