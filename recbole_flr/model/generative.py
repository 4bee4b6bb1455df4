"""What all models share that write a title: reading prompts, scoring titles, ranking the catalogue.

A model of its own says only how it reads a prompt (:meth:`GenerativeRecommender.read`) and what it adds to the loss.

Shapes: B batch, L prompt tokens, T title tokens (with the end of title), D width, V vocabulary.
"""

import torch
from recbole.model.abstract_recommender import SequentialRecommender
from recbole.utils import InputType
from torch import nn

from recbole_flr.data.catalog import Catalog
from recbole_flr.data.prompt import IGNORE, Collator, Template
from recbole_flr.decoding.beam import beam_search
from recbole_flr.decoding.exact import exact_search
from recbole_flr.decoding.items import item_scores
from recbole_flr.decoding.trie import Trie
from recbole_flr.errors import ConfigError
from recbole_flr.model.backbone import build_backbone
from recbole_flr.model.tree import TreeDecoder


class GenerativeRecommender(SequentialRecommender):
    """A language model that writes the next item's title under a trie of the catalogue.

    Args:
        config: see `properties/generative.yaml` for the options.
        dataset: RecBole training dataset: its vocabulary, and its interactions as popularity.
    """

    input_type = InputType.POINTWISE
    _backbone_at_rest = False

    def __init__(self, config, dataset):
        super().__init__(config, dataset)
        if config["decode"] == "beam" and config["num_beams"] < max(config["topk"]):
            raise ConfigError(  # RecBole would pick arbitrary items among those that no beam reached
                f"num_beams: found {config['num_beams']}, expected at least {max(config['topk'])}, the largest topk"
            )
        if config["train_neg_sample_args"]["distribution"] != "none":
            raise ConfigError(
                f"train_neg_sample_args: found {config['train_neg_sample_args']}, expected null: the tokens of the title "
                "are the classes, there are no negative items"
            )
        self.catalog = Catalog.from_dataset(config, dataset)
        self.reasoner = None  # for models that think: see :class:`recbole_flr.model.reasoner.Reasoner`
        self.backbone = build_backbone(config, self.catalog.texts[1:])
        self._unsaved = set()  # found now: later stages freeze weights that were trained
        if self.backbone.pretrained:
            named = self.named_parameters(remove_duplicate=False)  # tied embeddings have two names
            self._unsaved = {name for name, p in named if not p.requires_grad}
        titles = self.catalog.tokenize(self.backbone, config["max_title_tokens"])
        name = config["prompt"] or ("paper" if self.backbone.pretrained else "compact")
        template = Template.named(name, config["item_noun"])
        self.collator = Collator(titles, template.chunks(self.backbone, titles), self.backbone.pad_id).to(self.device)
        items = torch.from_numpy(self.catalog.by_popularity())
        self.trie = Trie.build(titles.take(items), items.numpy()).to(self.device)
        self.num_beams, self.score = config["num_beams"], config["score"]
        self.length_penalty = config["length_penalty"]
        self.exact = config["decode"] == "exact"
        self.top = max(config["topk"])  # what decoding is asked for; see :meth:`decode`
        self.enough = self.catalog.texts_to_cover(self.top) if config["title_metrics"] else self.top
        self.use_cache = not config["gradient_checkpointing"]

    # reading

    def read(self, prompts):
        """Prompts -> Reading. What a model does with a prompt before the title: think, unless it says otherwise."""
        return self.reasoner(
            self.backbone, self.backbone.embed(prompts.ids), prompts.mask, self.use_cache or not self.training
        )

    def regularise(self, loss, reading):
        """Add a model's own terms to the loss of the title. Scalar -> scalar."""
        return loss

    def read_history(self, interaction):
        """Reading of the histories of a RecBole batch."""
        return self.read(self.collator.prompts(interaction[self.ITEM_SEQ], interaction[self.ITEM_SEQ_LEN]))

    def prompt_lengths(self, interaction):
        """Tokens of each row's prompt, [rows] int64."""
        return self.collator.prompt_lengths(interaction[self.ITEM_SEQ], interaction[self.ITEM_SEQ_LEN])

    def sequence_collator(self):
        """Collator for whole user sequences: titles and separators only, whatever the prompt is."""
        titles = self.collator.titles.to("cpu")
        chunks = Template.named("compact", "").chunks(self.backbone, titles)
        return Collator(titles, chunks, self.backbone.pad_id).to(self.device)

    def title_hidden(self, reading, titles):
        """States that predict each title token.

        Args:
            reading: of B prompts.
            titles: [B, T] token ids.

        Returns:
            [B, T, D]; state t predicts token t.
        """
        new = torch.cat([reading.seed.unsqueeze(1), self.backbone.embed(titles[:, :-1])], dim=1)
        positions = reading.length.unsqueeze(1) + torch.arange(new.shape[1], device=new.device)
        mask = torch.cat([reading.mask, reading.mask.new_ones(new.shape[:2])], dim=1)
        if reading.cache is not None:
            return self.backbone(new, mask, positions, reading.cache)[0]
        positions = torch.cat([(reading.mask.long().cumsum(-1) - 1).clamp_min(0), positions], dim=1)
        hidden, _ = self.backbone(torch.cat([reading.prefix, new], dim=1), mask, positions)
        return hidden[:, -new.shape[1]:]

    def member_hidden(self, reading, seeds, titles):
        """States that predict each title token after each of several thoughts, which share the prompt's cache.

        The G continuations of a prompt are branches of one sequence: none sees another.

        Args:
            reading: of B prompts, with a cache.
            seeds: [B, G, D], embeddings that come right before the title, in place of the reading's.
            titles: [B, T] token ids.

        Returns:
            [B, G, T, D].
        """
        group, steps = seeds.shape[1], titles.shape[1]
        title = self.backbone.embed(titles[:, :-1]).unsqueeze(1).expand(-1, group, -1, -1)
        new = torch.cat([seeds.unsqueeze(2), title], dim=2).flatten(1, 2)
        positions = (reading.length.unsqueeze(1) + torch.arange(steps, device=new.device)).repeat(1, group)
        causal = torch.ones(steps, steps, dtype=torch.bool, device=new.device).tril()
        own = torch.kron(torch.eye(group, dtype=torch.bool, device=new.device), causal)
        rows = len(new)
        mask = torch.cat([reading.mask.unsqueeze(1).expand(-1, len(own), -1), own.expand(rows, -1, -1)], dim=2)
        return self.backbone(new, mask, positions, reading.cache)[0].unflatten(1, (group, steps))

    # training in stages

    def enter_stage(self, name):
        """Called when a stage of the training begins, with its name."""

    def freeze_backbone(self):
        """From now on no weight of the backbone moves and none of its dropout acts."""
        self.backbone.requires_grad_(False).eval()
        self.backbone.zero_grad(set_to_none=True)  # or the last gradient would count whenever gradients are clipped
        self._backbone_at_rest = True

    def train(self, mode=True):
        super().train(mode)
        if self._backbone_at_rest:
            self.backbone.eval()
        return self

    def figures(self, reading):
        """What the log of the reinforcement stage shows of a model's own: name -> scalar."""
        return {}

    # RecBole's interface

    def calculate_loss(self, interaction):
        """Mean cross entropy of the next title's tokens (with its end) plus the model's own terms. A scalar."""
        reading = self.read_history(interaction)
        titles, labels = self.collator.targets(interaction[self.POS_ITEM_ID])
        labelled = labels != IGNORE
        logits = self.backbone.logits(self.title_hidden(reading, titles)[labelled])  # only labelled positions
        return self.regularise(nn.functional.cross_entropy(_precise(logits), labels[labelled]), reading)

    def language_model_loss(self, packed):
        """Mean cross entropy of the next token over packed user sequences. A scalar."""
        hidden, _ = self.backbone(self.backbone.embed(packed.ids), packed.mask(), packed.positions)
        labelled = packed.labels != IGNORE
        return nn.functional.cross_entropy(_precise(self.backbone.logits(hidden[labelled])), packed.labels[labelled])

    def decode(self, reading, top=None):
        """What constrained beam search finds (`decode: beam`), or the true best (`exact`).

        Args:
            reading: of B prompts.
            top: how many texts are wanted; fewer are less work. By default as many as hold the best max(topk) items and,
                if `title_metrics` are to be told, as many titles: where items of one title have a text each, that is more.

        Returns:
            Beams, the best first.
        """
        options = {"score": self.score, "length_penalty": self.length_penalty}
        if not self.exact:
            scorer = TreeDecoder(self.backbone, reading)
            return beam_search(scorer, self.trie, self.num_beams, top=top or self.enough, **options)
        most = top or self.enough
        top = top or self.top
        while True:
            beams = exact_search(TreeDecoder(self.backbone, reading), self.trie, top, **options)
            if top >= most or self._fewest_titles(beams) >= self.top:
                return beams
            top = min(2 * top, most)

    def _fewest_titles(self, beams):
        """The least number of distinct titles that a user's texts have."""
        item = self.trie.items[self.trie.item_start[beams.nodes].long()].long()
        titles = self.catalog.title_ids.to(item.device)[item].sort(dim=1).values
        return int((titles.diff(dim=1) != 0).sum(1).min()) + 1 if titles.numel() else 0

    def full_sort_predict(self, interaction, top=None):
        """Scores of the whole catalogue: [B, n_items], -inf but for the items of the best `top` texts; see :meth:`decode`."""
        return item_scores(self.decode(self.read_history(interaction), top), self.trie, self.n_items)

    def predict(self, interaction):
        """Log-probability of each row's item, by a full pass over its title: [B]."""
        titles, labels = self.collator.targets(interaction[self.ITEM_ID])
        reading = self.read_history(interaction)
        labelled = labels != IGNORE
        logits = _precise(self.backbone.logits(self.title_hidden(reading, titles)[labelled]))
        if self.score == "trie":
            logits = logits.masked_fill(~self._children(titles, logits.shape[-1])[labelled], float("-inf"))
        token = logits.log_softmax(-1).gather(-1, titles[labelled].unsqueeze(-1)).squeeze(-1)
        total = token.new_zeros(len(titles)).index_add(0, labelled.nonzero()[:, 0], token)
        return total / labelled.sum(-1) ** self.length_penalty

    def _children(self, titles, vocabulary):
        """Which tokens the catalogue allows at each step of each row's own path: [B, T, V] bool."""
        allowed = torch.zeros(*titles.shape, vocabulary, dtype=torch.bool, device=titles.device)
        allowed[self.trie.along(titles)] = True
        return allowed

    # what a checkpoint needs

    def files(self, folder):
        """Write what is needed beside the weights to build the model again."""
        self.backbone.save(folder)

    def unsaved_parameters(self):
        """Names of parameters that come from the pretrained backbone unchanged and need no place in a checkpoint."""
        return self._unsaved

    def keep_saving(self, names):
        """Parameters that a checkpoint brought, whatever they were pretrained to, need a place in the next one too."""
        self._unsaved = self._unsaved - names


def _precise(logits):
    """At least float32, in which sums over a vocabulary are right."""
    return logits.to(torch.promote_types(logits.dtype, torch.float32))
