"""A language model that reads titles and writes them: prompts, the scores of titles, and the search under the catalogue's trie.

It is the part of a model that has to do with text. A recommender that only writes titles is one itself
(:class:`recbole_flr.model.writer.Writer`). FLRMix holds one as its encoder (`title_reader.py`).

Shapes: B batch, L prompt tokens, T title tokens (with the end of title), G thoughts of a prompt, C titles of a row, D width,
V vocabulary.
"""

from logging import getLogger

import torch
from torch import nn

from recbole_flr.contracts import TargetScores
from recbole_flr.data.prefixes import prefix_sources
from recbole_flr.data.prompt import IGNORE, Collator, Template, between
from recbole_flr.decoding import Trie, beam_search
from recbole_flr.errors import ConfigError
from recbole_flr.model.backbone import build_backbone
from recbole_flr.model.reasoner import WORTH_SHARING, read_prompt
from recbole_flr.model.tree import TreeDecoder

TITLES_AT_ONCE = 16  # titles of a row that are read in one pass
LABELS_AT_ONCE = 4096  # positions whose logits over the vocabulary are in memory at the same time


def check_beams(config):
    """Refuse fewer beams than items that are asked for: RecBole would pick arbitrary items among those that no beam reached.

    Raises:
        ConfigError: if so.
    """
    if config["decode"] == "beam" and config["num_beams"] < max(config["topk"]):
        raise ConfigError(f"num_beams: found {config['num_beams']}, expected at least {max(config['topk'])}, the largest topk")


def token_file(config):
    """Where the tokens of the titles are stored: beside the data set, one file for each backbone."""
    name = str(config["backbone"]).strip("/").replace("/", "--").replace("\\", "--")
    return f"{config['data_path']}/{config['dataset']}.{name}.tokens.safetensors"


class TitleModel(nn.Module):
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

    # scores of titles

    def title_loss(self, thought, target):
        """Mean cross entropy of the tokens of the target's title, with its end.

        Args:
            thought: of B prompts.
            target: [B] item ids.

        Returns:
            a scalar, and the state of the thought [B, D], which predicts the first token.
        """
        titles, labels = self.collator.targets(target)
        labelled = (labels != IGNORE).nonzero(as_tuple=True)  # once: each use of a mask as an index waits for the device
        states = self.title_states(thought, titles)
        logits = self.backbone.logits(states[labelled])  # only labelled positions
        return nn.functional.cross_entropy(precise(logits), labels[labelled]), states[:, 0]

    def target_tokens(self, target):
        """Over how many tokens :meth:`title_loss` takes the mean: [B] item ids -> a scalar."""
        return (self.collator.targets(target)[1] != IGNORE).sum()

    def title_log_probs(self, thought, items):
        """Log-probability of one item's title for each row, by a full pass over it: [B].

        Args:
            thought: of B prompts.
            items: [B] item ids.
        """
        titles, labels = self.collator.targets(items)
        labelled = labels != IGNORE
        logits = precise(self.backbone.logits(self.title_states(thought, titles)[labelled]))
        if self.score == "trie":
            logits = logits.masked_fill(~self._children(titles, logits.shape[-1])[labelled], float("-inf"))
        token = logits.log_softmax(-1).gather(-1, titles[labelled].unsqueeze(-1)).squeeze(-1)
        total = token.new_zeros(len(titles)).index_add(0, labelled.nonzero()[:, 0], token)
        return total / labelled.sum(-1) ** self.length_penalty

    @torch.no_grad()
    def candidate_log_probs(self, thought, items):
        """Log-probabilities of the titles of several items for each row, over the tokens that the option `score` names.

        The prompt's cache serves all of them: each title is a branch behind the thought.

        Args:
            thought: of B prompts, read with a cache.
            items: [B, C] item ids.

        Returns:
            [B, C].
        """
        decoder = TreeDecoder(self.backbone, thought)
        return torch.cat([self._branch_log_probs(decoder, part) for part in items.split(TITLES_AT_ONCE, dim=1)], dim=1)

    def _branch_log_probs(self, decoder, items):
        rows, count = items.shape
        titles, labels = (part.view(rows, count, -1) for part in self.collator.targets(items.flatten()))
        labelled, steps = labels != IGNORE, titles.shape[2] - 1
        slot = torch.zeros_like(titles)  # of the state that predicts a token; the thought is in front of all
        states = decoder.hidden.unsqueeze(1)
        if steps:
            read = labelled[..., 1:].flatten(1)
            order = (~read).long().argsort(dim=1, stable=True)[:, :int(read.sum(1).max())]  # without the padding between titles
            place = torch.arange(order.shape[1], device=items.device).expand(rows, -1)
            parents = torch.where(order % steps == 0, -1, place - 1)
            later = decoder.extend(titles[..., :-1].flatten(1).gather(1, order), parents, read.gather(1, order), last=True)
            states = torch.cat([states, later], dim=1)
            slot[..., 1:] = torch.zeros_like(read, dtype=torch.long).scatter(1, order, place + 1).view(rows, count, steps)
        total = torch.zeros(rows, count, dtype=precise(states).dtype, device=items.device)
        for row, title, step in zip(*(index.split(LABELS_AT_ONCE) for index in labelled.nonzero(as_tuple=True))):
            logits = precise(self.backbone.logits(states[row, slot[row, title, step]]))
            if self.score == "trie":
                number = row * count + title
                first, last = int(number[0]), int(number[-1])
                allowed = self._children(titles.flatten(0, 1)[first:last + 1], logits.shape[-1])[number - first, step]
                logits = logits.masked_fill(~allowed, -torch.inf)
            own = logits.gather(1, titles[row, title, step].unsqueeze(1)) - logits.logsumexp(1, keepdim=True)
            total.index_put_((row, title), own.squeeze(1), accumulate=True)
        return total / labelled.sum(-1) ** self.length_penalty

    def score_titles(self, context, thoughts, target, greedy=False):
        """See :meth:`recbole_flr.contracts.Thinker.score_target`. The steps are the tokens of the target's title.

        `match` needs no generation: greedy decoding under the trie writes the title if and only if each of its tokens is the
        best child on its path.
        """
        titles, labels = self.collator.targets(target)
        mask = labels != IGNORE
        labelled = mask.nonzero(as_tuple=True)
        hidden = self.branch_states(context, thoughts, titles)
        logits = precise(self.backbone.logits(hidden.transpose(1, 2)[labelled]))  # [labelled tokens, G, V]
        own = logits.gather(-1, titles[labelled][:, None, None].expand(-1, logits.shape[1], 1))
        log_probs = hidden.new_zeros(*mask.shape, logits.shape[1], dtype=logits.dtype)
        log_probs[labelled] = (own - logits.logsumexp(-1, keepdim=True)).squeeze(-1)
        match = self._greedy_match(logits.detach(), titles, mask, labelled) if greedy else None
        return TargetScores(log_probs.transpose(1, 2), mask, match)

    def _greedy_match(self, logits, titles, mask, labelled):
        """[labelled tokens, G, V], [B, T], [B, T], rows and columns of the labelled tokens -> [B, G] bool."""
        row, step, token = self.trie.along(titles)
        number = mask.flatten().cumsum(0).view_as(mask) - 1  # of each labelled position
        best = best_children(logits, titles[labelled], number[row, step], token)
        right = torch.ones(*mask.shape, best.shape[1], dtype=torch.bool, device=best.device)
        right[labelled] = best
        return right.all(1)

    def _children(self, titles, vocabulary):
        """Which tokens the catalogue allows at each step of each row's own path: [B, T, V] bool."""
        allowed = torch.zeros(*titles.shape, vocabulary, dtype=torch.bool, device=titles.device)
        allowed[self.trie.along(titles)] = True
        return allowed

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


def precise(logits):
    """At least float32, which sums over a vocabulary need."""
    return logits.to(torch.promote_types(logits.dtype, torch.float32))
