"""What a run needs before it starts: processes that fit each other, and for some models labels, features or other data.

RecBole fails without these in places far from the cause. Here such a run is refused before anything is written, with the option
that gives what is missing. docs/recbole_models.md lists the models.
"""

import importlib.util
import os
from pathlib import Path

from recbole.utils import ModelType

from recbole_flr.errors import ConfigError, DataError
from recbole_flr.processes import asked_for, world_size
from recbole_flr.protocol import WITHOUT_CUTOFF, evaluation_modes

FEATURE_MODELS = ("FDSA", "GRU4RecF", "SASRecF")  # sequential models that read features of the items
CPR_MODELS = ("GRU4RecCPR", "SASRecCPR")
PACKAGES = {"KGAT": "dgl", "KGIN": "torch_scatter", "MCCLK": "torch_scatter", "NCL": "faiss"}  # model -> what it imports late
PIP_NAMES = {"faiss": "faiss-cpu", "torch_scatter": "torch-scatter"}
PRETRAINED = {  # model -> (field that is loaded, what it holds)
    "GRU4RecKG": {"ent_id": "vectors of the entities"},
    "KSR": {"ent_id": "vectors of the entities", "rel_id": "vectors of the relations"},
}
# Options that name weights of an earlier run of RecBole, which are pickles
PICKLED_WEIGHTS = ("pre_model_path", "mf_pretrain_path", "mlp_pretrain_path", "pretrain_path", "warm_up")
STAGED_BY_PICKLES = ("RaCT", "S3Rec")  # their first stage writes a pickle, which their next stage reads


LAUNCH = ("nproc", "world_size", "ip", "port", "group_offset")  # options of how a run is started, not of the run


def check_processes(options):
    """Refuse options of several processes that do not fit each other, or that a launcher has settled already.

    Args:
        options (dict): all options; those of LAUNCH count.

    Raises:
        ConfigError: says which one, and what is expected.
    """
    count, offset = options["nproc"], options["group_offset"]
    world = asked_for(options)
    if world_size() > 1 and (count > 1 or world > 1):
        if world_size() != world or count != int(os.environ.get("LOCAL_WORLD_SIZE") or count):
            raise ConfigError(f"nproc, world_size: found {count} and {world}, but a launcher such as torchrun has started "
                              f"{world_size()} processes already; leave these options out")
        return
    if world < offset + count:
        raise ConfigError(f"world_size: found {world}, expected at least group_offset + nproc = {offset + count}: it counts the "
                          "processes of all machines")
    if world > count and (options["port"] is None or options["ip"] == "localhost"):
        raise ConfigError("ip, port: found the defaults with several machines; expected the address of the machine whose "
                          "group_offset is 0, and one free port of it, the same on all machines")


def check_needs(config):
    """Refuse a run of a RecBole model whose options do not give what the model needs.

    Args:
        config: :class:`recbole_flr.config.Config`.

    Raises:
        ConfigError: says what is missing, and which option gives it.
    """
    model = config["model"]
    if model in PACKAGES and importlib.util.find_spec(PACKAGES[model]) is None:
        package = PACKAGES[model]
        raise ConfigError(
            f"model: {model} needs the package {package}, which is not installed; run  pip install "
            f"{PIP_NAMES.get(package, package)}"
        )
    if config["log_wandb"] and importlib.util.find_spec("wandb") is None:
        raise ConfigError("log_wandb: found True, which needs the package wandb, which is not installed; run  pip install wandb")
    if str(config["learner"]).lower() == "sparse_adam":
        raise ConfigError("learner: found sparse_adam, which takes sparse gradients only, and no model here has them; expected adam, "
                          "sgd, adagrad or rmsprop")
    if config["MODEL_TYPE"] == ModelType.SEQUENTIAL and config["TIME_FIELD"] in (config["numerical_features"] or ()):
        raise ConfigError(f"numerical_features: found {config['TIME_FIELD']!r} (TIME_FIELD), which gives the order of the interactions; "
                          "for a feature, add a copy of it as another column")
    if model in STAGED_BY_PICKLES:
        raise ConfigError(
            f"model: {model} is trained in stages that hand on pickles, which recbole_flr never reads or writes; "
            "train it with RecBole itself"
        )
    for name in PICKLED_WEIGHTS:
        if config.external_config_dict.get(name):
            raise ConfigError(
                f"{name}: found {config[name]!r}, the weights of another run of RecBole; they are pickles, which "
                "recbole_flr never reads; leave it out"
            )
    if config["MODEL_TYPE"] == ModelType.CONTEXT:
        _check_label(config, f"model: {model} predicts a label")
    elif "labeled" in evaluation_modes(config["eval_args"]):
        _check_label(config, "eval_args: found mode labeled, which compares scores with labels")
    if config["MODEL_TYPE"] == ModelType.KNOWLEDGE:
        _check_graph(config)
    features = config["selected_features"] if model in FEATURE_MODELS else []
    missing = [name for name in features if name not in _columns(config, "item")]
    if missing:
        raise ConfigError(
            f"selected_features: found {missing[0]!r}, which load_col does not load; {model} needs columns of the "
            f'.item file: name them in both, such as --selected_features="{features}" '
            + _load_col(config, item=[config["ITEM_ID_FIELD"], *features])
        )
    if model in PRETRAINED:
        _check_graph(config)
    for field, what in PRETRAINED.get(model, {}).items():
        if field not in (config["preload_weight"] or {}):
            raise ConfigError(
                f"preload_weight: found no {field!r}; {model} needs {what} that were trained before, in a file of "
                "their own (additional_feat_suffix); docs/recbole_models.md has an example"
            )


def _columns(config, kind):
    """The columns that `load_col` loads of one kind of file; all columns count as loaded if it is null."""
    load_col = config["load_col"]
    return (load_col.get(kind) or []) if isinstance(load_col, dict) else _All()


class _All:
    """Contains everything."""

    def __contains__(self, item):
        return True


def _load_col(config, **more):
    """The option `load_col` with more columns, as one writes it in a shell."""
    load_col = config["load_col"] if isinstance(config["load_col"], dict) else {}
    return f'--load_col="{dict(load_col, **more)}"'


def _check_label(config, use):
    """A label between 0 and 1 comes from a column, a threshold on one, or, for a context-aware model, negative samples.

    Args:
        config: the run's.
        use: what needs the label, for the message.
    """
    label, threshold = config["LABEL_FIELD"], config["threshold"]
    inter = _columns(config, "inter")
    samples = config["MODEL_TYPE"] == ModelType.CONTEXT and (
        (config["train_neg_sample_args"] or {}).get("distribution", "none") != "none")
    if threshold:
        missing = [name for name in threshold if name not in inter]
        if missing:
            columns = [*(inter if isinstance(inter, list) else []), missing[0]]
            raise ConfigError(
                f"threshold: found {missing[0]!r}, which load_col does not load; add it: " + _load_col(config, inter=columns)
            )
        return
    if samples or (isinstance(inter, list) and label in inter):
        return
    if not isinstance(inter, list):  # all columns are loaded, and RecBole refuses a label that is not among them
        return
    raise ConfigError(
        f"{use}, and the options give none. Make it of ratings with "
        f"--threshold=\"{{'rating': 4}}\" {_load_col(config, inter=[*inter, 'rating'])}, or name a column "
        f"of 0 and 1 with --LABEL_FIELD=COLUMN and add it to load_col"
    )


def _check_graph(config):
    """A knowledge-aware model needs the files of the graph, and must load them."""
    fields = {
        "kg": [config["HEAD_ENTITY_ID_FIELD"], config["RELATION_ID_FIELD"], config["TAIL_ENTITY_ID_FIELD"]],
        "link": [config["ITEM_ID_FIELD"], config["ENTITY_ID_FIELD"]],
    }
    for kind in fields:
        path = Path(config["data_path"]) / f"{config['dataset']}.{kind}"
        if not path.is_file():
            raise DataError(
                f"found no {path}; {config['model']} needs a knowledge graph: the files .kg (triples) and .link (the "
                "entity of each item) of RecBole's atomic files"
            )
    missing = [kind for kind, names in fields.items() if any(name not in _columns(config, kind) for name in names)]
    if missing:
        raise ConfigError(
            f"load_col: found no columns of the .{missing[0]} file; {config['model']} needs the knowledge graph: "
            + _load_col(config, **fields)
        )


def check_sizes(config, dataset):
    """Refuse a data set that is too small for the ranking.

    Args:
        config: :class:`recbole_flr.config.Config`.
        dataset: RecBole's whole data set.

    Raises:
        DataError: fewer than two items.
        ConfigError: a cut-off, or a list of candidates, is longer than the list of all items.
    """
    items = dataset.item_num - 1
    if items < 2:
        raise DataError(f"data set {config['dataset']!r}: found {items} item, expected at least 2: there is nothing to rank")
    longest = max(_as_list(config["topk"]))
    ranked = [name for name in _as_list(config["metrics"]) if name.lower() not in WITHOUT_CUTOFF]
    if ranked and longest > items:
        name, at, _ = config["valid_metric"].partition("@")
        metric = f" --valid_metric={name}@{items}" if at else ""
        raise ConfigError(f"topk: found {longest}, expected at most {items}, the number of items of {config['dataset']!r}; say "
                          f"--topk={items}{metric}")
    fewest = min(items, dataset.user_num - 1)
    if config["model"] == "NCL" and config["num_clusters"] > fewest:
        raise ConfigError(
            f"num_clusters: found {config['num_clusters']}, expected at most {fewest}, the number of items or users"
        )
    if config["model"] in CPR_MODELS:
        most = max(int(number) for number in str(config["reranker_CAN_NUM"]).split(","))
        if most > items:
            raise ConfigError(f"reranker_CAN_NUM: found {most}, expected at most {items}, the number of items")


def _as_list(value):
    return list(value) if isinstance(value, (list, tuple)) else [value]
