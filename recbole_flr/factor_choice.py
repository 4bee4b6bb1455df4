"""`num_factors: auto`: train with a few numbers of factors for a short time, and keep the best by validation."""

import copy
from logging import getLogger

from recbole.utils import init_seed, set_color
from tabulate import tabulate

from recbole_flr.console import Silent
from recbole_flr.result import duration

CHOICES = (1, 2, 4, 8)
AUTO = "auto"


def choose_num_factors(config, loaders, build_model, build_trainer):
    """Set the option `num_factors` to the best of CHOICES. Does nothing if the option is not `auto`.

    Each number gets a model of its own, the same seed, and `auto_epochs` epochs of the first validated stage (FLR with the compact
    backbone: after its whole warm-up). No weights are saved. Of equal results the smaller number is kept. The run that follows draws
    the random numbers of a run with the chosen number.

    Args:
        config: the run's; its option `num_factors` is set.
        loaders: train, valid and test loader.
        build_model: config -> model.
        build_trainer: config, model -> trainer.
    """
    if config["num_factors"] != AUTO:
        return
    logger, train_data, valid_data = getLogger(), *loaders[:2]
    state = train_data.generator.get_state()
    scores, seconds = {}, {}
    for number in CHOICES:
        trial = copy.deepcopy(config)
        for name, value in {"num_factors": number, "epochs": config["auto_epochs"], "eval_step": 1, "checkpoint_every": 0,
                            "resume": None, "checkpoint": None}.items():
            trial[name] = value
        train_data.generator.set_state(state)
        init_seed(config["seed"], config["reproducibility"])
        model = build_model(trial)
        trial["stages"] = next(stage.name for stage in model.stages if stage.validated)
        trainer = build_trainer(trial, model)
        trainer.stages[trial["stages"]].planned_epochs = config["epochs"]
        trainer.tensorboard.close()
        trainer.tensorboard = Silent()  # the curves are those of the run that follows
        scores[number], _ = trainer.fit(train_data, valid_data, verbose=False, saved=False)
        seconds[number] = sum(record["seconds"] for record in trainer.records.values())
        del model, trainer  # before the next ones are built
    train_data.generator.set_state(state)
    best = (max if config["valid_metric_bigger"] else min)(CHOICES, key=scores.get)
    rows = [[f"{number} (kept)" if number == best else number, scores[number], duration(seconds[number])] for number in CHOICES]
    table = tabulate(rows, headers=["num_factors", f"valid {config['valid_metric']}", "time"], floatfmt=".4f")
    logger.info(set_color("num_factors: auto", "yellow") + f", {config['auto_epochs']} epochs each; {best} is the best by "
                f"validation:\n{table}")
    config.decide("num_factors", best)
