"""RecBole's trainers with checkpoints that need no pickle, ranks on disk, and a short log. Hooks only: the loops are RecBole's.

`with_safe_checkpoints` makes such a class of any RecBole trainer. Models that are trained in several stages have
:class:`recbole_flr.training.staged.StagedTrainer`, which is built on it.
"""

import shutil
from contextlib import nullcontext
from functools import lru_cache
from pathlib import Path
from time import perf_counter, strftime

import torch
from recbole.trainer import Trainer
from recbole.utils import EvaluatorType

from recbole_flr.console import Curves, no_curves
from recbole_flr.data.sharing import share_batches
from recbole_flr.distributed import from_first, is_main
from recbole_flr.errors import CheckpointError, TrainingError
from recbole_flr.evaluation import RankCollector, SharedCollector, TitleEvaluator, metrics_table
from recbole_flr.files import write_json, writing
from recbole_flr.identity import KEY, run_key
from recbole_flr.result import PeakMemory, duration
from recbole_flr.training import checkpoint
from recbole_flr.training.header import State, Weights, check_header
from recbole_flr.training.lock import FolderLock
from recbole_flr.training.shared_files import check_seen, random_of_all, restore_random, write_once
from recbole_flr.training.steps import SharedSteps


def new_run_folder(config):
    """Create an unused folder for a run below `checkpoint_dir`."""
    stem = Path(config["checkpoint_dir"]) / f"{config['model']}-{config['dataset']}-{strftime('%Y%m%d-%H%M%S')}"
    for number in range(1, 1000):
        folder = stem if number == 1 else stem.with_name(f"{stem.name}-{number}")
        try:
            folder.mkdir(parents=True)
            return folder
        except FileExistsError:
            continue
    raise FileExistsError(f"{stem} and 999 more exist")


def _generator(loader):
    """The random generator of a loader, whose state belongs to a checkpoint. RecBole's loader of knowledge graphs has none."""
    return getattr(loader, "generator", None)


class SafeCheckpoints:
    """Mixin for RecBole's Trainer and its subclasses.

    Attributes:
        folder: of the run; see :mod:`recbole_flr.training.checkpoint` for what is in it.
        ranks: of the last evaluation; see :meth:`recbole_flr.evaluation.RankCollector.take_ranks`.
        results: name of a finished, validated stage -> (best valid score, best valid result).
        records: name of a stage -> what it cost: seconds, peak_memory_bytes, epochs, best_epoch; and `curve`, the validation
            score after each validated epoch.
        trained_epochs: epochs that this process has trained.
        lock: on the folder. :meth:`open_folder` takes it, within `with trainer.lock`.
    """

    stage_name = "train"  # of the stage in progress; RecBole's trainers have this one
    rate_option = "learning_rate"  # name of the option with the learning rate of the stage in progress

    def __init__(self, config, model):
        with writing("log_tensorboard"), nullcontext() if is_main() else no_curves():
            super().__init__(config, model)
        self.tensorboard = Curves(self.tensorboard) if is_main() else self.tensorboard
        self.folder, self.lock = None, FolderLock()
        self.results, self.records, self.ranks, self.best_epoch = {}, {}, {}, None
        self.trained_epochs = 0
        self._valid_ranks, self._curve = {}, []
        self._next_epoch = self._step = 0
        self._is_new = False  # whether this process made the folder
        self._saved = self._resumed = self._verbose = False
        self._spent, self._started = 0.0, None  # seconds of this stage before this process, and since when it goes on here
        self._memory = PeakMemory(self.device)
        self.eval_collector = (RankCollector if config["eval_type"] == EvaluatorType.RANKING else SharedCollector)(config)

    def report_titles(self, title_ids):
        """Add title-level metrics. title_ids: [n_items] int64, equal for items of equal title."""
        self.eval_collector = RankCollector(self.config, title_ids)
        self.evaluator = TitleEvaluator(self.config)

    # saving

    def open_folder(self):
        """Create the run's folder on first use, and write what does not change. Of several processes one does it for all."""
        if self.folder is None:
            if is_main():
                with writing(self.config["checkpoint_dir"]):
                    self.folder, self._is_new = new_run_folder(self.config), True
                    self.model.save_files(self.folder)
                write_json(self.folder / KEY, run_key(self.config))
                write_json(self.folder / checkpoint.CONFIG, self.config.snapshot())
            self.folder = Path(from_first(str(self.folder)))
            check_seen(self.folder / checkpoint.CONFIG)
        if is_main():
            self.lock.take(self.folder)
        self.saved_model_file = str(self.folder / checkpoint.BEST)
        return self.folder

    def _save_checkpoint(self, epoch, verbose=True, **kwargs):
        """Save the best weights so far (RecBole calls this when validation improves, or each epoch without validation)."""
        path = kwargs.pop("saved_model_file", None) or self.open_folder() / checkpoint.BEST
        self.best_epoch = epoch if epoch >= 0 else None
        tensors, meta = checkpoint.pack_model(self.model)
        tensors.update(checkpoint.pack_ranks(self._valid_ranks))
        data = self.config["data_fingerprint"]
        write_once(path, tensors, {**meta, "data": data, "stage": self.stage_name, "epoch": epoch})

    def _save_progress(self, next_epoch, train_data):
        """Save all that is needed to go on at `next_epoch` of this stage."""
        if not self._saved or not self.config["checkpoint_every"]:
            return
        model_tensors, model_meta = checkpoint.pack_model(self.model)
        optimizer_tensors, optimizer_meta = checkpoint.pack_optimizer(self.optimizer)
        random_tensors, random_meta = random_of_all(_generator(train_data))
        write_once(
            self.open_folder() / checkpoint.LAST,
            {**model_tensors, **optimizer_tensors, **random_tensors},
            {
                **model_meta, "data": self.config["data_fingerprint"], "optimizer": optimizer_meta, "random": random_meta,
                "next_epoch": next_epoch, **self._progress(),
            },
        )

    def remove_empty_folder(self):
        """Remove the folder that this process made, if there are no weights in it. Called when a run ends with an error."""
        if self._is_new and not list(self.folder.glob("*.safetensors")):
            shutil.rmtree(self.folder, ignore_errors=True)

    def can_go_on(self):
        """Whether `--resume` could go on with the run in the folder."""
        return self.folder is not None and (self.folder / checkpoint.LAST).is_file()

    def _progress(self):
        """How far training has come, as JSON."""
        return {
            "stage": self.stage_name, "cur_step": self.cur_step, "best_valid_score": self.best_valid_score,
            "best_valid_result": self.best_valid_result, "best_epoch": self.best_epoch, "record": self._record(),
            "records": self.records,
        }

    def _restore(self, meta):
        """Put back what :meth:`_progress` gave."""
        self.cur_step, self.best_valid_score = meta["cur_step"], meta["best_valid_score"]
        self.best_valid_result, self.best_epoch = meta["best_valid_result"], meta["best_epoch"]
        self.records, record = meta["records"], meta["record"]
        self._spent, self._curve = record["seconds"], record.get("curve", [])
        self._memory.at_least(record["peak_memory_bytes"])

    def _record(self):
        """What the stage in progress has cost so far."""
        running = 0 if self._started is None else perf_counter() - self._started
        return {
            "seconds": round(self._spent + running, 2), "peak_memory_bytes": self._memory.read(),
            "epochs": self._next_epoch, "best_epoch": self.best_epoch, "curve": list(self._curve),
        }

    def stage_file(self, name):
        """Where the best weights of a stage are."""
        return self.folder / checkpoint.BEST

    def best_stage(self):
        """Name of the stage whose weights are kept."""
        return self.stage_name

    # going on

    def resume_checkpoint(self, resume_file):
        """Go on with the run in a folder; call before :meth:`fit`.

        Raises:
            CheckpointError: if there is no whole state to resume from, the data set is another, or the run is in progress.
        """
        self.folder = checkpoint.run_folder(resume_file)
        self.open_folder()
        tensors, meta = checkpoint.read(self.folder / checkpoint.LAST)
        check_header(Weights, meta, self.folder / checkpoint.LAST)
        checkpoint.check_data(meta, self.config["data_fingerprint"])
        if "next_epoch" in meta and "record" not in meta:
            raise CheckpointError(f"resume: the run in {self.folder} was made by an earlier version of recbole_flr, which saved "
                                  "less; start a new run from its weights with --checkpoint")
        check_header(State, meta, self.folder / checkpoint.LAST)
        self._enter_stage(meta["stage"])
        with checkpoint.undamaged(self.folder / checkpoint.LAST):
            checkpoint.unpack_model(self.model, tensors, meta)
            checkpoint.unpack_optimizer(self.optimizer, tensors, meta["optimizer"])
        self._random = tensors, meta["random"]  # put back by fit, once the loader is known
        self.start_epoch = meta["next_epoch"]
        with checkpoint.undamaged(self.folder / checkpoint.LAST):
            self._restore(meta)
        self._resumed = True
        self.logger.info(f"Checkpoint loaded from {self.folder}. Training goes on at epoch {self.start_epoch}.")

    def load_weights(self, file=None):
        """Put the best weights (or those of a file) into the model."""
        checkpoint.load_weights(self.model, file or self.saved_model_file)

    def best_valid_ranks(self, file=None):
        """Validation ranks of the best weights (or those of a file); empty if the model was not validated."""
        return checkpoint.unpack_ranks(checkpoint.read(file or self.saved_model_file)[0])

    # RecBole's hooks

    def _enter_stage(self, name):
        """Set what differs between stages; nothing here, as there is one stage."""

    def fit(self, train_data, valid_data=None, verbose=True, saved=True, show_progress=False, callback_fn=None):
        """RecBole's fit. It writes checkpoints if `saved`. The log has a line for each epoch, and a table for each validation."""
        self._saved, self._next_epoch, self._verbose = saved, self.start_epoch, verbose
        self._started = perf_counter()
        self._memory.start()
        if self._resumed:
            self._resumed = False
            with checkpoint.undamaged(self.folder / checkpoint.LAST):
                restore_random(*self._random, self.config, _generator(train_data))
            if self.start_epoch >= self.epochs or self.cur_step > self.stopping_step:
                self.eval_collector.data_collect(train_data)  # otherwise RecBole's fit does it, for the test too
                return self._leave_stage((self.best_valid_score, self.best_valid_result))
        result = super().fit(train_data, valid_data, False, saved, show_progress, callback_fn)
        self._save_progress(self._next_epoch, train_data)
        if verbose and self.cur_step > self.stopping_step:
            best = "" if self.best_epoch is None else f" Best epoch: {self.best_epoch}."
            self.logger.info(f"Stopped early, after {self.cur_step} validations without a gain.{best}")
        return self._leave_stage(result)

    def _leave_stage(self, result):
        self.tensorboard.flush()
        self.records[self.stage_name], self.results[self.stage_name] = self._record(), result
        self._spent, self._started, self.best_epoch, self._curve = 0.0, None, None, []
        self._memory = PeakMemory(self.device)
        return result

    def _train_epoch(self, train_data, epoch_idx, loss_func=None, show_progress=False):
        every = self.config["checkpoint_every"]
        if every and epoch_idx % every == 0:
            self._save_progress(epoch_idx, train_data)  # the epoch before, its validation included, is complete here
        self._next_epoch, self._step = epoch_idx + 1, 0
        self.trained_epochs += 1
        losses = super()._train_epoch(train_data, epoch_idx, loss_func, show_progress)
        self._check_weights(epoch_idx)  # before they are validated, and saved in place of good ones
        return losses

    def _check_nan(self, loss):
        """RecBole's check of each step's loss, which also refuses an infinite one and says where the training stands."""
        self._step += 1
        if not torch.isfinite(loss).all():
            self._diverged(self._next_epoch - 1, f"step {self._step}", f"the loss is {loss.detach().float().mean().item()}")

    def _check_weights(self, epoch):
        """Refuse weights that are no finite numbers: the last step of an epoch may spoil them after a loss that was finite."""
        for name, weight in self.model.named_parameters():
            if not torch.isfinite(weight).all():
                self._diverged(epoch, "its end", f"{name} is not finite")

    def _diverged(self, epoch, step, found):
        """Raise the TrainingError that says where, what is left, and what to try."""
        best = None if self.folder is None else self.stage_file(self.stage_name)
        good = f"the last good checkpoint is {best}" if best is not None and best.is_file() else "there is no good checkpoint yet"
        if best is not None and not best.is_file() and (self.folder / checkpoint.BEST).is_file():
            good = f"the last good checkpoint is {self.folder / checkpoint.BEST}"
        raise TrainingError(
            f"the training diverged in the stage {self.stage_name}, epoch {epoch}, {step}: {found}; {good}. Try a smaller "
            f"{self.rate_option} (it is {self.learning_rate:g}), clipped gradients (--clip_grad_norm=\"{{'max_norm': 1}}\")"
            + (" or --torch_dtype=float32" if self.config["torch_dtype"] else "")
        )

    def _generate_train_loss_output(self, epoch_idx, s_time, e_time, losses):
        text = super()._generate_train_loss_output(epoch_idx, s_time, e_time, losses)
        if self._verbose:  # RecBole was told to be silent, as its other lines come as tables here
            self.logger.info(text)
        return text

    def _valid_epoch(self, valid_data, show_progress=False):
        start = perf_counter()
        score, result = super()._valid_epoch(valid_data, show_progress)
        self._valid_ranks = self.ranks
        if self._next_epoch:  # not the model as it was before the stage
            self._curve.append([self._next_epoch - 1, score])
        if self._verbose:
            label = f"epoch {self._next_epoch - 1} valid" if self._next_epoch else "valid"
            self.logger.info(f"Validation took {duration(perf_counter() - start)}:\n{metrics_table({label: result})}")
        return score, result

    def evaluate(self, eval_data, load_best_model=True, model_file=None, show_progress=False):
        """RecBole's evaluate; the best weights are read from safetensors. Sets :attr:`ranks`."""
        if eval_data and load_best_model:
            self.load_weights(model_file)
        with self.whole_model():
            result = super().evaluate(share_batches(eval_data), load_best_model=False, show_progress=show_progress)
        self.ranks = self.eval_collector.take_ranks() if isinstance(self.eval_collector, RankCollector) else {}
        for name in result or ():
            result[name] = float(result[name])  # some metrics, such as GAUC, give numpy's numbers, which JSON does not know
        return result


@lru_cache(maxsize=None)
def with_safe_checkpoints(trainer_class):
    """A RecBole trainer class -> the same with :class:`SafeCheckpoints`, whose steps several processes share."""
    bases = (SafeCheckpoints, SharedSteps) if trainer_class is Trainer else (SafeCheckpoints, trainer_class, SharedSteps)
    return type(trainer_class.__name__, bases, {})
