"""The backbones that a benchmark can measure: the compact one, published shapes with random weights, and models with their own.

A shape with random weights costs what the published model costs, and needs no download. Its model is made once, in the cache
folder of converted models (`recbole_flr.pretrained.cache_folder`), and loaded as any other folder of a saved model. That of
Qwen2.5-1.5B takes 3 GB of disk."""

import json

import torch
from transformers import AutoConfig, AutoModelForCausalLM

from recbole_flr.files import new_folder
from recbole_flr.pretrained import PACKAGES, cache_folder, find_model

SHAPES = {
    "qwen2.5-1.5b": {  # config.json of Qwen/Qwen2.5-1.5B
        "model_type": "qwen2", "vocab_size": 151936, "hidden_size": 1536, "intermediate_size": 8960, "num_hidden_layers": 28,
        "num_attention_heads": 12, "num_key_value_heads": 2, "max_position_embeddings": 131072, "max_window_layers": 28,
        "rms_norm_eps": 1e-6, "rope_parameters": {"rope_type": "default", "rope_theta": 1e6}, "tie_word_embeddings": True,
        "initializer_range": 0.02,
    },
    "tiny": {  # the same in small, for tests and for machines without a GPU
        "model_type": "qwen2", "vocab_size": 600, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2,
        "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 4096, "max_window_layers": 2,
        "rms_norm_eps": 1e-6, "rope_parameters": {"rope_type": "default", "rope_theta": 1e6}, "tie_word_embeddings": True,
        "initializer_range": 0.02,
    },
}
BACKBONES = ("compact", *SHAPES, *PACKAGES)
DTYPES = ("float32", "mixed", "bfloat16")  # of the option torch_dtype


def add_backbone(command, trainable=False):
    """Add the options `--backbone` and `--dtype`, and `--trainable` if the benchmark trains the backbone."""
    command.add_argument("--backbone", choices=BACKBONES, default="compact",
                         help="compact, a published shape with random weights, or a model with its own (default: compact)")
    command.add_argument("--dtype", choices=DTYPES, default="float32", help="torch_dtype of the backbone (default: float32)")
    if trainable:
        command.add_argument("--trainable", choices=("full", "lora"), default="full",
                             help="part of the backbone that is trained (default: full)")


def check_backbone(command, given):
    """End the program with an error if the options do not fit each other."""
    if given.backbone == "compact" and vars(given).get("trainable") == "lora":
        command.error("argument --trainable: found lora with the compact backbone, whose random weights must all be trained; "
                      f"expected --backbone={' or '.join(BACKBONES[1:])} beside it")


def model_options(given, trainable):
    """Options of a model with the backbone that `given` names: name -> value.

    Args:
        given: `backbone` and `dtype`.
        trainable: full, lora or frozen. The compact backbone is always `full`.
    """
    options = {"torch_dtype": given.dtype}
    if given.backbone == "compact":
        return options
    name = str(random_model(given.backbone)) if given.backbone in SHAPES else find_model(given.backbone)
    return {**options, "backbone": name, "trainable": trainable}


def random_model(name):
    """The folder of a model of a published shape with random weights in bfloat16, which is made if it is not there.

    Args:
        name: key of `SHAPES`.
    """
    folder, settings = cache_folder() / f"random-{name}", SHAPES[name]
    record = folder / "shape.json"
    if record.is_file() and json.loads(record.read_text()) == settings:
        return folder
    with new_folder(folder, record.name) as temporary:  # another process may make it, too
        torch.manual_seed(0)
        kind = settings["model_type"]
        shape = AutoConfig.for_model(kind, **{key: value for key, value in settings.items() if key != "model_type"})
        AutoModelForCausalLM.from_config(shape, dtype=torch.bfloat16).save_pretrained(temporary)
        (temporary / record.name).write_text(json.dumps(settings))
    return folder
