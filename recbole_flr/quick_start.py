"""Run, load, recommend: three functions on one set-up."""

import difflib
import sys
from logging import getLogger

import torch
from recbole.data.interaction import Interaction
from recbole.utils import ModelType, get_environment, init_logger, init_seed, set_color
from tabulate import tabulate

from recbole_flr import registry
from recbole_flr.config import Config
from recbole_flr.data.catalog import Catalog
from recbole_flr.data.loading import load_dataset, split
from recbole_flr.errors import ConfigError, DataError
from recbole_flr.training import checkpoint


def _set_up(config):
    """Config -> dataset, the three loaders, the model. The one place where a run is put together."""
    init_seed(config["seed"], config["reproducibility"])
    init_logger(config)
    logger = getLogger()
    logger.info(sys.argv)
    logger.info(config)
    dataset = load_dataset(config)
    logger.info(dataset)
    loaders = split(config, dataset)
    init_seed(config["seed"] + config["local_rank"], config["reproducibility"])
    model = registry.get_model(config["model"])(config, loaders[0]._dataset).to(config["device"])
    logger.info(model)
    return dataset, loaders, model


def _title_ids(config, model, dataset):
    """Title groups for the title-level metrics, or None.

    None where there are no titles, where none are wanted, and where a row may have several targets (general models,
    sampled negatives): "the right title" is a question about one target.
    """
    full = set(config["eval_args"]["mode"].values()) == {"full"}
    if not config["title_metrics"] or not full or config["MODEL_TYPE"] != ModelType.SEQUENTIAL:
        return None
    if hasattr(model, "catalog"):
        return model.catalog.title_ids
    try:
        return Catalog.from_dataset(config, dataset).title_ids
    except DataError as error:
        getLogger().info(f"no title-level metrics: {error}")
        return None


def _trainer(config, model, dataset):
    trainer = registry.get_trainer(config)(config, model)
    titles = _title_ids(config, model, dataset)
    if titles is not None:
        trainer.report_titles(titles)
    elif config["valid_metric"].lower().startswith("title_"):
        raise ConfigError(f"valid_metric: found {config['valid_metric']}, but this run reports no title-level metrics: they "
                          "need titles, title_metrics, a sequential model and full ranking")
    return trainer


def _options_of_run(name, model, dataset, config_file_list, options):
    """Options of the run that the option `name` (resume or checkpoint) points at, with what was given anew on top.

    Returns:
        model, dataset, options.
    """
    path = options[name]
    if config_file_list:
        raise ConfigError(f"{name}: found config_files too; the run's options come from its folder, change single ones "
                          "with --key=value")
    stored = checkpoint.read_config(path)
    for what, given in (("model", model), ("dataset", dataset)):
        if given not in (None, stored[what]):
            raise ConfigError(f"{name}: the run at {path} has {what}={stored[what]}, found --{what}={given}; leave it out")
    stored.update(_tokenizer(path))
    if name == "checkpoint":
        stored.pop("resume", None)  # that run may itself have been resumed; this one is new
    stored = {**stored, **options, name: str(path)}
    return stored.pop("model"), stored.pop("dataset"), stored


def _tokenizer(path):
    """The option that names a run's tokenizer, which is saved beside its weights, if the model has one."""
    folder = checkpoint.run_folder(path)
    return {"tokenizer": str(folder)} if (folder / "tokenizer.json").is_file() else {}


def run_recbole_flr(model=None, dataset=None, config_file_list=None, config_dict=None, saved=True):
    """Train, validate and test a model of the plug-in or of RecBole.

    Args:
        model: name, such as ``FLR`` or ``SASRec``.
        dataset: name, such as ``movies``.
        config_file_list: yaml files with options.
        config_dict: options; they win over the files. ``resume`` goes on with the run in a folder, ``checkpoint`` starts a
            new run from the weights of another.
        saved: whether to write checkpoints (needed to test the best epoch's weights).

    Returns:
        RecBole's dict: best_valid_score, valid_score_bigger, best_valid_result, test_result. If the model was trained in
        several stages they are those of the better one by validation, its name is in ``kept``, and ``stages`` has each
        stage's own: name -> {best_valid_score, best_valid_result, test_result}.

    Raises:
        FLRError: ConfigError, DataError or CheckpointError for what a user can mend.
    """
    options = dict(config_dict or {})
    for name in ("resume", "checkpoint"):
        if options.get(name):
            model, dataset, options = _options_of_run(name, model, dataset, config_file_list, options)
            break
    config = Config(model, dataset, config_file_list, options)
    dataset, (train_data, valid_data, test_data), model = _set_up(config)
    if config["checkpoint"] and not config["resume"]:
        _load_weights(model, config["checkpoint"], config)
    trainer = _trainer(config, model, dataset)
    if config["resume"]:
        trainer.resume_checkpoint(config["resume"])
    show_progress = config["show_progress"]
    best_valid_score, best_valid_result = trainer.fit(train_data, valid_data, saved=saved, show_progress=show_progress)
    result = {
        "best_valid_score": best_valid_score,
        "valid_score_bigger": config["valid_metric_bigger"],
        "best_valid_result": best_valid_result,
    }
    stages = _test_stages(trainer, test_data, show_progress) if saved else {}
    if stages:
        result.update(kept=trainer.best_stage(), stages=stages, test_result=stages[trainer.best_stage()]["test_result"])
    else:
        result["test_result"] = trainer.evaluate(test_data, load_best_model=saved, show_progress=show_progress)

    logger = getLogger()
    logger.info("The running environment of this training is as follows:\n" + get_environment(config).draw())
    if stages:
        logger.info(f"Stages, of which {result['kept']} is kept:\n" + _stage_table(stages))
    logger.info(set_color("best valid ", "yellow") + f": {best_valid_result}")
    logger.info(set_color("test result", "yellow") + f": {result['test_result']}")
    return result


def _load_weights(model, path, config):
    """Put the best weights of a run into a model of the plug-in."""
    file = path if str(path).endswith(".safetensors") else checkpoint.run_folder(path) / checkpoint.BEST
    tensors, meta = checkpoint.read(file)
    checkpoint.check_data(meta, config["data_fingerprint"], strict=not hasattr(model, "catalog"))
    checkpoint.unpack_model(model, tensors, meta)


def _test_stages(trainer, test_data, show_progress):
    """Name of each stage -> its validation and test results; empty unless there are several."""
    found = {}
    for name, (score, valid_result) in getattr(trainer, "results", {}).items():
        found[name] = {"best_valid_score": score, "best_valid_result": valid_result}
    if len(found) > 1:
        for name, result in found.items():
            file = trainer.stage_file(name)
            result["test_result"] = trainer.evaluate(test_data, model_file=file, show_progress=show_progress)
        trainer.load_weights()  # of the stage that is kept
        return found
    return {}


def _stage_table(stages):
    """The stages' results side by side, as text."""
    titles, rows, so_far = {"sft": "SFT", "grpo": "GRPO"}, [], []
    for name, result in stages.items():
        so_far.append(titles.get(name, name))
        for part in ("valid", "test"):
            metrics = result["best_valid_result" if part == "valid" else "test_result"] or {}
            rows.append({"stage": "+".join(so_far), "on": part, **metrics})
    return tabulate(rows, headers="keys", floatfmt=".4f")


def load_data_and_model(model_file, config_dict=None):
    """Load a trained model with its data, as RecBole's function of that name.

    Args:
        model_file: folder of a run (its best weights), or a safetensors file in it.
        config_dict: options to change, such as ``data_path``.

    Returns:
        config, model (in evaluation mode), dataset, train_data, valid_data, test_data.

    Raises:
        CheckpointError: if there is no run, or the data set has changed since (a model of titles takes a changed
            catalogue, with a warning; a model of ids does not).
    """
    options = checkpoint.read_config(model_file)
    options.update(_tokenizer(model_file))
    options.update(config_dict or {})
    config = Config(options.pop("model"), options.pop("dataset"), config_dict=options)
    dataset, loaders, model = _set_up(config)
    _load_weights(model, model_file, config)
    return (config, model.eval(), dataset, *loaders)


def resolve_items(dataset, catalog, history):
    """Titles or item ids -> internal item ids. What is both is an id; a title of several items is the most popular one.

    Raises:
        DataError: naming the nearest title.
    """
    by_token = dataset.field2token_id[dataset.iid_field]
    by_text = {catalog.titles[item]: item for item in reversed(catalog.by_popularity().tolist())}
    by_text.update({text: item for item, text in enumerate(catalog.texts) if item})
    items = []
    for entry in history:
        item = by_token.get(str(entry)) or by_text.get(str(entry))
        if not item:
            near = difflib.get_close_matches(str(entry), catalog.titles[1:], n=1, cutoff=0.0)
            raise DataError(f"history: found {entry!r}, which is neither an item id nor a title of the catalogue; "
                            f"the nearest title is {near[0]!r}")
        items.append(item)
    return items


@torch.no_grad()
def recommend(checkpoint, history, k=10, config_dict=None):
    """Recommend the next items, and say what the model looked at.

    Args:
        checkpoint: folder of a run, or what :func:`load_data_and_model` returned (to load once and ask often).
        history: titles or item ids, oldest first; the latest MAX_ITEM_LIST_LENGTH count.
        k: how many items; of a model that writes titles with `decode: beam` at most the number of beams.
        config_dict: options to change when loading.

    Returns:
        dict with ``items``: [{item, title, score}] best first, where score is the title's log-probability (RecBole
        models: their score), and ``factors``: [{weight, history: [{item, title, attention}]}], one for each factor of
        the last refinement (empty for models without).

    Raises:
        DataError: for an empty history or an unknown item.
        ConfigError: if k is below 1, or more than there are beams or items.
    """
    loaded = checkpoint if isinstance(checkpoint, tuple) else load_data_and_model(checkpoint, config_dict)
    config, model, dataset = loaded[:3]
    if not hasattr(model, "ITEM_SEQ"):
        raise ConfigError(f"recommend: found a {config['model']}, expected a sequential model, which reads a history")
    catalog = model.catalog if hasattr(model, "catalog") else Catalog.from_dataset(config, loaded[3]._dataset)
    writes = hasattr(model, "trie")
    most = len(catalog) - 1
    if writes and config["decode"] == "beam":
        most = min(most, config["num_beams"])
    if not 1 <= k <= most:
        raise ConfigError(f"k: found {k}, expected 1 to {most} (num_beams and the catalogue bound it)")
    if not history:
        raise DataError("history: found none, expected at least one title or item id")
    items = resolve_items(dataset, catalog, history)[-config["MAX_ITEM_LIST_LENGTH"]:]
    padded = items + [0] * (config["MAX_ITEM_LIST_LENGTH"] - len(items))
    interaction = Interaction({
        model.ITEM_SEQ: torch.tensor([padded]), model.ITEM_SEQ_LEN: torch.tensor([len(items)]),
        model.USER_ID: torch.zeros(1, dtype=torch.long), model.ITEM_ID: torch.zeros(1, dtype=torch.long),
    }).to(config["device"])
    scores = model.full_sort_predict(interaction, **({"top": k} if writes else {})).view(1, -1)[0].cpu()
    scores[0] = -torch.inf
    best = scores.topk(k)

    def name(item):
        return {"item": str(dataset.field2id_token[dataset.iid_field][item]), "title": catalog.titles[item]}

    answer = {"items": [{**name(item), "score": score} for item, score in
                        zip(best.indices.tolist(), best.values.tolist()) if score > -torch.inf], "factors": []}
    if hasattr(model, "explain"):
        alpha, attention = model.explain(interaction)
        for weight, shares in zip(alpha[0].tolist(), attention[0].tolist()):
            looked = [{**name(item), "attention": share} for item, share in zip(items, shares)]
            answer["factors"].append({"weight": weight, "history": sorted(looked, key=lambda e: -e["attention"])})
    return answer
