"""The precision of a backbone: which dtype `auto` means, and mixed precision against float32."""

import pytest
import torch
from transformers.integrations.sdpa_attention import sdpa_attention_forward

from recbole_flr.config import Config
from recbole_flr.model.backbone import build_backbone
from recbole_flr.model.precision import FLOAT32_ATTENTION, precision_of, sdpa_float32

TITLES = ["Toy Story", "Heat", "The Birdcage", "Toy Story 2"]


@pytest.fixture(scope="module")
def made(session_data):
    def build(torch_dtype):
        options = {"data_path": str(session_data), "compact_hidden_size": 16, "compact_layers": 2, "compact_heads": 2,
                   "embedding_dropout": 0.0, "torch_dtype": torch_dtype, "use_gpu": False}
        torch.manual_seed(0)
        return build_backbone(Config("FLR", "tiny", config_dict=options), TITLES)
    return build


@pytest.mark.parametrize("pretrained, trainable, device, expected", [
    (True, "lora", "cuda", torch.bfloat16), (True, "frozen", "cuda", torch.bfloat16), (True, "full", "cuda", torch.float32),
    (False, "full", "cuda", torch.float32), (True, "lora", "cpu", torch.float32), (True, "lora", "old cuda", torch.float32),
])  # fmt: skip
def test_precision_by_itself(monkeypatch, pretrained, trainable, device, expected):
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: including_emulation or device == "cuda")
    config = {"torch_dtype": "auto", "trainable": trainable, "device": torch.device(device.split()[-1])}
    assert precision_of(config, pretrained) == (expected, False)
    assert precision_of({**config, "torch_dtype": "float64"}, pretrained) == (torch.float64, False)
    assert precision_of({**config, "torch_dtype": "mixed"}, pretrained) == (torch.float32, True)


def losses(backbone):
    """A loss of two rows of which one is padded, with a cache and the mask of a tree behind it."""
    ids, mask = torch.tensor([[5, 9, 40], [7, 8, 9]]), torch.tensor([[False, True, True], [True, True, True]])
    places = (mask.cumsum(1) - 1).clamp_min(0)
    first, cache = backbone(backbone.embed(ids), mask, places, keep_cache=True)
    behind = torch.cat([mask[:, None].expand(-1, 2, -1), torch.eye(2).bool().expand(2, -1, -1)], dim=2)
    hidden, _ = backbone(backbone.embed(ids[:, :2]), behind, torch.tensor([[2, 2], [3, 3]]), cache)
    logits = backbone.logits(hidden)
    assert first.dtype == hidden.dtype == backbone.lm.get_input_embeddings().weight.dtype
    return logits.float().log_softmax(-1)[..., 11].sum(), logits


def test_mixed_precision_is_close_to_float32_and_keeps_float32_weights(made):
    exact, mixed = made("float32"), made("mixed")
    mixed.load_state_dict(exact.state_dict())
    results = []
    for backbone in (exact, mixed):
        loss, logits = losses(backbone)
        loss.backward()
        gradient = torch.cat([p.grad.flatten() for p in backbone.parameters() if p.grad is not None])
        assert gradient.dtype == torch.float32
        results.append((loss.item(), gradient, logits.dtype))
    assert results[1][2] == torch.bfloat16 and results[0][2] == torch.float32
    assert results[1][0] == pytest.approx(results[0][0], rel=5e-3)
    assert torch.nn.functional.cosine_similarity(results[0][1], results[1][1], dim=0) > 0.999


@pytest.mark.parametrize("torch_dtype, attention", [
    ("float32", "sdpa"), ("float64", "sdpa"), ("mixed", FLOAT32_ATTENTION), ("bfloat16", FLOAT32_ATTENTION),
])
def test_attention_is_float32_where_the_rest_is_bfloat16(made, torch_dtype, attention):
    assert made(torch_dtype).lm.config._attn_implementation == attention


@pytest.mark.parametrize("masked", [None, "bool", "float"])
def test_attention_in_float32_is_that_of_transformers(masked):
    torch.manual_seed(0)
    query, key, value = (torch.randn(2, 2, 5, 4) for _ in range(3))
    allowed = torch.ones(5, 5).tril().bool().expand(2, 1, 5, 5)
    mask = {None: None, "bool": allowed, "float": torch.zeros(2, 1, 5, 5).masked_fill(~allowed, torch.finfo(torch.bfloat16).min)}[masked]
    module = torch.nn.Module()
    expected, _ = sdpa_attention_forward(module, query, key, value, mask, is_causal=False)
    with torch.autocast("cpu", torch.bfloat16):
        found, _ = sdpa_float32(module, query, key, value, mask, is_causal=False)
    torch.testing.assert_close(found, expected)
