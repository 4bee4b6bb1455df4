"""Options as the yaml files in `properties/` declare them: name, default, allowed values, meaning.

A line `num_beams: 20  # (int >= 1) Beams; ...` is the one place where an option is defined; the help, the check of
values and the README's table come from it.
"""

import math
import re
from dataclasses import dataclass
from difflib import SequenceMatcher
from pathlib import Path

import yaml

from recbole_flr.errors import ConfigError

LINE = re.compile(r"^(?P<name>\w+):\s*(?P<default>.*?)\s*#\s*\((?P<allowed>.*?)\)(?=\s)\s*(?P<meaning>.*)$")
BOUND = re.compile(r"^(?P<types>.*?)\s*(?:(?P<sign>>=|>)\s*(?P<low>[\d.]+)|in \[(?P<least>[\d.]+), (?P<most>[\d.]+)\])?"
                   r"(?P<null>\s+or null)?$")
TYPES = {
    "int": lambda v: isinstance(v, int) and not isinstance(v, bool),
    "float": lambda v: isinstance(v, (int, float)) and not isinstance(v, bool),
    "bool": lambda v: isinstance(v, bool),
    "str": lambda v: isinstance(v, str),
    "list": lambda v: isinstance(v, (list, tuple)),
    "dict": lambda v: isinstance(v, dict),
    "null": lambda v: v is None,
}


def properties_folder():
    """Where the yaml files are: inside an installed package, or beside it in a checkout."""
    here = Path(__file__).resolve().parent
    installed = here / "properties"
    return installed if installed.is_dir() else here.parent / "properties"


def option_files(model, dataset):
    """The plug-in's yaml files for a model and a data set, in the order in which they apply."""
    from recbole_flr.registry import MODELS

    folder = properties_folder()
    shared = MODELS[model].shared_options if model in MODELS else ()
    category = str(dataset).removesuffix("-2023")  # a category's later release is read like the first
    names = ["overall", *shared, f"model/{model}", f"dataset/{category}"]
    return [path for path in (folder / f"{name}.yaml" for name in names) if path.is_file()]


@dataclass
class Option:
    """One option.

    Attributes:
        name, default (yaml text), meaning: as in the file.
        allowed: as in the file, such as ``int >= 1`` or ``full | trie``.
    """

    name: str
    default: str
    allowed: str
    meaning: str

    def accepts(self, value):
        """Whether a value is allowed."""
        bound = BOUND.match(self.allowed)
        words = re.split(r"\s*\|\s*|\s+or\s+", bound["types"])
        words += ["null"] if bound["null"] else []
        if not any(TYPES[word](value) if word in TYPES else value == word for word in words):
            return False
        if not TYPES["float"](value):
            return True
        if isinstance(value, float) and not math.isfinite(value):
            return False
        if bound["sign"]:
            low = float(bound["low"])
            return value > low or (value == low and bound["sign"] == ">=")
        return bound["least"] is None or float(bound["least"]) <= value <= float(bound["most"])

    @property
    def is_text(self):
        """Whether what stands on the command line is text and nothing else."""
        return self.allowed in ("str", "str or null")


def read_options(path):
    """Options of one yaml file, name -> Option."""
    matches = (LINE.match(line) for line in Path(path).read_text(encoding="utf-8").splitlines())
    return {m["name"]: Option(m["name"], m["default"], m["allowed"], m["meaning"]) for m in matches if m}


def options_for(model, dataset=None):
    """All options that the plug-in declares for a model (and a data set), name -> Option."""
    return {name: option for path in option_files(model, dataset) for name, option in read_options(path).items()}


def parse_value(text, loader):
    """What a command-line word stands for: yaml with RecBole's floats (1e-3); "None" is null; else the text itself."""
    if text == "None":
        return None
    try:
        return yaml.load(text, Loader=loader)
    except (yaml.YAMLError, ValueError):  # ValueError: what looks like a date and is none
        return text


def parse_text(text, loader):
    """What a command-line word stands for where text is meant: null, what is in quotes, else the word as it stands."""
    if text in ("None", "null", "~"):
        return None
    quoted = len(text) > 1 and text[0] == text[-1] and text[0] in "'\""
    return parse_value(text, loader) if quoted else text


def nearest(name, known):
    """The known name most like a mistyped one, whatever its case."""
    return max(sorted(known), key=lambda other: SequenceMatcher(None, str(name).lower(), other.lower()).ratio())


def check(external, known, options, defaults):
    """Refuse unknown options and wrong values.

    Args:
        external: name -> value, as a user gave them.
        known: all names that mean something.
        options: name -> Option; where there is none, the type of RecBole's default is the measure.
        defaults: name -> default value.

    Raises:
        ConfigError: saying what was found and what is allowed.
    """
    for name, value in external.items():
        if name not in known:
            raise ConfigError(f"found option {name!r}, which does not exist for this model; the nearest is "
                              f"{nearest(name, known)!r} (--help lists them)")
        option = options.get(name)
        if option is not None:
            if not option.accepts(value):
                raise ConfigError(f"{name}: found {value!r}, expected {option.allowed}. {option.meaning}")
            continue
        default = defaults.get(name)
        for kind, types in (("bool", bool), ("int", int), ("float", float)):
            if isinstance(default, types):
                if not TYPES[kind](value):
                    raise ConfigError(f"{name}: found {value!r}, expected {kind}, such as RecBole's default {default!r}")
                break
        if isinstance(default, str) and not isinstance(value, (str, type(None))):
            raise ConfigError(f"{name}: found {value!r}, expected text, such as RecBole's default {default!r}")


def help_text(model="FLR"):
    """The plug-in's options with default, allowed values and meaning, as printed by --help."""
    lines = []
    for path in option_files(model, None):
        lines.append(f"\n{path.parent.name}/{path.name}:" if path.parent.name == "model" else f"\n{path.name}:")
        for option in read_options(path).values():
            lines.append(f"  --{option.name}={option.default}   ({option.allowed})\n        {option.meaning}")
    return "\n".join(lines)
