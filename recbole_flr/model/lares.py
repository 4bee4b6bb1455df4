"""LARES: Latent Reasoning for Sequential Recommendation (Liu et al., arXiv 2505.16865) as a RecBole model.

A pre-block A reads the history once. A core block C, whose weights are shared by all steps, then refines the states of all places
of the history again and again:

    H = A(items + positions),   T_0 = noise,   T_i = C(LN(T_{i-1} + H)),   score(item) = T_k[last place] . item

Stages:

1. `spt`, self-supervised pre-training. The number of steps is drawn for each batch. The loss is the cross entropy of the next
   item, plus two alignments. Trajectory level: two trajectories of a history, from different noise and of different length, end at the
   same place. Step level: a thought on the way points to where its trajectory ends.
2. `grpo`, reinforcement. The reward of a thought is Recall@k of the items that it ranks first, k = max(topk).

Departures and choices:

- The text that was at hand gives the architecture and names the alignments, but not their formulas. Here both are InfoNCE on the
  cosine, with the other rows of the batch as negatives, except rows with the same target.
- The number of steps is uniform between 1 and 2 * depth - 1, so that its mean is `depth`, which is used for the ranking.
- T_0 is noise in the first stage. It is 0 for the ranking and in the second stage, so that a history always has the same scores.
- The paper explores with different initial noise. Here the stage `grpo` of FLR draws thoughts around the last one, because their
  density is known; the pre-block and the items are frozen in it.

Shapes: B batch, L places of a history (right-padded with item 0), D width, G thoughts of a history, n items.
"""

from dataclasses import dataclass

import torch
from recbole.model.abstract_recommender import SequentialRecommender
from recbole.model.layers import TransformerEncoder
from recbole.utils import InputType
from torch import nn

from recbole_flr.contracts import ByFullRanking, LossPart, TargetScores, Thinker, total_loss
from recbole_flr.distributed import from_first, gather_rows
from recbole_flr.errors import ConfigError
from recbole_flr.training.reinforcement import LatentGRPO
from recbole_flr.training.self_supervised import SelfSupervised


@dataclass
class ReadHistory:
    """A batch of histories as the pre-block read them.

    Attributes:
        hidden: [B, L, D], H.
        mask: [B, 1, L, L], additive: which place sees which.
        last: [B], the last place of each history.
    """

    hidden: torch.Tensor
    mask: torch.Tensor
    last: torch.Tensor


@dataclass
class Trajectory:
    """The thoughts at the last place of each history.

    Attributes:
        steps: list of [B, D], the thought after each step.
    """

    steps: list

    @property
    def embedding(self):
        """[B, D], the last thought."""
        return self.steps[-1]


class CoreBlock(nn.Module):
    """One step, T_i = C(LN(T_{i-1} + H)), with the same weights for every step.

    Args:
        block: RecBole's TransformerEncoder.
        width: D.
        eps: of the layer norm.
    """

    def __init__(self, block, width, eps):
        super().__init__()
        self.block, self.norm = block, nn.LayerNorm(width, eps=eps)

    def think(self, context, depth, noise=0.0):
        """Take `depth` steps from T_0, which has the standard deviation `noise`. ReadHistory -> Trajectory."""
        thought = torch.zeros_like(context.hidden)
        if noise:
            thought = noise * torch.randn_like(thought)
        rows, steps = torch.arange(len(context.last), device=context.last.device), []
        for _ in range(depth):
            thought = self.block(self.norm(thought + context.hidden), context.mask, output_all_encoded_layers=False)[-1]
            steps.append(thought[rows, context.last])
        return Trajectory(steps)


class LARES(ByFullRanking, SequentialRecommender, Thinker):
    """A pre-block, and a core block that is iterated.

    Args:
        config: see `properties/model/LARES.yaml`.
        dataset: RecBole training dataset.

    Raises:
        ConfigError: if hidden_size is no multiple of n_heads.
    """

    input_type = InputType.POINTWISE
    stages = (SelfSupervised, LatentGRPO)
    _encoder_is_frozen = False

    def __init__(self, config, dataset):
        super().__init__(config, dataset)
        width, heads, eps = config["hidden_size"], config["n_heads"], config["layer_norm_eps"]
        if width % heads:
            raise ConfigError(f"hidden_size: found {width}, expected a multiple of n_heads = {heads}")

        def block(layers):
            return TransformerEncoder(layers, heads, width, config["inner_size"], config["hidden_dropout_prob"],
                                      config["attn_dropout_prob"], config["hidden_act"], eps)

        self.items = nn.Embedding(self.n_items, width, padding_idx=0)
        self.positions = nn.Embedding(self.max_seq_length, width)
        self.norm, self.dropout = nn.LayerNorm(width, eps=eps), nn.Dropout(config["hidden_dropout_prob"])
        self.pre_block = block(config["pre_layers"])
        self.reasoner = CoreBlock(block(config["core_layers"]), width, eps)
        self.depth, self.noise = config["depth"], config["initial_noise"]
        self.trajectory_weight, self.step_weight = config["trajectory_weight"], config["step_weight"]
        self.temperature, self.cutoff = config["alignment_temperature"], max(config["topk"])
        self.apply(lambda module: _initialise(module, config["initializer_range"]))

    # reading and thinking

    def read_context(self, interaction, prompt_only=False):
        """Read the histories of a batch with the pre-block. Returns a :class:`ReadHistory`."""
        history = interaction[self.ITEM_SEQ]
        places = torch.arange(history.shape[1], device=history.device)
        embeddings = self.dropout(self.norm(self.items(history) + self.positions(places)))
        mask = self.get_attention_mask(history)
        hidden = self.pre_block(embeddings, mask, output_all_encoded_layers=False)[-1]
        return ReadHistory(hidden, mask, interaction[self.ITEM_SEQ_LEN] - 1)

    def think(self, context, reasoner=None):
        """Refine the thought `depth` times from T_0 = 0. Returns a :class:`Trajectory`."""
        return (reasoner or self.reasoner).think(context, self.depth)

    def scores(self, thoughts):
        """[..., D] -> scores of all items [..., n]; -inf for the padding, item 0."""
        scores = thoughts @ self.items.weight.T
        return scores.index_fill(-1, torch.zeros(1, dtype=torch.long, device=scores.device), -torch.inf)

    def score_target(self, context, thoughts, target, greedy=False):
        """See :meth:`recbole_flr.contracts.Thinker.score_target`. Items are scored at once, so T is 1. `reward` is Recall@k: 1 if
        fewer than k = max(topk) items have a better score than the target, else 0."""
        scores = self.scores(thoughts).log_softmax(-1)
        own = scores.gather(2, target[:, None, None].expand(-1, scores.shape[1], 1))
        steps = torch.ones(len(target), 1, dtype=torch.bool, device=target.device)
        if not greedy:
            return TargetScores(own, steps)
        better = (scores > own).sum(2)
        return TargetScores(own, steps, better == 0, (better < self.cutoff).to(own.dtype))

    # loss

    def losses(self, interaction):
        """Parts of the loss of the first stage: name -> LossPart. `item` is the mean cross entropy of both trajectories."""
        context, target = self.read_context(interaction), interaction[self.POS_ITEM_ID]
        one, two = (self.reasoner.think(context, self._draw_depth(), self.noise) for _ in range(2))
        item = sum(nn.functional.cross_entropy(self.scores(each.embedding), target) for each in (one, two)) / 2
        parts = {"item": LossPart(item)}
        if self.trajectory_weight:
            aligned = alignment(one.embedding, two.embedding, target, self.temperature)
            parts["trajectory"] = LossPart(aligned, self.trajectory_weight)
        if self.step_weight:
            aligned = [self._step_alignment(each, target) for each in (one, two)]
            parts["step"] = LossPart(sum(aligned) / 2, self.step_weight)
        return parts

    def _draw_depth(self):
        """A number of steps, uniform between 1 and 2 * depth - 1, the same on all processes."""
        return from_first(int(torch.randint(1, 2 * self.depth, ())))

    def _step_alignment(self, trajectory, target):
        """Alignment of a thought on the way, drawn at random, with the last one, which gets no gradient from it. A scalar."""
        if len(trajectory.steps) == 1:
            return trajectory.embedding.new_zeros(())
        step = from_first(int(torch.randint(0, len(trajectory.steps) - 1, ())))
        return alignment(trajectory.steps[step], trajectory.embedding.detach(), target, self.temperature)

    def own_losses(self, thought, target):
        """There are none."""
        return {}

    def calculate_loss(self, interaction):
        """The total of :meth:`losses`. A scalar."""
        return total_loss(self.losses(interaction))

    def freeze_encoder(self):
        """From now on only the core block is trained, and no dropout acts."""
        for module in (self.items, self.positions, self.norm, self.pre_block):
            module.requires_grad_(False)
            module.zero_grad(set_to_none=True)
        self._encoder_is_frozen = True
        self.eval()

    def train(self, mode=True):
        """As every module's, except that there is no dropout after :meth:`freeze_encoder`."""
        return super().train(mode and not self._encoder_is_frozen)

    # ranking

    def full_sort_predict(self, interaction):
        """Scores of all items: [B, n]."""
        return self.scores(self.think(self.read_context(interaction)).embedding)

    def retrieval(self, interaction):
        """See :meth:`recbole_flr.contracts.Recommender.retrieval`. There is one query, the last thought."""
        queries = self.think(self.read_context(interaction)).embedding.unsqueeze(1)
        return queries, queries.new_zeros(queries.shape[:2]), self.items.weight


def alignment(one, two, target, temperature):
    """InfoNCE in both directions: the two thoughts of a row belong together, those of other rows do not.

    Args:
        one, two: [B, D].
        target: [B] item ids. Rows with the same target are no negatives of each other.
        temperature: > 0, of the cosines.

    Returns:
        scalar.
    """
    one, two, target = gather_rows(one), gather_rows(two), gather_rows(target)  # the batch is that of all processes
    cosines = nn.functional.normalize(one, dim=-1) @ nn.functional.normalize(two, dim=-1).T
    rows = torch.arange(len(target), device=target.device)
    same = (target.unsqueeze(0) == target.unsqueeze(1)) & (rows.unsqueeze(0) != rows.unsqueeze(1))
    logits = (cosines / temperature).masked_fill(same, -torch.inf)
    return (nn.functional.cross_entropy(logits, rows) + nn.functional.cross_entropy(logits.T, rows)) / 2


def _initialise(module, std):
    """Initial weights as in RecBole's SASRec."""
    if isinstance(module, (nn.Linear, nn.Embedding)):
        module.weight.data.normal_(std=std)
    if isinstance(module, nn.Linear) and module.bias is not None:
        module.bias.data.zero_()
    if isinstance(module, nn.Embedding) and module.padding_idx is not None:
        module.weight.data[module.padding_idx].zero_()
