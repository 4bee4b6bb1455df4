"""A language model that reads titles and writes them: prompts, the scores of titles, and the search under the catalogue's trie.

It is the part of a model that has to do with text. A recommender that only writes titles is one itself
(:class:`recbole_flr.model.writer.Writer`). FLRMix holds one as its encoder (`title_reader.py`).

Shapes: B batch, L prompt tokens, T title tokens (with the end of title), G thoughts of a prompt, C titles of a row, D width,
V vocabulary.
"""

from logging import getLogger

import torch
from torch import nn

from recbole_flr.data.prefixes import prefix_sources
from recbole_flr.data.prompt import IGNORE, Collator, Template, between
from recbole_flr.decoding import Trie, beam_search
from recbole_flr.errors import ConfigError
from recbole_flr.model.backbone import build_backbone
from recbole_flr.model.reasoner import WORTH_SHARING, read_prompt
from recbole_flr.model.title_scores import TitleScores, precise
from recbole_flr.model.tree import TreeDecoder
from recbole_flr.protocol import evaluation_modes


def check_best_titles(config):
    """Refuse what a search for the best titles cannot serve.

    - Fewer beams than items that are asked for: RecBole would pick arbitrary items among those that no beam reached.
    - GAUC in a full ranking: it needs the place of the target among all items.

    Raises:
        ConfigError: if so.
    """
    if config["decode"] == "beam" and config["num_beams"] < max(config["topk"]):
        raise ConfigError(f"num_beams: found {config['num_beams']}, expected at least {max(config['topk'])}, the largest topk")
    if "gauc" in [name.lower() for name in config["metrics"]] and "full" in evaluation_modes(config["eval_args"]):
        raise ConfigError("metrics: found GAUC, which needs a score of each item, but a model that writes titles scores the best ones "
                          "only; leave it out")


def token_file(config):
    """Where the tokens of the titles are stored: beside the data set, one file for each backbone."""
    name = str(config["backbone"]).strip("/").replace("/", "--").replace("\\", "--")
    return f"{config['data_path']}/{config['dataset']}.{name}.tokens.safetensors"


class TitleModel(TitleScores, nn.Module):
    """Reads prompts of titles and scores titles behind a thought. :meth:`build_titles` takes the place of a constructor.

    Attributes:
        backbone: :class:`recbole_flr.model.backbone.Backbone`.
        title_tokens: RaggedRows of the items' titles, each ended by the end of title; row 0 (padding) is empty.
        marks: token ids that are written before each title, and between it and its end.
        collator: :class:`recbole_flr.data.prompt.Collator` of the catalogue.
        trie: :class:`recbole_flr.decoding.Trie` of the titles.
        sharing: whether one pass over a prompt serves all rows of a training batch whose prompts are prefixes of it.
    """

    _backbone_is_frozen = False

    def build_titles(self, config, catalog):
        """Build the backbone, and tokenise the catalogue.

        Args:
            config: see `properties/generative.yaml` for the options.
            catalog: :class:`recbole_flr.data.catalog.Catalog`. Its popularity orders items that share a text.

        Raises:
            ConfigError: if the backbone cannot be loaded.
        """
        self.catalog = catalog
        self.backbone = build_backbone(config, catalog.texts[1:])
        titles = catalog.tokenize(self.backbone, config["max_title_tokens"], token_file(config))
        name = config["prompt"] or ("paper" if self.backbone.pretrained else "compact")
        self.text_template, self.max_title_tokens = self.template(name, config["item_noun"]), config["max_title_tokens"]
        quoted = config["title_format"] == "quoted"
        self.marks = tuple(self.backbone.encode(['"', '"\n'])) if quoted else ([], [])
        device = config["device"]
        self.collator = self.collator_of(titles).to(device)
        self.title_tokens = titles.to(device) if quoted else self.collator.titles
        items = torch.from_numpy(catalog.by_popularity())
        self.trie = Trie.build(self.written(titles).take(items), items.numpy()).to(device)
        self.num_beams, self.score = config["num_beams"], config["score"]
        self.length_penalty = config["length_penalty"]
        self.exact = config["decode"] == "exact"
        self.top_items = max(config["topk"])
        # title-level metrics need as many titles; where items of one title have a text each, that takes more texts
        self.top_texts = catalog.texts_to_cover(self.top_items) if config["title_metrics"] else self.top_items
        self.use_cache = not config["gradient_checkpointing"]
        self.share_prefixes, self.sharing = config["share_prefixes"], False

    @staticmethod
    def template(name, noun):
        """The text around the titles of a prompt; see :meth:`recbole_flr.data.prompt.Template.named`."""
        return Template.named(name, noun)

    def written(self, titles):
        """What the model writes for each title: its tokens, or with `title_format: quoted` its tokens in quotes and a newline.

        Args:
            titles: RaggedRows, one row an item, each ended by the end of title; row 0 (padding) is empty.

        Returns:
            RaggedRows, each row ended by the end of title.
        """
        before, after = self.marks
        return between(titles, before, [*after, self.backbone.end_id], keep_end=False) if before else titles

    def collator_of(self, titles):
        """The collator of some titles, on the CPU. RaggedRows as for :meth:`written`."""
        return Collator(self.written(titles), self.text_template.chunks(self.backbone, titles), self.backbone.pad_id)

    def frozen_parameters(self):
        """Names of the parameters of a pretrained backbone that do not train: a checkpoint need not hold them.

        To be asked before the training, because later stages freeze weights that were trained.
        """
        if not self.backbone.pretrained:
            return frozenset()
        named = self.named_parameters(remove_duplicate=False)  # tied embeddings have two names
        return frozenset(name for name, p in named if not p.requires_grad)

    # reading

    def prompts(self, history, length):
        """The prompts of histories [B, H] of some lengths [B]. A long head stands in the same columns of all rows."""
        return self.collator.prompts(history, length, head_first=self.collator.head_size >= WORTH_SHARING)

    def read_histories(self, history, length, prompt_only=False, first_thought=None, vectors=None, leave_last=False):
        """Read the prompts of histories. Returns a :class:`recbole_flr.model.reasoner.Context`.

        Args:
            history: [B, H] item ids.
            length: [B], items of each history.
            prompt_only: the context has a cache in any case, as several thoughts share it, and it does not depend on the thought.
            first_thought: [D], embedding that is read in one pass with the prompt; None if there is none.
            vectors: [n_items, D], added to the embedding of the last token of each title; None for nothing.
            leave_last: leave the last token of the prompt `unread`.
        """
        use_cache = prompt_only or self.use_cache or not self.training
        first = None if prompt_only else first_thought
        if self.sharing and self.training and use_cache:
            longest, source = prefix_sources(history, length).unique(return_inverse=True)
            if len(longest) < len(history):
                tokens = self.collator.prompt_lengths(history, length)
                return self._read_prefixes(history[longest], length[longest], source, tokens, first, vectors, leave_last)
        prompts, embeddings = self._embed(history, length, vectors)
        last = prompts.ids.shape[1] - int(leave_last)  # the padding is not on the right
        context = read_prompt(self.backbone, embeddings[:, :last], prompts.mask[:, :last], use_cache, first, prompts.shared)
        context.item = prompts.item[:, :last]
        if leave_last:
            context.unread = embeddings[:, -1]
        return context

    def _embed(self, history, length, vectors):
        """The prompts of histories, and the embeddings of their tokens [B, L, D]."""
        prompts = self.prompts(history, length)
        embeddings, item = self.backbone.embed(prompts.ids), prompts.item
        if vectors is not None:
            row, token = ((item >= 0) & (item != nn.functional.pad(item[:, 1:], (0, 1), value=-1))).nonzero(as_tuple=True)
            added = vectors[history[row, item[row, token]]].to(embeddings.dtype)
            embeddings = embeddings.index_put((row, token), added, accumulate=True)
        return prompts, embeddings

    def _read_prefixes(self, history, length, source, tokens, first_thought, vectors, leave_last):
        """Read long prompts once, and from them the shorter prompts of all rows.

        Without the tail of the template, the prompt of each row is the beginning of one of the long prompts. The tail is read anew
        for each row.

        Args:
            history, length: of the long prompts.
            source: [B], for each row the number of the long prompt that begins with its own.
            tokens: [B], tokens of each row's own prompt.
            first_thought, vectors, leave_last: as for :meth:`read_histories`.
        """
        prompts, embeddings = self._embed(history, length, vectors)
        tail = self.collator.tail
        end = prompts.ids.shape[1] - len(tail)
        context = read_prompt(self.backbone, embeddings[:, :end], prompts.mask[:, :end], shared=prompts.shared)
        context.item, tokens = prompts.item[:, :end], tokens - len(tail)
        unread, behind = None, self.backbone.embed(tail.expand(len(source), -1))
        if leave_last and len(tail):
            unread, behind = behind[:, -1], behind[:, :-1]
        elif leave_last:
            tokens = tokens - 1
            last = context.mask[source] & (context.positions[source] == tokens.unsqueeze(1))
            unread = embeddings[source, last.long().argmax(1)]
        context = context.prefixes(source, tokens)
        if behind.shape[1]:
            context = context.continued(self.backbone, behind, first_thought)
        context.unread = unread
        return context

    def prefix_groups(self, history, length):
        """Which training rows share one pass over their prompts; None if the rows are read one by one.

        `share_prefixes: auto` shares if that makes the tokens of all prompts at least a third fewer.

        Args:
            history: [R, H] item ids of all training rows.
            length: [R].

        Returns:
            int64 [R], equal for the rows of a group; or None.
        """
        self.sharing = False
        if self.share_prefixes is True and not self.use_cache:
            getLogger().warning("share_prefixes has no effect with gradient_checkpointing, which keeps no prefixes")
        if not (self.share_prefixes and self.use_cache):
            return None
        source, tokens = prefix_sources(history, length), self.collator.prompt_lengths(history, length)
        fewer = int(tokens.sum()) / max(int(tokens[source.unique()].sum()), 1)
        self.sharing = self.share_prefixes != "auto" or fewer >= 1.5
        if self.sharing:
            getLogger().info(f"Rows share the prefixes of their prompts: {fewer:.1f} times fewer tokens (share_prefixes)")
        return source if self.sharing else None

    # language modelling

    def language_model_loss(self, packed):
        """Mean cross entropy of the next token over packed user sequences. A scalar."""
        hidden, _ = self.backbone(self.backbone.embed(packed.ids), packed.mask(), packed.positions)
        labelled = packed.labels != IGNORE
        return nn.functional.cross_entropy(precise(self.backbone.logits(hidden[labelled])), packed.labels[labelled])

    def sequence_collator(self):
        """Collator for whole user sequences: titles and separators only, whatever the prompt is."""
        titles = self.title_tokens.to("cpu")
        chunks = Template.named("compact", "").chunks(self.backbone, titles)
        return Collator(titles, chunks, self.backbone.pad_id).to(self.title_tokens.flat.device)

    # search

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

    # training

    def freeze_backbone(self):
        """From now on no weight of the backbone moves and none of its dropout acts."""
        self.backbone.requires_grad_(False).eval()
        self.backbone.zero_grad(set_to_none=True)  # or the last gradient would count whenever gradients are clipped
        self._backbone_is_frozen = True
        self.sharing = False  # a choice of the supervised stage, whose batches put rows that share a prefix together

    def train(self, mode=True):
        """As every module's, except that a frozen backbone stays without dropout."""
        super().train(mode)
        if self._backbone_is_frozen:
            self.backbone.eval()
        return self
