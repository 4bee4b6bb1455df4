"""The ranges of a search: read from a yaml file or from RecBole's `.hyper` file, and checked against the options of a model.

A yaml file has one line for each option::

    learning_rate: {low: 3e-4, high: 3e-3, log: true}   # a range of numbers, here on a logarithmic scale
    n_layers: {low: 1, high: 3}                         # whole numbers, because the option takes nothing else
    hidden_size: [32, 64, 128]                          # choices
    epochs: 20                                          # one value for all trials

RecBole's file has lines of the form `name choice [..]`, `name uniform low,high`, `name loguniform a,b` (from e^a to e^b) or
`name quniform low,high,step`.
"""

import ast
import math
from dataclasses import dataclass
from pathlib import Path

import yaml

from recbole_flr.config import read_yaml
from recbole_flr.errors import ConfigError, nearest
from recbole_flr.options import Loader

RANGE_KEYS = ("low", "high", "log", "step")
HYPER_FORM = "name choice [A, B], name uniform LOW,HIGH, name loguniform LOW,HIGH or name quniform LOW,HIGH,STEP"
NOT_SEARCHED = {  # two trials that differ in one of these cannot be compared
    "model", "dataset", "data_path", "checkpoint_dir", "seed", "resume", "checkpoint", "metrics", "topk", "valid_metric",
    "valid_metric_bigger", "eval_args", "benchmark_filename", "repeatable", "title_metrics", "metric_decimal_place",
    "train_rows", "valid_rows", "test_rows", "rows_seed",
}


@dataclass(frozen=True)
class Choice:
    """One of several values of any kind."""

    values: tuple

    def _labels(self):
        """What Optuna stores for each value: the value itself, or text where it holds only such."""
        plain = all(isinstance(value, (str, int, float, type(None))) for value in self.values)
        distinct = plain and len(set(self.values)) == len(self.values)  # not so for 1 and True
        return list(self.values) if distinct else [repr(value) for value in self.values]

    def _place(self, value):
        """Index of a value; None if it is not among the choices. True is not taken for 1."""
        return next((place for place, each in enumerate(self.values)
                     if each == value and isinstance(each, bool) == isinstance(value, bool)), None)

    def suggest(self, trial, name):
        """The value of an Optuna trial."""
        labels = self._labels()
        return self.values[labels.index(trial.suggest_categorical(name, labels))]

    def __contains__(self, value):
        return self._place(value) is not None

    def stored(self, value):
        """What Optuna stores for a value."""
        return self._labels()[self._place(value)]

    def ends(self):
        """The values that an option must be able to have."""
        return self.values

    def __str__(self):
        return ", ".join(str(value) for value in self.values)


@dataclass(frozen=True)
class Range:
    """A number between two bounds, both included.

    Attributes:
        low, high: both int, or both float.
        log: whether the logarithm of the number is what is drawn evenly.
        step: distance of neighbouring values from low on; None for every number.
    """

    low: float
    high: float
    log: bool = False
    step: float | None = None

    def suggest(self, trial, name):
        """The value of an Optuna trial."""
        if isinstance(self.low, int):
            return trial.suggest_int(name, self.low, self.high, step=self.step or 1, log=self.log)
        return trial.suggest_float(name, self.low, self.high, step=self.step, log=self.log)

    def __contains__(self, value):
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not self.low <= value <= self.high:
            return False
        steps = 0.0 if self.step is None else (value - self.low) / self.step
        return abs(steps - round(steps)) < 1e-9

    def stored(self, value):
        """What Optuna stores for a value."""
        return type(self.low)(value)

    def ends(self):
        """The values that an option must be able to have."""
        return self.low, self.high

    def __str__(self):
        return f"{self.low:g} to {self.high:g}" + (", log" if self.log else "") + (f", step {self.step:g}" if self.step else "")


def read_space(path):
    """Read the ranges of a search.

    Args:
        path: of a yaml file, or of a file of RecBole that ends with `.hyper`.

    Returns:
        ranges, name -> Choice or Range; fixed, name -> value of an option that is the same in all trials.

    Raises:
        ConfigError: the file cannot be read, or a range in it is wrong; the message names the option.
    """
    path = Path(path)
    lines = _read_hyper(path) if path.suffix == ".hyper" else _read_yaml(path)
    ranges, fixed = {}, {}
    for name, given in lines.items():
        if not isinstance(name, str):
            raise ConfigError(f"search: found the option {name!r} in {path}, expected a name")
        if name in NOT_SEARCHED:
            raise ConfigError(f"search: found {name} in {path}, which must be the same for all trials; give it as --{name}=VALUE")
        try:
            parsed = _parse(given)
        except ValueError as error:
            raise ConfigError(f"search: {name} in {path}: {error}") from None
        if parsed is None:
            fixed[name] = given
        else:
            ranges[name] = parsed
    if not ranges:
        raise ConfigError(f"search: found no range in {path}, expected lines such as 'dropout: {{low: 0.1, high: 0.6}}' "
                          "or 'hidden_size: [32, 64]'")
    return ranges, fixed


def _read_yaml(path):
    """Name -> what the file says. A name that stands twice is refused, as yaml would keep the last one without a word."""
    values = read_yaml(path, "search")
    root = yaml.compose(path.read_text(encoding="utf-8"), Loader=Loader)
    names = [key.value for key, _ in root.value] if values else []
    for name in names:
        if names.count(name) > 1:
            raise ConfigError(f"search: found {name} twice in {path}; remove one of the two lines")
    return values


def _read_hyper(path):
    """A file of RecBole -> name -> what the yaml file would say."""
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except OSError as error:
        raise ConfigError(f"search: cannot read {path} ({error.strerror})") from error
    found = {}
    for number, line in enumerate(lines, 1):
        if not line.strip() or line.lstrip().startswith("#"):
            continue
        where = f"search: {path}, line {number}"
        words = line.split(None, 2)
        if len(words) < 3 or words[1] not in ("choice", "uniform", "loguniform", "quniform"):
            raise ConfigError(f"{where}: found {line.strip()!r}, expected {HYPER_FORM}")
        name, kind, text = words
        if name in found:
            raise ConfigError(f"{where}: found {name} a second time; remove one of the two lines")
        try:
            found[name] = _parse_hyper(kind, ast.literal_eval(text))
        except (ValueError, SyntaxError, TypeError, ArithmeticError) as error:
            raise ConfigError(f"{where}: found {text!r}, expected {HYPER_FORM}") from error
    return found


def _parse_hyper(kind, value):
    """One range of RecBole's file -> what the yaml file would say."""
    if kind == "choice":
        return list(value)
    numbers = [_whole(float(number)) for number in value]
    if kind == "quniform":  # hyperopt rounds to multiples of the step
        low, high, step = numbers
        return {"low": _whole(round(low / step) * step), "high": _whole(round(high / step) * step), "step": step}
    low, high = numbers
    return {"low": math.exp(low), "high": math.exp(high), "log": True} if kind == "loguniform" else {"low": low, "high": high}


def _whole(number):
    """A number without a fraction as an int."""
    return int(number) if float(number).is_integer() else number


def _parse(given):
    """What a file says about an option -> Choice or Range; None for a single value.

    Raises:
        ValueError: for a range that cannot be.
    """
    if isinstance(given, (list, tuple)):
        if not given:
            raise ValueError("found an empty list, expected at least one value")
        if any(Choice(given[:place])._place(value) is not None for place, value in enumerate(given)):
            raise ValueError(f"found {given}, in which a value is repeated")
        return Choice(tuple(given))
    if not isinstance(given, dict):
        return None
    for key in given:
        if key not in RANGE_KEYS:
            raise ValueError(f"found {key!r} in a range, expected {', '.join(RANGE_KEYS)}; the nearest is "
                             f"{nearest(key, RANGE_KEYS)!r} (a dict as a value stands in a list)")
    low, high, log, step = (given.get(key) for key in RANGE_KEYS)
    for key in ("low", "high") + (("step",) if step is not None else ()):
        number = given.get(key)
        if isinstance(number, bool) or not isinstance(number, (int, float)) or not math.isfinite(number):
            raise ValueError(f"found {key}: {number!r}, expected a number")
    if low >= high:
        raise ValueError(f"found low {low} and high {high}, expected low below high")
    if not isinstance(log, (bool, type(None))):
        raise ValueError(f"found log: {log!r}, expected true or false")
    if log and low <= 0:
        raise ValueError(f"found low {low} with log: true, expected a number above 0")
    if step is not None and (log or not 0 < step <= high - low):
        raise ValueError(f"found step {step}, expected one from 0 to {high - low}, and not together with log: true")
    return Range(low, high, bool(log), step)


def fit_space(ranges, config):
    """Check ranges against the options of a model. A range of an option that takes whole numbers only is one of whole numbers.

    Args:
        ranges: from :func:`read_space`.
        config: :class:`recbole_flr.config.Config` of the model.

    Returns:
        ranges, in which the bounds of each Range are both int or both float.

    Raises:
        ConfigError: for an option that does not exist, or a value that it cannot have.
    """
    fitted = {}
    for name, each in ranges.items():
        try:
            for value in each.ends():
                config.check({name: value})
        except ConfigError as error:
            raise ConfigError(f"search: {error}") from error
        fitted[name] = each if isinstance(each, Choice) or _is_whole(name, each, config) else _in_floats(each)
    return fitted


def _is_whole(name, each, config):
    """Whether a range is one of whole numbers: its numbers are, and the option takes no others."""
    if not all(isinstance(number, int) for number in (each.low, each.high, each.step or 1)):
        return False
    try:
        config.check({name: each.low + 0.5})
    except ConfigError:
        return True
    return False


def _in_floats(each):
    return Range(float(each.low), float(each.high), each.log, None if each.step is None else float(each.step))
