"""Stored tensors: used again for the same inputs only, and written anew when the file is damaged."""

import logging

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from recbole_flr.store import fingerprint, stored

FIRST = {"a": torch.arange(6).view(2, 3), "b": torch.tensor(0.5)}
OTHER = {"a": torch.zeros(2), "b": torch.ones(3)}


def never():
    raise AssertionError("computed again")


def assert_equal(found, wanted):
    assert found.keys() == wanted.keys() and all(torch.equal(found[name], wanted[name]) for name in wanted)


def test_tensors_are_computed_once(tmp_path, caplog):
    path = tmp_path / "x.safetensors"
    with caplog.at_level(logging.WARNING):
        for compute in (lambda: FIRST, never):
            assert_equal(stored(path, "one", compute, "x"), FIRST)
        assert_equal(stored(path, "two", lambda: OTHER, "x"), OTHER)
        assert_equal(stored(path, "two", never, "x"), OTHER)
    assert not caplog.text and [file.name for file in tmp_path.iterdir()] == ["x.safetensors"]


DAMAGES = {
    "a changed number": lambda data: data[:-1] + bytes([data[-1] ^ 1]), "empty": lambda data: b"", "cut": lambda data: data[:-3],
    "a header alone": lambda data: data[:50], "no such file": lambda data: b"x" * 100, "a pickle": lambda data: b"\x80\x04." * 50,
}  # fmt: skip


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES.keys())
def test_a_damaged_file_is_written_anew(tmp_path, damage, caplog):
    path = tmp_path / "x.safetensors"
    stored(path, "one", lambda: FIRST, "x")
    path.write_bytes(damage(path.read_bytes()))
    with caplog.at_level(logging.WARNING):
        assert_equal(stored(path, "one", lambda: FIRST, "x"), FIRST)
    assert f"{path} " in caplog.text and "is written anew" in caplog.text
    assert_equal(stored(path, "one", never, "x"), FIRST)


def test_a_file_of_another_program_is_written_anew(tmp_path):
    path = tmp_path / "x.safetensors"
    save_file(OTHER, path)
    assert_equal(stored(path, "one", lambda: FIRST, "x"), FIRST)
    save_file(OTHER, path, {"fingerprint": "one", "content": "0" * 64})
    assert_equal(stored(path, "one", lambda: FIRST, "x"), FIRST)
    assert_equal(load_file(path), FIRST)


def test_another_shape_of_the_same_bytes_is_damage(tmp_path):
    path = tmp_path / "x.safetensors"
    stored(path, "one", lambda: FIRST, "x")
    path.write_bytes(path.read_bytes().replace(b"[2,3]", b"[3,2]"))
    assert load_file(path)["a"].shape == (3, 2)
    assert_equal(stored(path, "one", lambda: FIRST, "x"), FIRST)


def test_a_place_that_cannot_be_written_gets_a_warning(tmp_path, caplog):
    with caplog.at_level(logging.WARNING):
        assert_equal(stored(tmp_path / "no" / "x.safetensors", "one", lambda: FIRST, "the tokens"), FIRST)
    assert "cannot be written" in caplog.text and "the tokens will be computed again next time" in caplog.text
    assert not list(tmp_path.iterdir())


@given(st.lists(st.text(max_size=3), max_size=4), st.lists(st.text(max_size=3), max_size=4))
def test_fingerprints_tell_lists_of_texts_apart(one, other):
    assert (fingerprint(one) == fingerprint(other)) == (one == other)


def test_lone_surrogates_have_a_fingerprint():
    assert fingerprint("\ud800", 1) != fingerprint("\ud801", 1)
