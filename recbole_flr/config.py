"""RecBole's Config, with the plug-in's `properties/`, numpy 1 and 2, and a refusal of what it does not know.

How it differs from RecBole's:
- values are parsed as yaml, never with eval;
- an unknown option or a wrong value is a ConfigError (RecBole: silently None);
- the command line is read by the script, not here: a Config made in a test or a notebook does not see its arguments.
"""

import copy

import numpy as np
import recbole.config
import yaml
from recbole.utils import argument_list

from recbole_flr import registry
from recbole_flr.errors import ConfigError
from recbole_flr.options import check, option_files, options_for, parse_value

# what RecBole reads but declares in none of its yaml files
UNDECLARED = {
    "model", "dataset", "config_files", "encoding", "eval_type", "use_gpu", "nproc", "world_size", "ip", "port", "offset",
    "local_rank", "group_offset", "neg_sampling", "training_neg_sample_num", "additional_feat_suffix", "reg_weight",
    "numerical_features", "discretization", "kg_reverse_r", "RATING_FIELD",
}
PICKLES = ("save_dataset", "dataset_save_path", "save_dataloaders", "dataloaders_save_path")
NUMPY_ALIASES = {  # RecBole writes np.float and the like, which numpy has dropped
    "bool": np.bool_, "int": np.int_, "float": np.float64, "complex": np.complex128, "object": np.object_,
    "str": np.str_, "long": np.int_, "unicode": np.str_,
}


class Config(recbole.config.Config):
    """RecBole's Config for a model of the plug-in or of RecBole.

    Args:
        model: name or class.
        dataset: name.
        config_file_list: yaml files.
        config_dict: options; they win over the files. Strings are read as yaml.

    Raises:
        ConfigError: for an unknown option, a wrong value, or what RecBole itself refuses.
    """

    def __init__(self, model=None, dataset=None, config_file_list=None, config_dict=None):
        try:
            super().__init__(model, dataset, config_file_list, config_dict)
        except FileNotFoundError as error:
            raise ConfigError(f"config_files: found no file {error.filename}") from error
        except yaml.YAMLError as error:
            raise ConfigError(f"config_files: expected yaml, found {error}") from error
        except (ValueError, TypeError, KeyError, NotImplementedError, RuntimeError) as error:
            raise ConfigError(str(error.args[0] if error.args else error)) from error

    def compatibility_settings(self):
        for name, kind in NUMPY_ALIASES.items():
            if name not in vars(np):
                setattr(np, name, kind)

    def _build_yaml_loader(self):
        resolvers = super()._build_yaml_loader().yaml_implicit_resolvers  # RecBole's floats: 1e-3
        return type("Loader", (yaml.SafeLoader,), {"yaml_implicit_resolvers": resolvers})

    def _load_cmd_line(self):
        return {}

    def _convert_config_dict(self, config_dict):
        return {
            name: parse_value(value, self.yaml_loader) if isinstance(value, str) else value
            for name, value in config_dict.items()
        }

    def _get_model_and_dataset(self, model, dataset):
        model = model or self.external_config_dict.get("model")
        if isinstance(model, str):
            model = registry.get_model(model)
        return super()._get_model_and_dataset(model, dataset)

    def _load_internal_config_dict(self, model, model_class, dataset):
        super()._load_internal_config_dict(model, model_class, dataset)
        for path in option_files(model, dataset):
            self._update_internal_config_dict(path)

    def _get_final_config_dict(self):
        options = options_for(self.model, self.dataset)
        text = {name: str(value) for name, value in self.variable_config_dict.items()
                if name in options and options[name].is_text and value is not None}
        self.external_config_dict.update(text)
        declared = {name for name in dir(argument_list) if name.endswith("_arguments")}
        known = UNDECLARED.union(self.internal_config_dict, *(getattr(argument_list, name) for name in declared))
        check(self.external_config_dict, known, options, self.internal_config_dict)
        for name in PICKLES:
            if self.external_config_dict.get(name):
                raise ConfigError(f"{name}: found {self.external_config_dict[name]!r}; RecBole would read and write "
                                  "pickles for it, which recbole_flr never does; leave it out")
        final = super()._get_final_config_dict()
        if final.get("load_col") == "auto":
            inter = [final["USER_ID_FIELD"], final["ITEM_ID_FIELD"], final["TIME_FIELD"]]
            if final.get("benchmark_filename"):
                inter.append(final["ITEM_ID_FIELD"] + final["LIST_SUFFIX"])
            final["load_col"] = {"inter": inter, "item": [final["ITEM_ID_FIELD"]]}
        if not final["use_gpu"]:
            final["gpu_id"] = ""  # RecBole looks at nothing else
        self._snapshot = {"model": self.model, "dataset": self.dataset,
                          **{k: v for k, v in copy.deepcopy(final).items() if isinstance(k, str) and k != "MODEL_TYPE"}}
        return final

    def snapshot(self):
        """All options as plain values, from which ``Config(config_dict=...)`` makes the same configuration again."""
        return copy.deepcopy(self._snapshot)
