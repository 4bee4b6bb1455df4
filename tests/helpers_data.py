"""For the tests of the data: small data sets on disk, configurations for them, and a tiny backbone."""

from types import SimpleNamespace

import numpy as np
import torch
from recbole.data.interaction import Interaction

from recbole_flr.config import Config
from recbole_flr.data.prompt import Collator, Template
from recbole_flr.ragged import RaggedRows

BENCHMARK = {
    "benchmark_filename": ["train", "valid", "test"],
    "eval_args": {"split": {"LS": "valid_and_test"}, "order": "TO", "group_by": "user", "mode": "full"},
}
INTER_HEADER = "user_id:token\titem_id:token\ttimestamp:float"
HISTORY_HEADER = INTER_HEADER + "\titem_id_list:token_seq"


def write(folder, name, lines):
    """Write lines into a file and return its path. No byte is changed."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / name
    path.write_bytes("".join(line + "\n" for line in lines).encode("utf-8"))
    return path


def write_set(root, interactions, items=None, item_header="item_id:token\ttitle:token", name="mini"):
    """Writes a data set `root/mini` that RecBole splits itself.

    Args:
        interactions (dict): user -> item ids in the order of time; item k is at time k.
        items: lines of the `.item` file without the header; None: no such file.
    """
    rows = [f"{user}\t{item}\t{time}" for user, sequence in interactions.items() for time, item in enumerate(sequence)]
    write(root / name, f"{name}.inter", [INTER_HEADER, *rows])
    if items is not None:
        write(root / name, f"{name}.item", [item_header, *items])


def write_split(root, parts, items=None, header=HISTORY_HEADER, name="mini"):
    """Writes a data set `root/mini` of split files. `parts`: train, valid, test -> list of (user, history, target, time)."""
    for part in ("train", "valid", "test"):
        rows = [f"{user}\t{target}\t{time}\t{' '.join(history)}" for user, history, target, time in parts[part]]
        write(root / name, f"{name}.{part}.inter", [header, *rows])
    if items is not None:
        write(root / name, f"{name}.item", ["item_id:token\ttitle:token", *items])


def make_config(root, model="SASRec", name="mini", **options):
    """A Config for a data set below `root`."""
    base = {"data_path": str(root), "checkpoint_dir": str(root / "saved"), "use_gpu": False, "state": "ERROR"}
    return Config(model, name, config_dict={**base, **options})


def random_tokens(rng, rows, longest=5, first=10, least=1):
    """Random ids as RaggedRows and as a list of lists. Row 0 is empty; the others have `least` to `longest` ids."""
    lists = [[]] + [rng.integers(first, 1000, size=rng.integers(least, longest + 1)).tolist() for _ in range(rows - 1)]
    return RaggedRows.of(lists), lists


def make_collator(titles, head=(1,), tail=(), pad=0):
    """A Collator whose chunks are the titles themselves. titles: list of lists, row 0 is padding."""
    chunks = RaggedRows.of([*titles, list(head), list(tail)])
    return Collator(RaggedRows.of(titles), chunks, pad)


def training_set(sequences, max_history):
    """The parts of a RecBole training set that `user_sequences` reads: every prefix of each user's sequence is a row."""
    rows = [
        (user, sequence[max(0, end - max_history):end], sequence[end])
        for user, sequence in enumerate(sequences, start=1) for end in range(1, len(sequence))
    ]
    return dataset_of(rows, max_history)


def dataset_of(rows, max_history):
    """The same from `rows`: (user, history, target) as internal ids."""
    history = np.zeros((len(rows), max_history), dtype=np.int64)
    for index, (_, past, _) in enumerate(rows):
        history[index, :len(past)] = past
    inter = Interaction({
        "user_id": torch.tensor([row[0] for row in rows], dtype=torch.long),
        "item_id": torch.tensor([row[2] for row in rows], dtype=torch.long),
        "item_id_list": torch.from_numpy(history),
        "item_length": torch.tensor([len(row[1]) for row in rows], dtype=torch.long),
    })
    return SimpleNamespace(inter_feat=inter, uid_field="user_id", iid_field="item_id",
                           item_list_length_field="item_length", config={"LIST_SUFFIX": "_list"})


def tiny_backbone(tokenizer):
    """A real Backbone around a very small language model."""
    from transformers import AutoConfig, AutoModelForCausalLM

    from recbole_flr.model.backbone import Backbone

    settings = AutoConfig.for_model(
        "qwen2", vocab_size=len(tokenizer), hidden_size=8, num_hidden_layers=1, num_attention_heads=1,
        num_key_value_heads=1, intermediate_size=8,
    )
    return Backbone(AutoModelForCausalLM.from_config(settings), tokenizer)


def chunks_of(backbone, texts, template, max_tokens=1000):
    """Template.chunks for plain texts (index 0 is padding), tokenised as the catalogue does."""
    rows = [row[:max_tokens] + [backbone.end_id] for row in backbone.encode(texts[1:])]
    return Template.chunks(template, backbone, RaggedRows.of([[], *rows]))


def batch_of_histories(model, histories):
    """RecBole's batch of some histories, lists of item ids, padded to the longest that the model takes."""
    padded = torch.tensor([history + [0] * (model.max_seq_length - len(history)) for history in histories])
    return Interaction({model.ITEM_SEQ: padded, model.ITEM_SEQ_LEN: torch.tensor([len(history) for history in histories])})


def ranking_parts(model, batch):
    """What FLRMix's ranking of a batch is made of: name -> [B, n]."""
    return model.ranking.parts(model._read(batch)[0], batch[model.ITEM_SEQ])
