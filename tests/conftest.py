"""Fixtures that several test files use: tiny data sets and tiny models. All tests run on one CPU thread and need no network."""

import copy
import gc
import json
import logging
import os
import shutil
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ["CUDA_VISIBLE_DEVICES"] = ""

import numpy as np
import psutil
import pytest
import torch

TITLES = [  # repeats, prefixes of one another, one word, markup-like text, quotes, emoji, CJK
    "Robot", "Robot Wars", "Robot Wars II", "Blue Castle Set", "Blue Castle Set", "Red Castle Set", "Space \"Puzzle\"",
    "<|Thought|>", "<|endoftitle|> Box", "積み木", "🎲 Dice", "Farm", "Farm Animals", "Green Castle Set", "Dragon",
    "Dragon Fire", "Tiny Train", "Tiny Train Track", "Paint Box", "Paint",
]


@pytest.fixture(scope="session", autouse=True)
def fast_process():
    """Saves time in each test process, without an effect on what is tested.

    - The garbage collector leaves out what is there before the first test, such as the imported modules.
    - RecBole sleeps for a second at the end of each run, to measure the load of the processor. Here it does not sleep, and gets
      the load since the last measurement.
    - RecBole's module of the model SINE, which is imported with every sequential model, turns on torch's anomaly detection for
      the whole process. Training then takes three times as long. Without it, RecBole still refuses a loss that is NaN.
    """
    import recbole.model.sequential_recommender  # noqa: F401 (so that no later import turns the detection on)

    torch.autograd.set_detect_anomaly(False)
    gc.collect()
    gc.freeze()
    measure = psutil.cpu_percent
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(psutil, "cpu_percent", lambda interval: measure())
        yield
    gc.unfreeze()  # otherwise the bindings of DuckDB complain about objects that are left at the end


@pytest.fixture(autouse=True)
def isolated(tmp_path, monkeypatch):
    """Each test runs in a folder of its own, because RecBole writes its logs into the working folder."""
    monkeypatch.chdir(tmp_path)
    torch.set_num_threads(1)
    root = logging.getLogger()
    before, level = root.handlers[:], root.level
    yield
    root.handlers[:] = before
    root.setLevel(level)


def write_dataset(folder, name="tiny", titles=TITLES, users=40, seed=0, brand=False):
    """Write a split data set below `folder`. Users walk along the item list, so a model can learn the next item."""
    rng = np.random.default_rng(seed)
    target = folder / name
    target.mkdir(parents=True, exist_ok=True)
    columns = "item_id:token\ttitle:token" + ("\tbrand:token" if brand else "")
    rows = [f"i{n}\t{t}" + (f"\tB{n}" if brand else "") for n, t in enumerate(titles)]
    (target / f"{name}.item").write_text("\n".join([columns, *rows]) + "\n", encoding="utf-8")
    samples = []
    for user in range(users):
        start, length = rng.integers(len(titles)), rng.integers(4, 9)
        items = [f"i{(start + step + (rng.random() < 0.2)) % len(titles)}" for step in range(length)]
        times = np.sort(rng.integers(0, 10_000, length))
        samples += [(times[n], f"u{user}", " ".join(items[max(0, n - 10):n]), items[n]) for n in range(1, length)]
    samples.sort(key=lambda sample: sample[0])
    cut = [0, int(0.8 * len(samples)), int(0.9 * len(samples)), len(samples)]
    head = "user_id:token\titem_id_list:token_seq\titem_id:token\ttimestamp:float"
    for part, first, last in zip(("train", "valid", "test"), cut, cut[1:]):
        lines = [f"{u}\t{h}\t{i}\t{t}" for t, u, h, i in samples[first:last]]
        (target / f"{name}.{part}.inter").write_text("\n".join([head, *lines]) + "\n", encoding="utf-8")
    return target


TINY = {
    "benchmark_filename": ["train", "valid", "test"], "alias_of_item_id": ["item_id_list"], "show_progress": False,
    "eval_args": {"split": {"LS": "valid_and_test"}, "order": "TO", "group_by": "user", "mode": "full"},
    "train_batch_size": 32, "eval_batch_size": 16, "state": "WARNING",
}
TINY_LM = {
    **TINY, "compact_vocab_size": 320, "compact_hidden_size": 16, "compact_heads": 2, "compact_layers": 2,
    "epochs": 2, "warmup_epochs": 2, "pack_length": 64, "embedding_dropout": 0.1,
}
TINY_LATENT = {**TINY_LM, "stages": "sft", "group_size": 3, "grpo_epochs": 2, "grpo_batch_size": 16}
TINY_FLR = {**TINY_LATENT, "num_factors": 3}
TINY_FLRMIX = {**TINY, "epochs": 2, "hidden_size": 16, "num_factors": 3, "group_size": 3, "grpo_epochs": 2, "grpo_batch_size": 16}
TINY_PRETRAINED = {**TINY, "topk": [1, 5], "valid_metric": "NDCG@5", "num_beams": 10}  # tests add the backbone
TINY_COT = {**TINY_PRETRAINED, "max_thought_tokens": 4}
TINY_ALPHAREC = {**TINY, "item_text": "words", "epochs": 2, "embedding_size": 16, "mlp_hidden_size": 16, "num_negatives": 20}
TINY_LARES = {**TINY, "stages": "spt", "epochs": 2, "hidden_size": 16, "inner_size": 32, "group_size": 3, "grpo_epochs": 2,
              "grpo_batch_size": 16}
TINY_OPTIONS = {
    "LARES": TINY_LARES, "ReaRec": {**TINY, "epochs": 2, "hidden_size": 16, "inner_size": 32}, "AlphaRec": TINY_ALPHAREC,
    "Base": TINY_PRETRAINED, "CoT": TINY_COT, "FLRMix": TINY_FLRMIX,
    "FLR": TINY_FLR, "LatentR3": TINY_LATENT, "BIGRec": TINY_LM,
}


@pytest.fixture(scope="session")
def session_data(tmp_path_factory):
    """A folder for the option data_path. It holds the data set `tiny`, which no test may change; see `tiny_data`."""
    folder = tmp_path_factory.mktemp("session") / "data"
    write_dataset(folder)
    return folder


@pytest.fixture
def tiny_data(session_data, tmp_path):
    """Like `session_data`, but a copy that belongs to one test, which may change it."""
    shutil.copytree(session_data, tmp_path / "data")
    return tmp_path / "data"


@pytest.fixture(scope="session")
def _runs(tmp_path_factory):
    """The folder of the finished runs of this process, and a dict: model and options -> (folder, result)."""
    return tmp_path_factory.mktemp("runs"), {}


@pytest.fixture
def trained(_runs, session_data, monkeypatch):
    """trained("FLR", **options) -> (run folder, result).

    A process trains each model once for the same options. Each test gets a copy of what the run wrote, in the test's own folder.
    """
    from recbole_flr.quick_start import run_recbole_flr

    root, found = _runs

    def copy_of(model="FLR", **options):
        options = {**TINY_OPTIONS.get(model, TINY), "data_path": str(session_data), **options}
        key = json.dumps([model, options], sort_keys=True)
        if key not in found:
            place = root / str(len(found))
            place.mkdir()
            with monkeypatch.context() as patch:
                patch.chdir(place)
                result = run_recbole_flr(model, "tiny", config_dict=options)
            found[key] = place, result
        place, result = found[key]
        shutil.copytree(place, Path.cwd(), dirs_exist_ok=True)
        return next(Path("saved").iterdir()), copy.deepcopy(result)

    return copy_of


def exact_norms(model):
    """Replace each RMSNorm of Qwen2, which always computes in float32, by torch's own, for comparisons in float64."""
    from transformers.models.qwen2.modeling_qwen2 import Qwen2RMSNorm

    for parent in list(model.modules()):
        for name, norm in parent.named_children():
            if isinstance(norm, Qwen2RMSNorm):
                exact = torch.nn.RMSNorm(norm.weight.shape, norm.variance_epsilon).to(norm.weight)
                exact.weight = norm.weight
                setattr(parent, name, exact)
    return model


def draw_weights(model, std):
    """Draw weights that are larger than those of an untrained model, and turn off all dropout (GPT-2 has its own)."""
    torch.manual_seed(11)
    for parameter in model.parameters():
        if parameter.dim() > 1:
            torch.nn.init.normal_(parameter, std=std)
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    return model


def think(reasoner, backbone, embeddings, mask, use_cache=True):
    """Read prompts, embeddings [B, L, D] with a mask [B, L], and think about them. Returns the Thought."""
    from recbole_flr.model.reasoner import read_prompt

    return reasoner.think(backbone, read_prompt(backbone, embeddings, mask, use_cache, reasoner.initial))


def assert_learns(model, loaders):
    """Twelve steps on one batch lower its loss by more than 0.3, and the model ranks all items afterwards."""
    batch = next(iter(loaders[0]))
    optimizer = torch.optim.Adam(model.parameters(), lr=5e-3)
    losses = []
    for _ in range(12):
        optimizer.zero_grad()
        loss = model.calculate_loss(batch)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0] - 0.3
    assert model.eval().full_sort_predict(batch[torch.arange(2)]).shape == (2, model.n_items)


@pytest.fixture
def build(tiny_data):
    """build(model="FLR", **options) -> config, model, (train, valid, test) on the tiny data."""
    from recbole.utils import init_seed

    from recbole_flr.config import Config
    from recbole_flr.data.loading import load_dataset, split
    from recbole_flr.registry import get_model

    def make(model="FLR", **options):
        base = TINY_OPTIONS.get(model, TINY)
        config = Config(model, "tiny", config_dict={**base, "data_path": str(tiny_data), **options})
        loaders = split(config, load_dataset(config))
        init_seed(config["seed"], True)
        return config, get_model(model)(config, loaders[0]._dataset), loaders

    return make


@pytest.fixture(scope="session")
def saved_models(tmp_path_factory):
    """dict: qwen2, llama, gpt2 -> the folder of a tiny random model with a tokenizer, in the format of transformers."""
    from transformers import AutoConfig, AutoModelForCausalLM

    from recbole_flr.model.backbone import train_tokenizer

    torch.manual_seed(0)
    root = tmp_path_factory.mktemp("models")
    tokenizer = train_tokenizer(TITLES * 3, 330)
    shape = dict(vocab_size=len(tokenizer), bos_token_id=1, eos_token_id=2, pad_token_id=0)
    small = dict(hidden_size=16, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2, num_key_value_heads=1)
    models = {
        "qwen2": AutoConfig.for_model("qwen2", **shape, **small, tie_word_embeddings=True),
        "llama": AutoConfig.for_model("llama", **shape, **small, tie_word_embeddings=False),
        "gpt2": AutoConfig.for_model("gpt2", **shape, n_embd=16, n_layer=2, n_head=2, n_positions=512),
    }
    for name, config in models.items():
        AutoModelForCausalLM.from_config(config).save_pretrained(root / name)
        tokenizer.save_pretrained(root / name)
    return {name: root / name for name in models}


@pytest.fixture
def one_thread():
    """Run the test on one thread: for a tiny model, several threads are slower."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def shapes_folder(tmp_path_factory):
    """Where the benchmarks keep models with random weights during the tests."""
    return tmp_path_factory.mktemp("shapes")


@pytest.fixture
def small_cache(shapes_folder, monkeypatch):
    """Let the cache of converted models be a folder of the tests."""
    monkeypatch.setenv("RECBOLE_FLR_CACHE", str(shapes_folder))


@pytest.fixture
def one_process(request, monkeypatch):
    """The test module's `benchmark` measures everything in this process. A process of its own would take seconds to start.

    Returns the list of the command lines of the processes that it would have started.
    """
    benchmark, started = request.module.benchmark, []
    gc.freeze()  # the benchmarks often collect garbage, which takes long where many modules are loaded
    monkeypatch.setattr(
        benchmark, "in_fresh_process", lambda module, words: (started.append([module, *words]), benchmark.main(words))[1]
    )
    return started


@pytest.fixture
def server(monkeypatch):
    """A Server of helpers_server. The downloads use no proxy, and do not pause between two attempts."""
    from helpers_server import serving

    for name in ("http_proxy", "https_proxy", "all_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)
    monkeypatch.setattr("dataset_scripts.fetch.PAUSE", 0)
    with serving() as server:
        yield server


@pytest.fixture
def file(tmp_path, server):
    """Where a download of the server's file goes. The server notes whether the file is there before all of it was sent."""
    server.watched = tmp_path / "raw" / "file.json.gz"
    return server.watched
