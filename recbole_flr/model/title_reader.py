"""How FLRMix reads a history as titles, with a causal language model. It also writes titles.

Shapes: B batch, H items of a history (right-padded with item 0), L tokens, D width, n items.
"""

from torch import nn

from recbole_flr.decoding import item_scores
from recbole_flr.model.titles import TitleModel


class TitleReader(TitleModel):
    """Reads the titles of a history with a causal language model (`backbone: compact`, or one of Hugging Face).

    The vector of an item is added to the embedding of the last token of the item's part of the prompt (the end of the title, or the
    mark behind it), so that ids are read as well.

    Args:
        config: see `properties/generative.yaml`.
        catalog: :class:`recbole_flr.data.catalog.Catalog`.
    """

    reads_text = True

    def __init__(self, config, catalog):
        super().__init__()
        self.build_titles(config, catalog)

    @property
    def encoder(self):
        """What reads one more token."""
        return self.backbone

    @property
    def width(self):
        """D."""
        return self.backbone.width

    def read(self, history, length, vectors, prompt_only, first_thought):
        """As :meth:`recbole_flr.model.item_encoder.ItemReader.read`."""
        return self.read_histories(history, length, prompt_only, first_thought, vectors)

    def rank_titles(self, thought, top, n_items):
        """Rank by the titles that are written: [B, n_items]. Items outside the best `top` texts have -inf."""
        return item_scores(self.decode(thought, top), self.trie, n_items)

    def title_means(self):
        """Mean of the token embeddings of each item's title: [n, D]; 0 for the padding."""
        titles, embeddings = self.title_tokens, self.backbone.lm.get_input_embeddings().weight
        return nn.functional.embedding_bag(titles.flat, embeddings, titles.start[:-1], mode="mean")
