"""Training steps that several processes share, and steps that one process takes part by part to save memory.

RecBole's loop takes a loss of each batch and calls `backward`. Here the loss is that of this process's rows, scaled so that the mean
over the processes is the loss of the whole batch. torch's DistributedDataParallel averages the gradients within `backward`, so what
follows in RecBole's loop (clipping, the optimizer's step) sees the gradients of the whole batch.

With `accumulate_steps` the rows are read in several parts, and the gradients of the parts add up to those of the whole.
"""

import warnings
from contextlib import contextmanager, nullcontext

import torch
from recbole.trainer import NCLTrainer, Trainer
from recbole.utils import ModelType
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from recbole_flr import distributed
from recbole_flr.data.sharing import split_batch
from recbole_flr.errors import ConfigError
from recbole_flr.training.sharding import check_sharding, shard, whole_weights


class LossOf(nn.Module):
    """A model whose `forward` is any of its losses, as DistributedDataParallel asks for.

    Args:
        model: RecBole's.
    """

    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, loss, *arguments):
        """What a function of the model returns."""
        return loss(*arguments)


def batch_shares(batch, accumulate, counts_of):
    """Shares of the parts of a batch in the batch of all processes.

    Args:
        batch: the whole batch of this process.
        accumulate: number of parts that are asked for.
        counts_of: function of a batch, see :meth:`recbole_flr.contracts.Recommender.loss_counts`.

    Returns:
        list of (part, shares). `shares` maps each name of the counts to the factor of a mean over the part. The sum over the parts,
        and then the mean over the processes, is the mean over the whole batch.
    """
    found = counts_of(batch)
    names = list(found)
    mine = torch.stack([torch.as_tensor(found[name]).double().cpu() for name in names])
    of_all = torch.stack(distributed.gather(mine.unsqueeze(0)))[:, 0]  # [processes, names]
    whole = of_all.sum(0)
    fewest = int(of_all[:, names.index("rows")].min())
    split = split_batch(batch, min(accumulate, fewest))  # as many parts on each process
    pairs = []
    for part in split:
        counts = found if len(split) == 1 else counts_of(part)
        shares = {name: float(counts[name]) * distributed.size() / float(number) for name, number in zip(names, whole)}
        pairs.append((part, shares))
    return pairs


class SharedSteps(Trainer):
    """Shares the steps of RecBole's loop. It stands between a trainer of RecBole and RecBole's Trainer.

    Raises:
        ConfigError: for a model whose training cannot be shared or taken in parts.
    """

    _engine = _trained = None  # DistributedDataParallel, and the parameters that it was made for

    def __init__(self, config, model):
        if distributed.size() > 1 or config["accumulate_steps"] > 1:
            check_trainer(self, config)
        distributed.same_weights(model)
        self._sharded = LossOf(model) if config["shard"] == "fsdp" and distributed.size() > 1 else None
        if self._sharded is not None:
            check_sharding(config, model)
            shard(self._sharded, model)
        super().__init__(config, model)

    def _train_epoch(self, train_data, epoch_idx, loss_func=None, show_progress=False):
        alone = distributed.size() == 1 and self.config["accumulate_steps"] == 1
        if alone or self.config["MODEL_TYPE"] == ModelType.TRADITIONAL:  # each process has all rows
            return super()._train_epoch(train_data, epoch_idx, loss_func, show_progress)
        step = _Step(self, loss_func or self.model.calculate_loss)
        losses = super()._train_epoch(train_data, epoch_idx, step, show_progress)
        return mean_over_processes(losses)

    def _counts(self, batch):
        """Over how many things the means in the loss of a batch are taken."""
        return self.model.loss_counts(batch)

    def _part_loss(self, loss_func, part, shares):
        """The loss of a part of a batch, scaled by its shares: a scalar, or RecBole's tuple of scalars."""
        loss = loss_func(part)
        share = shares["rows"]
        return tuple(share * each for each in loss) if isinstance(loss, tuple) else share * loss

    def whole_model(self):
        """A context in which each process has all weights: for all but training steps. See :mod:`recbole_flr.training.sharding`."""
        return nullcontext() if self._sharded is None else whole_weights(self._sharded, self.model)

    def engine(self):
        """What calls losses and averages gradients: DistributedDataParallel, FSDP2, or with one process nothing of the kind."""
        if self._sharded is not None:
            return self._sharded
        trained = [id(parameter) for parameter in self.model.parameters() if parameter.requires_grad]
        if self._engine is None or trained != self._trained:  # a stage may freeze parameters
            self._trained, self._engine = trained, LossOf(self.model)
            if distributed.size() > 1:
                with warnings.catch_warnings():  # newer versions of torch have another name for the first option
                    warnings.simplefilter("ignore", FutureWarning)
                    self._engine = DistributedDataParallel(
                        self._engine, broadcast_buffers=False, init_sync=False, find_unused_parameters=True
                    )
        return self._engine

    @contextmanager
    def without_averages(self, engine):
        """Inside the block, the gradients of this process add up, and are not averaged yet."""
        if self._sharded is not None:
            engine.set_requires_gradient_sync(False)
            try:
                yield
            finally:
                engine.set_requires_gradient_sync(True)
            return
        with engine.no_sync() if distributed.size() > 1 else nullcontext():
            yield


class _Step:
    """The loss of a batch for RecBole's loop. All parts of the batch but the last have gone backward when it returns."""

    def __init__(self, trainer, loss_func):
        self.trainer, self.loss_func = trainer, loss_func

    def __call__(self, batch):
        trainer, before = self.trainer, None
        engine = trainer.engine()
        *others, last = batch_shares(batch, trainer.config["accumulate_steps"], trainer._counts)
        for part in others:
            with trainer.without_averages(engine):
                loss = engine(trainer._part_loss, self.loss_func, *part)
                whole = sum(loss) if isinstance(loss, tuple) else loss
                if not torch.isfinite(whole).all():
                    return loss  # RecBole's loop refuses it
                with torch.autocast(trainer.device.type, enabled=False):
                    whole.backward()
            before = _add(_detach(loss), before)
        return _add(engine(trainer._part_loss, self.loss_func, *last), before)


def _detach(loss):
    return tuple(each.detach() for each in loss) if isinstance(loss, tuple) else loss.detach()


def _add(loss, before):
    """Sum of two losses, or of two tuples of losses; `before` may be None."""
    if before is None:
        return loss
    return tuple(a + b for a, b in zip(loss, before)) if isinstance(loss, tuple) else loss + before


def mean_over_processes(losses):
    """The sums of an epoch's losses, a number or a tuple of numbers -> their means over the processes."""
    mean = (distributed.total(torch.tensor(losses, dtype=torch.float64)) / distributed.size()).tolist()
    return tuple(mean) if isinstance(losses, tuple) else mean


def check_trainer(trainer, config):
    """Refuse several processes, or a batch in several parts, for models that cannot be trained so.

    Raises:
        ConfigError: says why.
    """
    asked = f"{distributed.size()} processes" if distributed.size() > 1 else f"accumulate_steps = {config['accumulate_steps']}"
    if isinstance(trainer, NCLTrainer):
        raise ConfigError(f"found {asked}, but RecBole trains {config['model']} in a loop of its own, which takes whole batches in "
                          "one process; expected one process and accumulate_steps 1")
    if config["accumulate_steps"] > 1 and config["enable_scaler"]:
        raise ConfigError(f"accumulate_steps: found {config['accumulate_steps']} with enable_scaler, which scales the loss of a whole "
                          "batch; expected 1, or no enable_scaler (torch_dtype: bfloat16 needs none)")
    if config["accumulate_steps"] > 1 and config["MODEL_TYPE"] == ModelType.KNOWLEDGE:
        raise ConfigError(f"accumulate_steps: found {config['accumulate_steps']}, expected 1: a batch of {config['model']} has rows "
                          "and triples of the graph, which cannot be split together")
