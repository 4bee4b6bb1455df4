"""What ends a run early: Ctrl-C, a training that diverges, a lack of memory. Each gets one line that says how to go on."""

import re
from pathlib import Path

import pytest
import torch
from conftest import TINY, TINY_FLR
from helpers_training import only_run
from recbole.trainer import Trainer

import recbole_flr
from recbole_flr import command
from recbole_flr.command import main, one_line
from recbole_flr.errors import ConfigError, Interrupted, TrainingError, enough_memory
from recbole_flr.training import checkpoint


def words(model, data, options):
    return [
        f"--model={model}",
        "--dataset=tiny",
        f"--data_path={data}",
        *(f"--{name}={value}" for name, value in options.items()),
    ]


@pytest.mark.parametrize("epochs, saved", [(0, True), (1, True)])
def test_ctrl_c_is_one_line_with_the_command_that_goes_on(trained, session_data, monkeypatch, capsys, epochs, saved):
    _, whole = trained("SASRec", epochs=3)
    train_epoch, count = Trainer._train_epoch, []

    def interrupted(self, *args, **kwargs):
        if len(count) == epochs:
            raise KeyboardInterrupt
        count.append(1)
        return train_epoch(self, *args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "_train_epoch", interrupted)
        assert main(words("SASRec", session_data, {**TINY, "epochs": 3, "checkpoint_dir": "cut"})) == 130
    err = capsys.readouterr().err.strip()
    assert err.count("\n") == 0
    found = re.search(r"interrupted; go on with:  python run_recbole_flr.py --resume=(\S+)$", err)
    assert recbole_flr.run_recbole_flr(config_dict={"resume": found[1]}) == whole


def test_ctrl_c_before_anything_was_saved_leaves_no_folder(session_data, monkeypatch, capsys):
    monkeypatch.setattr(Trainer, "_train_epoch", lambda *args, **kwargs: (_ for _ in ()).throw(KeyboardInterrupt))
    assert main(words("SASRec", session_data, {**TINY, "checkpoint_every": 0})) == 130
    assert "interrupted; nothing was saved that it could go on from" in capsys.readouterr().err
    assert not Path("saved").exists() or not list(Path("saved").iterdir())


def test_ctrl_c_elsewhere(capsys):
    with one_line("recommend") as status:
        raise KeyboardInterrupt
    assert status.code == 130 and capsys.readouterr().err == "\nrecommend: interrupted; nothing was saved\n"
    assert issubclass(Interrupted, KeyboardInterrupt)


def test_divergence_says_where_and_what_is_left(session_data, capsys):
    assert main(words("FLR", session_data, {**TINY_FLR, "learning_rate": "1e30"})) == 2
    err = capsys.readouterr().err
    assert err.count("\n") == 1
    assert re.search(r"diverged in the stage sft, epoch 0, step \d+: the loss is nan; the last good checkpoint is saved/", err)
    assert "Try a smaller learning_rate (it is 1e+30), clipped gradients (--clip_grad_norm=" in err
    checkpoint.read(Path(re.search(r"saved/\S+\.safetensors", err)[0]))


def test_divergence_of_a_model_of_recbole(session_data, capsys):
    assert main(words("SASRec", session_data, {**TINY, "learning_rate": "1e30"})) == 2
    err = capsys.readouterr().err
    assert re.search(r"in the stage train, epoch 0, step \d+: the loss is nan; there is no good checkpoint yet", err)


def test_weights_that_are_not_finite_do_not_replace_good_ones(session_data, monkeypatch):
    """The last step of an epoch may spoil the weights after a loss that was finite."""
    train_epoch = Trainer._train_epoch

    def spoiled(self, train_data, epoch, *args, **kwargs):
        losses = train_epoch(self, train_data, epoch, *args, **kwargs)
        if epoch == 1:
            self.model.item_embedding.weight.data[3] = torch.nan
        return losses

    monkeypatch.setattr(Trainer, "_train_epoch", spoiled)
    with pytest.raises(
        TrainingError, match=r"epoch 1, its end: item_embedding.weight is not finite; the last good checkpoint is"
    ):
        recbole_flr.run_recbole_flr("SASRec", "tiny", config_dict={**TINY, "epochs": 4, "data_path": str(session_data)})
    tensors, meta = checkpoint.read(only_run() / checkpoint.BEST)
    assert meta["epoch"] == 0 and all(tensor.isfinite().all() for name, tensor in tensors.items() if name.startswith("model."))


def test_too_many_factors(session_data, capsys):
    assert main(words("FLR", session_data, {**TINY_FLR, "num_factors": 10**9})) == 2
    err = capsys.readouterr().err
    assert "the model needs more memory than there is" in err and err.count("\n") == 1 and not Path("saved").exists()


@pytest.mark.parametrize("error", [MemoryError(), RuntimeError("CUDA out of memory. Tried"), ValueError("array is too big")])
def test_a_lack_of_memory(error):
    with (
        pytest.raises(ConfigError, match="this run needs more memory than there is.*lower the options of sizes"),
        enough_memory("this run"),
    ):
        raise error
    with pytest.raises(RuntimeError, match="another"), enough_memory("this run"):
        raise RuntimeError("another")


def test_the_program_in_the_message_is_the_command(monkeypatch, capsys):
    monkeypatch.setattr(command, "_run", lambda words: (_ for _ in ()).throw(KeyboardInterrupt))
    assert main([]) == 130 and capsys.readouterr().err.startswith("\nrun_recbole_flr: interrupted")
