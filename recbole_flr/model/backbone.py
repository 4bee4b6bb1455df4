"""The causal language model: built small, or loaded by name; its trunk, its cache, its vocabulary projection.

Everything above this file sees embeddings, hidden states and a functional cache (a tuple of key/value pairs that is
never changed in place, so that several continuations of one prompt can share it).

Shapes: B batch, S new tokens, P cached tokens, D hidden width, V vocabulary.
"""

import copy
import os
from pathlib import Path

import tokenizers
import torch
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, DynamicCache, PreTrainedTokenizerFast
from transformers.cache_utils import DynamicLayer

from recbole_flr.distributed import main_first
from recbole_flr.errors import ConfigError, first_line
from recbole_flr.model.hub import check_model
from recbole_flr.model.precision import computing, precision_of, use_fast_attention
from recbole_flr.pretrained import PACKAGES, find_model

THOUGHT = "<|Thought|>"
END_OF_TITLE = "<|endoftitle|>"
START = "<|start|>"
PAD = "<|pad|>"
EXPECTED = (f"'compact', {', '.join(PACKAGES)}, the folder of a saved transformers model with safetensors weights, or a hub name that this machine can "
            "reach")  # for the option backbone


def train_tokenizer(texts, vocab_size):
    """Byte-level BPE learned from the catalogue: every text has exactly one encoding that decodes to itself.

    Args:
        texts: iterable of str.
        vocab_size: upper bound on the number of tokens; at least 256 bytes and four special tokens are always there.
    """
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        special_tokens=[PAD, START, END_OF_TITLE, THOUGHT],
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token=PAD, bos_token=START, eos_token=END_OF_TITLE,
        additional_special_tokens=[THOUGHT],
    )


class GrowingLayer(DynamicLayer):
    """Keys and values of one layer, with room behind them: more tokens are written there instead of copying all anew.

    Args:
        keys, values: [B, heads, P, d], copied; no gradient reaches them.
        room: tokens.
    """

    def __init__(self, keys, values, room):
        super().__init__()
        self.dtype, self.device, self.is_initialized = keys.dtype, keys.device, True
        self._length = 0
        self._stored = [self._wider(x, keys.shape[2] + room) for x in (keys[:, :, :0], values[:, :, :0])]
        self.update(keys, values)

    @staticmethod
    def _wider(x, capacity):
        return x.new_empty(*x.shape[:2], capacity, x.shape[3])

    def update(self, key_states, value_states, *args, **kwargs):
        """Append tokens [B, heads, S, d]; returns all keys and all values, views that later appends do not change."""
        old, self._length = self._length, self._length + key_states.shape[2]
        for place, new in enumerate((key_states, value_states)):
            if self._length > self._stored[place].shape[2]:
                wider = self._wider(new, 2 * self._length)
                wider[:, :, :old] = self._stored[place][:, :, :old]
                self._stored[place] = wider
            self._stored[place][:, :, old : self._length] = new.detach()
        self.keys, self.values = (stored[:, :, : self._length] for stored in self._stored)
        return self.keys, self.values


def growing(cache, room=64):
    """A cache that grows in place, with a copy of the pairs [B, heads, P, d] of `cache` in it; not for training."""
    past = DynamicCache()
    past.layers += [GrowingLayer(keys, values, room) for keys, values in cache]
    return past


class Backbone(nn.Module):
    """A causal language model and its tokenizer.

    Args:
        lm: a transformers causal LM.
        tokenizer: its tokenizer; gets `<|Thought|>` as a special token if it lacks it.
        trainable: ``full``, ``lora`` or ``frozen``.
        lora: keyword arguments for :class:`peft.LoraConfig`.
        dropout: on the input embeddings while training.
        pretrained: whether the weights come from elsewhere.
        mixed: compute matrix products in bfloat16, whatever the dtype of the weights.
    """

    def __init__(self, lm, tokenizer, trainable="full", lora=None, dropout=0.0, pretrained=True, mixed=False):
        super().__init__()
        self.tokenizer, self.pretrained, self.mixed = tokenizer, pretrained, mixed
        tokenizer.add_special_tokens({"additional_special_tokens": [THOUGHT]}, replace_extra_special_tokens=False)
        self.thought_id = tokenizer.convert_tokens_to_ids(THOUGHT)
        if tokenizer.eos_token_id is None:
            raise ConfigError(
                "the backbone's tokenizer has no end-of-text token, which is needed to end a title; "
                "set one (tokenizer.eos_token) and save the tokenizer again"
            )
        self.end_id = tokenizer.eos_token_id
        self.start_id = tokenizer.bos_token_id
        self.pad_id = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else self.end_id
        if len(tokenizer) > lm.get_input_embeddings().num_embeddings:
            lm.resize_token_embeddings(len(tokenizer))
        self.dropout = nn.Dropout(dropout)
        self.lm = self._set_trainable(lm, trainable, lora or {})

    @staticmethod
    def _set_trainable(lm, trainable, lora):
        if trainable != "full":
            lm.requires_grad_(False)
        if trainable == "lora":
            from peft import LoraConfig, inject_adapter_in_model

            lm = inject_adapter_in_model(LoraConfig(**lora), lm)
        return lm

    @property
    def width(self):
        """D."""
        return self.lm.get_input_embeddings().embedding_dim

    def encode(self, texts):
        """list of str -> list of token id lists. Text is data: nothing in it becomes a special token."""
        if not texts:
            return []
        return self.tokenizer(list(texts), add_special_tokens=False, split_special_tokens=True)["input_ids"]

    def tokenizer_state(self):
        """All that :meth:`encode` depends on, as a text; None for a tokenizer that cannot tell."""
        if not isinstance(self.tokenizer, PreTrainedTokenizerFast):
            return None
        return f"tokenizers {tokenizers.__version__} {self.tokenizer.backend_tokenizer.to_str()}"

    def embed(self, tokens):
        """[...] int64 -> [..., D]."""
        return self.dropout(self.lm.get_input_embeddings()(tokens))

    def logits(self, hidden, tokens=None):
        """[..., D] -> [..., V]; of `tokens` [n] alone, if they are given: [..., n]."""
        settings, head = self.lm.config, self.lm.get_output_embeddings()
        with computing(hidden.device, self.mixed):
            if tokens is None or type(head) is not nn.Linear:  # a layer of LoRA, say
                logits = head(hidden) if tokens is None else head(hidden)[..., tokens]
            else:
                logits = nn.functional.linear(hidden, head.weight[tokens], None if head.bias is None else head.bias[tokens])
        scale = (getattr(settings, "logit_scale", None) or 1) / (getattr(settings, "logits_scaling", None) or 1)
        logits = logits if scale == 1 else logits * scale  # no product with 1: it would copy all logits
        cap = getattr(settings, "final_logit_softcapping", None)
        return logits if cap is None else torch.tanh(logits / cap) * cap

    @torch.no_grad()
    def check_logits(self):
        """Compare :meth:`logits` with the model's own on three tokens; some families scale theirs in ways of their own.

        Raises:
            ConfigError: if they differ.
        """
        ids = torch.tensor([[0, 1, 2]], device=self.lm.device)
        training = self.training
        self.eval()
        own = self.lm(input_ids=ids).logits
        hidden, _ = self(self.embed(ids), torch.ones_like(ids, dtype=torch.bool), torch.arange(3, device=ids.device)[None])
        self.train(training)
        gap = (self.logits(hidden) - own).abs().max() / own.abs().max().clamp_min(1e-6)
        if not gap < 0.05:
            raise ConfigError(f"backbone: {type(self.lm).__name__} computes its logits in a way that recbole_flr does not "
                              f"know (they differ by {gap:.0%}); expected a model such as Qwen, Llama, Mistral, Gemma or GPT-2")

    def forward(self, embeddings, mask, positions, cache=None, keep_cache=False):
        """Run the trunk.

        Args:
            embeddings: [B, S, D].
            mask: [B, P + S], True at real tokens (causal among the new ones), or [B, S, P + S], True where token s
                may see key p.
            positions: [B, S].
            cache: pairs [B, heads, P, d], one for each layer; or what :func:`growing` made, which then holds the new tokens,
                too; or None.
            keep_cache: whether to return the longer cache.

        Returns:
            hidden [B, S, D] after the last norm, and the cache with the new tokens (None unless keep_cache).
        """
        embeddings = embeddings.to(self.lm.get_input_embeddings().weight.dtype)  # a thought may be more precise
        if mask.dim() == 3:  # additive and finite: works in every attention, and a row that sees nothing is no NaN
            blocked = torch.zeros(mask.shape, dtype=embeddings.dtype, device=mask.device)
            lowest = torch.finfo(torch.bfloat16 if self.mixed else embeddings.dtype).min
            mask = blocked.masked_fill_(~mask, lowest).unsqueeze(1)
        past = cache if isinstance(cache, DynamicCache) else self._past(cache or ())
        use_cache = keep_cache or cache is not None
        with computing(embeddings.device, self.mixed):
            out = self.lm.base_model(
                inputs_embeds=embeddings, attention_mask=mask, position_ids=positions,
                past_key_values=past if use_cache else None, use_cache=use_cache,
            )
        kept = tuple((layer.keys, layer.values) for layer in past.layers) if keep_cache else None
        return out.last_hidden_state.to(embeddings.dtype), kept

    @staticmethod
    def _past(cache):
        past = DynamicCache()
        for keys, values in cache:  # set, not updated: an update would copy the prompt's cache
            layer = DynamicLayer()
            layer.keys, layer.values, layer.is_initialized = keys, values, True
            layer.dtype, layer.device = keys.dtype, keys.device
            past.layers.append(layer)
        return past

    @staticmethod
    def crop(cache, length):
        """The first `length` tokens of a cache; shares memory."""
        return tuple((keys[:, :, :length], values[:, :, :length]) for keys, values in cache)

    def save(self, folder):
        """Write the tokenizer files; the weights are the checkpoint's."""
        self.tokenizer.save_pretrained(folder)

    def export(self, folder):
        """Write weights, configuration and tokenizer as a folder that transformers loads. LoRA is merged into the weights."""
        lm = copy.deepcopy(self.lm)
        if any(".lora_" in name for name, _ in lm.named_parameters()):
            from peft.tuners.tuners_utils import BaseTunerLayer

            for name, layer in [each for each in lm.named_modules() if isinstance(each[1], BaseTunerLayer)]:
                layer.merge()
                lm.set_submodule(name, layer.get_base_layer())
        lm.save_pretrained(folder)
        self.save(folder)


def build_backbone(config, texts):
    """The backbone that the options ask for.

    Args:
        config: needs backbone, trainable, lora_*, torch_dtype, torch_compile, tokenizer, device and, for ``compact``,
            compact_*.
        texts: the catalogue's titles, from which the compact tokenizer is learned.

    Raises:
        ConfigError: if the model cannot be loaded.
    """
    compact = config["backbone"] == "compact"
    if compact and config["trainable"] != "full":
        raise ConfigError(f"trainable: found {config['trainable']!r}, expected 'full': the compact backbone starts from random "
                          "weights, which must be trained")
    dtype, mixed = precision_of(config, pretrained=not compact)
    if torch.device(config["device"]).type == "cpu":  # or transformers would copy grouped keys for each head where there is a mask
        os.environ.setdefault("TRANSFORMERS_SDPA_FORCE_GQA", "1")
    if compact:
        tokenizer = load_tokenizer(config["tokenizer"]) if config["tokenizer"] else train_tokenizer(
            texts, config["compact_vocab_size"]
        )
        lm = compact_lm(config, tokenizer).to(dtype)
    else:
        with main_first():  # it converts a model that is not there yet
            name = find_model(config["backbone"])
        check_model(name, "backbone", EXPECTED)
        tokenizer = load_tokenizer(config["tokenizer"] or name)
        try:
            lm = AutoModelForCausalLM.from_pretrained(
                name, dtype=dtype, attn_implementation=config["attn_implementation"],
                use_safetensors=True,
            )
        except (OSError, ValueError) as error:
            raise ConfigError(
                f"backbone: found {config['backbone']!r}, which could not be loaded ({first_line(error)}); expected {EXPECTED}"
            ) from error
    try:
        backbone = Backbone(
            lm, tokenizer, config["trainable"],
            dict(r=config["lora_rank"], lora_alpha=config["lora_alpha"], lora_dropout=config["lora_dropout"],
                 target_modules=config["lora_target_modules"] or "all-linear"),
            config["embedding_dropout"], pretrained=not compact, mixed=mixed,
        )
    except ValueError as error:  # peft names the layers it did not find
        raise ConfigError(f"lora_target_modules: found {config['lora_target_modules']}; {first_line(error)}") from error
    use_fast_attention(backbone.lm, config["device"], mixed)
    if not compact:
        backbone.check_logits()
    if config["torch_compile"]:
        backbone.lm.base_model.compile(dynamic=True)  # a copy of the backbone, as BIGRec's untuned one, is not compiled
    if config["gradient_checkpointing"]:
        backbone.lm.gradient_checkpointing_enable({"use_reentrant": False})
    return backbone


def load_tokenizer(name):
    """A fast tokenizer by name or path; ConfigError if there is none."""
    check_model(name, "tokenizer", "the folder of a saved tokenizer or a hub name that this machine can reach")
    try:
        if (Path(name) / "tokenizer.json").is_file() and not (Path(name) / "config.json").is_file():
            return PreTrainedTokenizerFast.from_pretrained(name)
        return AutoTokenizer.from_pretrained(name)
    except (OSError, ValueError) as error:
        raise ConfigError(
            f"tokenizer of {name!r} could not be loaded ({first_line(error)}); expected the folder of a saved "
            "tokenizer or a hub name that this machine can reach"
        ) from error


def compact_lm(config, tokenizer):
    """A small Qwen2 with fresh weights, its input and output embeddings tied."""
    width, heads = config["compact_hidden_size"], config["compact_heads"]
    if width % (2 * heads):
        raise ConfigError(f"compact_hidden_size: found {width}, expected a multiple of 2 * compact_heads = {2 * heads}")
    settings = AutoConfig.for_model(
        "qwen2",
        vocab_size=len(tokenizer),
        hidden_size=config["compact_hidden_size"],
        num_hidden_layers=config["compact_layers"],
        num_attention_heads=config["compact_heads"],
        num_key_value_heads=config["compact_heads"],
        intermediate_size=4 * config["compact_hidden_size"],
        attention_dropout=config["compact_dropout"],
        max_position_embeddings=4096,
        tie_word_embeddings=True,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    return AutoModelForCausalLM.from_config(settings, attn_implementation=config["attn_implementation"])
