"""RecBole's Config with the plug-in's options, which refuses unknown options and wrong values.

It differs from RecBole's own in these points:

- It reads values as yaml and never evaluates them as Python.
- It raises a ConfigError for an unknown option or a wrong value. RecBole would ignore the option.
- It does not read the command line; the script does. A Config in a test or a notebook does not see their arguments.
- It works with numpy 1 and numpy 2.

The defaults come from these places, and a later one overrides an earlier one: RecBole's yaml files, the plug-in's
(`recbole_flr.options.option_files`), and the file NAME.yaml in the data set's own folder, which `dataset_scripts` writes.
"""

import codecs
import copy
import os
from pathlib import Path

import numpy as np
import recbole.config
import yaml
from recbole.utils import InputType, ModelType, argument_list

from recbole_flr import processes, registry
from recbole_flr.errors import ConfigError
from recbole_flr.needs import check_processes
from recbole_flr.options import Loader, check, options_for, parse_text, parse_value
from recbole_flr.paths import check_name
from recbole_flr.protocol import check_evaluation, check_ranges, check_split_files

# Options that RecBole reads but declares in none of its yaml files
UNDECLARED = {
    "model", "dataset", "neg_sampling",
    "training_neg_sample_num", "reg_weight", "tail_ratio", "mask_ratio", "ft_ratio", "beta", "eta",
}
UNDECLARED_OF = {
    "AutoInt": {"has_residual"}, "DiffRec": {"norm"}, "LDiffRec": {"norm"}, "KD_DAGFM": {"cin"},
    "FEARec": {"contrast", "sim", "tau", "use_filter"},
}
NO_OPTIONS = {"MODEL_TYPE", "config_file"}  # names in RecBole's lists that a user cannot set
# Options whose defaults in RecBole's yaml files are ints, although fractions are allowed
FRACTIONS = {"q", "resolution", "global_ratio", "spatial_ratio", "dropout_prob", "hidden_dropout_prob"}
NOT_ONLY_TEXT = {"gpu_id", "additional_feat_suffix"}  # options with a text as default that also allow a number or a list
PARTS = ("train", "valid", "test")
PICKLES = ("save_dataset", "dataset_save_path", "save_dataloaders", "dataloaders_save_path")
NUMPY_ALIASES = {  # RecBole uses names such as np.float, which newer versions of numpy do not have
    "bool": np.bool_, "int": np.int_, "float": np.float64, "complex": np.complex128, "object": np.object_,
    "str": np.str_, "long": np.int_, "unicode": np.str_,
}


def read_yaml(path, option):
    """Read a user's yaml file with options.

    Args:
        path: of the file.
        option (str): the option that led to this file; error messages begin with it.

    Returns:
        dict: name -> value.

    Raises:
        ConfigError: the file cannot be read, is not yaml, or is no list of `key: value` lines.
    """
    try:
        content = yaml.load(Path(path).read_text(encoding="utf-8"), Loader=Loader)
    except OSError as error:
        raise ConfigError(f"{option}: cannot read {path} ({error.strerror})") from error
    except (yaml.YAMLError, ValueError) as error:
        raise ConfigError(f"{option}: {path} is not yaml: {error}") from error
    if not isinstance(content, (dict, type(None))):
        raise ConfigError(f"{option}: found a {type(content).__name__} in {path}, expected lines of key: value")
    return content or {}


def has_split_files(folder, name):
    """Whether a data set's folder has the files NAME.train.inter, NAME.valid.inter and NAME.test.inter."""
    return all((Path(folder) / f"{name}.{part}.inter").is_file() for part in PARTS)


def _check_encoding(name):
    """Refuse an encoding that Python does not know, or that is none of text."""
    try:
        if codecs.lookup(name)._is_text_encoding:
            return
    except (LookupError, ValueError, TypeError):
        pass
    raise ConfigError(f"encoding: found {name!r}, which Python does not know; expected such as utf-8, latin-1 or cp1252")


def own_gpu(gpu_id, was_given):
    """The GPU of this process among several processes: the one whose place is the process's rank on its machine.

    Args:
        gpu_id (str): the option, numbers with commas between them.
        was_given: whether a user gave it; by default, all GPUs that CUDA_VISIBLE_DEVICES names, or all of the machine, count.

    Raises:
        ConfigError: there are fewer GPUs than processes on this machine.
    """
    named = gpu_id if was_given else processes.visible_gpus()
    place = processes.local_rank()
    if named is None:
        return str(place)
    numbers = [number.strip() for number in named.split(",") if number.strip()]
    if numbers and place >= len(numbers):
        raise ConfigError(f"gpu_id: found the GPUs {', '.join(numbers)}, expected one for each process of this machine, which has at "
                          f"least {place + 1}; start fewer processes, or say --use_gpu=False")
    return numbers[place] if numbers else ""


def check_gpus(gpu_id, count):
    """Refuse fewer GPUs than the processes that a run starts on this machine.

    Args:
        gpu_id (str): the option as a user gave it; empty for the CPU.
        count: number of processes.

    Raises:
        ConfigError: says how many are expected.
    """
    numbers = [number for number in gpu_id.split(",") if number.strip()]
    if 0 < len(numbers) < count:
        raise ConfigError(f"gpu_id: found {gpu_id}, which names {len(numbers)} for the {count} processes of this machine; expected "
                          f"one for each, such as --gpu_id={','.join(map(str, range(count)))}, or leave it out")


class Config(recbole.config.Config):
    """The options of a run, for a model of the plug-in or of RecBole.

    Args:
        model: name or class.
        dataset (str): name.
        config_file_list: yaml files with options.
        config_dict (dict): options, which override the files. A text is read as yaml, unless the option itself is a text.

    Raises:
        ConfigError: for an unknown option, a wrong value, a wrong declaration in `properties/`, or an error of RecBole's Config.
    """

    def __init__(self, model=None, dataset=None, config_file_list=None, config_dict=None):
        processes.visible_gpus()  # remembers what RecBole's Config will change
        self._texts = {name: value for name, value in (config_dict or {}).items() if isinstance(value, str)}
        try:
            super().__init__(model, dataset, config_file_list, config_dict)
        except (ValueError, TypeError, KeyError, AttributeError, IndexError, AssertionError, NotImplementedError,
                RuntimeError) as error:
            raise ConfigError(str(error.args[0] if error.args else error)) from error
        negatives = self["train_neg_sample_args"]["distribution"]
        if self.model in registry.MODELS and negatives != "none":
            raise ConfigError(f"train_neg_sample_args: found {self['train_neg_sample_args']}, expected null: {self.model} has no use for "
                              "negative items of RecBole, and would take them for targets")
        if self["MODEL_INPUT_TYPE"] == InputType.PAIRWISE and negatives == "none":
            raise ConfigError("train_neg_sample_args: found none, but the model compares an item with a negative one "
                              "(loss_type BPR); expected such as {'distribution': 'uniform'}")

    def compatibility_settings(self):
        for name, kind in NUMPY_ALIASES.items():
            if name not in vars(np):
                setattr(np, name, kind)

    def _build_yaml_loader(self):
        return Loader

    def _load_config_files(self, file_list):
        options = {}
        for path in file_list or []:
            options.update(read_yaml(path, "config_files"))
        return options

    def _load_cmd_line(self):
        return {}

    def _convert_config_dict(self, config_dict):
        return {
            name: parse_value(value) if isinstance(value, str) and name not in ("model", "dataset")
            else copy.deepcopy(value) for name, value in config_dict.items()
        }

    def _get_model_and_dataset(self, model, dataset):
        model = self.external_config_dict.get("model") if model is None else model
        dataset = self.external_config_dict.get("dataset") if dataset is None else dataset
        for name, value in (("model", model), ("dataset", dataset)):
            if not value or not isinstance(value, (str, type) if name == "model" else str):
                raise ConfigError(f"{name}: found {value!r}, expected a name, such as "
                                  f"--{name}={'FLR' if name == 'model' else 'toys_demo'}")
        check_name(dataset, "dataset")
        if isinstance(model, str):
            model = registry.get_model(model)
        return super()._get_model_and_dataset(model, dataset)

    def _load_internal_config_dict(self, model, model_class, dataset):
        super()._load_internal_config_dict(model, model_class, dataset)
        defaults, given = self.internal_config_dict, self.external_config_dict
        if defaults["MODEL_TYPE"] == ModelType.SEQUENTIAL and defaults["eval_args"]["order"] != "TO":
            # RecBole's own defaults of GRU4RecKG and KSR forget that a sequential model needs the order of time
            defaults["eval_args"] = {"split": {"LS": "valid_and_test"}, "order": "TO", "group_by": "user", "mode": "full"}
        folder = Path(str(given.get("data_path", defaults["data_path"]))) / dataset
        shared = registry.shared_options(model)
        protocol = given.get("eval_args")
        user_splits = "benchmark_filename" in given or (isinstance(protocol, dict) and "split" in protocol)
        split_files = not user_splits and has_split_files(folder, dataset)
        self._options = options_for(model, dataset, shared, split_files)
        defaults.update({name: copy.deepcopy(option.value) for name, option in self._options.items()})
        path = folder / f"{dataset}.yaml"
        if path.is_file():
            self._add_options_of_folder(path)

    def _add_options_of_folder(self, path):
        """Add the options in the data set's own folder. They may include options of other models, which stay unchecked."""
        values = read_yaml(path, "data_path")
        wrong = [name for name in values if not isinstance(name, str)]
        if wrong:
            raise ConfigError(f"{path}: found option {wrong[0]!r}, expected a name")
        checked = {name: value for name, value in values.items() if name in self.internal_config_dict}
        try:
            check(checked, checked, self._options, self._measures())
        except ConfigError as error:
            raise ConfigError(f"{path}: {error}") from error
        self.internal_config_dict.update(values)

    def _measures(self):
        """RecBole's defaults, name -> value, as far as the default's type tells which values are allowed."""
        return {name: float(value) if name in FRACTIONS else value
                for name, value in self.internal_config_dict.items() if name not in NOT_ONLY_TEXT}

    def _get_final_config_dict(self):
        given = self.external_config_dict
        self._check_given(given)
        final = super()._get_final_config_dict()
        check_processes(final)
        check_ranges(final)
        check_split_files(given, final.get("benchmark_filename"))
        _check_encoding(final["encoding"])
        if isinstance(given.get("eval_args"), dict):  # RecBole would fill the parts that are not given with its random split
            final["eval_args"] = {**self.internal_config_dict["eval_args"], **given["eval_args"]}
        check_evaluation(final, final["MODEL_TYPE"])
        # A class of RecBole without an input_type chooses it by loss_type. RecBole refuses its own default beside CE.
        has_input_type = getattr(self.model_class, "input_type", None) is not None
        if final["MODEL_TYPE"] == ModelType.SEQUENTIAL and not has_input_type and "train_neg_sample_args" not in given:
            final["train_neg_sample_args"] = None if final["loss_type"] == "CE" else {"distribution": "uniform"}
        if final.get("load_col") == "auto":
            inter = [final["USER_ID_FIELD"], final["ITEM_ID_FIELD"], final["TIME_FIELD"]]
            if final.get("benchmark_filename"):
                inter.append(final["ITEM_ID_FIELD"] + final["LIST_SUFFIX"])
            final["load_col"] = {"inter": inter, "item": [final["ITEM_ID_FIELD"]]}
        self._snapshot, self._undecided = {**copy.deepcopy(final), "model": self.model, "dataset": self.dataset}, {}
        del self._snapshot["MODEL_TYPE"]
        if final["use_gpu"] and "gpu_id" in given:
            check_gpus(str(final["gpu_id"]), int(os.environ.get("LOCAL_WORLD_SIZE") or final["nproc"]))
        if not final["use_gpu"]:
            final["gpu_id"] = ""  # RecBole chooses the device by gpu_id alone
        elif processes.world_size() > 1:
            final["gpu_id"] = own_gpu(str(final["gpu_id"]), "gpu_id" in given)
        if not processes.is_main():  # one process shows the progress
            final.update(show_progress=False, log_wandb=False)
        return final

    def _check_given(self, given):
        """Read the given options that are texts, and refuse unknown options and wrong values."""
        measures = self._measures()
        for name, text in self._texts.items():
            if text == self.internal_config_dict.get(name) or (name == "gpu_id" and not text):
                given[name] = text
            elif self._options[name].is_text if name in self._options else isinstance(measures.get(name), str):
                given[name] = parse_text(text)
        if isinstance(given.get("state"), str):
            given["state"] = given["state"].upper()  # RecBole takes both
        self.check(given)
        for name in PICKLES:
            if given.get(name):
                raise ConfigError(f"{name}: found {given[name]!r}; RecBole would read and write pickles for it, "
                                  "which recbole_flr never does; leave it out")

    def check(self, values):
        """Refuse unknown options and values that an option of this model cannot have.

        Args:
            values (dict): name -> value.

        Raises:
            ConfigError: says what was found and what is allowed.
        """
        lists = [getattr(argument_list, name) for name in dir(argument_list) if name.endswith("_arguments")]
        known = UNDECLARED.union(self.internal_config_dict, UNDECLARED_OF.get(self.model, ()), *lists) - NO_OPTIONS
        check(values, known, self._options, self._measures())

    def decide(self, name, value):
        """Set an option that a run chooses itself, also for those who go on from the run."""
        self._undecided.setdefault(name, self._snapshot[name])
        self[name] = self.external_config_dict[name] = self._snapshot[name] = value

    def snapshot(self):
        """Copy all options as plain values; ``Config(config_dict=...)`` makes the same configuration from them."""
        return copy.deepcopy(self._snapshot)

    def planned(self):
        """As :meth:`snapshot`, but before :meth:`decide` changed anything."""
        return copy.deepcopy({**self._snapshot, **self._undecided})
