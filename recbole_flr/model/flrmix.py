"""FLRMix: factors as a mixture over items, with a memory. The parts are in `mixture.py`, `memory.py` and `ranking.py`.

1. The encoder reads the history, as item vectors (`item_encoder.py`) or as titles (`title_reader.py`). A thought behind it is
   refined N times by K factors, as in FLR (`reasoner.py`, `factors.py`).
2. The encoder reads the final thought. Its state h and the factors give K distributions over all items, and the gate mixes them.
3. Tables that were counted on the training rows vote for items. The ranking adds what they say to the log-probability.
4. An encoder that reads titles also writes the next item's title behind the same thought.

Shapes: B batch, L places of a history (right-padded with item 0), K factors, G thoughts of a history, D width, n items.
"""

import hashlib
from dataclasses import dataclass

import numpy as np
import torch
from recbole.data.dataloader import FullSortEvalDataLoader
from recbole.data.interaction import Interaction
from recbole.model.abstract_recommender import SequentialRecommender
from recbole.utils import InputType

from recbole_flr.contracts import ByFullRanking, LossPart, TargetScores, Thinker, total_loss
from recbole_flr.data.catalog import Catalog
from recbole_flr.distributed import from_first
from recbole_flr.errors import CheckpointError, DataError
from recbole_flr.model.counted import OnTrainingRows, TrainingRows
from recbole_flr.model.factors import REGULARISERS, FactorState, FactorStep, gate_balance, sparsity
from recbole_flr.model.item_encoder import ItemReader
from recbole_flr.model.memory import Memory
from recbole_flr.model.mixture import ItemVectors, MixtureHead, log_probs, target_log_probs
from recbole_flr.model.mixture_options import ranking_kind, table_names, text_kind
from recbole_flr.model.ranking import TITLE, Ranking
from recbole_flr.model.reasoner import ByFactors, Context, Reasoner
from recbole_flr.model.remembered import Remembered
from recbole_flr.model.text_vectors import check_probe, probe, title_vectors
from recbole_flr.training.mixture import MixtureTraining
from recbole_flr.training.reinforcement import LatentGRPO
from recbole_flr.training.warmup import WarmUp

ROWS_AT_ONCE = 128  # histories that are ranked together: on a CPU, and where the weights of the ranking are chosen


@dataclass
class ItemContext(Context):
    """Histories that were read.

    Attributes:
        vectors: [n, D], the item vectors.
        state: the factors of the latest thought behind these histories.
    """

    vectors: torch.Tensor | None = None
    state: FactorState | None = None


class FLRMix(OnTrainingRows, ByFactors, ByFullRanking, SequentialRecommender, Thinker):
    """Factors as a mixture over items, with a memory.

    Args:
        config: see `properties/model/FLRMix.yaml`.
        dataset: RecBole's training dataset. The memory is counted on its rows.
    """

    input_type = InputType.POINTWISE
    stages = (WarmUp, MixtureTraining, LatentGRPO)
    takes_more_items = True
    _encoder_is_frozen = False

    def __init__(self, config, dataset):
        super().__init__(config, dataset)
        rows = TrainingRows.of(dataset, self.ITEM_SEQ)
        self.remember_rows(rows)
        self.item_names = [str(name) for name in dataset.field2id_token[self.ITEM_ID]]
        known = np.zeros(self.n_items, dtype=bool)
        known[rows.histories], known[rows.targets] = True, True
        reads_text = config["backbone"] != "items"
        self.item_text = text_kind(config, reads_text)
        self.catalog = self._read_catalog(config, dataset, needed=reads_text or not config["use_ids"])
        self.rank, self.title_loss_weight = ranking_kind(config, reads_text), config["title_loss_weight"] if reads_text else 0.0
        if reads_text:
            from recbole_flr.model.title_reader import TitleReader

            self.reader = TitleReader(config, self.catalog)
        else:
            self.reader = ItemReader(config, self.max_seq_length)
        width = self.reader.width
        texts = self._text_vectors(config, known)
        self.pools_titles = self.item_text == "backbone"
        text_width = width if self.pools_titles else None if texts is None else texts.shape[1]
        self.vectors = ItemVectors(self.n_items, width, config["use_ids"], text_width, texts, torch.from_numpy(known))
        self._remembered = Remembered()
        self.head = MixtureHead(width, config["dropout"], config["mixture"])
        self.reasoner = Reasoner(
            FactorStep(width, config["num_factors"]), width, config["num_refinements"], config["attend_thought"]
        )
        self.loss_parts = {name: config[f"{name}_weight"] for name in REGULARISERS[:2] if config[f"{name}_weight"]}
        self.balance_weight, self.sharpness = config["gate_balance"], 0.0
        self.memory = Memory(
            rows, self.n_items, table_names(config["memory"]),
            {name: config[name] for name in ("forward_decay", "backward_weight", "row_power", "column_power", "recency_decay")},
            {"num_neighbors": config["num_neighbors"], "sample_size": config["sample_size"], "similarity": "dot",
             "weighting": "harmonic", "score_weighting": "same", "order_decay": config["order_decay"],
             "backward_weight": config["neighbor_backward_weight"]},
        )
        self.ranking = Ranking(config, self.memory, self.rank == "both")
        for module in (() if reads_text else (self.reader,)) + (self.vectors, self.head, self.reasoner):
            module.apply(_initialise)
        torch.nn.init.normal_(self.reasoner.step.attention.queries)
        torch.nn.init.normal_(self.reasoner.initial, std=0.02)
        if reads_text:
            self.unsaved_parameters = frozenset(f"reader.{name}" for name in self.reader.frozen_parameters())

    def _read_catalog(self, config, dataset, needed):
        """The titles of the items; None if the data set has none and they are not needed."""
        if self.item_text == "none" and not needed:
            return None
        try:
            return Catalog.from_dataset(config, dataset)
        except DataError as error:
            if needed:
                raise
            self.logger.warning(f"item_text: the items have no titles, so the model works without text ({error})")
            self.item_text = "none"
            return None

    def _text_vectors(self, config, known):
        """[n, T] vectors of the items' texts; None if there are none, or if they change in the training.

        Sets `known_titles`, the fingerprint of the titles that the weights belong to.
        """
        self.known_titles = None
        if self.item_text == "none" and not self.reader.reads_text:
            return None
        self.known_titles = _digest([self.catalog.titles[item] for item in known.nonzero()[0]])
        if self.item_text in ("none", "backbone"):
            return None
        return title_vectors(config, self.catalog.titles, self.item_text, known)

    @property
    def needs_warmup(self):
        """Whether a language model reads the titles that starts from random weights."""
        return self.reader.reads_text and not self.reader.backbone.pretrained

    # reading and thinking

    def _item_vectors(self):
        """The item vectors [n, D]. A user alone is answered faster if they are not put together again."""
        known = [*self.vectors.parameters(), *self.vectors.buffers()]
        if not self.pools_titles:
            return self._remembered.of(known, self.vectors)
        known.append(self.reader.backbone.lm.get_input_embeddings().weight)
        return self._remembered.of(known, lambda: self.vectors(self.reader.title_means()))

    def read_context(self, interaction, prompt_only=False):
        """Read the histories of a batch. Returns an :class:`ItemContext`; see :meth:`recbole_flr.contracts.Thinker.read_context`."""
        vectors, history, length = self._item_vectors(), interaction[self.ITEM_SEQ], interaction[self.ITEM_SEQ_LEN]
        context = self.reader.read(history, length, vectors, prompt_only, self.reasoner.initial)
        return ItemContext(**vars(context), vectors=vectors)

    def prompt_lengths(self, interaction):
        """Tokens of each row's prompt, or items of each history: [rows] int64."""
        if not self.reader.reads_text:
            return super().prompt_lengths(interaction)
        return self.reader.collator.prompt_lengths(interaction[self.ITEM_SEQ], interaction[self.ITEM_SEQ_LEN])

    def row_groups(self, interaction):
        """See :meth:`recbole_flr.model.titles.TitleModel.prefix_groups`: RecBole's training rows -> [rows] int64, or None."""
        return self.reader.prefix_groups(interaction[self.ITEM_SEQ], interaction[self.ITEM_SEQ_LEN])

    def think(self, context, reasoner=None):
        """Refine the thought behind the histories. Returns a :class:`recbole_flr.model.reasoner.Thought`."""
        thought = (reasoner or self.reasoner).think(self.reader.encoder, context)
        context.state = thought.state
        return thought

    def _distribution(self, thought, state=None):
        """The thought's queries [B, K, D], the logarithm of their weights [B, K], and the item vectors [n, D].

        `state` [B, D] is that of the thought, if it has been read.
        """
        context = thought.context
        if state is None:
            state = context.read_token(self.reader.encoder, thought.embedding).squeeze(1)
        return *self.head.queries(state.to(thought.embedding.dtype), thought.state), context.vectors

    def score_target(self, context, thoughts, target, greedy=False):
        """See :meth:`recbole_flr.contracts.Thinker.score_target`. Items are scored at once, so T is 1.

        `reward` is the NDCG of the ranking by log p(i), at the cut-off max(topk). The memory is left out of it, because it has
        counted the row itself.
        """
        batch, group = thoughts.shape[:2]
        own = torch.eye(group, dtype=torch.bool, device=thoughts.device).expand(batch, -1, -1)
        visible = torch.cat([context.mask.unsqueeze(1).expand(-1, group, -1), own], dim=2)
        positions = context.length.unsqueeze(1).expand(-1, group)
        states, _ = self.reader.encoder(thoughts, visible, positions, context.cache)
        distribution = *self.head.queries(states.to(thoughts.dtype), context.state), context.vectors
        steps = torch.ones(batch, 1, dtype=torch.bool, device=thoughts.device)
        if not greedy:
            return TargetScores(target_log_probs(*distribution, target).unsqueeze(-1), steps)
        scores = log_probs(*distribution)
        own_log_prob = scores.gather(2, target[:, None, None].expand(-1, group, 1))
        better = (scores > own_log_prob).sum(2)
        return TargetScores(own_log_prob, steps, better == 0, torch.where(better < self.ranking.cutoff, 1 / (better + 2).log2(), 0.0))

    # loss

    def losses(self, interaction):
        """Parts of the supervised loss: name -> LossPart.

        `item` is the mean of -log p(target). `title` is the mean cross entropy of the tokens of the target's title.
        """
        thought, target = self.think(self.read_context(interaction)), interaction[self.POS_ITEM_ID]
        title, state = self.reader.title_loss(thought, target) if self.title_loss_weight else (None, None)
        parts = {"item": LossPart(-target_log_probs(*self._distribution(thought, state), target).mean())}
        if title is not None:
            parts["title"] = LossPart(title, self.title_loss_weight, mean_over="tokens")
        return {**parts, **self.own_losses(thought, target)}

    def loss_counts(self, interaction):
        """`rows`, and `tokens` if the model learns to write titles."""
        counts = super().loss_counts(interaction)
        if self.title_loss_weight:
            counts["tokens"] = self.reader.target_tokens(interaction[self.POS_ITEM_ID])
        return counts

    def language_model_loss(self, packed):
        """See :meth:`recbole_flr.model.titles.TitleModel.language_model_loss`."""
        return self.reader.language_model_loss(packed)

    def sequence_collator(self):
        """See :meth:`recbole_flr.model.titles.TitleModel.sequence_collator`."""
        return self.reader.sequence_collator()

    def own_losses(self, thought, target):
        """Eqs. 5 and 6 with fixed weights, and the gate's loss:

        L_gate = gate_balance * (sum_k m_k log m_k + sharpness * mean entropy of alpha),

        where m is the batch mean of alpha. The sharpness rises from 0 to 1 in the second half of `epochs`; a run that stops early may
        not get there.
        """
        values = thought.state.regularisers()
        parts = {name: LossPart(values[name], weight) for name, weight in self.loss_parts.items()}
        if self.balance_weight:
            parts["balance"] = LossPart(gate_balance(thought.state.alpha), self.balance_weight)
            if self.sharpness:
                parts["sharpness"] = LossPart(sparsity(thought.state.alpha), self.balance_weight * self.sharpness)
        return parts

    def calculate_loss(self, interaction):
        """The total of :meth:`losses`. A scalar."""
        return total_loss(self.losses(interaction))

    def freeze_encoder(self):
        """From now on only the reasoner is trained."""
        for module in (self.reader, self.vectors, self.head):
            module.requires_grad_(False).eval()
            module.zero_grad(set_to_none=True)
        if self.reader.reads_text:
            self.reader.freeze_backbone()
        self._encoder_is_frozen, self.sharpness = True, 0.0

    def train(self, mode=True):
        """As every module's, except that a frozen encoder stays without dropout."""
        super().train(mode)
        if self._encoder_is_frozen:
            for module in (self.reader, self.vectors, self.head):
                module.eval()
        return self

    # ranking

    def _read(self, interaction):
        """log p(i) of all items [B, n], and a function, items [B, C] -> log-probabilities of their titles [B, C]."""
        thought = self.think(self.read_context(interaction))
        return log_probs(*self._distribution(thought)), self._titles(thought)

    def _titles(self, thought):
        return lambda items: self.reader.candidate_log_probs(thought, items)

    def full_sort_predict(self, interaction, top=None):
        """Scores of all items: [B, n]; -inf for the padding.

        With `rank: write`, items outside the best `top` texts have -inf, too.
        """
        if self.rank == "write":
            return self.reader.rank_titles(self.think(self.read_context(interaction)), top, self.n_items)
        history, length = interaction[self.ITEM_SEQ], interaction[self.ITEM_SEQ_LEN]
        if self.reader.reads_text or torch.is_grad_enabled() or history.is_cuda or len(history) < 2 * ROWS_AT_ONCE:
            log_p, titles = self._read(interaction)
            return self.ranking.scores(log_p, history, titles, top)
        scores = None
        for rows in length.argsort().split(ROWS_AT_ONCE):  # similar lengths have less padding; small arrays stay in the cache
            part = history[rows, :length[rows].max()]
            log_p, _ = self._read(Interaction({self.ITEM_SEQ: part, self.ITEM_SEQ_LEN: length[rows]}))
            scores = log_p.new_empty(len(history), self.n_items) if scores is None else scores
            scores[rows] = self.ranking.scores(log_p, part, None)
        return scores

    def predict(self, interaction):
        """Scores of one item for each row: [B]."""
        if self.rank == "write":
            return self.reader.title_log_probs(self.think(self.read_context(interaction)), interaction[self.ITEM_ID])
        return super().predict(interaction)

    def best_scores(self, interaction, k):
        """See :meth:`recbole_flr.contracts.Recommender.best_scores`."""
        return self.full_sort_predict(interaction, top=k)

    def most_items(self):
        """Beams reach as many texts as there are beams."""
        return self.reader.num_beams if self.rank == "write" and not self.reader.exact else None

    @torch.no_grad()
    def before_validation(self, valid_data):
        """Choose the weights of the ranking on validation rows: :meth:`recbole_flr.model.ranking.Ranking.fit`."""
        if not self.ranking.fits or self.rank == "write" or not isinstance(valid_data, FullSortEvalDataLoader):
            return  # with sampled negatives a row has several items, and only one of them is its target
        self.eval()
        rows = valid_data._dataset.inter_feat
        size = min(valid_data.config["eval_batch_size"], ROWS_AT_ONCE)  # several arrays of size * n items are held at once

        def read(index):
            for interaction in (rows[part].to(self.device) for part in index.split(size)):
                log_p, titles = self._read(interaction)
                yield log_p, interaction[self.ITEM_SEQ], interaction[self.POS_ITEM_ID], titles

        self.ranking.fit(len(rows), read)
        self.ranking.weights = from_first(self.ranking.weights)
        weights = self.ranking.weights
        self.logger.info("Weights of the ranking: " + ", ".join(f"{name} {weight:.3g}" for name, weight in weights.items()))

    # checkpoints

    def save_files(self, folder):
        """The tokenizer, if titles are read."""
        if self.reader.reads_text:
            self.reader.backbone.save(folder)

    def other_parameter(self):
        """What a checkpoint keeps beside the weights."""
        items = [len(self.item_names), _digest(self.item_names), self.known_titles]
        found = {**super().other_parameter(), "items": items, "weights": self.ranking.weights}
        return found if self.vectors.texts is None else {**found, "text_probe": self._text_probe()}

    def _text_probe(self):
        return probe(self.vectors.texts, self.vectors.known.squeeze(1).cpu().numpy())

    def adapt_weights(self, state):
        """Items that were added after the training get no id vector; they are ranked by their text."""
        weights = state.get("vectors.ids.weight")
        if weights is None or len(weights) >= self.n_items:
            return state
        return {**state, "vectors.ids.weight": torch.nn.functional.pad(weights, (0, 0, 0, self.n_items - len(weights)))}

    def load_other_parameter(self, para):
        """Compare training rows, items and titles with those of a checkpoint, and take its weights of the ranking.

        Items may have been added behind the old ones. Where `fit_weights` is off, the weights stay as the options give them.

        Raises:
            CheckpointError: if other things have changed.
        """
        if para:
            count, digest, titles = para["items"]
            if _digest(self.item_names[:count]) != digest:
                raise CheckpointError("the items of the data set are not those that the run was trained on (items may be added "
                                      "at the end of the .item file only); put the old files back, or train anew")
            if titles != self.known_titles:
                raise CheckpointError("the titles of the data set, or item_text, are not those that the run was trained on; put "
                                      "them back, or train anew")
            if self.vectors.texts is not None and "text_probe" in para:
                check_probe(para["text_probe"], self._text_probe())
            self.ranking.restore(para["weights"])
        super().load_other_parameter(para)

    # for other programs

    def language_model(self):
        """The backbone, if titles are read."""
        return self.reader.backbone if self.reader.reads_text else None

    def retrieval(self, interaction):
        """See :meth:`recbole_flr.contracts.Recommender.retrieval`."""
        return self._distribution(self.think(self.read_context(interaction)))

    # explanations

    @torch.no_grad()
    def explain_items(self, interaction, items):
        """See :meth:`recbole_flr.contracts.Recommender.explain_items`."""
        if self.rank == "write":
            titles = self._titles(self.think(self.read_context(interaction)))
            shares = {TITLE: titles(torch.tensor([items], device=self.device))[0]}
        else:
            log_p, titles = self._read(interaction)
            shares = self.ranking.shares(log_p, interaction[self.ITEM_SEQ], items, titles)
        answers = [{"parts": {name: float(values[number]) for name, values in shares.items()}} for number in range(len(items))]
        if self.memory.tables and self.rank != "write":
            history = interaction[self.ITEM_SEQ][0].cpu().numpy()
            for answer, votes in zip(answers, self.memory.voters(history, np.asarray(items), self.ranking.weights)):
                answer["voters"] = votes / max(votes.sum(), np.finfo(np.float32).tiny)
        return answers


def _digest(names):
    """sha256 of a list of names, as text."""
    return hashlib.sha256("\0".join(names).encode("utf-8", "surrogatepass")).hexdigest()


def _initialise(module):
    """Initial weights as in SASRec: normal with a standard deviation of 0.02, biases 0."""
    if isinstance(module, (torch.nn.Linear, torch.nn.Embedding)):
        torch.nn.init.normal_(module.weight, std=0.02)
    if isinstance(module, torch.nn.Linear) and module.bias is not None:
        torch.nn.init.zeros_(module.bias)
