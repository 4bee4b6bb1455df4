"""RecBole's Config, with the plug-in's `properties/`, numpy 1 and 2, and a refusal of what it does not know.

How it differs from RecBole's:
- values are parsed as yaml, never with eval;
- an unknown option or a wrong value is a ConfigError (RecBole: silently None);
- the command line is read by the script, not here: a Config made in a test or a notebook does not see its arguments.
"""

import copy
import re
from pathlib import Path

import numpy as np
import recbole.config
import yaml
from recbole.evaluator import metric_types
from recbole.utils import InputType, ModelType, argument_list

from recbole_flr import registry
from recbole_flr.errors import ConfigError
from recbole_flr.options import TYPES, check, nearest, option_files, options_for, parse_text, parse_value

# what RecBole reads but declares in none of its yaml files
UNDECLARED = {
    "model", "dataset", "nproc", "world_size", "ip", "port", "offset", "local_rank", "group_offset", "neg_sampling",
    "training_neg_sample_num", "reg_weight", "tail_ratio", "mask_ratio", "ft_ratio", "beta", "eta",
}
UNDECLARED_OF = {
    "AutoInt": {"has_residual"}, "DiffRec": {"norm"}, "LDiffRec": {"norm"}, "KD_DAGFM": {"cin"},
    "FEARec": {"contrast", "sim", "tau", "use_filter"},
}
NO_OPTIONS = {"MODEL_TYPE", "config_file"}  # in RecBole's lists, but not for a user to set
# whole numbers in RecBole's yaml files of models where a fraction may stand as well
FRACTIONS = {"q", "resolution", "global_ratio", "spatial_ratio", "dropout_prob", "hidden_dropout_prob"}
NOT_ONLY_TEXT = {"gpu_id", "additional_feat_suffix"}  # text in RecBole's yaml files, but a number or list may stand there
WITHOUT_CUTOFF = {"auc", "gauc", "mae", "rmse", "logloss"}
EVAL_ARGS = ("split", "order", "group_by", "mode")
PICKLES = ("save_dataset", "dataset_save_path", "save_dataloaders", "dataloaders_save_path")
NUMPY_ALIASES = {  # RecBole writes np.float and the like, which numpy has dropped
    "bool": np.bool_, "int": np.int_, "float": np.float64, "complex": np.complex128, "object": np.object_,
    "str": np.str_, "long": np.int_, "unicode": np.str_,
}


def check_evaluation(options, model_type):
    """Refuse metrics and protocols over which RecBole would stumble later, some of them after an epoch of training.

    Raises:
        ConfigError: saying what was found and what is allowed.
    """
    metrics = [options["metrics"]] if isinstance(options["metrics"], str) else options["metrics"]
    unknown = [name for name in metrics if str(name).lower() not in metric_types]
    if unknown or not metrics:
        raise ConfigError(f"metrics: found {metrics!r}, expected some of {', '.join(sorted(metric_types))}")
    topk = options["topk"] if isinstance(options["topk"], (list, tuple)) else [options["topk"]]
    if not topk or not all(TYPES["int"](k) and k >= 1 for k in topk):
        raise ConfigError(f"topk: found {options['topk']!r}, expected a positive integer or a list of them")
    names = [name.lower() for name in metrics] + (["title_hit", "title_ndcg"] if options["title_metrics"] else [])
    reported = [n for name in names for n in ([name] if name in WITHOUT_CUTOFF else [f"{name}@{k}" for k in topk])]
    if str(options["valid_metric"]).lower() not in reported:
        raise ConfigError(f"valid_metric: found {options['valid_metric']!r}, expected one of {', '.join(reported)}, "
                          "as metrics and topk say")

    protocol = options["eval_args"]
    if not isinstance(protocol, dict):
        raise ConfigError(f"eval_args: found {protocol!r}, expected a dict of {', '.join(EVAL_ARGS)}")
    for name in protocol:
        if name not in EVAL_ARGS:
            raise ConfigError(f"eval_args: found {name!r}, expected {', '.join(EVAL_ARGS)}; "
                              f"the nearest is {nearest(name, EVAL_ARGS)!r}")
    orders = ("TO",) if model_type == ModelType.SEQUENTIAL else ("TO", "RO")
    if protocol.get("order", orders[0]) not in orders:
        raise ConfigError(f"eval_args: found order {protocol['order']!r}, expected {' or '.join(orders)}")
    mode = protocol.get("mode", "full")
    for value in mode.values() if isinstance(mode, dict) else [mode]:
        if not re.fullmatch(r"full|labeled|(uni|pop)[1-9]\d*", str(value)):
            raise ConfigError(f"eval_args: found mode {value!r}, expected full, labeled, uniN or popN (N negative items)")


class Config(recbole.config.Config):
    """RecBole's Config for a model of the plug-in or of RecBole.

    Args:
        model: name or class.
        dataset: name.
        config_file_list: yaml files.
        config_dict: options; they win over the files. Strings are read as yaml, or kept where text is meant.

    Raises:
        ConfigError: for an unknown option, a wrong value, or what RecBole itself refuses.
    """

    def __init__(self, model=None, dataset=None, config_file_list=None, config_dict=None):
        self._texts = {name: value for name, value in (config_dict or {}).items() if isinstance(value, str)}
        try:
            super().__init__(model, dataset, config_file_list, config_dict)
        except (ValueError, TypeError, KeyError, NotImplementedError, RuntimeError) as error:
            raise ConfigError(str(error.args[0] if error.args else error)) from error
        negatives = self["train_neg_sample_args"]["distribution"]
        if self["MODEL_INPUT_TYPE"] == InputType.PAIRWISE and negatives == "none":
            raise ConfigError("train_neg_sample_args: found none, but the model compares an item with a negative one "
                              "(loss_type BPR); expected such as {'distribution': 'uniform'}")

    def compatibility_settings(self):
        for name, kind in NUMPY_ALIASES.items():
            if name not in vars(np):
                setattr(np, name, kind)

    def _build_yaml_loader(self):
        resolvers = super()._build_yaml_loader().yaml_implicit_resolvers  # RecBole's floats: 1e-3
        return type("Loader", (yaml.SafeLoader,), {"yaml_implicit_resolvers": resolvers})

    def _load_config_files(self, file_list):
        options = {}
        for path in file_list or []:
            try:
                content = yaml.load(Path(path).read_text(encoding="utf-8"), Loader=self.yaml_loader)
            except OSError as error:
                raise ConfigError(f"config_files: cannot read {path} ({error.strerror})") from error
            except (yaml.YAMLError, ValueError) as error:
                raise ConfigError(f"config_files: {path} is not yaml: {error}") from error
            if not isinstance(content, (dict, type(None))):
                raise ConfigError(f"config_files: found a {type(content).__name__} in {path}, expected lines of key: value")
            options.update(content or {})
        return options

    def _load_cmd_line(self):
        return {}

    def _convert_config_dict(self, config_dict):
        return {
            name: parse_value(value, self.yaml_loader) if isinstance(value, str) and name not in ("model", "dataset")
            else copy.deepcopy(value) for name, value in config_dict.items()
        }

    def _get_model_and_dataset(self, model, dataset):
        model = self.external_config_dict.get("model") if model is None else model
        dataset = self.external_config_dict.get("dataset") if dataset is None else dataset
        for name, value in (("model", model), ("dataset", dataset)):
            if not value or not isinstance(value, (str, type) if name == "model" else str):
                raise ConfigError(f"{name}: found {value!r}, expected a name, such as "
                                  f"--{name}={'FLR' if name == 'model' else 'toys_demo'}")
        if isinstance(model, str):
            model = registry.get_model(model)
        return super()._get_model_and_dataset(model, dataset)

    def _load_internal_config_dict(self, model, model_class, dataset):
        super()._load_internal_config_dict(model, model_class, dataset)
        for path in option_files(model, dataset):
            self._update_internal_config_dict(path)
        data_path = self.external_config_dict.get("data_path", self.internal_config_dict["data_path"])
        brought = Path(str(data_path)) / dataset / f"{dataset}.yaml"  # a converted data set says how it is to be read
        if brought.is_file():
            self._update_internal_config_dict(brought)

    def _get_final_config_dict(self):
        options = options_for(self.model, self.dataset)
        defaults = {name: float(value) if name in FRACTIONS else value
                    for name, value in self.internal_config_dict.items() if name not in NOT_ONLY_TEXT}
        given = self.external_config_dict
        for name, text in self._texts.items():
            if text == self.internal_config_dict.get(name) or (name == "gpu_id" and not text):
                given[name] = text
            elif options[name].is_text if name in options else isinstance(defaults.get(name), str):
                given[name] = parse_text(text, self.yaml_loader)
        declared = {name for name in dir(argument_list) if name.endswith("_arguments")}
        known = UNDECLARED.union(self.internal_config_dict, UNDECLARED_OF.get(self.model, ()),
                                 *(getattr(argument_list, name) for name in declared)) - NO_OPTIONS
        check(given, known, options, defaults)
        for name in PICKLES:
            if self.external_config_dict.get(name):
                raise ConfigError(f"{name}: found {self.external_config_dict[name]!r}; RecBole would read and write "
                                  "pickles for it, which recbole_flr never does; leave it out")
        final = super()._get_final_config_dict()
        if isinstance(given.get("eval_args"), dict):  # what is not said stays the data set's, not RecBole's random split
            final["eval_args"] = {**self.internal_config_dict["eval_args"], **given["eval_args"]}
        check_evaluation(final, final["MODEL_TYPE"])
        if final["MODEL_TYPE"] == ModelType.SEQUENTIAL and not hasattr(self.model_class, "input_type"):
            if "train_neg_sample_args" not in given:  # RecBole refuses its own default beside CE
                final["train_neg_sample_args"] = None if final["loss_type"] == "CE" else {"distribution": "uniform"}
        if final.get("load_col") == "auto":
            inter = [final["USER_ID_FIELD"], final["ITEM_ID_FIELD"], final["TIME_FIELD"]]
            if final.get("benchmark_filename"):
                inter.append(final["ITEM_ID_FIELD"] + final["LIST_SUFFIX"])
            final["load_col"] = {"inter": inter, "item": [final["ITEM_ID_FIELD"]]}
        self._snapshot = {**copy.deepcopy(final), "model": self.model, "dataset": self.dataset}
        del self._snapshot["MODEL_TYPE"]
        if not final["use_gpu"]:
            final["gpu_id"] = ""  # RecBole looks at nothing else
        return final

    def snapshot(self):
        """All options as plain values, from which ``Config(config_dict=...)`` makes the same configuration again."""
        return copy.deepcopy(self._snapshot)
