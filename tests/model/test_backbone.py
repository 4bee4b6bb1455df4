"""Loading and building backbones, tokenising, logits, and the cache, which a pass never changes."""

import copy

import pytest
import torch
from transformers import AutoModelForCausalLM

from recbole_flr.errors import ConfigError
from recbole_flr.model.backbone import (
    END_OF_TITLE, THOUGHT, Backbone, build_backbone, growing, load_tokenizer, train_tokenizer,
)  # fmt: skip

OPTIONS = {
    "backbone": "compact", "tokenizer": None, "trainable": "full", "torch_dtype": "float32", "attn_implementation": "sdpa",
    "gradient_checkpointing": False, "torch_compile": False, "embedding_dropout": 0.0, "compact_vocab_size": 300,
    "compact_hidden_size": 16,
    "compact_layers": 2, "compact_heads": 2, "compact_dropout": 0.0, "lora_rank": 2, "lora_alpha": 4, "lora_dropout": 0.0,
    "lora_target_modules": None, "device": "cpu",
}
NASTY = ["<|Thought|>", "<|endoftext|> <|im_end|>", END_OF_TITLE, 'a "b"\tc\nd', "  two  blanks ", "🎲 積み木", "\\t"]


def made(**options):
    return build_backbone({**OPTIONS, **options}, ["Robot Wars", "Blue Castle"])


@pytest.mark.parametrize("family", [None, "qwen2", "llama", "gpt2"])
def test_text_is_data(saved_models, family):
    backbone = made() if family is None else made(backbone=str(saved_models[family]))
    special = set(backbone.tokenizer.all_special_ids)
    assert {backbone.thought_id, backbone.end_id} <= special
    for text, tokens in zip(NASTY, backbone.encode(NASTY)):
        assert not special & set(tokens), text
        assert backbone.tokenizer.decode(tokens) == text
    assert backbone.encode([]) == []


@pytest.mark.parametrize("family", ["qwen2", "llama", "gpt2"])
def test_pretrained_models_give_transformers_own_logits(saved_models, family):
    folder = str(saved_models[family])
    backbone = made(backbone=folder).eval()
    own = AutoModelForCausalLM.from_pretrained(folder).eval()
    ids = torch.tensor([[5, 9, 40, 41], [7, 8, 9, 10]])
    positions = torch.arange(4).expand(2, -1)
    hidden, _ = backbone(backbone.embed(ids), torch.ones(2, 4, dtype=torch.bool), positions)
    expected = own(ids).logits  # the vocabulary may have grown by <|Thought|>
    torch.testing.assert_close(backbone.logits(hidden)[..., :expected.shape[-1]], expected)


@pytest.mark.parametrize("family", ["qwen2", "llama", "gpt2"])
@pytest.mark.parametrize("trainable", ["full", "lora", "frozen"])
def test_what_is_trained(saved_models, family, trainable):
    backbone = made(backbone=str(saved_models[family]), trainable=trainable)
    before = {name: p.clone() for name, p in backbone.named_parameters()}
    names = {name for name, p in backbone.named_parameters() if p.requires_grad}
    if trainable == "full":
        assert names == set(before)
    elif trainable == "lora":
        assert names and all("lora_" in name for name in names)
    else:
        assert not names
        return
    ids, positions = torch.tensor([[5, 9, 40]]), torch.arange(3)[None]
    optimizer = torch.optim.SGD([p for p in backbone.parameters() if p.requires_grad], lr=1.0)
    for _ in range(2):  # LoRA's B is zero at first, so A moves only in the second step
        hidden, _ = backbone(backbone.embed(ids), torch.ones_like(ids, dtype=torch.bool), positions)
        backbone.logits(hidden).square().mean().backward()
        optimizer.step()
    moved = {name for name, p in backbone.named_parameters() if not torch.equal(p, before[name])}
    assert moved and moved <= names


def test_bf16_backbone_and_float_mask():
    backbone = made(torch_dtype="bfloat16")
    assert next(backbone.lm.parameters()).dtype == torch.bfloat16
    ids, positions = torch.tensor([[5, 9, 40]]), torch.arange(3)[None]
    causal = torch.ones(1, 3, 3).tril().bool()
    own, _ = backbone(backbone.embed(ids), torch.ones(1, 3, dtype=torch.bool), positions)
    spelled, _ = backbone(backbone.embed(ids), causal, positions)
    torch.testing.assert_close(own, spelled, rtol=2e-2, atol=2e-2)


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_cache_is_never_changed_and_can_be_continued_twice(attention):
    backbone = made(attn_implementation=attention).double().eval()
    ids = torch.tensor([[5, 9, 40, 41, 42]])
    positions = torch.arange(5)[None]
    whole, _ = backbone(backbone.embed(ids), torch.ones(1, 5, dtype=torch.bool), positions)
    _, cache = backbone(backbone.embed(ids[:, :3]), torch.ones(1, 3, dtype=torch.bool), positions[:, :3], keep_cache=True)
    before = [(k.clone(), v.clone()) for k, v in cache]
    for _ in range(2):
        rest, longer = backbone(
            backbone.embed(ids[:, 3:]), torch.ones(1, 5, dtype=torch.bool), positions[:, 3:], cache, keep_cache=True
        )
        torch.testing.assert_close(rest, whole[:, 3:], rtol=1e-6, atol=1e-6)
        assert longer[0][0].shape[2] == 5
    for (k, v), (k_, v_) in zip(cache, before):
        assert torch.equal(k, k_) and torch.equal(v, v_)
    assert Backbone.crop(longer, 3)[0][0].shape[2] == 3


def test_a_compiled_backbone_gives_what_a_plain_one_gives(monkeypatch):
    """With a cache and the mask of a tree. The graph is only traced, as compiling takes a minute. A copy is not compiled."""
    whole, calls = torch.nn.Module.compile, []
    monkeypatch.setattr(torch.nn.Module, "compile", lambda self, **options: whole(self, backend=backend, **options))

    def backend(graph, inputs):
        calls.append(graph)
        return graph.forward

    torch.manual_seed(0)
    plain = made().eval()
    compiled = made(torch_compile=True).eval()
    compiled.load_state_dict(plain.state_dict())
    ids, positions = torch.tensor([[5, 9, 40, 41, 42]]), torch.arange(5)[None]
    seen = torch.ones(1, 5, 5, dtype=torch.bool).tril()
    found = []
    for backbone in (plain, compiled, copy.deepcopy(compiled)):
        before = len(calls)
        _, cache = backbone(backbone.embed(ids[:, :3]), seen[:, 0, :3] | True, positions[:, :3], keep_cache=True)
        found.append(backbone(backbone.embed(ids[:, 3:]), seen[:, 3:], positions[:, 3:], growing(cache))[0])
        assert (len(calls) > before) == (backbone is compiled)
    torch.testing.assert_close(found[1], found[0])
    torch.testing.assert_close(found[2], found[0])


@pytest.mark.parametrize("room", [0, 1, 2, 50])
def test_a_cache_that_grows_in_place_gives_what_one_pass_gives(room):
    backbone = made().double().eval()
    ids, positions = torch.tensor([[5, 9, 40, 41, 42, 7, 8]]), torch.arange(7)[None]
    seen = torch.ones(1, 7, dtype=torch.bool)
    whole, _ = backbone(backbone.embed(ids), seen, positions)
    _, cache = backbone(backbone.embed(ids[:, :3]), seen[:, :3], positions[:, :3], keep_cache=True)
    before = [(k.clone(), v.clone()) for k, v in cache]
    grown = growing(cache, room)
    with torch.no_grad():
        for start, end in ((3, 4), (4, 6), (6, 7)):
            earlier = [layer.keys for layer in grown.layers]
            kept = [keys.clone() for keys in earlier]
            rest, _ = backbone(backbone.embed(ids[:, start:end]), seen[:, :end], positions[:, start:end], grown)
            torch.testing.assert_close(rest, whole[:, start:end], rtol=1e-6, atol=1e-6)
            assert all(layer.keys.shape[2] == layer.values.shape[2] == end for layer in grown.layers)
            assert all(torch.equal(keys, copy) for keys, copy in zip(earlier, kept))  # earlier views keep their values
    assert all(torch.equal(k, k_) and torch.equal(v, v_) for (k, v), (k_, v_) in zip(cache, before))


def test_a_row_whose_mask_is_empty_gives_no_nan():
    backbone = made()
    hidden, _ = backbone(torch.randn(1, 2, 16), torch.zeros(1, 2, 2, dtype=torch.bool), torch.zeros(1, 2, dtype=torch.long))
    assert hidden.isfinite().all()


@torch.no_grad()
def test_attention_with_grouped_keys_gives_what_copied_keys_give(saved_models, monkeypatch):
    """On a CPU, grouped keys are not copied for each head. Left padding, several branches and a cache."""
    backbone = made(backbone=str(saved_models["llama"])).eval()
    settings = backbone.lm.config
    assert settings.num_key_value_heads < settings.num_attention_heads
    torch.manual_seed(0)
    embeddings, mask = torch.randn(3, 9, 16), torch.arange(9) >= torch.tensor([[0], [4], [8]])
    branches = torch.rand(3, 5, 14) < 0.7
    found = []
    for grouped in "10":
        monkeypatch.setenv("TRANSFORMERS_SDPA_FORCE_GQA", grouped)
        hidden, cache = backbone(embeddings, mask, (mask.cumsum(1) - 1).clamp_min(0), keep_cache=True)
        more, _ = backbone(embeddings[:, :5], branches, torch.full((3, 5), 9), cache)
        found.append((hidden[mask], more[branches.any(2)]))
    for one, other in zip(*found):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-5)


def test_missing_models_are_one_clear_error(tmp_path):
    with pytest.raises(ConfigError, match="nowhere.*could not be loaded"):
        made(backbone=str(tmp_path / "nowhere"))


def test_a_model_without_safetensors_is_refused(saved_models, tmp_path):
    # a .bin file is a pickle
    folder = tmp_path / "pickled"
    folder.mkdir()
    for file in saved_models["qwen2"].iterdir():
        if file.suffix != ".safetensors":
            (folder / file.name).write_bytes(file.read_bytes())
    torch.save({}, folder / "pytorch_model.bin")
    with pytest.raises(ConfigError, match="safetensors"):
        made(backbone=str(folder))


def test_a_tokenizer_without_end_is_refused(saved_models):
    tokenizer = load_tokenizer(saved_models["qwen2"])
    tokenizer.eos_token = None
    lm = AutoModelForCausalLM.from_pretrained(saved_models["qwen2"])
    with pytest.raises(ConfigError, match="no end-of-text token"):
        Backbone(lm, tokenizer)


def test_embeddings_grow_for_the_thought(saved_models):
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    plain = Tokenizer(models.BPE(vocab={c: n for n, c in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}, merges=[]))
    plain.pre_tokenizer, plain.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=plain, eos_token="</s>")
    lm = AutoModelForCausalLM.from_pretrained(saved_models["qwen2"])
    lm.resize_token_embeddings(257)  # 256 bytes and </s>: no room for <|Thought|>
    backbone = Backbone(lm, tokenizer)
    assert backbone.thought_id == 257 and lm.get_input_embeddings().num_embeddings == 258
    assert backbone.tokenizer.convert_ids_to_tokens(257) == THOUGHT


def test_tokenizer_training_is_deterministic():
    texts = ["Robot Wars", "Robot Rescue", "Blue Castle"] * 2
    one, two = (train_tokenizer(texts, 300).get_vocab() for _ in range(2))
    assert one == two and len(one) <= 300


@pytest.mark.parametrize("family, extra", [("granite", {"logits_scaling": 8.0}), ("cohere", {"logit_scale": 0.25}),
                                           ("gemma2", {"head_dim": 8, "final_logit_softcapping": 5.0})])
def test_families_that_scale_their_logits(tmp_path, saved_models, family, extra):
    from transformers import AutoConfig

    small = dict(hidden_size=16, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2, num_key_value_heads=1)
    settings = AutoConfig.for_model(family, vocab_size=340, pad_token_id=0, bos_token_id=1, eos_token_id=2, **small, **extra)
    torch.manual_seed(0)
    own = AutoModelForCausalLM.from_config(settings).eval()
    torch.nn.init.normal_(own.get_output_embeddings().weight)  # large enough for a cap on the logits to act
    backbone = Backbone(own, load_tokenizer(saved_models["qwen2"])).eval()
    backbone.check_logits()
    ids, positions = torch.tensor([[5, 9, 40]]), torch.arange(3)[None]
    hidden, _ = backbone(backbone.embed(ids), torch.ones(1, 3, dtype=torch.bool), positions)
    torch.testing.assert_close(backbone.logits(hidden), own(ids).logits, rtol=1e-4, atol=1e-5)


def test_a_model_with_unknown_logits_is_refused(saved_models):
    lm = AutoModelForCausalLM.from_pretrained(saved_models["qwen2"])
    backbone = Backbone(lm, load_tokenizer(saved_models["qwen2"]))
    own = lm.forward
    lm.forward = lambda *args, **kwargs: type("Out", (), {"logits": own(*args, **kwargs).logits * 3})
    with pytest.raises(ConfigError, match="in a way that recbole_flr does not know"):
        backbone.check_logits()
    assert backbone.training


@pytest.mark.parametrize("options, message", [
    ({"trainable": "frozen"}, "trainable: found 'frozen', expected 'full'"),
    ({"compact_hidden_size": 18, "compact_heads": 2}, "expected a multiple of 2 . compact_heads = 4"),
    ({"backbone": "qwen2", "trainable": "lora", "lora_target_modules": ["nope"]}, "lora_target_modules: found .'nope'."),
])
def test_impossible_combinations_are_refused(saved_models, options, message):
    if "backbone" in options:
        options = {**options, "backbone": str(saved_models["qwen2"])}
    with pytest.raises(ConfigError, match=message):
        made(**options)
