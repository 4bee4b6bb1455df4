"""The reinforcement stage on tiny models. The oracle reads the whole prompt anew for each member of a group, without a cache."""

import copy

import pytest
import torch
from conftest import exact_norms
from torch.distributions import Normal, kl_divergence

from recbole_flr.contracts import LossPart, total_loss
from recbole_flr.data.batching import Repeated
from recbole_flr.decoding.beam import beam_search
from recbole_flr.model.reasoner import read_prompt
from recbole_flr.model.tree import TreeDecoder
from recbole_flr.training import grpo
from recbole_flr.training.reinforcement import LatentGRPO

LATENT = ("FLR", "LatentR3")
SETTINGS = {"kl_coef": 0.3, "advantage_eps": 1e-6, "confidence_reward": 0.1, "match_reward": 1.0, "clip_low": 0.2,
            "clip_high": 0.28, "noise_scale": 0.3, "grpo_ratio": "token"}  # what the oracle uses for options that a case does not give


@pytest.fixture
def grpo_stage(build):
    """grpo_stage(model, **options) -> model, the stage after it was entered, and a batch with prompts of many lengths.

    The model is in float64 and has weights so large that members of a group differ.
    """

    def make(model="FLR", rows=6, **options):
        torch.manual_seed(11)
        options = {"torch_dtype": "float64", "group_size": 4, "kl_coef": 0.3, "advantage_eps": 1e-6, **options}
        config, made, loaders = build(model, **options)
        made = exact_norms(made.double())
        for parameter in made.parameters():
            if parameter.dim() > 1:
                torch.nn.init.normal_(parameter, std=0.15)
        stage = LatentGRPO(made, config)
        stage.enter()
        total = len(loaders[0]._dataset)
        interaction = loaders[0].collate_fn([total * n // rows for n in range(rows)])  # early rows have short histories
        assert len(set(interaction[made.ITEM_SEQ_LEN].tolist())) > 2
        return made.train(), stage, interaction

    return make


def loss_of(stage, rollout):
    """The total loss of a step on a rollout, a scalar."""
    return total_loss(stage.rollout_losses(rollout))


def move(model, seed=3, size=0.05):
    """Change the reasoner, so that policy, old policy and reference differ."""
    torch.manual_seed(seed)
    with torch.no_grad():
        for parameter in model.reasoner.parameters():
            parameter += size * torch.randn_like(parameter)


@torch.no_grad()
def let_some_match(model, interaction, score="full"):
    """In half of the rows, let the target be the title that greedy decoding finds without noise."""
    thought = model.think(model.read_context(interaction))
    leaf = beam_search(TreeDecoder(model.backbone, thought), model.trie, 1, score=score).nodes[:, 0]
    found = model.trie.items[model.trie.item_start[leaf].long()].long()
    interaction[model.POS_ITEM_ID][::2] = found[::2]


class FullPasses:
    """The oracle: the same loss, one member at a time, with full passes over its whole prompt for each role.

    Args:
        model: in float64.
        stage: for its kind and its reference.
        interaction: RecBole batch of B rows.
        noise: [B, G, D], of the members.
        old_reasoner: of the old policy.
        options: of the case; those in SETTINGS are read from here, and not from the stage.
    """

    def __init__(self, model, stage, interaction, noise, old_reasoner, **options):
        self.model, self.stage, self.noise, self.old_reasoner = model, stage, noise, old_reasoner
        self.settings = {**SETTINGS, **options}
        self.prompts = model.collator.prompts(interaction[model.ITEM_SEQ], interaction[model.ITEM_SEQ_LEN])
        self.titles = [model.collator.titles.row(item) for item in interaction[model.POS_ITEM_ID].tolist()]

    def think(self, reasoner, group, use_cache=False):
        backbone, mask = self.model.backbone, self.prompts.mask[group]
        embeddings = backbone.embed(self.prompts.ids[group][mask])[None]
        mask = torch.ones(embeddings.shape[:2], dtype=torch.bool)
        return embeddings, reasoner.think(backbone, read_prompt(backbone, embeddings, mask, use_cache, reasoner.initial))

    def score(self, reasoner, group, member):
        """Log-probabilities of the target's tokens [T], and the thought without noise."""
        backbone = self.model.backbone
        embeddings, thought = self.think(reasoner, group)
        title = torch.tensor(self.titles[group])
        member = (thought.embedding + self.noise[group, member])[:, None]
        tokens = torch.cat([embeddings, member, backbone.embed(title)[None]], 1)
        hidden = backbone.lm.base_model(inputs_embeds=tokens).last_hidden_state[0, embeddings.shape[1]:-1]
        logits = backbone.lm.get_output_embeddings()(hidden)
        return logits.log_softmax(-1).gather(1, title[:, None])[:, 0], thought

    @torch.no_grad()
    def matches(self):
        """Whether greedy decoding under the trie writes the target, [B, G], by running the decoder for each member."""
        trie, found = self.model.trie, []
        for group, members in enumerate(self.noise):
            for noise in members:
                thought = self.think(self.old_reasoner, group, use_cache=True)[1]
                thought.embedding = thought.embedding + noise
                leaf = beam_search(TreeDecoder(self.model.backbone, thought), trie, 1).nodes[0, 0]
                written = self.model.collator.titles.row(trie.items[trie.item_start[leaf]].item())
                found.append(written == self.titles[group])
        return torch.tensor(found).view(self.noise.shape[:2])

    def judge(self):
        """Find the old policy's log-probabilities, its exact matches and rewards [B, G], and the advantages [B, G]."""
        groups, members = self.noise.shape[:2]
        # with a graph, as in `loss`: in the first step the ratio must be exactly 1, where a clip of 0 begins to act
        self.old = [[self.score(self.old_reasoner, b, g)[0].detach() for g in range(members)] for b in range(groups)]
        self.match = self.matches()
        confidence = torch.tensor([[each.mean() for each in group] for group in self.old], dtype=torch.float64)
        if self.stage.kind == "flr":
            self.reward = self.settings["confidence_reward"] * confidence + self.settings["match_reward"] * self.match
            above = self.reward - self.reward[:, :1]
            self.advantage = above / (above.square().sum(1, keepdim=True).sqrt() + self.settings["advantage_eps"])
        else:
            self.reward = -(-confidence).exp()
            together, found = groups if self.stage.kind == "latentr3_batch" else 2, []
            for first in range(0, groups, together):
                part = self.reward[first:first + together]
                above = part - part[:, 0].mean()
                found.append(above / (above.square().sum().sqrt() + 1e-6))
            self.advantage = torch.cat(found)

    def term(self, ratio, advantage, divergence):
        """Minus the clipped surrogate, plus the weighted divergence."""
        cut = ratio.clamp(1 - self.settings["clip_low"], 1 + self.settings["clip_high"])
        return -torch.minimum(ratio * advantage, cut * advantage) + self.settings["kl_coef"] * divergence

    def token_terms(self, group):
        """A term for each token of each member, and the thought."""
        terms = []
        for g in range(self.noise.shape[1]):
            new, thought = self.score(self.model.reasoner, group, g)
            with torch.no_grad():
                reference, _ = self.score(self.stage.reference, group, g)
            for t in range(len(new)):
                gap = reference[t] - new[t]
                terms.append(self.term((new[t] - self.old[group][g][t]).exp(), self.advantage[group, g], gap.exp() - gap - 1))
        return terms, thought

    def latent_terms(self, group):
        """A term for each member, by the normal densities of which torch knows the probabilities, and the thought."""
        _, thought = self.think(self.model.reasoner, group)
        with torch.no_grad():
            old, reference = (self.think(each, group)[1].embedding[0] for each in (self.old_reasoner, self.stage.reference))
            deviation = self.settings["noise_scale"] * old.square().mean().sqrt()
        new, before = Normal(thought.embedding[0], deviation), Normal(old, deviation)
        divergence, terms = kl_divergence(new, Normal(reference, deviation)).sum(), []
        for g in range(self.noise.shape[1]):
            drawn = old + self.noise[group, g]
            ratio = (new.log_prob(drawn).sum() - before.log_prob(drawn).sum()).exp()
            terms.append(self.term(ratio, self.advantage[group, g], divergence))
        return terms, thought

    def loss(self):
        """The loss of a step with the model's present reasoner."""
        groups, loss, regularisers = len(self.noise), 0.0, {}
        for b in range(groups):
            terms, thought = (self.token_terms if self.settings["grpo_ratio"] == "token" else self.latent_terms)(b)
            loss = loss + torch.stack(terms).mean() / groups
            if thought.state is not None:
                for name, value in thought.state.regularisers().items():
                    regularisers[name] = regularisers.get(name, 0) + value / groups
        parts = {"loss": LossPart(loss), **(self.model.loss_weights(regularisers) if regularisers else {})}
        return total_loss(parts)


@pytest.mark.parametrize("kind, expected", [
    ("flr", ("latent", True, 0.3, 0.01)), ("latentr3", ("token", False, 1.5, 0.0)),
    ("latentr3_batch", ("token", False, 1.5, 0.0)),
])
def test_defaults_that_depend_on_the_kind(build, kind, expected):
    """Ratio, whether the noise is relative, its scale, and the weight of the divergence. A given value replaces each."""
    config, model, _ = build(grpo=kind)
    stage = LatentGRPO(model, config)
    assert (stage.ratio, stage.relative, stage.scale, stage.kl_coef) == expected
    for name, value in {"grpo_ratio": "token", "noise": "relative", "noise_scale": 0.7, "kl_coef": 0.2}.items():
        config[name] = value
    stage = LatentGRPO(model, config)
    assert (stage.ratio, stage.relative, stage.scale, stage.kl_coef) == ("token", True, 0.7, 0.2)


def gradients(model, loss):
    model.zero_grad()
    loss.backward()
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("model_name, options", [
    ("FLR", {"grpo_ratio": "token"}), ("FLR", {"grpo_ratio": "token", "num_refinements": 3, "group_size": 2}),
    ("FLR", {"grpo_ratio": "token", "clip_low": 0.0, "clip_high": 0.01}), ("FLR", {"grpo": "latentr3"}), ("FLR", {"grpo": "latentr3_batch"}),
    ("LatentR3", {}), ("LatentR3", {"grpo": "flr", "grpo_ratio": "token"}),
    ("FLR", {"grpo_ratio": "token", "confidence_reward": 0.3, "match_reward": 0.7, "advantage_eps": 0.5}),
    ("FLR", {"grpo_ratio": "latent"}), ("FLR", {"grpo_ratio": "latent", "clip_low": 0.01, "clip_high": 0.02, "noise_scale": 0.5}),
])
def test_shared_prompt_equals_repeated_prompts(grpo_stage, model_name, options):
    """Loss and gradients of the first step, and of the second, where the ratio differs from 1 and the clip acts."""
    model, stage, interaction = grpo_stage(model_name, rows=4, **options)
    move(model)
    let_some_match(model, interaction)
    rollout = stage.rollout(interaction)
    old, oracle = copy.deepcopy(model.reasoner), None
    for step in range(2):
        loss = loss_of(stage, rollout)
        got = gradients(model, loss)
        if oracle is None:  # the noise is drawn in the first step
            oracle = FullPasses(model, stage, interaction, rollout.noise, old, **options)
            oracle.judge()
        expected = oracle.loss()
        torch.testing.assert_close(loss, expected, rtol=1e-9, atol=1e-9)
        wanted = gradients(model, expected)
        assert got.keys() == wanted.keys() and not any(name.startswith("backbone.") for name in got)
        for name in wanted:
            torch.testing.assert_close(got[name], wanted[name], rtol=1e-8, atol=1e-10)
        move(model, seed=4, size=0.02)
    means = stage.means.read()
    assert oracle.match[::2, 0].all() and not oracle.match.all()
    assert means["match"] == pytest.approx(oracle.match.double().mean().item())
    assert means["reward"] == pytest.approx(oracle.reward.mean().item())


@pytest.mark.parametrize("score", ["full", "trie"])
def test_exact_match_agrees_with_the_greedy_decoder(grpo_stage, score):
    """On targets that greedy decoding finds for some members and not for others."""
    model, stage, interaction = grpo_stage(noise="absolute", noise_scale=3.0, group_size=12, score=score)
    let_some_match(model, interaction, score)
    rollout = stage.rollout(interaction)
    loss_of(stage, rollout)
    members = rollout.thought.unsqueeze(1) + rollout.noise
    scores = model.score_target(rollout.context, members, rollout.target, greedy=True)
    expected = FullPasses(model, stage, interaction, rollout.noise, model.reasoner).matches()
    assert torch.equal(scores.match, expected) and 0 < expected.double().mean() < 1 and expected[::2, 0].all()
    assert stage.means.read()["match"] == pytest.approx(expected.double().mean().item())
    assert model.score_target(rollout.context, members, rollout.target).match is None


@pytest.mark.parametrize("model_name", LATENT)
@pytest.mark.parametrize("ratio", ["token", "latent"])
def test_a_step_moves_the_reasoner_and_leaves_the_backbone_and_the_reference(grpo_stage, model_name, ratio):
    model, stage, interaction = grpo_stage(model_name, grpo_ratio=ratio, noise_scale=1.0)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=0.01, weight_decay=0.1)
    for _ in range(2):
        loss = loss_of(stage, stage.rollout(interaction))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    for name, value in model.state_dict().items():
        assert torch.equal(before[name], value) == name.startswith("backbone."), name
    for name, value in stage.reference.named_parameters():
        assert torch.equal(before[f"reasoner.{name}"], value) and value.grad is None


def test_the_backbone_has_no_dropout_in_this_stage(grpo_stage):
    model, stage, interaction = grpo_stage(embedding_dropout=0.5, compact_dropout=0.5)
    assert model.training and not model.backbone.training
    one, two = (stage.rollout(interaction).context.hidden for _ in range(2))
    assert torch.equal(one, two)


@pytest.mark.parametrize("ratio", ["token", "latent"])
def test_without_kl_there_is_no_reference(grpo_stage, ratio):
    model, stage, interaction = grpo_stage(kl_coef=0.0, grpo_ratio=ratio)
    assert stage.reference is None
    rollout = stage.rollout(interaction)
    parts = stage.rollout_losses(rollout)
    total_loss(parts).backward()
    assert rollout.reference is None and "kl" not in parts


@pytest.mark.parametrize("ratio", ["token", "latent"])
@pytest.mark.parametrize("model_name", LATENT)
def test_the_loss_has_named_parts_and_the_log_has_their_means(grpo_stage, model_name, ratio):
    model, stage, interaction = grpo_stage(model_name, grpo_ratio=ratio)
    move(model)
    batch = next(iter(Repeated(OneBatch(interaction), 1)))
    torch.manual_seed(5)
    parts = stage.losses(batch)
    own = ["orthogonality", "diversity", "sparsity", "uncertainty"] if model_name == "FLR" else []
    assert list(parts) == ["surrogate", "kl", *own] and parts["kl"].weight == 0.3 and parts["kl"].value > 0
    stage.means.reset()
    torch.manual_seed(5)
    total = stage.loss(batch)
    expected = sum(part.weight * part.value for part in parts.values())
    torch.testing.assert_close(total, expected)
    means = stage.means.read()
    assert means["loss"] == pytest.approx(total.item()) and means["kl_weight"] == 0.3
    for name, part in parts.items():
        assert means[name] == pytest.approx(part.value.item()), name
    for name in ("ratio", "clip_fraction", "reward", "confidence", "match", "clean_reward", "clean_confidence", "clean_match",
                 "advantage_std", "noise"):
        assert name in means, name


def test_latent_ratio_by_the_score_function(grpo_stage):
    """At the first step the thought's gradient is the mean over the members of -A_i eps_i / s^2."""
    model, stage, interaction = grpo_stage(grpo_ratio="latent", kl_coef=0.0, noise_scale=1.0, orthogonality_loss=False,
                                           diversity_loss=False, sparsity_loss=False)
    rollout, thoughts = stage.rollout(interaction), []
    think = model.reasoner.think
    model.reasoner.think = lambda *args: thoughts.append(think(*args)) or thoughts[-1]
    loss = loss_of(stage, rollout)
    grad, = torch.autograd.grad(loss, thoughts[0].embedding)
    expected = torch.zeros_like(grad)
    for b in range(len(grad)):
        for g in range(4):
            expected[b] -= rollout.advantages[b, g] * rollout.noise[b, g] / rollout.deviation[b] ** 2 / 4 / len(grad)
    assert expected.abs().max() > 0
    torch.testing.assert_close(grad, expected)


def test_groups_do_not_depend_on_their_batch(grpo_stage, monkeypatch):
    """Advantages are taken within a group, so the loss of a batch is the mean of the losses of its groups alone."""
    model, stage, interaction = grpo_stage(grpo_ratio="token")
    move(model)
    rollout = stage.rollout(interaction)
    together = loss_of(stage, rollout)
    alone = []
    for row in range(len(interaction)):
        single = stage.rollout(interaction[torch.tensor([row])])
        with monkeypatch.context() as patch:
            patch.setattr(grpo, "perturb", lambda *_: (rollout.noise[row:row + 1], rollout.deviation[row:row + 1]))
            alone.append(loss_of(stage, single))
    torch.testing.assert_close(together, torch.stack(alone).mean())


class OneBatch:
    """A loader that gives the same batch several times."""

    generator = sampler = dataset = _dataset = None
    shuffle = False

    def __init__(self, interaction, times=1):
        self.interaction, self.times = interaction, times

    def __len__(self):
        return self.times

    def __iter__(self):
        return iter([self.interaction] * self.times)


def test_a_repeated_batch_keeps_its_rollout(grpo_stage):
    model, stage, interaction = grpo_stage(grpo_updates=3)
    made, own = [], stage.rollout
    stage.rollout = lambda batch: made.append(own(batch)) or made[-1]
    used = []
    losses = stage.rollout_losses
    stage.rollout_losses = lambda rollout: used.append(rollout) or losses(rollout)
    loader = Repeated(OneBatch(interaction, 2), stage.updates)
    for batch in loader:
        stage.loss(batch)
    assert len(loader) == len(used) == 6 and len(made) == 2
    assert [id(rollout) for rollout in used] == [id(made[0])] * 3 + [id(made[1])] * 3
    assert made[0].noise is not made[1].noise


def test_the_stage_repeats_each_batch_as_often_as_it_updates(build):
    config, model, loaders = build(grpo_updates=3, grpo_batch_size=16, grpo_rows=40)
    batches = list(LatentGRPO(model, config).loader(loaders[0]))
    assert [batch.is_first for batch in batches] == [True, False, False] * 3
    assert sum(len(batch.interaction) for batch in batches) == 40 * 3
    assert all(one.interaction is batches[n - n % 3].interaction for n, one in enumerate(batches))


def test_the_mean_reward_under_noise_rises(grpo_stage):
    """After many steps on one batch, the members' mean reward on fresh noise is higher than before."""
    model, stage, interaction = grpo_stage(noise="relative", noise_scale=0.5, group_size=32, kl_coef=0.0)

    def mean_reward():
        stage.means.reset()
        torch.manual_seed(99)
        with torch.no_grad():
            loss_of(stage, stage.rollout(interaction))
        return stage.means.read()["reward"]

    before = mean_reward()
    optimizer = torch.optim.Adam([p for p in model.parameters() if p.requires_grad], lr=5e-3)
    for step in range(30):
        torch.manual_seed(step)
        optimizer.zero_grad()
        loss_of(stage, stage.rollout(interaction)).backward()
        optimizer.step()
    assert mean_reward() > before + 0.02
