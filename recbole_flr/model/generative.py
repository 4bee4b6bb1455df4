"""What all models share that write a title: reading prompts, scoring titles, ranking the catalogue.

A model of its own says only how it reads a prompt (:meth:`GenerativeRecommender.read`) and what it adds to the loss.

Shapes: B batch, L prompt tokens, T title tokens (with the end of title), D width, V vocabulary.
"""

import torch
from recbole.model.abstract_recommender import SequentialRecommender
from recbole.utils import InputType
from torch import nn

from recbole_flr.data.catalog import Catalog
from recbole_flr.data.collate import IGNORE, Collator
from recbole_flr.data.prompt import Template
from recbole_flr.decoding.beam import beam_search, item_scores
from recbole_flr.decoding.trie import Trie
from recbole_flr.errors import ConfigError
from recbole_flr.model.backbone import build_backbone
from recbole_flr.model.tree import TreeDecoder


class GenerativeRecommender(SequentialRecommender):
    """A language model that writes the next item's title under a trie of the catalogue.

    Args:
        config: see `properties/model/FLR.yaml` for the options.
        dataset: RecBole training dataset: its vocabulary, and its interactions as popularity.
    """

    input_type = InputType.POINTWISE

    def __init__(self, config, dataset):
        super().__init__(config, dataset)
        if config["num_beams"] < max(config["topk"]):
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
        titles = self.catalog.tokenize(self.backbone, config["max_title_tokens"])
        name = config["prompt"] or ("paper" if self.backbone.pretrained else "compact")
        template = Template.named(name, config["item_noun"])
        self.collator = Collator(titles, template.chunks(self.backbone, titles), self.backbone.pad_id).to(self.device)
        items = torch.from_numpy(self.catalog.by_popularity())
        self.trie = Trie.build(titles.take(items), items.numpy()).to(self.device)
        self.num_beams, self.score = config["num_beams"], config["score"]
        self.length_penalty = config["length_penalty"]
        self.use_cache = not config["gradient_checkpointing"]

    # reading

    def read(self, prompts):
        """Prompts -> Reading. What a model does with a prompt before the title."""
        raise NotImplementedError

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

    # RecBole's interface

    def calculate_loss(self, interaction):
        """Mean cross entropy of the next title's tokens (with its end) plus the model's own terms. A scalar."""
        reading = self.read_history(interaction)
        titles, labels = self.collator.targets(interaction[self.POS_ITEM_ID])
        labelled = labels != IGNORE
        logits = self.backbone.logits(self.title_hidden(reading, titles)[labelled])  # only labelled positions
        return self.regularise(nn.functional.cross_entropy(logits.float(), labels[labelled]), reading)

    def language_model_loss(self, packed):
        """Mean cross entropy of the next token over packed user sequences. A scalar."""
        hidden, _ = self.backbone(self.backbone.embed(packed.ids), packed.mask(), packed.positions)
        labelled = packed.labels != IGNORE
        return nn.functional.cross_entropy(self.backbone.logits(hidden[labelled]).float(), packed.labels[labelled])

    def decode(self, reading):
        """Reading of B prompts -> Beams: the titles that constrained beam search finds, best first."""
        scorer = TreeDecoder(self.backbone, reading)
        return beam_search(scorer, self.trie, self.num_beams, score=self.score, length_penalty=self.length_penalty)

    def full_sort_predict(self, interaction):
        """Scores of the whole catalogue: [B, n_items], -inf where no beam arrived."""
        return item_scores(self.decode(self.read_history(interaction)), self.trie, self.n_items)

    def predict(self, interaction):
        """Log-probability of each row's item, by a full pass over its title: [B]."""
        titles, labels = self.collator.targets(interaction[self.ITEM_ID])
        reading = self.read_history(interaction)
        labelled = labels != IGNORE
        logits = self.backbone.logits(self.title_hidden(reading, titles)[labelled])
        logits = logits.float() if logits.dtype != torch.float64 else logits
        if self.score == "trie":
            logits = logits.masked_fill(~self._children(titles, logits.shape[-1])[labelled], float("-inf"))
        token = logits.log_softmax(-1).gather(-1, titles[labelled].unsqueeze(-1)).squeeze(-1)
        total = token.new_zeros(len(titles)).index_add(0, labelled.nonzero()[:, 0], token)
        return total / labelled.sum(-1) ** self.length_penalty

    def _children(self, titles, vocabulary):
        """Which tokens the catalogue allows at each step of each row's own path: [B, T, V] bool."""
        allowed = torch.zeros(*titles.shape, vocabulary, dtype=torch.bool, device=titles.device)
        node = torch.zeros(len(titles), dtype=torch.long, device=titles.device)
        trie, rows = self.trie, torch.arange(len(titles), device=titles.device)
        for step in range(titles.shape[1]):
            first = trie.first_child[node].long()
            count = trie.first_child[node + 1].long() - first
            row = torch.repeat_interleave(rows, count)
            edge = first[row] + torch.arange(len(row), device=row.device) - (count.cumsum(0) - count)[row]
            allowed[row, step, trie.child_token[edge].long()] = True
            taken = trie.child_token[edge] == titles[row, step]
            node = node.scatter(0, row[taken], trie.child_node[edge[taken]].long())
        return allowed

    # what a checkpoint needs

    def files(self, folder):
        """Write what is needed beside the weights to build the model again."""
        self.backbone.save(folder)

    def unsaved_parameters(self):
        """Names of parameters that come from the pretrained backbone unchanged and need no place in a checkpoint."""
        if not self.backbone.pretrained:
            return set()
        named = self.named_parameters(remove_duplicate=False)  # tied embeddings have two names
        return {name for name, p in named if name.startswith("backbone.") and not p.requires_grad}
