"""Run a model, and load a trained one. Both put a run together in the same way."""

import os
import shlex
from contextlib import contextmanager
from itertools import islice
from logging import getLogger
from time import perf_counter

from recbole.utils import ModelType, get_environment, get_trainer, init_seed, set_color

from recbole_flr import registry
from recbole_flr.config import Config
from recbole_flr.console import FILE_ONLY, Silent, log_file, no_foreign_warnings, open_log
from recbole_flr.data.loading import load_dataset, read_titles, split, title_groups
from recbole_flr.data.sharing import share_rows
from recbole_flr.distributed import gather_json, in_turns, is_main, joined, lost_process, main_first, rank, size
from recbole_flr.errors import (
    ConfigError,
    DataError,
    DiskError,
    Interrupted,
    LostProcess,
    enough_memory,
)
from recbole_flr.evaluation import metrics_table
from recbole_flr.factor_statistics import examples, factor_statistics
from recbole_flr.files import write_json
from recbole_flr.launch import launch, wants_launch
from recbole_flr.needs import LAUNCH, check_needs, check_sizes
from recbole_flr.paths import LOG_FOLDERS, check_folder, check_run
from recbole_flr.processes import world_size
from recbole_flr.result import (
    EXAMPLES,
    RESULT,
    describe_result,
    describe_run,
    differing_options,
    duration,
    finite,
    ranks_file,
    write_ranks,
    write_thoughts,
)  # fmt: skip
from recbole_flr.rows import describe_ranked_rows
from recbole_flr.trainer import with_safe_checkpoints
from recbole_flr.training import checkpoint


def _set_up(config, trained=False):
    """Config -> dataset, the three loaders, the model. The one place where a run is put together.

    With `trained` the model will get the weights of a run.
    """
    if trained and config["num_factors"] == "auto":
        raise ConfigError("num_factors: found auto, expected the number of the run whose weights are loaded; leave num_factors out")
    check_needs(config)
    for folder in LOG_FOLDERS:
        check_folder(folder, "the folder of the logs")
    if world_size() > 1:
        for folder in (*LOG_FOLDERS, config["checkpoint_dir"]):
            os.makedirs(folder, exist_ok=True)  # RecBole's own way fails if two processes make it at once
    init_seed(config["seed"], config["reproducibility"])
    open_log(config)
    logger = getLogger()
    logger.info(config, extra=FILE_ONLY)
    given = ", ".join(f"{name}={value}" for name, value in differing_options(config).items())
    logger.info(f"{config['model']} on {config['dataset']}, seed {config['seed']}. Options that differ from the defaults: "
                f"{given or 'none'}. All options are in {log_file()}.")
    with no_foreign_warnings():
        with main_first():  # it makes files that are missing
            dataset = load_dataset(config, create=not trained)
        check_sizes(config, dataset)
        loaders = split(config, dataset)
    # a traditional model counts in its loss: each process counts all rows
    shared = [] if config["MODEL_TYPE"] == ModelType.TRADITIONAL else share_rows(loaders[0])
    logger.info(dataset, extra=FILE_ONLY)
    rows = ", ".join(f"{len(loader._dataset.inter_feat)} {part}" for part, loader in zip(("train", "valid", "test"), loaders))
    logger.info(f"Data: {dataset.user_num - 1} users, {dataset.item_num - 1} items, rows: {rows}.")

    def build_model(config):
        return registry.build_model(config, loaders[0]._dataset)

    if config["num_factors"] == "auto":
        from recbole_flr.factor_choice import choose_num_factors

        choose_num_factors(config, loaders, build_model, lambda config, model: _trainer(config, model, dataset))
    init_seed(config["seed"] + config["local_rank"], config["reproducibility"])
    model = build_model(config)
    for rows in shared[:1]:  # RecBole's loaders of graphs have a second one, whose rows all cost the same
        rows.costs = model.row_costs(loaders[0]._dataset.inter_feat)
    if rank():  # all processes have built the same model; from here on each has its own dropout and noise
        init_seed(config["seed"] + rank(), config["reproducibility"])
    logger.info(model, extra=FILE_ONLY)
    logger.info(f"Model: {sum(p.numel() for p in model.parameters() if p.requires_grad):,} trained parameters.")
    return dataset, loaders, model


def _title_groups(config, model, dataset):
    """Title groups for the title-level metrics, or None.

    None where there are no titles, where no such metrics are wanted, and where a row may have several targets (general models,
    sampled negatives): whether the title is right is a question about one target.
    """
    full = set(config["eval_args"]["mode"].values()) == {"full"}
    if not config["title_metrics"] or not full or config["MODEL_TYPE"] != ModelType.SEQUENTIAL:
        return None
    groups = model.title_groups()
    if groups is not None:
        return groups
    try:
        return title_groups(read_titles(config, dataset)[0])
    except DataError as error:
        getLogger().info(f"No title-level metrics: {error}")
        return None


def build_trainer(config, model):
    """The trainer of a model: one that runs its stages, one that trains nothing, or else RecBole's own."""
    if model.stages:
        from recbole_flr.training.staged import StagedTrainer

        return StagedTrainer(config, model)
    if not model.needs_training:
        from recbole_flr.training.untrained import UntrainedTrainer

        return with_safe_checkpoints(UntrainedTrainer)(config, model)
    return with_safe_checkpoints(get_trainer(config["MODEL_TYPE"], config["model"]))(config, model)


def _trainer(config, model, dataset):
    trainer = build_trainer(config, model)
    titles = _title_groups(config, model, dataset)
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
    check_run(path, name)
    if config_file_list:
        raise ConfigError(f"{name}: found config_files too; the run's options come from its folder, change single ones "
                          "with --key=value")
    stored = {key: value for key, value in checkpoint.read_config(path).items() if key not in LAUNCH}
    for what, given in (("model", model), ("dataset", dataset)):
        if given not in (None, stored[what]):
            raise ConfigError(f"{name}: the run at {path} has {what}={stored[what]}, found --{what}={given}; leave it out")
    if world_size() > 1 or str(options.get("nproc") or 1) != "1":
        stored.pop("gpu_id", None)  # it was chosen for the processes of that run
    stored.update(_tokenizer(path))
    if name == "checkpoint":
        stored.pop("resume", None)  # that run may itself have been resumed; this one is new
    stored = {**stored, **options, name: str(path)}
    return stored.pop("model"), stored.pop("dataset"), stored


def _tokenizer(path):
    """The option that names a run's tokenizer, which is saved beside its weights, if the model has one."""
    folder = checkpoint.run_folder(path)
    return {"tokenizer": str(folder)} if (folder / "tokenizer.json").is_file() else {}


def configure(model=None, dataset=None, config_file_list=None, config_dict=None):
    """The options of a run. With `resume` or `checkpoint` among them, the other options are those of that run.

    Args:
        model, dataset, config_file_list, config_dict: as for :func:`run_recbole_flr`.

    Returns:
        :class:`recbole_flr.config.Config`.

    Raises:
        ConfigError, CheckpointError: for options that a run cannot have.
    """
    options = dict(config_dict or {})
    for name in ("resume", "checkpoint"):
        if options.get(name):
            model, dataset, options = _options_of_run(name, model, dataset, config_file_list, options)
            break
    return Config(model, dataset, config_file_list, options)


def _prepare(config):
    """Config -> dataset, the three loaders, the trainer. The model has the weights that the option `checkpoint` names."""
    dataset, loaders, model = _set_up(config, bool(config["checkpoint"] or config["resume"]))
    if config["checkpoint"] and not config["resume"]:
        _load_weights(model, config["checkpoint"], config)
    return dataset, loaders, _trainer(config, model, dataset)


def train_only(config, on_start, on_validation):
    """Train and validate a model, and save its best weights. Nothing is tested and no result is written: a trial of a search.

    A run with the option `resume` and the folder of this one tests it and writes its result.

    Args:
        config: from :func:`configure`.
        on_start: called with the folder of the run before the training.
        on_validation: called with (epoch of the stage, score) after each validation. What it raises ends the training.

    Returns:
        best score and result in validation, of the best stage.
    """
    if wants_launch(config):
        raise ConfigError(f"nproc: found {config['nproc']}, but a trial of a search runs in one process; expected 1")
    _, (train_data, valid_data, _), trainer = _prepare(config)
    trainer.tensorboard.close()
    trainer.tensorboard = Silent()  # RecBole names its folder after the log file, which all trials share
    with trainer.lock, no_foreign_warnings():
        on_start(trainer.open_folder())
        return trainer.fit(train_data, valid_data, show_progress=False, callback_fn=on_validation)


def run_recbole_flr(model=None, dataset=None, config_file_list=None, config_dict=None, saved=True):
    """Train, validate and test a model of the plug-in or of RecBole.

    Args:
        model: name, such as ``FLR`` or ``SASRec``.
        dataset: name, such as ``movies``.
        config_file_list: yaml files with options.
        config_dict: options; they win over the files. ``resume`` goes on with the run in a folder, ``checkpoint`` starts a
            new run from the weights of another.
        saved: whether to write the run's folder (needed to test the best epoch's weights).

    Returns:
        RecBole's dict: best_valid_score, valid_score_bigger, best_valid_result, test_result. If the model was trained in
        several validated stages, these are the results of the better one by validation, its name is in ``kept``, and
        ``stages`` has each stage's own: name -> {best_valid_score, best_valid_result, test_result}.

    Raises:
        FLRError: ConfigError, DataError or CheckpointError for what a user can mend.
    """
    start = perf_counter()
    config = configure(model, dataset, config_file_list, config_dict)
    if saved:
        check_folder(*((config["resume"], "resume") if config["resume"] else (config["checkpoint_dir"], "checkpoint_dir")))
    if wants_launch(config):
        return launch(config, run_recbole_flr, model, dataset, config_file_list, config_dict, saved)
    with joined(config["device"]):
        dataset, loaders, trainer = _prepare(config)
        described = describe_run(config, trainer.model, dataset, loaders)  # now, as files may change while the run goes on
        with trainer.lock, _can_go_on(trainer), enough_memory("this run"):
            return _train_and_test(config, dataset, loaders, trainer, described, start, saved)


@contextmanager
def _can_go_on(trainer):
    """Say how to go on with a run that Ctrl-C, a full disk or a lost process ended; a run without weights leaves no folder."""
    try:
        with lost_process():
            yield
    except (KeyboardInterrupt, DiskError, LostProcess) as error:
        trainer.remove_empty_folder()
        folder = shlex.quote(str(trainer.folder))
        how = (f"go on with:  python run_recbole_flr.py --resume={folder}" if trainer.can_go_on() else
               "nothing was saved that it could go on from; start it again with the same command")
        if isinstance(error, (DiskError, LostProcess)):
            raise type(error)(f"{error}; then {how}") from error
        raise Interrupted(f"interrupted; {how}") from error
    except Exception:
        trainer.remove_empty_folder()
        raise


def _train_and_test(config, dataset, loaders, trainer, described, start, saved):
    """Train a model, test it and write the results. See :func:`run_recbole_flr` for what it returns."""
    train_data, valid_data, test_data = loaders
    if config["resume"]:
        trainer.resume_checkpoint(config["resume"])
    show_progress = config["show_progress"]
    with no_foreign_warnings():
        best_valid_score, best_valid_result = trainer.fit(train_data, valid_data, saved=saved, show_progress=show_progress)
    result = {
        "best_valid_score": best_valid_score,
        "valid_score_bigger": config["valid_metric_bigger"],
        "best_valid_result": best_valid_result,
    }
    tests = _test(trainer, test_data, show_progress, saved)
    kept = trainer.best_stage() if saved else list(tests)[-1]
    result["test_result"] = tests[kept]["test_result"]
    if len(tests) > 1:
        result.update(kept=kept, stages={
            name: {"best_valid_score": trainer.results[name][0], "best_valid_result": trainer.results[name][1],
                   "test_result": test["test_result"]}
            for name, test in tests.items()
        })
    # a finished run stays as it is
    with trainer.whole_model():
        if saved and is_main() and (trainer.trained_epochs or not (trainer.folder / RESULT).is_file()):
            _write_results(config, trainer.model, dataset, loaders, trainer, tests, kept, described, start)
    _log_result(config, trainer, tests, kept, perf_counter() - start)
    return result


def _write_results(config, model, dataset, loaders, trainer, tests, kept, described, start):
    """Write ranks.npz, examples.json and at last result.json, whose presence means that the run has ended."""
    valid, test = trainer.best_valid_ranks(), tests[kept]["ranks"]
    rows = [describe_ranked_rows(config, dataset, loaders[0], loader, ranks) for loader, ranks in zip(loaders[1:], (valid, test))]
    write_ranks(trainer.folder, {**valid, **rows[0]}, {**test, **rows[1]})
    for name in tests:
        if name != kept:
            write_ranks(trainer.folder, {}, {**tests[name]["ranks"], **rows[1]}, ranks_file(name, kept))
    factors = None
    if rows[1]:
        titles = _titles(config, model, dataset)
        shown = examples(model, dataset, loaders[2], test, titles, config["device"])
        write_json(trainer.folder / EXAMPLES, shown)
        factors = factor_statistics(model, loaders[2], config["device"], shown)
    write_thoughts(trainer.folder, tests[kept]["texts"])
    write_json(trainer.folder / RESULT, {
        **described, **describe_result(trainer, tests, kept), "factors": finite(factors),
        "seconds": round(perf_counter() - start, 2),
    })


def _titles(config, model, dataset):
    """Titles of all items for people to read, or None."""
    if model.catalog is not None:
        return model.catalog.titles
    try:
        return read_titles(config, dataset)[0]
    except DataError:
        return None


def _test(trainer, test_data, show_progress, saved):
    """Test the best weights of each validated stage, or if nothing was saved the weights as they are.

    Returns:
        dict, name of the stage -> {test_result, ranks, texts, seconds}.
    """
    found = {}
    for name in list(trainer.results) if saved else list(trainer.results)[-1:]:
        start = perf_counter()
        file = trainer.stage_file(name) if saved else None
        with trainer.model.kept_texts() as texts:
            result = trainer.evaluate(test_data, load_best_model=saved, model_file=file, show_progress=show_progress)
        if texts and size() > 1:
            texts = _all_texts(texts, trainer.eval_collector.batch_rows)
        seconds = round(perf_counter() - start, 2)
        found[name] = {"test_result": result, "ranks": trainer.ranks, "texts": texts, "seconds": seconds}
    if saved and len(found) > 1:
        trainer.load_weights()  # of the stage that is kept
    return found


def _all_texts(texts, batch_rows):
    """The texts of the rows of all processes, in the order of the rows. `batch_rows` are the rows of this process's batches."""
    pieces = iter(texts)
    return [text for batch in in_turns(gather_json([list(islice(pieces, rows)) for rows in batch_rows])) for text in batch]


def _log_result(config, trainer, tests, kept, seconds):
    """The final result, once: a table with a line for validation and test of each stage."""
    logger = getLogger()
    logger.info("Environment:\n" + get_environment(config).draw(), extra=FILE_ONLY)
    several = len(tests) > 1
    lines = {}
    for name, test in tests.items():
        prefix = f"{name} " if several else ""
        lines |= {f"{prefix}valid": trainer.results[name][1], f"{prefix}test": test["test_result"]}
    lines = {label: result for label, result in lines.items() if result}  # a stage without epochs is not validated
    title = set_color("Result", "yellow") + (f" (kept: {kept}, the better in validation, the earlier if equal)" if several else "")
    logger.info(f"{title}:\n{metrics_table(lines)}")
    place = f" The run is in {trainer.folder}: result.json, ranks.npz and the weights." if trainer.folder else ""
    logger.info(f"Finished in {duration(seconds)}.{place}")


def _load_weights(model, path, config):
    """Put the best weights of a run into a model.

    Raises:
        CheckpointError: if the weights depend on item ids and the data set has changed.
    """
    file = path if str(path).endswith(".safetensors") else checkpoint.run_folder(path) / checkpoint.BEST
    strict = model.weights_depend_on_item_ids and not model.takes_more_items
    checkpoint.load_weights(model, file, lambda meta: checkpoint.check_data(meta, config["data_fingerprint"], strict))


def load_data_and_model(model_file, config_dict=None):
    """Load a trained model with its data, as RecBole's function of that name.

    Args:
        model_file: folder of a run (its best weights), or a safetensors file in it.
        config_dict: options to change, such as ``data_path``.

    Returns:
        config, model (in evaluation mode), dataset, train_data, valid_data, test_data.

    Raises:
        CheckpointError: if there is no run, or the data set has changed since. A model whose weights do not depend on item
            ids takes a changed catalogue, with a warning.
    """
    check_run(model_file, "checkpoint")
    options = checkpoint.read_config(model_file)
    options.update(_tokenizer(model_file))
    options.update(config_dict or {})
    config = Config(options.pop("model"), options.pop("dataset"), config_dict=options)
    dataset, loaders, model = _set_up(config, trained=True)
    _load_weights(model, model_file, config)
    return (config, model.eval(), dataset, *loaders)
