"""What the plug-in asks of a model beyond RecBole's own interface, and what a model declares about itself.

- :class:`Recommender`: every model that runs here. Its defaults fit RecBole's own models, which declare nothing.
- :class:`Thinker`: a model with a thought. The reinforcement stage needs this contract and nothing else.
- :class:`LossPart`: one named, weighted part of a loss.

Models that write titles share :class:`recbole_flr.model.writer.Writer`; a stage of the training is a
:class:`recbole_flr.training.stage.Stage`. Code reads these declarations; it never asks with `hasattr` what a model is.

Shapes: B batch, G thoughts of a prompt, T steps of a target (the tokens of a title; 1 if items are scored at once), D width.
"""

from abc import ABC, abstractmethod
from contextlib import contextmanager
from dataclasses import dataclass

import torch

from recbole_flr.errors import ConfigError


@dataclass
class LossPart:
    """One part of a loss. The total is the sum of weight * value over all parts.

    Attributes:
        value: scalar tensor.
        weight: number, or scalar tensor if it is learned.
        mean_over: what the value is a mean over, one of the names in :meth:`Recommender.loss_counts`. A value that does not
            depend on the batch counts as a mean over rows. A value that is no mean has to see the rows of all processes
            (:func:`recbole_flr.distributed.gather_rows`).
    """

    value: torch.Tensor
    weight: torch.Tensor | float = 1.0
    mean_over: str = "rows"

    @property
    def has_weight(self):
        """Whether the weight is anything but the number 1."""
        return isinstance(self.weight, torch.Tensor) or self.weight != 1

    @property
    def weighted(self):
        """weight * value, a scalar tensor."""
        return self.weight * self.value if self.has_weight else self.value


def total_loss(parts):
    """Sum of the weighted parts, in their order: name -> LossPart to a scalar tensor."""
    first, *others = parts.values()
    total = first.weighted
    for part in others:
        total = total + part.weighted
    return total


class Recommender:
    """Mixin for a class with RecBole's model interface (`calculate_loss`, `predict`, `full_sort_predict`).

    Attributes:
        weights_depend_on_item_ids: whether a weight belongs to an item id, as in an item embedding. Such a model refuses to
            load when the data set's items have changed. A model that reads and writes titles sets this to False.
        takes_more_items: whether a checkpoint also fits a catalogue that has more items behind those it was trained on. Such a
            model overrides `adapt_weights`, and refuses any other change of the items in `load_other_parameter`.
        needs_training: whether the model has a loss and weights to train. A model that its constructor counts from the training
            rows sets this to False. It is validated and saved once, without a step of an optimizer.
        stages: subclasses of :class:`recbole_flr.training.stage.Stage` in the order in which they run. If there are none,
            RecBole's own trainer trains the model in one piece.
        catalog: :class:`recbole_flr.data.catalog.Catalog`, if the model has read the items' titles.
        unsaved_parameters: names of parameters that need no place in a checkpoint, because they are loaded from elsewhere.
    """

    weights_depend_on_item_ids = True
    takes_more_items = False
    needs_training = True
    stages = ()
    catalog = None
    unsaved_parameters = frozenset()

    def title_groups(self):
        """[n_items] int64, equal for items of equal title, 0 for padding; None: read them from the data set."""
        return None if self.catalog is None else self.catalog.title_ids

    @contextmanager
    def reading(self, texts):
        """While this is open, the item ids n_items, n_items + 1, ... stand for `texts` in a history, and only there.

        Args:
            texts: list of str, titles that are not in the catalogue.

        Raises:
            ConfigError: the model reads item ids and no text.
        """
        raise ConfigError(f"as_text: {type(self).__name__} ranks with the ids of the history and cannot read a text that is not "
                          "in the catalogue; expected a model that reads titles alone, such as FLR, LatentR3 or BIGRec")
        yield

    def save_files(self, folder):
        """Write what is needed beside the weights to build the model again, such as a tokenizer."""

    def adapt_weights(self, state):
        """Weights of a checkpoint, name -> tensor, changed so that they fit the model's catalogue."""
        return state

    def keep_saving(self, names):
        """A checkpoint brought values for some of `unsaved_parameters`: later checkpoints must hold these too."""
        self.unsaved_parameters = frozenset(self.unsaved_parameters) - set(names)

    def most_items(self):
        """How many items the model can rank for a user; None if it can rank all."""
        return None

    def best_scores(self, interaction, k):
        """Scores of all items, of which only the best k must be right: [B, n_items]."""
        return self.full_sort_predict(interaction).view(len(interaction), -1)

    def loss_counts(self, interaction):
        """Over how many things the means in the loss of a batch are taken: name -> number, or a tensor of one.

        The name `rows` is always there. With the numbers, the losses of parts of a batch give the loss of the whole batch.
        """
        return {"rows": len(interaction)}

    def row_costs(self, interaction):
        """What each training row costs, such as the tokens of its prompt: [rows], or None if all rows cost the same."""
        return None

    def before_validation(self, valid_data):
        """Called before each validation of a model with stages. The model may choose on the validation rows what it does not learn
        from training rows.

        Args:
            valid_data: RecBole's loader of the validation rows.
        """

    @contextmanager
    def kept_texts(self):
        """While this context is open, the model keeps what it writes beside titles, such as its reasoning, for the rows it ranks.

        Yields:
            list, to which the model adds a dict for each row, with `user`, `history` (item ids), `thought` (text) and `tokens`
            (its length); it stays empty if the model writes titles only.
        """
        yield []

    def explain_items(self, interaction, items):
        """Where the scores of some items come from; None if the model cannot say.

        Args:
            interaction: RecBole batch of one row.
            items: list of item ids.

        Returns:
            list with a dict for each item: `parts`, name -> summand of the score; and if the model has a memory, `voters` [L]: the
            share of each place of the history in the votes of the memory (they sum to 1, or to 0 without votes).
        """
        return None

    def retrieval(self, interaction):
        """Vectors whose products rank the items; None if the model does not rank so.

        Returns:
            queries [B, K, D], the logarithm of their weights [B, K], and the item vectors [n_items, D]. The probability of item i is
            the sum over k of weight_k * softmax over the items of (query_k . vector_i).
        """
        return None

    def language_model(self):
        """The :class:`recbole_flr.model.backbone.Backbone` that reads titles; None for a model without one."""
        return None

    def explain(self, interaction):
        """What the model looked at; None if it cannot say.

        Returns:
            alpha [B, K], the weights of the K factors (rows sum to 1), and attention [B, K, H + 1]: how much each factor attended
            to each of the H items of the history, oldest first, and to all the rest (rows sum to 1).
        """
        return None

    def factor_vectors(self, interaction):
        """The factors F of the last refinement, [B, K, D]; None for a model without factors."""
        return None


class ByFullRanking:
    """For models that score one item by scoring all of them. It stands before RecBole's class among the bases."""

    def predict(self, interaction):
        """Scores of one item for each row: [B]."""
        return self.full_sort_predict(interaction).gather(1, interaction[self.ITEM_ID].unsqueeze(1)).squeeze(1)


class Thinker(Recommender, ABC):
    """A model that makes a thought from what it read, and scores a target after a thought.

    Attributes:
        reasoner: the module that makes the thought. The reinforcement stage keeps a copy of it as the reference.
    """

    @abstractmethod
    def read_context(self, interaction, prompt_only=False):
        """Read the histories of a batch. Every stage, decoding and `explain` read with this method.

        Args:
            interaction: RecBole batch.
            prompt_only: the context must depend on the encoder alone (not on the reasoner) and serve several thoughts.

        Returns:
            What :meth:`think` takes.
        """

    @abstractmethod
    def think(self, context, reasoner=None):
        """Make a thought.

        Args:
            context: from :meth:`read_context`.
            reasoner: another copy of the reasoner, such as the reference.

        Returns:
            an object with the thought's `embedding` [B, D].
        """

    @abstractmethod
    def score_target(self, context, thoughts, target, greedy=False):
        """Score each row's target item after each of several thoughts, which share the context.

        Args:
            context: from :meth:`read_context` with ``prompt_only=True``.
            thoughts: [B, G, D].
            target: [B] item ids.
            greedy: whether `match` (or the model's own `reward`) is wanted.

        Returns:
            :class:`TargetScores`.
        """

    @abstractmethod
    def own_losses(self, thought, target):
        """The model's own terms of the loss, such as regularisers.

        Args:
            thought: from :meth:`think`.
            target: [B] item ids.

        Returns:
            dict, name -> LossPart.
        """

    def prompt_lengths(self, interaction):
        """How much there is to read in each row, [rows] int64: rows of similar length form a training batch."""
        return interaction[self.ITEM_SEQ_LEN]

    def row_costs(self, interaction):
        """See :meth:`Recommender.row_costs`."""
        return self.prompt_lengths(interaction)

    @abstractmethod
    def freeze_encoder(self):
        """From now on only the reasoner and the weights of `own_losses` are trained."""


@dataclass
class TargetScores:
    """How likely the target is after each thought.

    Attributes:
        log_probs: [B, G, T], log-probability of each step of the target, 0 at padding.
        mask: [B, T], True at real steps.
        match: [B, G] bool, whether the model's first choice after the thought is the target; None if not asked for.
        reward: [B, G], the model's own reward, such as the NDCG of its ranked list. It takes the place of eq. 10.
    """

    log_probs: torch.Tensor
    mask: torch.Tensor
    match: torch.Tensor | None = None
    reward: torch.Tensor | None = None
