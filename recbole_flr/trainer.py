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
from recbole_flr.evaluation import TitleCollector, TitleEvaluator
from recbole_flr.training import checkpoint


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
        stage: number of the stage in progress (0 for a trainer without stages).
    """

    stage = 0

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
        checkpoint.write(path, tensors, {**meta, "data": data, "stage": self.stage, "epoch": epoch})
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
                "stage": self.stage, "next_epoch": next_epoch, "cur_step": self.cur_step,
                "best_valid_score": self.best_valid_score if math.isfinite(self.best_valid_score) else None,
                "best_valid_result": self.best_valid_result,
            },
        )

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
        self.stage = meta["stage"]
        self._enter_stage()
        checkpoint.unpack_model(self.model, tensors, meta)
        checkpoint.unpack_optimizer(self.optimizer, tensors, meta["optimizer"])
        self._random = tensors, meta["random"]  # put back by fit, once the loader is known
        self.start_epoch, self.cur_step = meta["next_epoch"], meta["cur_step"]
        if meta["best_valid_score"] is not None:
            self.best_valid_score = meta["best_valid_score"]
        self.best_valid_result = meta["best_valid_result"]
        self._resumed = True
        self.logger.info(f"Checkpoint loaded from {self.folder}. Resume training from epoch {self.start_epoch}")

    def load_weights(self, file=None):
        """Put the best weights (or those of a file) into the model."""
        tensors, meta = checkpoint.read(file or self.saved_model_file)
        checkpoint.unpack_model(self.model, tensors, meta)

    # RecBole's hooks

    def _enter_stage(self):
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


@dataclass
class Stage:
    """One run of RecBole's fit.

    Attributes:
        name: shown in the log.
        loss: name of the model's loss method.
        epochs, learning_rate: of the stage.
        factor: epoch -> what the learning rate is multiplied by.
        packed: train on packed user sequences, without validation, instead of the training rows.
    """

    name: str
    loss: str
    epochs: int
    learning_rate: float
    factor: object
    packed: bool = False


class StagedTrainer(SafeCheckpoints, Trainer):
    """Stages, each with its own optimizer, early stopping and place in tensorboard.

    `warmup`: plain language modelling of a backbone that was not pretrained. `sft`: the supervised stage.
    """

    def __init__(self, config, model):
        super().__init__(config, model)
        decay = config["learning_rate_decay"]
        self.stages = [Stage("sft", "calculate_loss", config["epochs"], config["learning_rate"], lambda e: decay ** e)]
        warmup = config["warmup_epochs"]
        if warmup and not model.backbone.pretrained:
            self.stages.insert(0, Stage(
                "warmup", "language_model_loss", warmup, config["warmup_learning_rate"],
                lambda e: 0.1 + 0.45 * (1 + math.cos(math.pi * e / warmup)), packed=True,
            ))
        self._enter_stage()

    def _enter_stage(self):
        stage = self.stages[self.stage]
        self.epochs, self.learning_rate, self.start_epoch, self.cur_step = stage.epochs, stage.learning_rate, 0, 0
        self.eval_step = min(self.config["eval_step"], self.epochs)
        self.best_valid_score = -np.inf if self.valid_metric_bigger else np.inf
        self.best_valid_result = None
        self.optimizer = self._build_optimizer(params=[p for p in self.model.parameters() if p.requires_grad])

    def fit(self, train_data, valid_data=None, verbose=True, saved=True, show_progress=False, callback_fn=None):
        """RecBole's fit, once a stage. Returns what the last one returns."""
        if saved:
            self.open_folder()
        by_length = LengthBatches(
            train_data, self.model.prompt_lengths(train_data._dataset.inter_feat), shuffle=self.config["shuffle"]
        )
        while True:
            stage = self.stages[self.stage]
            if verbose:
                self.logger.info(f"Stage {stage.name}: at most {stage.epochs} epochs")
            if stage.packed:
                result = super().fit(self._packed_loader(train_data), None, verbose, saved, show_progress, callback_fn)
            else:
                result = super().fit(by_length, valid_data, verbose, saved, show_progress, callback_fn)
            if self.stage + 1 == len(self.stages):
                return result
            self.stage += 1
            self._enter_stage()

    def _packed_loader(self, train_data):
        return PackedLoader(
            train_data._dataset, self.model.sequence_collator(), self.config["pack_length"], self.config["warmup_batch_size"],
            self.config["MAX_ITEM_LIST_LENGTH"], self.config["seed"],
        )

    def _train_epoch(self, train_data, epoch_idx, loss_func=None, show_progress=False):
        stage = self.stages[self.stage]
        for group in self.optimizer.param_groups:
            group["lr"] = stage.learning_rate * stage.factor(epoch_idx)
        loss_func = loss_func or getattr(self.model, stage.loss)
        return super()._train_epoch(train_data, epoch_idx, loss_func, show_progress)

    def _add_train_loss_to_tensorboard(self, epoch_idx, losses, tag="Loss/Train"):
        super()._add_train_loss_to_tensorboard(epoch_idx, losses, f"{tag}/{self.stages[self.stage].name}")
