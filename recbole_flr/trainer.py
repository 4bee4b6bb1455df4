"""RecBole's trainers with safe checkpoints, and training in stages. Hooks only: RecBole's loops stay RecBole's.

`with_safe_checkpoints` gives any RecBole trainer checkpoints without pickles, resuming that loses at most the epoch that
was cut short, and title-level metrics. `StagedTrainer` runs RecBole's `fit` once a stage.
"""

import math
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from time import strftime

import numpy as np
from recbole.trainer import Trainer

from recbole_flr.data.batching import LengthBatches
from recbole_flr.data.packing import PackedLoader
from recbole_flr.errors import CheckpointError, ConfigError
from recbole_flr.evaluation import TitleCollector, TitleEvaluator
from recbole_flr.training import checkpoint
from recbole_flr.training.rollout import LatentGRPO, RolloutLoader


def new_run_folder(config):
    """An unused folder for a run below checkpoint_dir, created."""
    stem = Path(config["checkpoint_dir"]) / f"{config['model']}-{config['dataset']}-{strftime('%Y%m%d-%H%M%S')}"
    for number in range(1, 1000):
        folder = stem if number == 1 else stem.with_name(f"{stem.name}-{number}")
        try:
            folder.mkdir(parents=True)
            return folder
        except FileExistsError:
            continue
    raise FileExistsError(f"{stem} and 999 more exist")


class SafeCheckpoints:
    """Mixin for RecBole's Trainer and its subclasses.

    Attributes:
        folder: of the run; see :mod:`recbole_flr.training.checkpoint` for what is in it.
    """

    stage_name = None  # of the stage in progress, for a trainer with stages

    def __init__(self, config, model):
        super().__init__(config, model)
        self.folder = None
        self._next_epoch = 0
        self._saved = self._resumed = False

    def report_titles(self, title_ids):
        """Add title-level metrics. title_ids: [n_items] int64, equal for items of equal title."""
        self.eval_collector = TitleCollector(self.config, title_ids)
        self.evaluator = TitleEvaluator(self.config)

    # saving

    def open_folder(self):
        """Create the run's folder on first use and write what does not change."""
        if self.folder is None:
            self.folder = new_run_folder(self.config)
            if hasattr(self.model, "files"):
                self.model.files(self.folder)
            checkpoint.write_json(self.folder / checkpoint.CONFIG, self.config.snapshot())
        self.saved_model_file = str(self.folder / checkpoint.BEST)
        return self.folder

    def _save_checkpoint(self, epoch, verbose=True, **kwargs):
        """The best weights so far (RecBole calls this when validation improves, or each epoch without validation)."""
        if not self.config["single_spec"] and self.config["local_rank"] != 0:
            return
        path = kwargs.pop("saved_model_file", None) or self.open_folder() / checkpoint.BEST
        tensors, meta = checkpoint.pack_model(self.model)
        data = self.config["data_fingerprint"]
        checkpoint.write(path, tensors, {**meta, "data": data, "stage": self.stage_name, "epoch": epoch})
        if verbose:
            self.logger.info(f"Saving current: {path}")

    def _save_progress(self, next_epoch, train_data):
        """All that is needed to go on at `next_epoch` of this stage."""
        if not self._saved or not self.config["checkpoint_every"] or self.config["local_rank"] != 0:
            return
        model_tensors, model_meta = checkpoint.pack_model(self.model)
        optimizer_tensors, optimizer_meta = checkpoint.pack_optimizer(self.optimizer)
        random_tensors, random_meta = checkpoint.pack_random(getattr(train_data, "generator", None))
        checkpoint.write(
            self.open_folder() / checkpoint.LAST,
            {**model_tensors, **optimizer_tensors, **random_tensors},
            {
                **model_meta, "data": self.config["data_fingerprint"], "optimizer": optimizer_meta, "random": random_meta,
                "next_epoch": next_epoch, **self._progress(),
            },
        )

    def _progress(self):
        """How far training has come, as JSON."""
        return {
            "stage": self.stage_name, "cur_step": self.cur_step, "best_valid_score": self.best_valid_score,
            "best_valid_result": self.best_valid_result,
        }

    def _restore(self, meta):
        """Put back what :meth:`_progress` gave."""
        self.cur_step, self.best_valid_score = meta["cur_step"], meta["best_valid_score"]
        self.best_valid_result = meta["best_valid_result"]

    # going on

    def resume_checkpoint(self, resume_file):
        """Go on with the run in a folder; call before :meth:`fit`.

        Raises:
            CheckpointError: if there is no whole state to resume from, or the data set is another.
        """
        self.folder = checkpoint.run_folder(resume_file)
        self.open_folder()
        tensors, meta = checkpoint.read(self.folder / checkpoint.LAST)
        checkpoint.check_data(meta, self.config["data_fingerprint"])
        self._enter_stage(meta["stage"])
        checkpoint.unpack_model(self.model, tensors, meta)
        checkpoint.unpack_optimizer(self.optimizer, tensors, meta["optimizer"])
        self._random = tensors, meta["random"]  # put back by fit, once the loader is known
        self.start_epoch = meta["next_epoch"]
        self._restore(meta)
        self._resumed = True
        self.logger.info(f"Checkpoint loaded from {self.folder}. Resume training from epoch {self.start_epoch}")

    def load_weights(self, file=None):
        """Put the best weights (or those of a file) into the model."""
        tensors, meta = checkpoint.read(file or self.saved_model_file)
        checkpoint.unpack_model(self.model, tensors, meta)

    # RecBole's hooks

    def _enter_stage(self, name):
        """Set what differs between stages; nothing for a trainer without."""

    def fit(self, train_data, valid_data=None, verbose=True, saved=True, show_progress=False, callback_fn=None):
        """RecBole's fit; writes checkpoints if saved."""
        self._saved, self._next_epoch = saved, self.start_epoch
        if self._resumed:
            self._resumed = False
            checkpoint.unpack_random(*self._random, getattr(train_data, "generator", None))
            if self.start_epoch >= self.epochs or self.cur_step > self.stopping_step:
                return self.best_valid_score, self.best_valid_result
        result = super().fit(train_data, valid_data, verbose, saved, show_progress, callback_fn)
        self._save_progress(self._next_epoch, train_data)
        return result

    def _train_epoch(self, train_data, epoch_idx, loss_func=None, show_progress=False):
        every = self.config["checkpoint_every"]
        if every and epoch_idx % every == 0:
            self._save_progress(epoch_idx, train_data)  # the epoch before, its validation included, is complete here
        self._next_epoch = epoch_idx + 1
        return super()._train_epoch(train_data, epoch_idx, loss_func, show_progress)

    def evaluate(self, eval_data, load_best_model=True, model_file=None, show_progress=False):
        """RecBole's evaluate; the best weights are read from safetensors."""
        if eval_data and load_best_model:
            self.load_weights(model_file)
            self.logger.info(f"Loading model structure and parameters from {model_file or self.saved_model_file}")
        return super().evaluate(eval_data, load_best_model=False, show_progress=show_progress)


@lru_cache(maxsize=None)
def with_safe_checkpoints(trainer_class):
    """A RecBole trainer class -> the same with :class:`SafeCheckpoints`."""
    return type(trainer_class.__name__, (SafeCheckpoints, trainer_class), {})


STAGES = ("sft", "grpo")


def stage_names(given):
    """The option `stages`, text or a list -> list of names.

    Raises:
        ConfigError: if it is not one or both of sft and grpo, in this order.
    """
    names = [name.strip() for name in given.split(",")] if isinstance(given, str) else list(given)
    if not names or names != [name for name in STAGES if name in names]:
        raise ConfigError(f"stages: found {given!r}, expected sft, grpo or sft,grpo")
    return names


@dataclass
class Stage:
    """One run of RecBole's fit.

    Attributes:
        name: shown in the log; also of the file with the stage's best weights.
        loss: the loss function.
        epochs, learning_rate, stopping_step, eval_step, batch_size: of the stage, as RecBole's options of these names.
        factor: epoch -> what the learning rate is multiplied by.
    """

    name: str
    loss: object
    epochs: int
    learning_rate: float
    stopping_step: int
    eval_step: int
    batch_size: int
    factor: object = lambda epoch: 1.0


class StagedTrainer(SafeCheckpoints, Trainer):
    """Stages, each with its own optimizer, early stopping and place in tensorboard.

    `warmup`: plain language modelling of a backbone that was not pretrained, without validation. `sft`: the supervised
    stage. `grpo`: reinforcement of the thought, the backbone frozen; it starts from the best weights of `sft`, or from the
    weights that the model has. A stage's best weights are kept as `<stage>.safetensors`; `best.safetensors` are those of the
    best stage.

    Attributes:
        results: name of a finished stage -> (best valid score, best valid result); for a run of `grpo` alone, `sft` is
            the model that it started from.
    """

    def __init__(self, config, model):
        super().__init__(config, model)
        names = stage_names(config["stages"])
        if not config["single_spec"]:
            raise ConfigError("found several processes, expected one: the batches of the stages are not shared out among them")
        if "grpo" in names:
            LatentGRPO.check(model)
        if names == ["grpo"] and not (config["checkpoint"] or config["resume"]):
            raise ConfigError("stages: found grpo alone, which goes on from a trained model; expected "
                              "--checkpoint=PATH beside it, or --stages=sft,grpo")
        if "sft" in names and config["warmup_epochs"] and not (model.backbone.pretrained or config["checkpoint"]):
            names.insert(0, "warmup")
        self.stages = {name: getattr(self, f"_{name}")() for name in names}
        self.results = {}
        self._policy = None
        self._enter_stage(names[0])

    def _warmup(self):
        epochs = self.config["warmup_epochs"]
        return Stage(
            "warmup", self.model.language_model_loss, epochs, self.config["warmup_learning_rate"], stopping_step=0,
            eval_step=0, batch_size=self.config["warmup_batch_size"],
            factor=lambda epoch: 0.1 + 0.45 * (1 + math.cos(math.pi * epoch / epochs)),
        )

    def _sft(self):
        config = self.config
        return Stage(
            "sft", self.model.calculate_loss, config["epochs"], config["learning_rate"], config["stopping_step"],
            min(config["eval_step"], config["epochs"]), config["train_batch_size"],
            lambda epoch: config["learning_rate_decay"] ** epoch,
        )

    def _grpo(self):
        config = self.config
        return Stage(
            "grpo", lambda rollout: self._policy.loss(rollout), config["grpo_epochs"], config["grpo_learning_rate"],
            config["grpo_stopping_step"], min(1, config["eval_step"]), config["grpo_batch_size"],
        )

    @property
    def stage(self):
        """The stage in progress."""
        return self.stages[self.stage_name]

    def _enter_stage(self, name):
        if name not in self.stages:
            raise CheckpointError(f"resume: the run stopped in its stage {name}, found stages {', '.join(self.stages)}; leave "
                                  "stages as they were (--checkpoint starts another run from these weights)")
        self.stage_name, stage = name, self.stages[name]
        self.epochs, self.learning_rate, self.start_epoch, self.cur_step = stage.epochs, stage.learning_rate, 0, 0
        self.eval_step, self.stopping_step = stage.eval_step, stage.stopping_step
        self.best_valid_score = -np.inf if self.valid_metric_bigger else np.inf
        self.best_valid_result = None
        if stage.name == "grpo":
            if self.folder is not None and self.stage_file("sft").is_file():
                self.load_weights(self.stage_file("sft"))  # also when resumed within the stage: these are the reference
            self.model.freeze_backbone()
            self._policy = LatentGRPO(self.model, self.config)
        self.optimizer = self._build_optimizer(params=[p for p in self.model.parameters() if p.requires_grad])

    def stage_file(self, name):
        """Where the best weights of a stage are."""
        return self.folder / f"{name}.safetensors"

    def fit(self, train_data, valid_data=None, verbose=True, saved=True, show_progress=False, callback_fn=None):
        """RecBole's fit, once a stage.

        Returns:
            best valid score and result of the better stage. If nothing is saved a stage starts from the last weights of the
            one before, as there are no best ones, and the result is the last stage's.
        """
        if saved:
            self.open_folder()
        self.eval_collector.data_collect(train_data)
        lengths = self.model.prompt_lengths(train_data._dataset.inter_feat)
        while True:
            stage = self.stage
            if verbose:
                self.logger.info(f"Stage {stage.name}: at most {stage.epochs} epochs")
            if not self._resumed:
                self._begin(stage, valid_data, saved, show_progress)
            loader = self._loader(stage, train_data, lengths)
            validated = None if stage.name == "warmup" else valid_data
            result = super().fit(loader, validated, verbose, saved, show_progress, callback_fn)
            if stage.name != "warmup":
                self.results[stage.name] = result
            later = list(self.stages)[list(self.stages).index(stage.name) + 1:]
            if not later:
                return self.results[self.best_stage() if saved else stage.name]
            self._enter_stage(later[0])

    def _begin(self, stage, valid_data, saved, show_progress):
        """What is done once, before the first epoch of a stage."""
        if not self.config["checkpoint"]:  # weights of a trained model have all stages before behind them
            self.model.enter_stage(stage.name)
        if stage.name == "grpo" and not np.isfinite(self.results.get("sft", (np.nan,))[0]):  # trained by another run
            score, result = self.best_valid_score, None
            if valid_data and self.eval_step:
                score, result = self._valid_epoch(valid_data, show_progress)
                self.logger.info(f"before the stage, {dict(result)}")
            self.results["sft"] = score, result
            if saved:
                super()._save_checkpoint(-1, verbose=False, saved_model_file=self.stage_file("sft"))
                self._publish("sft")

    def _loader(self, stage, train_data, lengths):
        """The loader of a stage's batches."""
        if stage.name == "warmup":
            return PackedLoader(
                train_data._dataset, self.model.sequence_collator(), self.config["pack_length"], stage.batch_size,
                self.config["MAX_ITEM_LIST_LENGTH"], self.config["seed"],
            )
        rows = self.config["grpo_rows"] if stage.name == "grpo" else None
        shuffle = self.config["shuffle"]
        batches = LengthBatches(train_data, lengths, shuffle=shuffle, batch_size=stage.batch_size, rows=rows)
        return RolloutLoader(batches, self._policy) if stage.name == "grpo" else batches

    # the best of each stage, and of all

    def best_stage(self):
        """Name of the stage whose weights are kept: the best by validation, the last if none was validated."""
        return self._best({name: score for name, (score, _) in self.results.items()})

    def _best(self, scores):
        known = {name: score for name, score in scores.items() if np.isfinite(score)}
        if not known:
            return list(scores)[-1]
        return (max if self.valid_metric_bigger else min)(known, key=known.get)  # of equals the first

    def _save_checkpoint(self, epoch, verbose=True, **kwargs):
        name = self.stage_name
        if name == "warmup":
            return super()._save_checkpoint(epoch, verbose, **kwargs)
        super()._save_checkpoint(epoch, verbose, saved_model_file=self.open_folder() / f"{name}.safetensors")
        before = {other: score for other, (score, _) in self.results.items()}
        if self._best({**before, name: self.best_valid_score}) == name:
            self._publish(name)

    def _publish(self, name):
        """Let `best.safetensors` be a stage's weights: one more name of the same file."""
        checkpoint.link(self.stage_file(name), self.folder / checkpoint.BEST)

    def _progress(self):
        return {**super()._progress(), "results": [[name, *result] for name, result in self.results.items()]}

    def _restore(self, meta):
        super()._restore(meta)
        self.results = {name: (score, result) for name, score, result in meta["results"]}

    # RecBole's hooks

    def _train_epoch(self, train_data, epoch_idx, loss_func=None, show_progress=False):
        stage = self.stage
        for group in self.optimizer.param_groups:
            group["lr"] = stage.learning_rate * stage.factor(epoch_idx)
        if isinstance(train_data, RolloutLoader):
            train_data.title = f"Train {epoch_idx:>5}" if show_progress else None
            show_progress = False
        losses = super()._train_epoch(train_data, epoch_idx, loss_func or stage.loss, show_progress)
        if isinstance(train_data, RolloutLoader):
            self._report(self._policy.figures.flush(), epoch_idx)
        return losses

    def _report(self, figures, epoch_idx):
        """Means of an epoch's figures, to the log and to tensorboard."""
        for name, value in figures.items():
            self.tensorboard.add_scalar(f"GRPO/{name}", value, epoch_idx)
        self.logger.info(f"epoch {epoch_idx} grpo [" + ", ".join(f"{n}: {value:.4g}" for n, value in figures.items()) + "]")

    def _add_train_loss_to_tensorboard(self, epoch_idx, losses, tag="Loss/Train"):
        super()._add_train_loss_to_tensorboard(epoch_idx, losses, f"{tag}/{self.stage_name}")

    def _valid_epoch(self, valid_data, show_progress=False):
        score, result = super()._valid_epoch(valid_data, show_progress)
        self.tensorboard.add_scalar(f"Valid/{self.stage_name}", score, self._next_epoch)  # RecBole's has all stages in one
        return score, result
