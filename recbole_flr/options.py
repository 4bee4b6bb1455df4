"""The plug-in's options: how the yaml files in `properties/` declare them, and what follows from a declaration.

One line declares one option::

    num_beams: 20  # (int >= 1) Beams of the search. Time and memory grow linearly.

It gives the name, the default (any yaml value, also nested lines below), the allowed values and the meaning. The check of
a user's values, `--help` and docs/options.md all come from this line. Every key of a file needs such a line: a file with an
incomplete declaration is refused when it is read.

The allowed values are in the language of `recbole_flr.allowed_values`, which turns them into a pydantic type. `Option` is a
pydantic model too, so that an option without a valid type, a meaning and an allowed default cannot exist.

This module prints docs/options.md:  python -m recbole_flr.options > docs/options.md
"""

import functools
import re
from itertools import takewhile
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from recbole_flr.allowed_values import accepts, alternatives, parse_type
from recbole_flr.errors import ConfigError, nearest

FORM = "name: default  # (allowed values) Meaning."
DECLARATION = re.compile(r"\s*#\s*\((?P<allowed>(?:\[[^()\[\]]*[\])]|[^()\[])*)\)\s+(?P<meaning>.*\S)\s*")
YAML_FLOAT = re.compile(  # RecBole's rule: 1e-3 is a number too, which yaml 1.1 takes for text
    r"""^(?:[-+]?(?:[0-9][0-9_]*)\.[0-9_]*(?:[eE][-+]?[0-9]+)?
    |[-+]?(?:[0-9][0-9_]*)(?:[eE][-+]?[0-9]+)
    |\.[0-9_]+(?:[eE][-+][0-9]+)?
    |[-+]?[0-9][0-9_]*(?::[0-5]?[0-9])+\.[0-9_]*
    |[-+]?\.(?:inf|Inf|INF)
    |\.(?:nan|NaN|NAN))$""",
    re.VERBOSE,
)


HINTS = {  # names that users of other toolkits try -> what to say
    "device": "use_gpu (True or False) and gpu_id (such as 0) say where a run computes",
    "gpu": "use_gpu (True or False) and gpu_id (such as 0) say where a run computes",
    "cuda": "use_gpu (True or False) and gpu_id (such as 0) say where a run computes",
    "lr": "it is called learning_rate", "batch_size": "it is called train_batch_size (and eval_batch_size)",
}


class Loader(yaml.SafeLoader):
    """Reads yaml as RecBole does, but builds plain values only and never Python objects."""


Loader.add_implicit_resolver("tag:yaml.org,2002:float", YAML_FLOAT, list("-+0123456789."))

DOCUMENT_HEAD = """\
# Options

<!-- Generated from the files in properties/. Do not edit this page. Write it anew with:
     python -m recbole_flr.options > docs/options.md -->

These are the plug-in's options, one section for each yaml file in `properties/`. The options of RecBole work beside them.
Give an option on the command line as `--name=value`, or in a yaml file as `name: value` with `--config_files=FILE`.

The files of a model and a data set apply in this order, and a later file overrides an earlier one:

1. `overall.yaml`
2. the files that the model shares with others, such as `generative.yaml` and then `latent.yaml` for FLR
3. `model/NAME.yaml`
4. `split_files.yaml`, if the data set's rows are in split files
5. `dataset/NAME.yaml`
6. the `NAME.yaml` in the data set's own folder, if there is one
7. the files and options that you give

`python run_recbole_flr.py --model=NAME --help` prints the options of one model.
"""


# declarations


class Option(BaseModel):
    """One declared option.

    Attributes:
        name: of the option.
        default: as the file writes it; a nested value is written in one line.
        value: the default as a Python value. It is shared, so copy it before changing it.
        allowed: allowed values as the file writes them, such as ``int >= 1`` or ``full | trie``.
        meaning: what the option does and what it costs, in sentences.

    Raises:
        pydantic.ValidationError: `allowed` cannot be parsed, the meaning is missing, or the default is not allowed.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str = Field(pattern=r"^[A-Za-z]\w*$")
    default: str
    value: Any
    allowed: str
    meaning: str

    @field_validator("allowed")
    @classmethod
    def _allowed_can_be_parsed(cls, allowed):
        parse_type(allowed)
        return allowed

    @field_validator("meaning")
    @classmethod
    def _meaning_is_a_sentence(cls, meaning):
        if len(meaning) < 10 or not meaning.endswith("."):
            raise ValueError(f"found the meaning {meaning!r}, expected a sentence that ends with a full stop")
        return meaning

    @model_validator(mode="after")
    def _default_is_allowed(self):
        if not self.accepts(self.value):
            raise ValueError(f"found the default {self.value!r}, expected {self.allowed}")
        return self

    def accepts(self, value):
        """Whether a value is allowed."""
        return accepts(self.allowed, value)

    @property
    def is_text(self):
        """Whether a word of the command line is always a text here, so that 1e-3 stays a text and is no number."""
        return set(alternatives(self.allowed)) in ({"str"}, {"str", "null"})


def read_options(path):
    """Read the options that one yaml file declares.

    Args:
        path: file in the form of this module's docstring.

    Returns:
        dict: name -> Option, in the file's order.

    Raises:
        ConfigError: the file is not yaml, or a key has no complete declaration; the message names file and line.
    """
    return dict(_parse_declarations(str(path), Path(path).read_text(encoding="utf-8")))


@functools.lru_cache(maxsize=256)
def _parse_declarations(path, text):
    try:
        root, values = yaml.compose(text, Loader=Loader), yaml.load(text, Loader=Loader)
    except (yaml.YAMLError, ValueError) as error:
        raise ConfigError(f"{path} is not yaml: {error}") from error
    if values is None:
        return {}
    if not isinstance(values, dict):
        raise ConfigError(f"{path}: found a {type(values).__name__}, expected lines of the form '{FORM}'")
    lines, options = text.splitlines(), {}
    for key, value in root.value:
        number = key.start_mark.line
        where = f"{path}, line {number + 1}"
        if key.value in options:
            raise ConfigError(f"{where}: found {key.value!r} a second time; remove one of the two lines")
        # The comment follows the value, or the key's colon if the value is on the lines below.
        begin = key.end_mark.column + 1
        end = value.end_mark.column if value.end_mark.line == number else begin
        declaration = DECLARATION.fullmatch(lines[number][end:])
        if not declaration or key.value not in values:
            raise ConfigError(f"{where}: found {lines[number].strip()!r}, expected the form '{FORM}'")
        default = values[key.value]
        written = lines[number][begin:end].strip() or _in_one_line(default)
        try:
            options[key.value] = Option(name=key.value, default=written, value=default, **declaration.groupdict())
        except ValidationError as error:
            reasons = "; ".join(reason["msg"].removeprefix("Value error, ") for reason in error.errors())
            raise ConfigError(f"{where}: {key.value}: {reasons}") from error
    return options


def _in_one_line(value):
    """A list, dict or None as yaml in one line."""
    return "null" if value is None else yaml.safe_dump(value, default_flow_style=True, sort_keys=False, width=10_000).strip()


# the files of a model and a data set


def properties_folder():
    """Folder of the yaml files: inside an installed package, or beside the package in a checkout."""
    here = Path(__file__).resolve().parent
    installed = here / "properties"
    return installed if installed.is_dir() else here.parent / "properties"


def declaring_files():
    """List all yaml files of the plug-in that declare options: those in properties/ but for search/ (ranges) and presets/ (values)."""
    return sorted(path for path in properties_folder().rglob("*.yaml") if path.parent.name not in ("search", "presets"))


def option_files(model, dataset=None, shared=(), split_files=False):
    """List the plug-in's yaml files for a model and a data set, in the order in which they apply.

    `split_files.yaml` is among them if the data set's own file sets `benchmark_filename`, or if `split_files` is true and
    the data set's own file does not set `eval_args` (then it says how the data set is split).

    Args:
        model (str): name.
        dataset (str or None): name. A later release reads the first one's file: `toys-2023` reads `toys.yaml`.
        shared: names of the files that the model shares with others, such as ``("generative", "latent")``.
        split_files (bool): whether the data set's folder holds its rows as split files.

    Returns:
        list of Path: those that exist.
    """
    folder = properties_folder()
    own = folder / "dataset" / f"{str(dataset).removesuffix('-2023')}.yaml"
    declared = read_options(own) if own.is_file() else {}
    is_split = "benchmark_filename" in declared or (split_files and "eval_args" not in declared)
    names = ["overall", *shared, f"model/{model}", *(["split_files"] if is_split else [])]
    return [path for path in [*(folder / f"{name}.yaml" for name in names), own] if path.is_file()]


def options_for(model, dataset=None, shared=(), split_files=False):
    """Read all options that the plug-in declares for a model and a data set, name -> Option.

    Where two files declare an option, the later file counts. The arguments are those of `option_files`.
    """
    files = option_files(model, dataset, shared, split_files)
    return {name: option for path in files for name, option in read_options(path).items()}


# a user's values


def parse_value(text):
    """Parse a word of the command line as yaml; `None` is null, and a text that is not yaml stays a text."""
    if text == "None":
        return None
    try:
        return yaml.load(text, Loader=Loader)
    except (yaml.YAMLError, ValueError):  # ValueError: the text looks like a date, but there is no such day
        return text


def parse_text(text):
    """Parse a word of the command line for an option that is text: null, quoted text, or the word itself."""
    if text in ("None", "null", "~"):
        return None
    quoted = len(text) > 1 and text[0] == text[-1] and text[0] in "'\""
    return parse_value(text) if quoted else text


def check(given, known, options, defaults):
    """Refuse unknown options and values that are not allowed.

    Args:
        given (dict): name -> value, as a user gave them.
        known: all names of options.
        options (dict): name -> Option.
        defaults (dict): name -> default. An option of RecBole has no Option here; its values must have the default's type.

    Raises:
        ConfigError: says what was found and what is allowed.
    """
    for name, value in given.items():
        if name not in known:
            hint = HINTS.get(name) or f"the nearest is {nearest(name, known)!r}"
            raise ConfigError(f"found option {name!r}, which does not exist for this model; {hint} (--help lists them)")
        if name in options:
            option = options[name]
            if not option.accepts(value):
                raise ConfigError(f"{name}: found {value!r}, expected {option.allowed}. {option.meaning}")
            continue
        default = defaults.get(name)
        kind = next((kind for kind in ("bool", "int", "float", "str") if accepts(kind, default)), None)
        if kind is not None and not accepts("str or null" if kind == "str" else kind, value):
            expected = "text" if kind == "str" else kind
            raise ConfigError(f"{name}: found {value!r}, expected {expected}, such as RecBole's default {default!r}")


# help and documentation


def help_text(model="FLR", shared=()):
    """Write the text that --help prints: each option with default, allowed values and meaning.

    Args:
        model (str): name.
        shared: names of the files that the model shares with others, as in `option_files`.
    """
    lines = []
    for path in option_files(model, None, shared):
        lines.append(f"\n{path.parent.name}/{path.name}:" if path.parent.name == "model" else f"\n{path.name}:")
        for option in read_options(path).values():
            lines.append(f"  --{option.name}={option.default}   ({option.allowed})\n        {option.meaning}")
    return "\n".join(lines)


def _escape(text):
    """Text for a cell of a markdown table."""
    return re.sub(r"([\\*<>|\[\]])", r"\\\1", text)


def _code(text):
    """Code for a cell of a markdown table."""
    return "`" + text.replace("|", "\\|") + "`"


def _introduction(comment):
    """A yaml file's first comment (list of lines) as markdown; its indented lines are commands."""
    lines = [line.removeprefix("#").removeprefix(" ") for line in comment]
    commands = [line.strip() for line in lines if line.startswith("  ")]
    text = [_escape(line) for line in lines if not line.startswith("  ")]
    return "\n".join(text) + "".join(f"\n\n```bash\n{command}\n```" for command in commands)


def _section(path):
    """A yaml file as markdown: its first comment, then a table for each group of options below a comment of their own."""
    lines, options = path.read_text(encoding="utf-8").splitlines(), read_options(path)
    comment = list(takewhile(lambda line: line.startswith("#"), lines))
    tables = [[]]
    for line in lines[len(comment):]:
        if line.startswith("#"):
            tables.append([f"**{_escape(line.removeprefix('#').strip())}**", ""])
        option = options.get(line.partition(":")[0])
        if option:
            if not tables[-1] or not tables[-1][-1]:
                tables[-1] += ["| option | default | allowed values | meaning |", "|---|---|---|---|"]
            cells = [_code(option.name), _code(option.default), _code(option.allowed), _escape(option.meaning)]
            tables[-1].append(f"| {' | '.join(cells)} |")
    return "\n\n".join([_introduction(comment), *("\n".join(table) for table in tables if table)]) + "\n"


def document():
    """Write docs/options.md: one section for each yaml file in `properties/`."""
    folder = properties_folder()
    order = {"overall": 0, "generative": 1, "latent": 2, "model": 4, "split_files": 5, "dataset": 6}
    files = {path: path.relative_to(folder) for path in declaring_files()}
    ranked = sorted(files, key=lambda path: (order.get(files[path].with_suffix("").parts[0], 3), files[path].as_posix().lower()))
    parts = [DOCUMENT_HEAD]
    parts += [f"## properties/{files[path].as_posix()}\n\n{_section(path)}" for path in ranked]
    return "\n".join(parts)


if __name__ == "__main__":
    print(document(), end="")
