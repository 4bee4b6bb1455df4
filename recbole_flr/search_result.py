"""What a search leaves: the table of its best trials, a yaml file for `--config_files`, and plots."""

import io
import warnings
from pathlib import Path

import yaml
from tabulate import tabulate

from recbole_flr.errors import ConfigError
from recbole_flr.files import new_file
from recbole_flr.result import COMPUTED, duration

STUDY, BEST_OPTIONS, TABLE = "study.db", "best.yaml", "trials.md"
SHOWN = 10  # trials in the table
OF_THE_PLACE = {"data_path", "checkpoint_dir", "show_progress", "state", "gpu_id", "use_gpu", "worker"}  # not for other machines


def best_trial(study):
    """The trial of an Optuna study with the best value, of equal ones the first; None if none is complete."""
    return next(iter(_ranked(study)), None)


def _ranked(study):
    """The complete trials, the best first."""
    sign = -1 if study.direction.name == "MAXIMIZE" else 1
    complete = [trial for trial in study.get_trials(deepcopy=False) if trial.state.name == "COMPLETE"]
    return sorted(complete, key=lambda trial: (sign * trial.value, trial.number))


def describe_values(values):
    """Options of a trial in one line."""
    return ", ".join(f"{name}={_short(value)}" for name, value in values.items())


def _short(value):
    """A value with few digits."""
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def trials_table(study, form="simple"):
    """The best trials as text.

    Args:
        study: Optuna's.
        form: of the table, as `tabulate` names it.
    """
    names = list(study.user_attrs["ranges"])
    rows = []
    for trial in _ranked(study)[:SHOWN]:
        number = f"{trial.number} (as given)" if trial.user_attrs.get("given") else trial.number
        values = [_short(trial.user_attrs["options"].get(name, "")) for name in names]
        rows.append([number, trial.value, len(trial.intermediate_values), duration(trial.user_attrs["seconds"]), *values])
    head = ["trial", f"valid {study.user_attrs['valid_metric']}", "validations", "time", *names]
    return tabulate(rows, headers=head, tablefmt=form, floatfmt=".4f", disable_numparse=range(4, len(head)))


def write_table(study, folder, test_result):
    """Write `trials.md`: the command, the ranges, the best trials, and what failed.

    Args:
        study: Optuna's.
        folder: of the search.
        test_result: dict of metrics of the chosen trial; None before its test.

    Returns:
        Path: of the file.
    """
    about, trials = study.user_attrs, study.get_trials(deepcopy=False)
    ended = {name: sum(trial.state.name == name for trial in trials) for name in ("COMPLETE", "PRUNED")}
    failed = [trial for trial in trials if trial.state.name == "FAIL" and "error" in trial.user_attrs]
    spent = sum(trial.user_attrs.get("seconds", 0) for trial in trials)
    ranges = tabulate([[f"`{name}`", text] for name, text in about["ranges"].items()], ["option", "range"], tablefmt="github")
    parts = [
        f"# Search for {about['model']} on {about['dataset']}", f"```bash\npython {about['command']}\n```",
        f"{ended['COMPLETE']} trials finished, {ended['PRUNED']} were pruned, {len(failed)} failed, {duration(spent)} in all. "
        "The trials are ordered by their best validation. The chosen one is the first. Only this one was tested.",
        ranges, trials_table(study, "github"),
    ]
    if test_result:
        parts.append("Test of the chosen trial: " + ", ".join(f"{name} {value:.4f}" for name, value in test_result.items()) + ".")
    if failed:
        lines = [f"- trial {trial.number}: {trial.user_attrs['error']} ({describe_values(trial.user_attrs.get('options', {}))})"
                 for trial in failed]
        parts.append("Failed trials:\n\n" + "\n".join(lines))
    return _write(folder / TABLE, "\n\n".join(parts) + "\n")


def write_options(folder, config, trial, given):
    """Write `best.yaml`: the options of a trial, for `--config_files`.

    Args:
        folder: of the search.
        config: of the options as given.
        trial: Optuna's, the best one.
        given: name -> value, the options of the command line and of the search's file.

    Returns:
        Path: of the file.
    """
    path = folder / BEST_OPTIONS
    asked = {**config.file_config_dict, **given}
    asked = {name: value if name in COMPUTED else config[name] for name, value in asked.items() if name not in ("model", "dataset")}
    options = {**asked, **trial.user_attrs["options"]}
    kept = {name: value for name, value in options.items() if name not in OF_THE_PLACE}
    head = (f"# The best of a search, trial {trial.number}: {config['valid_metric']} {trial.value:.4f} in validation.\n"
            f"#   python run_recbole_flr.py --model={config['model']} --dataset={config['dataset']} --config_files={path}\n")
    return _write(path, head + yaml.safe_dump(kept, sort_keys=False, allow_unicode=True))


def _write(path, text):
    with new_file(path) as temporary:
        temporary.write_text(text, encoding="utf-8")
    return path


def read_study(folder):
    """The Optuna study of a search.

    Args:
        folder: of the search, such as saved/search-FLRMix-movies-1a2b3c4d.

    Raises:
        ConfigError: if there is none, or Optuna is not installed.
    """
    file = Path(folder) / STUDY
    if not file.is_file():
        raise ConfigError(f"found no {file}; expected the folder of a search, such as saved/search-FLRMix-movies-...")
    try:
        import optuna
    except ImportError as error:
        raise ConfigError("search: Optuna is not installed; install it with `pip install optuna`") from error
    return optuna.load_study(study_name="search", storage=f"sqlite:///{file.resolve()}")


def search_plots(study):
    """Optuna's plots of a study.

    Args:
        study: from :func:`read_study`.

    Returns:
        dict: title -> SVG text. Empty without matplotlib, or before two trials are complete.
    """
    try:
        import matplotlib
    except ImportError:
        return {}
    import optuna

    matplotlib.use("Agg")
    from matplotlib import pyplot
    from optuna.visualization import matplotlib as plots

    if len(_ranked(study)) < 2:
        return {}
    target = study.user_attrs["valid_metric"]
    varied = [name for name in study.user_attrs["ranges"] if len({str(t.params.get(name)) for t in _ranked(study)}) > 1]
    wanted = {
        "Best result by trial": lambda: plots.plot_optimization_history(study, target_name=target),
        "Validation of each trial": lambda: plots.plot_intermediate_values(study),
    }
    if varied:
        wanted["Result by option"] = lambda: plots.plot_slice(study, params=varied, target_name=target)
        wanted["Importance of the options"] = lambda: plots.plot_param_importances(study, params=varied, target_name=target)
    found = {}
    for title, draw in wanted.items():
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Optuna calls this module experimental
            try:
                draw()
            except (ValueError, RuntimeError):  # too few trials for this plot
                continue
            finally:
                optuna.logging.set_verbosity(optuna.logging.WARNING)
        file = io.StringIO()
        pyplot.gcf().savefig(file, format="svg", bbox_inches="tight", metadata={"Date": None})
        pyplot.close("all")
        found[title] = file.getvalue()
    return found
