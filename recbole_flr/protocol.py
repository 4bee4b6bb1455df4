"""The evaluation protocol: check metrics, cut-offs and `eval_args` before a run starts.

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
