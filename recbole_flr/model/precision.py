"""The precision in which a backbone stores its weights and computes."""

from contextlib import nullcontext

import torch
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

FLOAT32_ATTENTION = "sdpa_float32"  # name of our attention in transformers


def precision_of(config, pretrained):
    """The dtype of a backbone's weights, and whether it computes in mixed precision.

    Args:
        config: needs torch_dtype, trainable and device.
        pretrained: whether the weights come from elsewhere.

    Returns:
        torch.dtype, and True for `torch_dtype: mixed`: float32 weights whose matrix products are computed in bfloat16. `auto` is
        bfloat16 where a GPU has it and no small steps are lost, that is for a pretrained backbone that is not trained as a whole.
    """
    if config["torch_dtype"] == "mixed":
        return torch.float32, True
    if config["torch_dtype"] != "auto":
        return getattr(torch, config["torch_dtype"]), False
    on_gpu = torch.device(config["device"]).type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)
    return torch.bfloat16 if on_gpu and pretrained and config["trainable"] != "full" else torch.float32, False


def computing(device, mixed):
    """A context in which matrix products are computed in bfloat16, if `mixed`; otherwise one that changes nothing."""
    return torch.autocast(torch.device(device).type, torch.bfloat16) if mixed else nullcontext()


def use_fast_attention(lm, device, mixed):
    """On a CPU, let attention compute in float32 if the rest computes in bfloat16.

    Its backward pass in bfloat16 is 8 to 10 times slower there (torch 2.13), which costs more than the matrix products gain.
    """
    low = mixed or next(lm.parameters()).dtype == torch.bfloat16
    if low and torch.device(device).type == "cpu" and lm.config._attn_implementation == "sdpa":
        lm.set_attn_implementation(FLOAT32_ATTENTION)


def sdpa_float32(module, query, key, value, attention_mask, **settings):
    """transformers' attention `sdpa`, computed in float32. Shapes are those of transformers."""
    if attention_mask is not None and attention_mask.dtype != torch.bool:
        attention_mask = attention_mask.float()
    with torch.autocast(query.device.type, enabled=False):
        out, weights = sdpa_attention_forward(module, query.float(), key.float(), value.float(), attention_mask, **settings)
    return out.to(query.dtype), weights


AttentionInterface.register(FLOAT32_ATTENTION, sdpa_float32)
AttentionMaskInterface.register(FLOAT32_ATTENTION, sdpa_mask)
