"""For the tests of several processes: runs that give the same numbers for any number of processes, and two ranks that make them.

All is in float64 and without dropout. The noise of the reinforcement stage is a function of the thought, and a negative item one of
the item, so that no random number depends on who draws it.
"""

import faulthandler
import json
import os
import sys
import time
from contextlib import ExitStack
from datetime import timedelta
from pathlib import Path
from unittest import mock

import pytest
import torch
from conftest import TINY, TINY_FLRMIX, TINY_LARES, TINY_LATENT, exact_norms
from torch.distributed.tensor import DTensor
from torch.optim.optimizer import register_optimizer_step_pre_hook

SECONDS = 240
EQUAL = {"learner": "sgd", "learning_rate": 0.05, "epochs": 1, "eval_batch_size": 5}
LM = {**TINY_LATENT, **EQUAL, "grpo_learning_rate": 0.05, "warmup_learning_rate": 0.05, "compact_layers": 1,
      "embedding_dropout": 0.0, "torch_dtype": "float64", "warmup_epochs": 1, "stages": "sft,grpo", "grpo_epochs": 1, "num_beams": 10}
ITEMS = {**TINY_FLRMIX, **EQUAL, "grpo_learning_rate": 0.05, "dropout": 0.0, "stages": "sft,grpo", "gate_balance": 0.3, "grpo_epochs": 1}
COUNTED = {"metrics": ["NDCG", "GiniIndex", "AveragePopularity"]}  # need counts of the items beside the ranks
IN_PARTS = {"accumulate_steps": 3}
RESUMED = {**TINY_LATENT, "num_factors": 3, "epochs": 2, "warmup_epochs": 1, "learning_rate": 0.01, "num_beams": 10, "compact_layers": 1}
WITHOUT_DROPOUT = {"embedding_dropout": 0.0}
CASES = {  # name -> model, options, and options of the run of two processes alone
    "FLR": ("FLR", {**LM, "num_factors": 3, "gate_balance": 0.3, "grpo_updates": 2}),
    "FLR, in parts": ("FLR", {**LM, "num_factors": 3, "grpo_updates": 2}, IN_PARTS),
    "FLR, sharded": ("FLR", {**LM, "num_factors": 3, "compact_layers": 2}, {"shard": "fsdp"}),
    "FLRMix, sharded": ("FLRMix", {**LM, **ITEMS, "backbone": "compact", "torch_dtype": "float64",
                                   "gradient_checkpointing": True, "gate_balance": 0.0}, {"shard": "fsdp", "accumulate_steps": 2}),
    "FLR, LoRA, sharded": ("FLR", {**LM, "num_factors": 3, "backbone": "$TINY_QWEN2", "trainable": "lora", "lora_dropout": 0.0,
                                   "prompt": "compact", "gradient_checkpointing": True}, {"shard": "fsdp"}),
    "LatentR3": ("LatentR3", {**LM, "grpo": "latentr3", "noise_scale": 0.5, "grpo_batch_size": 15}),
    "FLRMix": ("FLRMix", ITEMS),
    "FLRMix, titles": ("FLRMix", {**LM, **ITEMS, "backbone": "compact", "torch_dtype": "float64", "stages": "sft"}),
    "LARES": ("LARES", {**TINY_LARES, **EQUAL, "stages": "spt,grpo", "grpo_epochs": 1, "grpo_learning_rate": 0.05,
                        "initial_noise": 0.0, "noise_scale": 1.0, "topk": [4], "valid_metric": "NDCG@4", "group_size": 6,
                        "grpo_batch_size": 15}),
    "SASRec": ("SASRec", {**TINY, **EQUAL, "hidden_size": 16, "inner_size": 16, "epochs": 2}),
    "GRU4Rec": ("GRU4Rec", {**TINY, **EQUAL, "hidden_size": 16, "embedding_size": 16}),
    "BPR": ("BPR", {**TINY, **EQUAL, "embedding_size": 16}),
    "Pop": ("Pop", {**TINY, "eval_batch_size": 5, **COUNTED}),
    "VSKNN": ("VSKNN", {**TINY, "eval_batch_size": 1000, **COUNTED}),  # one batch: a process has none
}


def exact(build_model):
    """registry.build_model, in float64, with larger weights and without dropout."""
    def build(config, dataset):
        model = exact_norms(build_model(config, dataset).double())
        for module in model.modules():
            if isinstance(module, torch.nn.Dropout):
                module.p = 0.0
            if isinstance(module, torch.nn.GRU):
                module.dropout = 0.0
        return model

    return build


def noise_of(thought, group_size, scale, relative=True, generator=None):
    """Takes the place of :func:`recbole_flr.training.grpo.perturb`: a function of the thought."""
    deviation = scale * (thought.square().mean(-1).sqrt() if relative else torch.ones_like(thought[:, 0]))
    member = torch.arange(group_size, dtype=thought.dtype)[:, None]
    return deviation[:, None, None] * torch.sin(50 * thought.unsqueeze(1) + member) * (member > 0), deviation


def negatives_of(self, user_ids, item_ids, num):
    """Takes the place of RecBole's sampler: a function of the item."""
    return torch.as_tensor(item_ids) % (self.item_num - 1) + 1


def run_case(name, folder, more=None):
    """Make a run in a folder. Returns RecBole's dict of results, and writes `gradients.pt` there: those of the first step of each stage.

    Args:
        name: of a case.
        folder: an empty one.
        more: further options.
    """
    import recbole.sampler

    from recbole_flr import distributed, registry
    from recbole_flr.quick_start import run_recbole_flr
    from recbole_flr.training import grpo

    model, options = CASES[name][:2]
    options = {key: os.path.expandvars(value) if key == "backbone" else value for key, value in options.items()}
    folder.mkdir(parents=True, exist_ok=True)
    os.chdir(folder)
    found, seen = [], set()

    def keep(optimizer, *_):
        if id(optimizer) not in seen:
            seen.add(id(optimizer))
            parameters = [p for group in optimizer.param_groups for p in group["params"]]
            grads = [torch.zeros(p.shape) if p.grad is None else p.grad for p in parameters]
            found.append(torch.cat([(g.full_tensor() if isinstance(g, DTensor) else g).flatten() for g in grads]).clone())
            kept.append(optimizer)  # so that no later optimizer has its id

    kept = []
    hook = register_optimizer_step_pre_hook(keep)
    with ExitStack() as stack:
        stack.enter_context(mock.patch.object(registry, "build_model", exact(registry.build_model)))
        stack.enter_context(mock.patch.object(grpo, "perturb", noise_of))
        stack.enter_context(mock.patch.object(recbole.sampler.Sampler, "sample_by_user_ids", negatives_of))
        stack.callback(hook.remove)
        result = run_recbole_flr(model, "tiny", config_dict={**options, **(more or {})})
    if distributed.is_main() and int(os.environ.get("RANK", "0")) == 0:
        torch.save(found, folder / "gradients.pt")
        (folder / "result").write_text(json.dumps(result))
    return result


def work(names, root, more):
    """What each rank does: the cases, each in a folder of its own below `root`."""
    torch.set_num_threads(1)
    faulthandler.dump_traceback_later(SECONDS, exit=True)  # or ranks that wait for each other would wait for half an hour
    for name in names:
        run_case(name, Path(root) / name, {**more, **(CASES[name][2] if len(CASES[name]) > 2 else {})})
    faulthandler.cancel_dump_traceback_later()


def tell(root):
    """What each rank does: the functions of :mod:`recbole_flr.distributed` on known values. Writes `told-RANK.json`."""
    from recbole_flr import distributed

    with distributed.joined("cpu"):
        rank = distributed.rank()
        rows = torch.arange(3.0 if rank else 2.0).requires_grad_()
        together = distributed.gather_rows(rows)
        (together * torch.arange(5.0) * (rank + 1)).sum().backward()
        pieces = [torch.full((2, 1), 10 * rank + number) for number in range(2 - rank)]
        told = {
            "gradient": rows.grad.tolist(), "rows": together.tolist(), "json": distributed.gather_json({"rank": rank}),
            "first": distributed.from_first(rank), "total": distributed.total(torch.tensor([rank + 1.0])).item(),
            "turns": torch.cat(distributed.gather_in_turns(pieces)).flatten().tolist(),
            "none": torch.cat(distributed.gather_in_turns([] if rank else [torch.ones(1, 2)])).tolist(),
        }
        wait_long(rank)
        stored_once(root, rank)
        failed_first(rank)
        (Path(root) / f"told-{rank}.json").write_text(json.dumps(told))


def wait_long(rank):
    """Rank 0 works alone for longer than processes wait for each other otherwise."""
    from torch.distributed import distributed_c10d, group

    from recbole_flr import distributed

    distributed.barrier()
    distributed_c10d._set_pg_timeout(timedelta(seconds=0.5), group.WORLD)
    with distributed.main_first():
        time.sleep(0 if rank else 1.5)
    distributed_c10d._set_pg_timeout(distributed.PATIENCE, group.WORLD)
    distributed.barrier()


def stored_once(root, rank):
    """Store tensors. Each process that computes them leaves a file `computed-RANK`."""
    from recbole_flr.store import stored

    def compute():
        time.sleep(0.5)
        (Path(root) / f"computed-{rank}").touch()
        return {"x": torch.arange(3)}

    for name in ("one", "other"):
        found = stored(Path(root) / f"{name}.safetensors", "wanted", compute, "numbers")
        assert found["x"].tolist() == [0, 1, 2]


def failed_first(rank):
    """Rank 0 fails in the work that it does first, and lives on. The others do not wait for it."""
    from recbole_flr import distributed
    from recbole_flr.errors import DataError, LostProcess

    with pytest.raises(LostProcess if rank else DataError):
        with distributed.main_first():
            raise DataError("found nothing")
    distributed.barrier()


def resume(root, more):
    """What each rank does: cut a run of FLR short in its second stage, and go on with it, also without dropout.

    The cut run stays in `root`/cut.
    """
    import shutil

    from helpers_training import interrupt, only_run

    from recbole_flr.quick_start import run_recbole_flr

    faulthandler.dump_traceback_later(SECONDS, exit=True)
    os.chdir(root)
    options = {**RESUMED, **more, "checkpoint_dir": "cut"}
    interrupt(lambda: run_recbole_flr("FLR", "tiny", config_dict=options), epochs=2)
    if os.environ["RANK"] == "0":
        shutil.copytree("cut", "again")
        shutil.copytree("cut", "still")
    run_recbole_flr("FLR", "tiny", config_dict={**options, "checkpoint_dir": "whole"})  # all ranks wait for the copy
    run_recbole_flr(config_dict={"resume": str(only_run("again")), "checkpoint_dir": "again"})
    run_recbole_flr(config_dict={"resume": str(only_run("still")), "checkpoint_dir": "still", **WITHOUT_DROPOUT})
    faulthandler.cancel_dump_traceback_later()


def stop(root):
    """What each rank does: rank 1 ends with an error in the middle of a run."""
    from recbole_flr import distributed
    from recbole_flr.errors import DataError

    with distributed.joined("cpu"):
        if distributed.rank() == 1:
            raise DataError("rank 1 found no rows")
        distributed.barrier()


def two_ranks(function, *arguments, count=2):
    """Call a function in two processes, as torchrun would. It must be a function of a module."""
    from recbole_flr.launch import launch

    options = {"nproc": count, "world_size": None, "ip": "localhost", "port": None, "group_offset": 0}
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    return launch(options, function, *arguments)


if __name__ == "__main__":
    sys.exit("helpers of the tests, no command")
