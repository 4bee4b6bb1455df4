"""The base of all models that write a title: reading prompts, scoring titles, ranking the catalogue.

A subclass says which module makes its thought (or what stands in its place) and what it adds to the loss.

Shapes: B batch, L prompt tokens, T title tokens (with the end of title), G thoughts of a prompt, D width, V vocabulary.
"""

import torch
from recbole.model.abstract_recommender import SequentialRecommender
from recbole.utils import InputType
from torch import nn

from recbole_flr.contracts import LossPart, Recommender, TargetScores, Thinker, total_loss
from recbole_flr.data.catalog import Catalog
from recbole_flr.data.prompt import IGNORE, Collator, Template
from recbole_flr.decoding import Trie, beam_search, item_scores
from recbole_flr.errors import ConfigError
from recbole_flr.model.backbone import build_backbone
from recbole_flr.model.reasoner import WORTH_SHARING, Thought, read_prompt
from recbole_flr.model.tree import TreeDecoder
from recbole_flr.training.supervised import Supervised
from recbole_flr.training.warmup import WarmUp


class Writer(SequentialRecommender, Recommender):
    """A language model that writes the next item's title under a trie of the catalogue.

    Args:
        config: see `properties/generative.yaml` for the options.
        dataset: RecBole training dataset. Its vocabulary names the items; its interactions give their popularity.
    """

    input_type = InputType.POINTWISE
    stages = (WarmUp, Supervised)
    _backbone_is_frozen = False

    def __init__(self, config, dataset):
        super().__init__(config, dataset)
        self.uses_beams = config["decode"] == "beam" and self.ranks_under_trie(config)
        if self.uses_beams and config["num_beams"] < max(config["topk"]):
            raise ConfigError(  # RecBole would pick arbitrary items among those that no beam reached
                f"num_beams: found {config['num_beams']}, expected at least {max(config['topk'])}, the largest topk"
            )
        if config["train_neg_sample_args"]["distribution"] != "none":
            raise ConfigError(
                f"train_neg_sample_args: found {config['train_neg_sample_args']}, expected null: the tokens of the title "
                "are the classes, there are no negative items"
            )
        self.catalog = Catalog.from_dataset(config, dataset)
        self.backbone = build_backbone(config, self.catalog.texts[1:])
        if self.backbone.pretrained:  # found now, because later stages freeze weights that were trained
            named = self.named_parameters(remove_duplicate=False)  # tied embeddings have two names
            self.unsaved_parameters = frozenset(name for name, p in named if not p.requires_grad)
        titles = self.catalog.tokenize(self.backbone, config["max_title_tokens"])
        name = config["prompt"] or ("paper" if self.backbone.pretrained else "compact")
        chunks = self.template(name, config["item_noun"]).chunks(self.backbone, titles)
        self.collator = Collator(titles, chunks, self.backbone.pad_id).to(self.device)
        items = torch.from_numpy(self.catalog.by_popularity())
        self.trie = Trie.build(titles.take(items), items.numpy()).to(self.device)
        self.num_beams, self.score = config["num_beams"], config["score"]
        self.length_penalty = config["length_penalty"]
        self.exact = config["decode"] == "exact"
        self.top_items = max(config["topk"])
        # title-level metrics need as many titles; where items of one title have a text each, that takes more texts
        self.top_texts = self.catalog.texts_to_cover(self.top_items) if config["title_metrics"] else self.top_items
        self.use_cache = not config["gradient_checkpointing"]

    @staticmethod
    def ranks_under_trie(config):
        """Whether items are ranked by titles that are written under the trie."""
        return True

    @staticmethod
    def template(name, noun):
        """The text around the titles of a prompt; see :meth:`recbole_flr.data.prompt.Template.named`."""
        return Template.named(name, noun)

    # reading

    def first_thought(self):
        """Embedding [D] that is read in one pass with the prompt; None if the model has none."""
        return None

    def read_context(self, interaction, prompt_only=False):
        """Read the prompts of a RecBole batch. Returns a :class:`recbole_flr.model.reasoner.Context`.

        With ``prompt_only`` the context has a cache in any case, as several thoughts share it.
        """
        prompts = self._prompts(interaction)
        use_cache = prompt_only or self.use_cache or not self.training
        first = None if prompt_only else self.first_thought()
        context = read_prompt(self.backbone, self.backbone.embed(prompts.ids), prompts.mask, use_cache, first, prompts.shared)
        context.item = prompts.item
        return context

    def _prompts(self, interaction):
        history, length = interaction[self.ITEM_SEQ], interaction[self.ITEM_SEQ_LEN]
        return self.collator.prompts(history, length, head_first=self.collator.head_size >= WORTH_SHARING)

    def think(self, context, reasoner=None):
        """Context -> Thought: what stands before the title."""
        raise NotImplementedError

    def title_states(self, thought, titles):
        """States that predict each token of a title.

        Args:
            thought: of B prompts.
            titles: [B, T] token ids.

        Returns:
            [B, T, D]; state t predicts token t.
        """
        context = thought.context
        new = torch.cat([thought.embedding.unsqueeze(1), self.backbone.embed(titles[:, :-1])], dim=1)
        positions = context.length.unsqueeze(1) + torch.arange(new.shape[1], device=new.device)
        mask = torch.cat([context.mask, context.mask.new_ones(new.shape[:2])], dim=1)
        if context.cache is not None:
            return self.backbone(new, mask, positions, context.cache)[0]
        positions = torch.cat([context.positions, positions], dim=1)
        hidden, _ = self.backbone(torch.cat([context.embeddings, new], dim=1), mask, positions)
        return hidden[:, -new.shape[1]:]

    def branch_states(self, context, thoughts, titles):
        """States that predict each token of a title after each of several thoughts, which share the prompt's cache.

        The G continuations of a prompt are branches of one sequence: none sees another.

        Args:
            context: of B prompts, with a cache.
            thoughts: [B, G, D], embeddings that come right before the title.
            titles: [B, T] token ids.

        Returns:
            [B, G, T, D].
        """
        group, steps = thoughts.shape[1], titles.shape[1]
        title = self.backbone.embed(titles[:, :-1]).unsqueeze(1).expand(-1, group, -1, -1)
        new = torch.cat([thoughts.unsqueeze(2), title], dim=2).flatten(1, 2)
        positions = (context.length.unsqueeze(1) + torch.arange(steps, device=new.device)).repeat(1, group)
        causal = torch.ones(steps, steps, dtype=torch.bool, device=new.device).tril()
        own = torch.kron(torch.eye(group, dtype=torch.bool, device=new.device), causal)
        rows = len(new)
        mask = torch.cat([context.mask.unsqueeze(1).expand(-1, len(own), -1), own.expand(rows, -1, -1)], dim=2)
        return self.backbone(new, mask, positions, context.cache)[0].unflatten(1, (group, steps))

    # loss

    def losses(self, interaction):
        """Parts of the supervised loss: name -> LossPart.

        `title` is the mean cross entropy of the target title's tokens, with its end. The rest is the model's own.
        """
        thought = self.think(self.read_context(interaction))
        target = interaction[self.POS_ITEM_ID]
        titles, labels = self.collator.targets(target)
        labelled = labels != IGNORE
        logits = self.backbone.logits(self.title_states(thought, titles)[labelled])  # only labelled positions
        title = nn.functional.cross_entropy(_precise(logits), labels[labelled])
        return {"title": LossPart(title), **self.own_losses(thought, target)}

    def own_losses(self, thought, target):
        """The model's own terms of the loss; see :meth:`recbole_flr.contracts.Thinker.own_losses`."""
        return {}

    def language_model_loss(self, packed):
        """Mean cross entropy of the next token over packed user sequences. A scalar."""
        hidden, _ = self.backbone(self.backbone.embed(packed.ids), packed.mask(), packed.positions)
        labelled = packed.labels != IGNORE
        return nn.functional.cross_entropy(_precise(self.backbone.logits(hidden[labelled])), packed.labels[labelled])

    def prompt_lengths(self, interaction):
        """Tokens of each row's prompt, [rows] int64."""
        return self.collator.prompt_lengths(interaction[self.ITEM_SEQ], interaction[self.ITEM_SEQ_LEN])

    def sequence_collator(self):
        """Collator for whole user sequences: titles and separators only, whatever the prompt is."""
        titles = self.collator.titles.to("cpu")
        chunks = Template.named("compact", "").chunks(self.backbone, titles)
        return Collator(titles, chunks, self.backbone.pad_id).to(self.device)

    # RecBole's interface

    def calculate_loss(self, interaction):
        """The total of :meth:`losses`. A scalar."""
        return total_loss(self.losses(interaction))

    def decode(self, thought, top=None):
        """The titles that constrained beam search finds (`decode: beam`), or the true best (`exact`).

        Args:
            thought: of B prompts.
            top: how many texts are wanted; asking for fewer is faster. The default is enough for the best max(topk) items
                and, with `title_metrics`, for as many titles.

        Returns:
            Beams, the best first.
        """
        options = {"score": self.score, "length_penalty": self.length_penalty}
        most = top or self.top_texts
        if not self.exact:
            return beam_search(TreeDecoder(self.backbone, thought), self.trie, self.num_beams, top=most, **options)
        from recbole_flr.decoding.exact import exact_search

        top = top or self.top_items
        while True:
            beams = exact_search(TreeDecoder(self.backbone, thought), self.trie, top, **options)
            if top >= most or self._fewest_titles(beams) >= self.top_items:
                return beams
            top = min(2 * top, most)

    def _fewest_titles(self, beams):
        """The least number of distinct titles among a user's texts."""
        item = self.trie.items[self.trie.item_start[beams.nodes].long()].long()
        titles = self.catalog.title_ids.to(item.device)[item].sort(dim=1).values
        return int((titles.diff(dim=1) != 0).sum(1).min()) + 1 if titles.numel() else 0

    def full_sort_predict(self, interaction, top=None):
        """Scores of the whole catalogue: [B, n_items]. Items outside the best `top` texts have -inf; see :meth:`decode`."""
        return item_scores(self.decode(self.think(self.read_context(interaction)), top), self.trie, self.n_items)

    def predict(self, interaction):
        """Log-probability of each row's item, by a full pass over its title: [B]."""
        titles, labels = self.collator.targets(interaction[self.ITEM_ID])
        thought = self.think(self.read_context(interaction))
        labelled = labels != IGNORE
        logits = _precise(self.backbone.logits(self.title_states(thought, titles)[labelled]))
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

    def train(self, mode=True):
        """As every module's, except that a frozen backbone stays without dropout."""
        super().train(mode)
        if self._backbone_is_frozen:
            self.backbone.eval()
        return self

    # the plug-in's contract

    def most_items(self):
        """Beams reach as many texts as there are beams."""
        return self.num_beams if self.uses_beams else None

    def best_scores(self, interaction, k):
        """Decoding fewer texts is faster."""
        return self.full_sort_predict(interaction, top=k)

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
        """See :meth:`recbole_flr.contracts.Thinker.score_target`. The steps are the tokens of the target's title.

        `match` needs no generation: greedy decoding under the trie writes the title if and only if each of its tokens is the
        best child on its path.
        """
        titles, labels = self.collator.targets(target)
        mask = labels != IGNORE
        hidden = self.branch_states(context, thoughts, titles)
        logits = _precise(self.backbone.logits(hidden.transpose(1, 2)[mask]))  # [labelled tokens, G, V]
        own = logits.gather(-1, titles[mask][:, None, None].expand(-1, logits.shape[1], 1))
        log_probs = hidden.new_zeros(*mask.shape, logits.shape[1], dtype=logits.dtype)
        log_probs[mask] = (own - logits.logsumexp(-1, keepdim=True)).squeeze(-1)
        match = self._greedy_match(logits.detach(), titles, mask) if greedy else None
        return TargetScores(log_probs.transpose(1, 2), mask, match)

    def _greedy_match(self, logits, titles, mask):
        """[labelled tokens, G, V], [B, T], [B, T] -> [B, G] bool."""
        row, step, token = self.trie.along(titles)
        number = mask.flatten().cumsum(0).view_as(mask) - 1  # of each labelled position
        best = best_children(logits, titles[mask], number[row, step], token)
        right = torch.ones(*mask.shape, best.shape[1], dtype=torch.bool, device=best.device)
        right[mask] = best
        return right.all(1)

    def freeze_encoder(self):
        """From now on no weight of the backbone moves and none of its dropout acts."""
        self.backbone.requires_grad_(False).eval()
        self.backbone.zero_grad(set_to_none=True)  # or the last gradient would count whenever gradients are clipped
        self._backbone_is_frozen = True


def best_children(logits, target, position, token):
    """Whether each target is what greedy decoding under the trie takes. Of equal logits it takes the lower token id.

    Args:
        logits: [n, G, V], at n positions.
        target: [n], token ids.
        position, token: [E], all children that the trie allows: which of the n, and the token id.

    Returns:
        [n, G] bool.
    """
    own = logits.gather(-1, target[:, None, None].expand(-1, logits.shape[1], 1)).squeeze(-1)[position]  # [E, G]
    other = logits[position, :, token]
    beaten = (other > own) | ((other == own) & (token < target[position]).unsqueeze(-1))
    return torch.zeros_like(logits[..., 0]).index_add(0, position, beaten.to(logits.dtype)) == 0


def _precise(logits):
    """At least float32, which sums over a vocabulary need."""
    return logits.to(torch.promote_types(logits.dtype, torch.float32))
