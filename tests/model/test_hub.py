"""A missing model is named as what it is, and an unreachable hub is noticed at once."""

import time

import pytest

from recbole_flr.errors import ConfigError
from recbole_flr.model import hub
from recbole_flr.model.hub import check_model


@pytest.mark.parametrize("name, said", [
    ("./nowhere", "there is no such folder"), ("/no/where", "there is no such folder"), ("a/b/c", "there is no such folder"),
    ("x\0y", "neither a folder nor a hub name"), ("no such", "neither a folder nor a hub name"),
    ("nosuch/model", "HF_HUB_OFFLINE forbids to ask the hub"),
])
def test_a_missing_model(name, said, monkeypatch):
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(ConfigError, match="^backbone: found .*") as caught:
        check_model(name, "backbone", "'compact'")
    assert said in str(caught.value) and "expected 'compact'" in str(caught.value)


def test_a_file_is_no_model(tmp_path):
    (tmp_path / "x").write_text("x")
    with pytest.raises(ConfigError, match="it is a file"):
        check_model(str(tmp_path / "x"), "tokenizer", "a folder")
    check_model(str(tmp_path), "tokenizer", "a folder")


def test_an_unreachable_hub(monkeypatch):
    """One question, not the retries of transformers, which take almost a minute."""
    import huggingface_hub
    from huggingface_hub import constants

    asked = []

    def unreachable(url, timeout):
        asked.append(url)
        raise OSError("Name or service not known")

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(huggingface_hub, "get_hf_file_metadata", unreachable)
    start = time.perf_counter()
    with pytest.raises(ConfigError, match=r"the hub does not give it \(Name or service not known\)"):
        check_model("nosuch/model", "backbone", "'compact'")
    assert time.perf_counter() - start < 20 and len(asked) == 1 and hub.SECONDS <= 10
