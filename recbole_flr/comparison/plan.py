"""The plan of a comparison: which runs the words of the command line ask for."""

from dataclasses import dataclass, field

from recbole_flr.comparison.studies import STUDIES, study_models, variants
from recbole_flr.errors import ConfigError, nearest
from recbole_flr.options import parse_value
from recbole_flr.words import COMPARISON

SEED = 2020  # the default of the option `seed`
MOST_SEEDS = 100
REUSE = ("same", "any-version", "none")


@dataclass
class Planned:
    """One run.

    Attributes:
        label: row of the table, such as `FLR` or `FLR, num_factors=1`.
        model, dataset: names.
        seed: of the run.
        options: name -> value as given, for `run_recbole_flr`; the seed is among them.
        files: yaml files with options.
        start: label of the run (same data set and seed) whose weights this one starts from; None for a run of its own.
        stage: name of the stage whose result is the row's; None for the one that the run keeps.
    """

    label: str
    model: str
    dataset: str
    seed: int
    options: dict = field(default_factory=dict)
    files: list | None = None
    start: str | None = None
    stage: str | None = None

    @property
    def name(self):
        """For messages: label, data set and seed."""
        return f"{self.label} on {self.dataset}, seed {self.seed}"


@dataclass
class Plan:
    """All runs of a comparison, and how to make and show them.

    Attributes:
        runs: list of :class:`Planned`; a run stands behind the one that it starts from.
        jobs: how many run at a time.
        study: name of the study, or None.
        reuse: which finished runs are taken over: `same` (options, data, version), `any-version`, `none`.
        reference: label of the row that the others are compared with; None for the best baseline.
        out: folder for the output; None for one that follows from the plan.
    """

    runs: list
    jobs: int = 1
    study: str | None = None
    reuse: str = "same"
    reference: str | None = None
    out: str | None = None


def make_plan(options):
    """Options of the command line -> Plan.

    Args:
        options: dict of texts: `model` and `dataset` (names, separated by commas), COMPARISON, `config_files`, options of all
            runs, and options of one model as `MODEL.NAME`.

    Raises:
        ConfigError: for a model or data set that is named twice, an unknown study, wrong seeds or jobs, or options for a model
            that is not in the comparison.
    """
    options = dict(options)
    own = {name: options.pop(name) for name in COMPARISON if name in options}
    for name in ("resume", "checkpoint"):
        if name in options:
            raise ConfigError(
                f"{name}: found it in a comparison, expected a single run; a comparison resumes when its command is given again"
            )
    study = own.get("study")
    if study is not None and study not in STUDIES:
        raise ConfigError(
            f"study: found {study!r}, expected one of {', '.join(STUDIES)}; the nearest is {nearest(study, STUDIES)!r}"
        )
    default = ",".join(study_models(study, options.get("backbone", "compact"))) if study else "FLR"
    models = _names(options.pop("model", default), "model")
    datasets = _names(options.pop("dataset", "toys_demo"), "dataset")
    files = options.pop("config_files", "").replace(",", " ").split() or None
    shared = {name: value for name, value in options.items() if "." not in name}
    of_model = {model: {} for model in models}
    for name, value in options.items():
        if "." in name:
            model, _, option = name.partition(".")
            if model not in of_model:
                raise ConfigError(f"--{name}: found an option for {model!r}, expected one of the models {', '.join(models)}")
            of_model[model][option] = value
    seeds = _seeds(own.get("seeds"), shared.pop("seed", None))
    runs = []
    for dataset in datasets:
        for model in models:
            for variant in variants(study, model):
                for seed in seeds:
                    given = {**shared, **of_model[model], **variant.options, "seed": str(seed)}
                    runs.append(Planned(variant.label, model, dataset, seed, given, files, variant.start, variant.stage))
    labels = list(dict.fromkeys(run.label for run in runs))
    reference = own.get("reference")
    if reference is not None and reference not in labels:
        raise ConfigError(f"reference: found {reference!r}, expected one of {', '.join(labels)}")
    reuse = own.get("reuse", "same")
    if reuse not in REUSE:
        raise ConfigError(f"reuse: found {reuse!r}, expected {' | '.join(REUSE)}")
    return Plan(runs, _number(own.get("jobs", "1"), "jobs"), study, reuse, reference, own.get("out"))


def _names(text, option):
    """Names that are separated by commas -> list."""
    names = [name.strip() for name in text.split(",")]
    for name in names:
        if not name:
            raise ConfigError(f"{option}: found {text!r}, expected names separated by commas, such as FLR,SASRec")
        if names.count(name) > 1:
            raise ConfigError(f"{option}: found {name} twice in {text!r}, expected each name once; --seeds=N repeats a model")
    return names


def _number(text, option):
    """A text -> int from 1."""
    if not text.isdecimal() or int(text) < 1:
        raise ConfigError(f"{option}: found {text!r}, expected a whole number from 1")
    return int(text)


def _seeds(text, first):
    """The option `seeds`, and `seed` -> list of int: 3 stands for three seeds from `seed` on, 2020,2021 for these two."""
    first = SEED if first is None else parse_value(first)
    if isinstance(first, bool) or not isinstance(first, int):
        raise ConfigError(f"seed: found {first!r}, expected a whole number")
    if text is None:
        return [first]
    if "," in text:
        seeds = [_number(part.strip(), "seeds") if part.strip() != "0" else 0 for part in text.split(",")]
        if len(set(seeds)) < len(seeds):
            raise ConfigError(f"seeds: found {text!r}, expected each seed once")
        return seeds
    number = _number(text, "seeds")
    if number > MOST_SEEDS:
        raise ConfigError(
            f"seeds: found {number}, expected the number of seeds (at most {MOST_SEEDS}) or a list such as 2020,2021; "
            f"for one seed write --seed={number}"
        )
    return list(range(first, first + number))
