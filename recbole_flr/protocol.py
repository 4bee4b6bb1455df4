"""The protocol of training and evaluation: check RecBole's numbers, metrics, cut-offs and `eval_args` before a run starts.

RecBole accepts wrong values of these options and fails later, in some cases after an epoch of training.
"""

import re

from recbole.evaluator import metric_types
from recbole.utils import ModelType

from recbole_flr.allowed_values import accepts
from recbole_flr.errors import ConfigError, nearest

WITHOUT_CUTOFF = {"auc", "gauc", "mae", "rmse", "logloss"}
TITLE_METRICS = ["title_hit", "title_ndcg"]
EVAL_ARGS = ("split", "order", "group_by", "mode")
PARTS = 3  # train, valid, test
SHARE = "float in [0, 1)"  # of a dropout: with 1 nothing is left
RANGES = {  # RecBole's options whose default does not tell what is allowed -> allowed values, as RecBole documents them
    "epochs": "int >= 0", "train_batch_size": "int >= 1", "eval_batch_size": "int >= 1", "learning_rate": "float > 0",
    "eval_step": "int >= 0", "stopping_step": "int >= 0", "weight_decay": "float >= 0", "worker": "int >= 0",
    "loss_decimal_place": "int in [0, 16]", "metric_decimal_place": "int in [0, 16]",
    "clip_grad_norm": "dict or null",
    "transform": "mask_itemseq | inverse_itemseq | crop_itemseq | reorder_itemseq | user_defined | null",
    "seq_len": "dict or null", "threshold": "dict or null", "unload_col": "dict or null", "unused_col": "dict or null",
    "numerical_features": "list", "additional_feat_suffix": "list or str or null", "rm_dup_inter": "first | last | null",
    "val_interval": "dict or null", "alias_of_user_id": "list or null", "alias_of_item_id": "list or null",
    "alias_of_entity_id": "list or null", "alias_of_relation_id": "list or null", "preload_weight": "dict or null",
    "normalize_field": "list or null", "normalize_all": "bool or null", "discretization": "dict or null",
    "fields": "dict or null",
    "selected_features": "list", "load_col": "dict or null or auto", "benchmark_filename": "list or null",
    "hidden_dropout_prob": SHARE, "attn_dropout_prob": SHARE, "dropout_prob": SHARE,
}


def check_ranges(options):
    """Refuse a number that no run can have, where RecBole checks the type at most.

    Args:
        options (dict): name -> value, the final ones.

    Raises:
        ConfigError: says what was found and what is allowed.
    """
    for name, allowed in RANGES.items():
        value = options.get(name)
        if name not in options or (name.endswith("_prob") and isinstance(value, (list, tuple))):
            continue
        if not accepts(allowed, value):
            raise ConfigError(f"{name}: found {value!r}, expected {allowed}")


def check_split_files(given, parts):
    """Refuse what does not fit rows that are already split into files.

    Args:
        given (dict): name -> value, as the user gave them.
        parts: the final value of `benchmark_filename`; None if RecBole splits the rows.

    Raises:
        ConfigError: `benchmark_filename` does not name three files, or `eval_args` asks for a split of another kind.
    """
    if not parts:
        return
    if len(parts) != PARTS or len({str(part) for part in parts}) != PARTS:
        raise ConfigError(f"benchmark_filename: found {parts!r}, expected the names of three parts, such as [train, valid, test]")
    protocol = given.get("eval_args")
    split = protocol.get("split") if isinstance(protocol, dict) else None
    if split not in (None, {"LS": "valid_and_test"}):  # the second stands in the files of converted sets
        raise ConfigError(f"eval_args: found split {split!r}, but the rows of this data set are split into files, which RecBole "
                          "does not split again; leave split out, or give --benchmark_filename=null to split NAME.inter anew")


def check_evaluation(options, model_type):
    """Refuse wrong metrics, cut-offs and evaluation protocols.

    Args:
        options (dict): name -> value, the final ones.
        model_type (recbole.utils.ModelType): sequential models must order the interactions by time.

    Raises:
        ConfigError: says what was found and what is allowed.
    """
    check_metrics(options)
    check_protocol(options["eval_args"], model_type)


def check_metrics(options):
    """Refuse unknown metrics, wrong cut-offs, and a `valid_metric` that the run does not compute.

    Args:
        options (dict): with metrics, topk, valid_metric and title_metrics.

    Raises:
        ConfigError: says what was found and what is allowed.
    """
    metrics = [options["metrics"]] if isinstance(options["metrics"], str) else options["metrics"]
    unknown = [name for name in metrics if str(name).lower() not in metric_types]
    if unknown or not metrics:
        raise ConfigError(f"metrics: found {metrics!r}, expected some of {', '.join(sorted(metric_types))}")
    topk = options["topk"] if isinstance(options["topk"], (list, tuple)) else [options["topk"]]
    if not topk or not all(accepts("int >= 1", k) for k in topk):
        raise ConfigError(f"topk: found {options['topk']!r}, expected a positive integer or a list of them")
    names = [name.lower() for name in metrics] + (TITLE_METRICS if options["title_metrics"] else [])
    reported = [n for name in names for n in ([name] if name in WITHOUT_CUTOFF else [f"{name}@{k}" for k in topk])]
    if str(options["valid_metric"]).lower() not in reported:
        raise ConfigError(f"valid_metric: found {options['valid_metric']!r}, expected one of {', '.join(reported)}, "
                          "which follow from metrics and topk")


def evaluation_modes(protocol):
    """How validation and test choose the items that are ranked: the values of `mode` in `eval_args`, one for both or one for each."""
    mode = protocol["mode"]
    return list(mode.values()) if isinstance(mode, dict) else [mode]


def check_protocol(protocol, model_type):
    """Refuse an `eval_args` that RecBole would misread.

    Args:
        protocol: the value of `eval_args`.
        model_type (recbole.utils.ModelType): sequential models must order the interactions by time.

    Raises:
        ConfigError: says what was found and what is allowed.
    """
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
