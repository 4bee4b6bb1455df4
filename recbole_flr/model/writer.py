"""The base of all models whose ranking is the titles that they write.

A subclass says which module makes its thought (or what stands in its place) and what it adds to the loss.

Shapes: B batch, L prompt tokens, T title tokens (with the end of title), G thoughts of a prompt, D width, V vocabulary.
"""

from contextlib import contextmanager

from recbole.model.abstract_recommender import SequentialRecommender
from recbole.utils import InputType

from recbole_flr.contracts import LossPart, Recommender, Thinker, total_loss
from recbole_flr.data.catalog import Catalog
from recbole_flr.decoding import item_scores
from recbole_flr.model.titles import TitleModel, check_best_titles
from recbole_flr.ragged import RaggedRows
from recbole_flr.training.supervised import Supervised
from recbole_flr.training.warmup import WarmUp


class Writer(TitleModel, SequentialRecommender, Recommender):
    """A language model that writes the next item's title under a trie of the catalogue.

    Args:
        config: see `properties/generative.yaml` for the options.
        dataset: RecBole training dataset. Its vocabulary names the items; its interactions give their popularity.
    """

    input_type = InputType.POINTWISE
    stages = (WarmUp, Supervised)

    def __init__(self, config, dataset):
        super().__init__(config, dataset)
        searches = self.ranks_under_trie(config)
        self.uses_beams = searches and config["decode"] == "beam"
        if searches:
            check_best_titles(config)
        self.build_titles(config, Catalog.from_dataset(config, dataset))
        self.unsaved_parameters = self.frozen_parameters()

    @staticmethod
    def ranks_under_trie(config):
        """Whether items are ranked by titles that are written under the trie."""
        return True

    @property
    def needs_warmup(self):
        """Whether the backbone starts from random weights."""
        return not self.backbone.pretrained

    # reading

    def first_thought(self):
        """Embedding [D] that is read in one pass with the prompt; None if the model has none."""
        return None

    def read_context(self, interaction, prompt_only=False):
        """Read the prompts of a RecBole batch. Returns a :class:`recbole_flr.model.reasoner.Context`.

        With ``prompt_only`` the context has a cache in any case, as several thoughts share it.
        """
        return self.read_histories(interaction[self.ITEM_SEQ], interaction[self.ITEM_SEQ_LEN], prompt_only, self.first_thought())

    def _prompts(self, interaction):
        return self.prompts(interaction[self.ITEM_SEQ], interaction[self.ITEM_SEQ_LEN])

    def think(self, context, reasoner=None):
        """Context -> Thought: what stands before the title."""
        raise NotImplementedError

    # loss

    def losses(self, interaction):
        """Parts of the supervised loss: name -> LossPart.

        `title` is the mean cross entropy of the target title's tokens, with its end. The rest is the model's own.
        """
        thought = self.think(self.read_context(interaction))
        target = interaction[self.POS_ITEM_ID]
        return {"title": LossPart(self.title_loss(thought, target)[0], mean_over="tokens"), **self.own_losses(thought, target)}

    def own_losses(self, thought, target):
        """The model's own terms of the loss; see :meth:`recbole_flr.contracts.Thinker.own_losses`."""
        return {}

    def loss_counts(self, interaction):
        """`rows`, and `tokens` of the titles."""
        return {"rows": len(interaction), "tokens": self.target_tokens(interaction[self.POS_ITEM_ID])}

    def row_costs(self, interaction):
        """Tokens of the prompt."""
        return self.prompt_lengths(interaction)

    def prompt_lengths(self, interaction):
        """Tokens of each row's prompt, [rows] int64."""
        return self.collator.prompt_lengths(interaction[self.ITEM_SEQ], interaction[self.ITEM_SEQ_LEN])

    def row_groups(self, interaction):
        """See :meth:`TitleModel.prefix_groups`: RecBole's training rows -> [rows] int64, or None."""
        return self.prefix_groups(interaction[self.ITEM_SEQ], interaction[self.ITEM_SEQ_LEN])

    # RecBole's interface

    def calculate_loss(self, interaction):
        """The total of :meth:`losses`. A scalar."""
        return total_loss(self.losses(interaction))

    def full_sort_predict(self, interaction, top=None):
        """Scores of the whole catalogue: [B, n_items]. Items outside the best `top` texts have -inf; see :meth:`decode`."""
        return item_scores(self.decode(self.think(self.read_context(interaction)), top), self.trie, self.n_items)

    def predict(self, interaction):
        """Log-probability of each row's item, by a full pass over its title: [B]."""
        return self.title_log_probs(self.think(self.read_context(interaction)), interaction[self.ITEM_ID])

    # the plug-in's contract

    def most_items(self):
        """Beams reach as many texts as there are beams."""
        return self.num_beams if self.uses_beams else None

    def best_scores(self, interaction, k):
        """Decoding fewer texts is faster."""
        return self.full_sort_predict(interaction, top=k)

    def language_model(self):
        """The backbone."""
        return self.backbone

    @contextmanager
    def reading(self, texts):
        """See :meth:`recbole_flr.contracts.Recommender.reading`. A text is read as the title of an item would be."""
        before, known = self.collator, self.title_tokens
        rows = RaggedRows.of([tokens[:self.max_title_tokens] + [self.backbone.end_id] for tokens in self.backbone.encode(texts)])
        self.collator = self.collator_of(RaggedRows.joined([known.to("cpu"), rows])).to(self.device)
        try:
            yield
        finally:
            self.collator = before

    def save_files(self, folder):
        """The tokenizer."""
        self.backbone.save(folder)


class ThinkingWriter(Writer, Thinker):
    """A writer whose thought is made by a `reasoner`, so that it can be reinforced."""

    def first_thought(self):
        return self.reasoner.initial

    def think(self, context, reasoner=None):
        return (reasoner or self.reasoner).think(self.backbone, context)

    def score_target(self, context, thoughts, target, greedy=False):
        """See :meth:`TitleModel.score_titles`. The steps are the tokens of the target's title."""
        return self.score_titles(context, thoughts, target, greedy)

    def freeze_encoder(self):
        """The encoder is the backbone."""
        self.freeze_backbone()
