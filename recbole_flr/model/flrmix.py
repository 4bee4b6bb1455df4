"""FLRMix: factors as a mixture over items, with a memory. The parts are in `mixture.py`, `memory.py` and `blend.py`.

1. The encoder reads the history; a thought behind it is refined N times by K factors, as in FLR (`reasoner.py`, `factors.py`).
2. The encoder reads the final thought. Its state h and the factors give K distributions over all items, and the gate mixes them.
3. Tables that were counted on the training rows vote for items. The ranking adds what they say to the log-probability.

Shapes: B batch, L places of a history (right-padded with item 0), K factors, G thoughts of a history, D width, n items.
"""

import hashlib
from dataclasses import dataclass

import numpy as np
import torch
from recbole.data.dataloader import FullSortEvalDataLoader
from recbole.model.abstract_recommender import SequentialRecommender
from recbole.utils import InputType

from recbole_flr.contracts import LossPart, TargetScores, Thinker, total_loss
from recbole_flr.data.catalog import Catalog
from recbole_flr.errors import CheckpointError, ConfigError, DataError
from recbole_flr.model.blend import REPEAT, Candidates, blend, search
from recbole_flr.model.counted import OnTrainingRows, TrainingRows
from recbole_flr.model.factors import REGULARISERS, FactorState, FactorStep, gate_balance, sparsity
from recbole_flr.model.item_encoder import ItemEncoder
from recbole_flr.model.memory import TABLES, Memory
from recbole_flr.model.mixture import ItemVectors, MixtureHead, log_probs, target_log_probs
from recbole_flr.model.reasoner import Context, Reasoner, item_attention, read_prompt
from recbole_flr.model.text_vectors import stored_vectors, word_vectors
from recbole_flr.training.mixture import MixtureTraining
from recbole_flr.training.reinforcement import LatentGRPO

MOST_ROWS = 20_000  # validation rows on which the weights of the ranking are chosen
LOG_P = "mixture"  # name of the part that is log p(i)
WORD_SIZE = 256  # dimensions of the text vectors that are made from words


@dataclass
class ItemContext(Context):
    """Histories that were read.

    Attributes:
        vectors: [n, D], the item vectors.
        state: the factors of the latest thought behind these histories.
    """

    vectors: torch.Tensor | None = None
    state: FactorState | None = None


class FLRMix(OnTrainingRows, SequentialRecommender, Thinker):
    """Factors as a mixture over items, with a memory.

    Args:
        config: see `properties/model/FLRMix.yaml`.
        dataset: RecBole's training dataset. The memory is counted on its rows.
    """

    input_type = InputType.POINTWISE
    stages = (MixtureTraining, LatentGRPO)
    takes_more_items = True
    _encoder_is_frozen = False

    def __init__(self, config, dataset):
        super().__init__(config, dataset)
        if not (config["use_ids"] or config["item_text"] != "none"):
            raise ConfigError("use_ids: found False, and item_text none; expected at least one of them: an item needs a vector")
        width, heads = config["hidden_size"], config["n_heads"]
        if width % heads or width % 2:
            raise ConfigError(f"hidden_size: found {width}, expected an even number that n_heads = {heads} divides")
        rows = TrainingRows.of(dataset, self.ITEM_SEQ)
        self.remember_rows(rows)
        self.item_names = [str(name) for name in dataset.field2id_token[self.ITEM_ID]]
        known = np.zeros(self.n_items, dtype=bool)
        known[rows.histories], known[rows.targets] = True, True
        self.encoder = ItemEncoder(width, config["n_layers"], heads, config["dropout"], self.max_seq_length)
        self.vectors = ItemVectors(
            self.n_items, width, config["use_ids"], self._text_vectors(config, dataset, known), torch.from_numpy(known)
        )
        self.head = MixtureHead(width, config["dropout"], config["mixture"])
        self.reasoner = Reasoner(
            FactorStep(width, config["num_factors"]), width, config["num_refinements"], config["attend_thought"]
        )
        self.loss_parts = {name: config[f"{name}_weight"] for name in REGULARISERS[:2] if config[f"{name}_weight"]}
        self.balance_weight, self.sharpness = config["gate_balance"], 0.0
        self.memory = Memory(
            rows, self.n_items, _table_names(config["memory"]),
            {name: config[name] for name in ("forward_decay", "backward_weight", "row_power", "column_power", "recency_decay")},
            {"num_neighbors": config["num_neighbors"], "sample_size": config["sample_size"], "similarity": "dot",
             "weighting": "harmonic", "score_weighting": "same", "order_decay": config["order_decay"],
             "backward_weight": config["neighbor_backward_weight"]},
        )
        starts = {"transitions": config["transitions_weight"], "neighbors": config["neighbors_weight"]}
        weights = {name: starts[name] for name in self.memory.tables} | {REPEAT: config["repeat_weight"]}
        self.start_weights, self.weights, self.fits_weights = weights, dict(weights), config["fit_weights"]
        self.cutoff = max(config["topk"])
        self.apply(_initialise)
        torch.nn.init.normal_(self.reasoner.step.attention.queries)
        torch.nn.init.normal_(self.reasoner.initial, std=0.02)

    def _text_vectors(self, config, dataset, known):
        """[n, T] vectors of the items' texts; None if they are switched off, or if the data set has no titles.

        Sets `known_titles`, the fingerprint of the titles that the weights belong to.
        """
        kind, self.known_titles = config["item_text"], None
        if kind == "none":
            return None
        try:
            self.catalog = Catalog.from_dataset(config, dataset)
        except DataError as error:
            if not config["use_ids"]:
                raise
            self.logger.warning(f"item_text: the items have no titles, so the model works without text ({error})")
            return None
        self.known_titles = _digest([self.catalog.titles[item] for item in known.nonzero()[0]])
        if kind == "words":
            return word_vectors(self.catalog.titles, WORD_SIZE, known)
        name = kind.strip("/").replace("/", "--").replace("\\", "--")
        path = f"{config['data_path']}/{config['dataset']}.{name}.safetensors"
        return stored_vectors(path, self.catalog.titles, kind, config["device"])

    # reading and thinking

    def read_context(self, interaction, prompt_only=False):
        """Read the histories of a batch. Returns an :class:`ItemContext`; see :meth:`recbole_flr.contracts.Thinker.read_context`."""
        history, vectors = interaction[self.ITEM_SEQ], self.vectors()
        mask = history != 0
        first = None if prompt_only else self.reasoner.initial
        context = read_prompt(self.encoder, vectors[history], mask, True, first)
        context.item = torch.where(mask, torch.arange(history.shape[1], device=history.device), -1)
        return ItemContext(**vars(context), vectors=vectors)

    def think(self, context, reasoner=None):
        """Refine the thought behind the histories. Returns a :class:`recbole_flr.model.reasoner.Thought`."""
        thought = (reasoner or self.reasoner).think(self.encoder, context)
        context.state = thought.state
        return thought

    def _distribution(self, thought):
        """The thought's queries [B, K, D], the logarithm of their weights [B, K], and the item vectors [n, D]."""
        context = thought.context
        state = context.read_token(self.encoder, thought.embedding).squeeze(1)
        return *self.head.queries(state, thought.state), context.vectors

    def score_target(self, context, thoughts, target, greedy=False):
        """See :meth:`recbole_flr.contracts.Thinker.score_target`. Items are scored at once, so T is 1.

        `reward` is the NDCG of the ranking by log p(i), at the cut-off max(topk). The memory is left out of it, because it has
        counted the row itself.
        """
        batch, group = thoughts.shape[:2]
        own = torch.eye(group, dtype=torch.bool, device=thoughts.device).expand(batch, -1, -1)
        visible = torch.cat([context.mask.unsqueeze(1).expand(-1, group, -1), own], dim=2)
        positions = context.length.unsqueeze(1).expand(-1, group)
        states, _ = self.encoder(thoughts, visible, positions, context.cache)
        distribution = *self.head.queries(states, context.state), context.vectors
        steps = torch.ones(batch, 1, dtype=torch.bool, device=thoughts.device)
        if not greedy:
            return TargetScores(target_log_probs(*distribution, target).unsqueeze(-1), steps)
        scores = log_probs(*distribution)
        own_log_prob = scores.gather(2, target[:, None, None].expand(-1, group, 1))
        better = (scores > own_log_prob).sum(2)
        return TargetScores(own_log_prob, steps, better == 0, torch.where(better < self.cutoff, 1 / (better + 2).log2(), 0.0))

    # loss

    def losses(self, interaction):
        """Parts of the supervised loss: name -> LossPart. `item` is the mean of -log p(target)."""
        thought, target = self.think(self.read_context(interaction)), interaction[self.POS_ITEM_ID]
        item = -target_log_probs(*self._distribution(thought), target).mean()
        return {"item": LossPart(item), **self.own_losses(thought, target)}

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
        for module in (self.encoder, self.vectors, self.head):
            module.requires_grad_(False).eval()
            module.zero_grad(set_to_none=True)
        self._encoder_is_frozen, self.sharpness = True, 0.0

    def train(self, mode=True):
        """As every module's, except that a frozen encoder stays without dropout."""
        super().train(mode)
        if self._encoder_is_frozen:
            for module in (self.encoder, self.vectors, self.head):
                module.eval()
        return self

    # ranking

    def ranking_parts(self, interaction):
        """What the ranking is made of: name -> [B, n]. `mixture` is log p(i); then the tables; `repeat` is 1 for items of the
        history."""
        history = interaction[self.ITEM_SEQ]
        log_p = log_probs(*self._distribution(self.think(self.read_context(interaction))))
        repeat = torch.zeros_like(log_p).scatter(1, history, 1.0)
        return {LOG_P: log_p, **self.memory.log_votes(history), REPEAT: repeat}

    def full_sort_predict(self, interaction):
        """Scores of all items: [B, n]; -inf for the padding."""
        return blend(self.ranking_parts(interaction), self.weights)

    def predict(self, interaction):
        """Scores of one item for each row: [B]."""
        return self.full_sort_predict(interaction).gather(1, interaction[self.ITEM_ID].unsqueeze(1)).squeeze(1)

    @torch.no_grad()
    def before_validation(self, valid_data):
        """Choose the weights of the ranking on validation rows: :func:`recbole_flr.model.blend.search`.

        Each search starts from the weights that were given. A search from the weights of the last validation would go on fitting
        the same few rows, epoch after epoch.
        """
        if not self.fits_weights or not isinstance(valid_data, FullSortEvalDataLoader):
            return  # with sampled negatives a row has several items, and only one of them is its target
        self.eval()
        rows = valid_data._dataset.inter_feat
        chosen = torch.arange(len(rows))
        if len(rows) > MOST_ROWS:  # spread over all rows, which may be sorted by time or user
            chosen = torch.linspace(0, len(rows) - 1, MOST_ROWS).long()
        found = []
        for part in chosen.split(valid_data.config["eval_batch_size"]):
            interaction = rows[part].to(self.device)
            found.append(Candidates.of(self.ranking_parts(interaction), interaction[self.POS_ITEM_ID], 10 * self.cutoff))
        self.weights, _ = search(Candidates.joined(found), self.start_weights, self.cutoff)
        self.logger.info("Weights of the ranking: " + ", ".join(f"{name} {weight:.3g}" for name, weight in self.weights.items()))

    # checkpoints

    def other_parameter(self):
        """What a checkpoint keeps beside the weights."""
        items = [len(self.item_names), _digest(self.item_names), self.known_titles]
        return {**super().other_parameter(), "items": items, "weights": self.weights}

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
            if self.fits_weights:
                self.weights.update({name: weight for name, weight in para["weights"].items() if name in self.weights})
        super().load_other_parameter(para)

    # explanations

    def explain(self, interaction):
        """See :meth:`recbole_flr.contracts.Recommender.explain`."""
        context = self.read_context(interaction)
        state = self.think(context).state
        return state.alpha, item_attention(state.attention, context.item, interaction[self.ITEM_SEQ].shape[1])

    def factor_vectors(self, interaction):
        """See :meth:`recbole_flr.contracts.Recommender.factor_vectors`."""
        return self.think(self.read_context(interaction)).state.factors

    def explain_items(self, interaction, items):
        """See :meth:`recbole_flr.contracts.Recommender.explain_items`."""
        parts = self.ranking_parts(interaction)
        shares = {name: self.weights.get(name, 1.0) * part[0, items] for name, part in parts.items()}
        answers = [{"parts": {name: float(values[number]) for name, values in shares.items()}} for number in range(len(items))]
        if "transitions" in self.memory.tables:
            voters = self.memory.tables["transitions"].voters(interaction[self.ITEM_SEQ][0].cpu().numpy(), np.asarray(items))
            for answer, votes in zip(answers, voters.T):
                answer["voters"] = votes / max(votes.sum(), np.finfo(np.float32).tiny)
        return answers


def _table_names(given):
    """The option `memory` -> names of tables, in their order.

    Raises:
        ConfigError: for a name that is no table.
    """
    names = [] if given is None else [name.strip() for name in given.split(",")] if isinstance(given, str) else list(given)
    if not all(isinstance(name, str) and name in TABLES for name in names):
        raise ConfigError(f"memory: found {given!r}, expected a list of {', '.join(TABLES)}, or null")
    return [name for name in TABLES if name in names]


def _digest(names):
    """sha256 of a list of names, as text."""
    return hashlib.sha256("\0".join(names).encode("utf-8", "surrogatepass")).hexdigest()


def _initialise(module):
    """Initial weights as in SASRec: normal with a standard deviation of 0.02, biases 0."""
    if isinstance(module, (torch.nn.Linear, torch.nn.Embedding)):
        torch.nn.init.normal_(module.weight, std=0.02)
    if isinstance(module, torch.nn.Linear) and module.bias is not None:
        torch.nn.init.zeros_(module.bias)
