"""What a run does once for a catalogue, measured step by step, for `benchmarks.scale`; and what it costs to build the trie.

Each function that measures memory runs in a process of its own, so that no other work counts. The figure is by how much a step
raises the resident memory of its process; the result of the step is part of it.
"""

import gc
from dataclasses import dataclass
from time import perf_counter

import numpy as np
import torch

from benchmarks.harness import peak, start_peak
from recbole_flr.data.catalog import Catalog
from recbole_flr.data.prompt import Collator, Template
from recbole_flr.decoding import Trie
from recbole_flr.model.backbone import Backbone, compact_lm, load_tokenizer
from recbole_flr.ragged import RaggedRows

LONGEST = 64  # max_title_tokens of properties/generative.yaml


@dataclass
class Shop:
    """A catalogue of N titles, ready for a model.

    Attributes:
        collator: Collator of its titles and prompts.
        items: int64 tensor [N], item ids 1 .. N, the most popular first.
        steps: dict, name of a step of the preparation -> [seconds, bytes of memory].
    """

    collator: Collator
    items: torch.Tensor
    steps: dict

    def entries(self):
        """The arguments of Trie.build: titles (RaggedRows) and items (numpy), the most popular first."""
        return self.collator.titles.take(self.items), self.items.numpy()


def prepare(folder, size):
    """Do and measure all that a run does once for a catalogue.

    Args:
        folder: Path of a folder that holds `tokenizer` and `titles.txt`; the file `<size>.npz` is written there.
        size: N, number of titles; the first so many lines of `titles.txt`.
    """
    tokenizer = load_tokenizer(folder / "tokenizer")
    backbone = Backbone(compact_lm({  # the smallest: only its tokenizer is used
        "compact_hidden_size": 8, "compact_layers": 1, "compact_heads": 1, "compact_dropout": 0.0,
        "attn_implementation": "sdpa",
    }, tokenizer), tokenizer, pretrained=False)  # fmt: skip
    with open(folder / "titles.txt", encoding="utf-8") as lines:
        texts = [""] + [next(lines).rstrip("\n") for _ in range(size)]
    popularity = np.random.default_rng(0).zipf(1.5, size + 1)
    backbone.encode(texts[:10])
    Trie.build([[1, 0]])  # the first call sets things up, which belongs to no step
    steps = {}

    def step(name, work):
        gc.collect()
        before, start = start_peak(), perf_counter()
        found = work()
        steps[name] = perf_counter() - start, max(peak() - before, 0)
        return found

    catalog = step("catalogue", lambda: Catalog(texts, popularity=popularity))
    titles = step("tokenize", lambda: catalog.tokenize(backbone, LONGEST))
    chunks = step("chunks", lambda: Template.named("compact", "").chunks(backbone, titles))
    items = step("order", lambda: torch.from_numpy(catalog.by_popularity()))
    entries = step("take", lambda: titles.take(items))
    step("trie", lambda: Trie.build(entries, items.numpy()))
    np.savez(
        folder / f"{size}.npz", flat=titles.flat, start=titles.start, chunks=chunks.flat, chunk_start=chunks.start,
        items=items, pad=backbone.pad_id, steps=list(steps), figures=list(steps.values()),
    )  # fmt: skip
    return 0


def load(folder, size):
    """The :class:`Shop` that :func:`prepare` wrote."""
    with np.load(folder / f"{size}.npz") as found:
        ragged = lambda flat, start: RaggedRows(torch.from_numpy(found[flat]), torch.from_numpy(found[start]))
        collator = Collator(ragged("flat", "start"), ragged("chunks", "chunk_start"), int(found["pad"]))
        steps = {str(name): [float(s), int(b)] for name, (s, b) in zip(found["steps"], found["figures"])}
        return Shop(collator, torch.from_numpy(found["items"]), steps)


def build_memory(folder, size):
    """Bytes by which Trie.build raises the resident memory of this process, which already holds the arguments."""
    entries = load(folder, size).entries()
    Trie.build([[1, 0]])
    gc.collect()
    before = start_peak()
    Trie.build(*entries)
    return max(peak() - before, 0)
