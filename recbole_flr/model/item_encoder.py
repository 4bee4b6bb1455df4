"""The encoder `items` of FLRMix: a small causal transformer over one vector for each item of the history, as in SASRec (Kang and
McAuley, ICDM 2018).

:class:`ItemEncoder` is called in the same way as :class:`recbole_flr.model.backbone.Backbone`. So the reasoner reads its thought
with either. :class:`ItemReader` reads whole histories with it.

Shapes: B batch, H items of a history (right-padded with item 0), S new tokens, P cached tokens, D width, n items.
"""

import torch
from torch import nn

from recbole_flr.errors import ConfigError
from recbole_flr.model.reasoner import read_prompt


class Layer(nn.Module):
    """Self-attention and a feed-forward network, each followed by a sum and a layer norm.

    Args:
        width: D.
        heads: number of attention heads; D is a multiple of it.
        dropout: on both outputs and on the attention.
    """

    def __init__(self, width, heads, dropout):
        super().__init__()
        self.heads, self.dropout = heads, dropout
        self.inputs, self.output = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.feed_forward = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))
        self.attention_norm, self.output_norm = nn.LayerNorm(width), nn.LayerNorm(width)
        self.drop = nn.Dropout(dropout)

    def forward(self, x, visible, past=None):
        """x [B, S, D], visible [B, 1, S, P + S] bool, past a pair [B, heads, P, d] -> the new x, and the longer pair."""
        query, key, value = (part.unflatten(-1, (self.heads, -1)).transpose(1, 2) for part in self.inputs(x).chunk(3, dim=-1))
        if past is not None:
            key, value = torch.cat([past[0], key], dim=2), torch.cat([past[1], value], dim=2)
        dropout = self.dropout if self.training else 0.0
        seen = nn.functional.scaled_dot_product_attention(query, key, value, attn_mask=visible, dropout_p=dropout)
        x = self.attention_norm(x + self.drop(self.output(seen.transpose(1, 2).flatten(2))))
        return self.output_norm(x + self.drop(self.feed_forward(x))), (key, value)


class ItemEncoder(nn.Module):
    """Reads item vectors, and thoughts behind them.

    Args:
        width: D.
        layers: number of layers.
        heads: attention heads of a layer.
        dropout: on the input, in each layer, and on the attention.
        max_length: most items of a history. The thought comes right behind them.
    """

    def __init__(self, width, layers, heads, dropout, max_length):
        super().__init__()
        self.width = width
        self.position = nn.Embedding(max_length + 1, width)
        self.norm, self.drop = nn.LayerNorm(width), nn.Dropout(dropout)
        self.layers = nn.ModuleList(Layer(width, heads, dropout) for _ in range(layers))

    def forward(self, embeddings, mask, positions, cache=None, keep_cache=False):
        """Read new tokens behind those in the cache.

        Args:
            embeddings: [B, S, D].
            mask: [B, P + S], True at real tokens (causal among the new ones), or [B, S, P + S], True where token s may see key p.
            positions: [B, S].
            cache: pairs [B, heads, P, d], one for each layer, or None. It is not changed.
            keep_cache: whether to return the longer cache.

        Returns:
            hidden [B, S, D], and the longer cache (None unless keep_cache).
        """
        if mask.dim() == 2:
            mask = self._causal(mask, embeddings.shape[1])
        x = self.drop(self.norm(embeddings + self.position(positions)))
        longer = []
        for number, layer in enumerate(self.layers):
            x, pair = layer(x, mask.unsqueeze(1), None if cache is None else cache[number])
            longer.append(pair)
        return x, tuple(longer) if keep_cache else None

    @staticmethod
    def _causal(mask, new):
        """[B, P + S] -> [B, S, P + S]: each of the S new tokens sees the real ones up to itself. Padding sees itself too, so that
        its softmax is no NaN."""
        total = mask.shape[1]
        causal = torch.ones(new, total, dtype=torch.bool, device=mask.device).tril(total - new)
        itself = torch.eye(total, dtype=torch.bool, device=mask.device)[total - new:]
        return causal & (mask.unsqueeze(1) | itself)

    @staticmethod
    def crop(cache, length):
        """The first `length` tokens of a cache; shares memory."""
        return tuple((keys[:, :, :length], values[:, :, :length]) for keys, values in cache)


class ItemReader(nn.Module):
    """Reads a history as the vectors of its items (`backbone: items`).

    Args:
        config: hidden_size, n_layers, n_heads and dropout.
        max_length: most items of a history.

    Raises:
        ConfigError: if n_heads does not divide hidden_size, or hidden_size is odd.
    """

    reads_text = False

    def __init__(self, config, max_length):
        super().__init__()
        width, heads = config["hidden_size"], config["n_heads"]
        if width % heads or width % 2:
            raise ConfigError(f"hidden_size: found {width}, expected an even number that n_heads = {heads} divides")
        self.encoder = ItemEncoder(width, config["n_layers"], heads, config["dropout"], max_length)

    @property
    def width(self):
        """D."""
        return self.encoder.width

    def read(self, history, length, vectors, prompt_only, first_thought):
        """Read histories. Returns a :class:`recbole_flr.model.reasoner.Context`.

        Args:
            history: [B, H] item ids.
            length: [B] items of each history.
            vectors: [n, D], the item vectors.
            prompt_only: the context must not depend on the reasoner.
            first_thought: [D], read in the same pass if not `prompt_only`.
        """
        mask = history != 0
        context = read_prompt(self.encoder, vectors[history], mask, True, None if prompt_only else first_thought)
        context.item = torch.where(mask, torch.arange(history.shape[1], device=history.device), -1)
        return context
