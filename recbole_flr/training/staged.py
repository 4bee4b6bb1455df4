"""Training in stages: a trainer that runs a list of :class:`recbole_flr.training.stage.Stage` and knows none of them by name."""

import numpy as np
from recbole.utils import set_color
from tqdm import tqdm

from recbole_flr.distributed import barrier, is_main
from recbole_flr.errors import CheckpointError
from recbole_flr.files import link
from recbole_flr.result import duration
from recbole_flr.trainer import SafeCheckpoints
from recbole_flr.training import checkpoint
from recbole_flr.training.stage import choose_stages
from recbole_flr.training.steps import SharedSteps


class StagedTrainer(SafeCheckpoints, SharedSteps):
    """Runs RecBole's `fit` once for each stage, with an optimizer, early stopping and a place in tensorboard of its own.

    The best weights of each stage are kept as `<stage>.safetensors` (the last ones if it is not validated), and the next stage
    begins with them. `best.safetensors` holds those of the best validated stage.

    Attributes:
        stages: name -> Stage, in the order in which they run.
        results: as in :class:`SafeCheckpoints`. If the first stage goes on from a trained model, the stage before it stands
            for that model.
    """

    def __init__(self, config, model):
        super().__init__(config, model)
        self.stages = {stage.name: stage for stage in choose_stages(model, config)}
        for name in self.stages:
            if f"{name}.safetensors" in (checkpoint.BEST, checkpoint.LAST, "start.safetensors"):
                raise ValueError(f"a stage cannot be called {name!r}: {name}.safetensors is the name of a file of every run")
        self._trainable = {parameter for parameter in model.parameters() if parameter.requires_grad}
        self._enter_stage(next(iter(self.stages)))

    @property
    def stage(self):
        """The stage in progress."""
        return self.stages[self.stage_name]

    @property
    def rate_option(self):
        """Name of the option with the learning rate of the stage in progress."""
        return f"{self.stage.prefix}learning_rate"

    def _before(self):
        """Name of the stage that ran right before the present one in this run; None for the first."""
        names = list(self.stages)
        place = names.index(self.stage_name)
        return names[place - 1] if place else None

    def _enter_stage(self, name):
        if name not in self.stages:
            raise CheckpointError(f"resume: the run stopped in its stage {name}, found stages {', '.join(self.stages)}; leave "
                                  "stages as they were (--checkpoint starts another run from these weights)")
        self.stage_name, stage = name, self.stages[name]
        self.epochs, self.learning_rate, self.start_epoch, self.cur_step = stage.epochs, stage.learning_rate, 0, 0
        self._next_epoch = 0
        self.eval_step, self.stopping_step = stage.eval_step, stage.stopping_step
        self.best_valid_score = -np.inf if self.valid_metric_bigger else np.inf
        self.best_valid_result = None
        before = self._before() or self._started_from()
        if self.folder is not None and self.stage_file(before).is_file():
            self.load_weights(self.stage_file(before))  # also when resumed within the stage: it may keep them as a reference
        for parameter in self.model.parameters():  # what the stage before has frozen
            parameter.requires_grad_(parameter in self._trainable)
        with self.whole_model():  # a stage may copy weights
            stage.enter()
        self.optimizer = self._build_optimizer(params=[p for p in self.model.parameters() if p.requires_grad])
        self.optimizer.register_step_pre_hook(lambda optimizer, *_: stage.before_step(optimizer))

    def _started_from(self):
        """The name of the model that the first stage starts from: the model's last validated stage before it, or `start`."""
        names = [stage.name for stage in self.model.stages if stage.validated or stage.name == self.stage_name]
        place = names.index(self.stage_name)
        return names[place - 1] if place else "start"

    def stage_file(self, name):
        """Where the best weights of a stage are."""
        return self.folder / f"{name}.safetensors"

    def fit(self, train_data, valid_data=None, verbose=True, saved=True, show_progress=False, callback_fn=None):
        """RecBole's fit, once for each stage.

        Returns:
            best valid score and result of the best stage. If nothing is saved, a stage starts from the last weights of the one
            before, because there are no best ones on disk, and the result is that of the last stage.
        """
        if saved:
            self.open_folder()
        self._verbose = verbose
        self.eval_collector.data_collect(train_data)
        while True:
            stage = self.stage
            if verbose:
                names = list(self.stages)
                self.logger.info(set_color(f"Stage {names.index(stage.name) + 1} of {len(names)}: {stage.name}", "yellow")
                                 + f", at most {stage.epochs} epochs")
            if not self._resumed:
                self._begin(stage, valid_data, saved, show_progress)
            validated = valid_data if stage.validated else None
            super().fit(stage.loader(train_data), validated, verbose, saved, show_progress, callback_fn)
            if verbose:
                self.logger.info(f"Stage {stage.name} took {duration(self.records[stage.name]['seconds'])}")
            later = list(self.stages)[list(self.stages).index(stage.name) + 1:]
            if not later:
                return self.results[self.best_stage() if saved else stage.name]
            self._enter_stage(later[0])

    def _begin(self, stage, valid_data, saved, show_progress):
        """What is done once, before the first epoch of a stage."""
        before = self._before() or self._started_from()
        validates = bool(valid_data and self.eval_step)
        known = before in self.results and (self.results[before][1] is not None or not validates)
        if stage.starts_from_trained and not known:  # the model was trained by another run
            score, result = self.best_valid_score, None
            if validates:
                self.logger.info(f"The model before the stage {stage.name}:")
                score, result = self._valid_epoch(valid_data, show_progress)
            self.results[before] = score, result
            if saved:
                super()._save_checkpoint(-1, verbose=False, saved_model_file=self.stage_file(before))
                self._publish(before)
        stage.begin()
        if stage.validated and not stage.epochs and valid_data and self.config["eval_step"]:  # the model as it is
            self.best_valid_score, self.best_valid_result = self._valid_epoch(valid_data, show_progress)

    def _leave_stage(self, result):
        before = dict(self.results)
        super()._leave_stage(result)
        if not self.stage.validated:  # it prepares the next stage and has no result of its own
            self.results = before
        return result

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
        super()._save_checkpoint(epoch, verbose, saved_model_file=self.open_folder() / f"{name}.safetensors")
        before = {other: score for other, (score, _) in self.results.items()}
        if not self.stage.validated:
            better = not before  # there is nothing better yet
        else:
            better = self._best({**before, name: self.best_valid_score}) == name
        if better:
            self._publish(name)

    def _publish(self, name):
        """Let `best.safetensors` be a stage's weights: one more name of the same file."""
        if is_main():
            link(self.stage_file(name), self.folder / checkpoint.BEST)
        barrier()

    def _progress(self):
        return {**super()._progress(), "results": [[name, *result] for name, result in self.results.items()]}

    def _restore(self, meta):
        super()._restore(meta)
        self.results = {name: (score, result) for name, score, result in meta["results"]}

    # RecBole's hooks

    def _train_epoch(self, train_data, epoch_idx, loss_func=None, show_progress=False):
        stage = self.stage
        for group in self.optimizer.param_groups:
            group["lr"] = stage.learning_rate_at(epoch_idx)
        batches = ShownBatches(train_data, stage, epoch_idx) if show_progress else train_data
        stage.means.reset()
        stage.begin_epoch(epoch_idx)
        return super()._train_epoch(batches, epoch_idx, loss_func or stage.loss, False)

    def _counts(self, batch):
        return self.stage.counts(batch)

    def _part_loss(self, loss_func, part, shares):
        return loss_func(part, shares)  # the parts of a stage's loss have shares of their own

    def _generate_train_loss_output(self, epoch_idx, s_time, e_time, losses):
        """A line with the mean of each part of the loss and of its weight."""
        means = self.stage.means.read_all()
        for name, value in means.items():
            self.tensorboard.add_scalar(f"{self.stage_name}/{name}", value, epoch_idx)
        text = (set_color(f"{self.stage_name} epoch {epoch_idx}", "green") + f" took {duration(e_time - s_time)} ["
                + ", ".join(set_color(name, "blue") + f": {value:.4g}" for name, value in means.items()) + "]")
        if self._verbose:
            self.logger.info(text)
        return text

    def _add_train_loss_to_tensorboard(self, epoch_idx, losses, tag="Loss/Train"):
        super()._add_train_loss_to_tensorboard(epoch_idx, losses, f"{tag}/{self.stage_name}")

    def _valid_epoch(self, valid_data, show_progress=False):
        with self.whole_model():
            self.model.before_validation(valid_data)
        score, result = super()._valid_epoch(valid_data, show_progress)
        epoch = max(self._next_epoch - 1, 0)
        self.tensorboard.add_scalar(f"Valid/{self.stage_name}", score, epoch)  # RecBole's curve has all stages in one
        return score, result


class ShownBatches:
    """The batches of a loader, with a progress bar that shows the stage's running means (RecBole's own bar has no place for them).

    Args:
        loader: of batches.
        stage: whose means are shown, every tenth batch.
        epoch: number of the epoch.
    """

    SHOWN = ("loss", "reward", "match")

    def __init__(self, loader, stage, epoch):
        self.loader, self.stage, self.epoch = loader, stage, epoch
        self.generator = loader.generator  # its state belongs to a checkpoint

    def __len__(self):
        return len(self.loader)

    def __iter__(self):
        title = set_color(f"{self.stage.name} {self.epoch + 1}/{self.stage.epochs}", "pink")
        with tqdm(self.loader, total=len(self.loader), dynamic_ncols=True, desc=title) as shown:
            for batch in shown:
                yield batch
                if shown.n % 10 == 0:  # reading waits for the device
                    means = self.stage.means.read()
                    shown.set_postfix({name: f"{means[name]:.3g}" for name in self.SHOWN if name in means}, refresh=False)
