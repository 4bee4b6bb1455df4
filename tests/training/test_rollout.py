"""The reinforcement stage on real (tiny) models: shared prompts against repeated ones, the frozen backbone, the reward."""

import copy

import pytest
import torch
from conftest import exact_norms

from recbole_flr.decoding.beam import beam_search
from recbole_flr.errors import ConfigError
from recbole_flr.model.tree import TreeDecoder
from recbole_flr.training import grpo
from recbole_flr.training.rollout import LatentGRPO, RolloutLoader

LATENT = ("FLR", "LatentR3")


@pytest.fixture
def stage(build):
    """stage(model, **options) -> model in float64 with weights of some size, its policy, a batch of many prompt lengths."""

    def make(model="FLR", rows=6, **options):
        torch.manual_seed(11)
        options = {"torch_dtype": "float64", "group_size": 4, "kl_coef": 0.3, "advantage_eps": 1e-6, **options}
        config, made, loaders = build(model, **options)
        made = exact_norms(made.double())
        for parameter in made.parameters():
            if parameter.dim() > 1:
                torch.nn.init.normal_(parameter, std=0.15)
        made.freeze_backbone()
        policy = LatentGRPO(made, config)
        total = len(loaders[0]._dataset)
        interaction = loaders[0].collate_fn([total * n // rows for n in range(rows)])  # early rows have short histories
        assert len(set(interaction[made.ITEM_SEQ_LEN].tolist())) > 2
        return made.train(), policy, interaction

    return make


def move(model, seed=3, size=0.05):
    """Change what the stage trains, so that policy, old policy and reference differ."""
    torch.manual_seed(seed)
    with torch.no_grad():
        for parameter in model.reasoner.parameters():
            parameter += size * torch.randn_like(parameter)


def obvious(model, policy, interaction, old_reasoner, noise):
    """The same loss, one member at a time: its whole prompt is read anew, without a cache, for each role."""
    backbone = model.backbone
    prompts = model.collator.prompts(interaction[model.ITEM_SEQ], interaction[model.ITEM_SEQ_LEN])
    titles = [model.collator.titles.row(item) for item in interaction[model.POS_ITEM_ID].tolist()]

    def think(reasoner, group):
        embeddings = backbone.embed(prompts.ids[group][prompts.mask[group]])[None]
        reading = reasoner(backbone, embeddings, torch.ones(embeddings.shape[:2], dtype=torch.bool), use_cache=False)
        return embeddings, reading

    def score(reasoner, group, member):
        embeddings, reading = think(reasoner, group)
        title = torch.tensor(titles[group])
        tokens = torch.cat([embeddings, (reading.seed + noise[group, member])[:, None], backbone.embed(title)[None]], 1)
        hidden = backbone.lm.base_model(inputs_embeds=tokens).last_hidden_state[0, embeddings.shape[1]:-1]
        logits = backbone.lm.get_output_embeddings()(hidden)
        return logits.log_softmax(-1).gather(1, title[:, None])[:, 0], reading

    def matches(reasoner, group, member):
        """Runs the constrained greedy decoder."""
        with torch.no_grad():
            embeddings, _ = think(reasoner, group)
            reading = reasoner(backbone, embeddings, torch.ones(embeddings.shape[:2], dtype=torch.bool))
            reading.seed = reading.seed + noise[group, member]
            leaf = beam_search(TreeDecoder(backbone, reading), model.trie, 1).nodes[0, 0]
        first = model.trie.item_start[leaf]
        return titles[group] == model.collator.titles.row(model.trie.items[first].item())

    groups, members = noise.shape[:2]
    old = [[score(old_reasoner, b, g)[0].detach() for g in range(members)] for b in range(groups)]
    match = torch.tensor([[matches(old_reasoner, b, g) for g in range(members)] for b in range(groups)])
    confidence = torch.tensor([[old[b][g].mean() for g in range(members)] for b in range(groups)], dtype=torch.float64)
    if policy.kind == "flr":
        reward = 0.1 * confidence + 1.0 * match
        above = reward - reward[:, :1]
        advantage = above / (above.square().sum(1, keepdim=True).sqrt() + 1e-6)
    else:
        reward = -(-confidence).exp()
        above = reward - reward[:, 0].mean()
        advantage = above / (above.square().sum().sqrt() + 1e-6)
    loss, regularisers = 0.0, {}
    for b in range(groups):
        tokens = []
        for g in range(members):
            new, reading = score(model.reasoner, b, g)
            reference, _ = score(policy.reference, b, g)
            for t in range(len(new)):
                ratio = (new[t] - old[b][g][t]).exp()
                cut = ratio.clamp(1 - policy.clip[0], 1 + policy.clip[1])
                gap = reference[t].detach() - new[t]
                tokens.append(-torch.minimum(ratio * advantage[b, g], cut * advantage[b, g])
                              + policy.kl_coef * (gap.exp() - gap - 1))
        loss = loss + torch.stack(tokens).mean() / groups
        if reading.state is not None:
            for name, value in reading.state.regularisers().items():
                regularisers[name] = regularisers.get(name, 0) + value / groups
    return (model.loss_weights(loss, regularisers) if regularisers else loss), match, reward


def gradients(model, loss):
    model.zero_grad()
    loss.backward()
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("model_name, options", [
    ("FLR", {"grpo_ratio": "token"}), ("FLR", {"grpo_ratio": "token", "num_refinements": 3, "group_size": 2}),
    ("FLR", {"grpo_ratio": "token", "clip_low": 0.0, "clip_high": 0.01}), ("FLR", {"grpo": "latentr3"}),
    ("LatentR3", {}), ("LatentR3", {"grpo": "flr", "grpo_ratio": "token"}),
])
def test_shared_prompt_equals_repeated_prompts(stage, model_name, options):
    """Loss and gradients, on the first step and on the second, where ratio and clip act."""
    model, policy, interaction = stage(model_name, **options)
    move(model)
    rollout = policy.rollout(interaction)
    old = copy.deepcopy(model.reasoner)
    for step in range(2):
        loss = policy.loss(rollout)
        got = gradients(model, loss)
        expected, match, reward = obvious(model, policy, interaction, old, rollout.noise)
        torch.testing.assert_close(loss, expected, rtol=1e-9, atol=1e-9)
        wanted = gradients(model, expected)
        assert got.keys() == wanted.keys() and not any(name.startswith("backbone.") for name in got)
        for name in wanted:
            torch.testing.assert_close(got[name], wanted[name], rtol=1e-8, atol=1e-10)
        move(model, seed=4, size=0.02)
    figures = policy.figures.means()
    assert figures["match"] == pytest.approx(match.double().mean().item())
    assert figures["reward"] == pytest.approx(reward.mean().item())


@pytest.mark.parametrize("score", ["full", "trie"])
def test_exact_match_agrees_with_the_greedy_decoder(stage, score):
    """On targets that greedy decoding finds for some members and not for others."""
    model, policy, interaction = stage(noise="absolute", noise_scale=3.0, group_size=12, score=score)
    prompts = model.collator.prompts(interaction[model.ITEM_SEQ], interaction[model.ITEM_SEQ_LEN])
    with torch.no_grad():  # let the target be what is found without noise, for half of the rows
        leaf = beam_search(TreeDecoder(model.backbone, model.read(prompts)), model.trie, 1, score=score).nodes[:, 0]
    found = model.trie.items[model.trie.item_start[leaf].long()].long()
    interaction[model.POS_ITEM_ID][::2] = found[::2]
    rollout = policy.rollout(interaction)
    judged = []
    policy._judge, judge = lambda r, logits: (judge(r, logits), judged.append(logits)), policy._judge
    policy.loss(rollout)
    best = grpo.best_children(judged[0], rollout.titles[rollout.mask], rollout.position, rollout.token)
    right = torch.ones(*rollout.mask.shape, 12, dtype=torch.bool)
    right[rollout.mask] = best
    got = right.all(1)
    _, expected, _ = obvious(model, policy, interaction, model.reasoner, rollout.noise)
    assert torch.equal(got, expected) and 0 < got.double().mean() < 1 and got[::2, 0].all()


@pytest.mark.parametrize("model_name", LATENT)
@pytest.mark.parametrize("ratio", ["token", "latent"])
def test_a_step_moves_what_reasons_and_nothing_else(stage, model_name, ratio):
    model, policy, interaction = stage(model_name, grpo_ratio=ratio, noise_scale=1.0)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=0.01, weight_decay=0.1)
    for _ in range(2):
        loss = policy.loss(policy.rollout(interaction))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    for name, value in model.state_dict().items():
        assert torch.equal(before[name], value) == name.startswith("backbone."), name
    for name, value in policy.reference.named_parameters():
        assert torch.equal(before[f"reasoner.{name}"], value) and value.grad is None


def test_the_backbones_dropout_rests(stage):
    model, policy, interaction = stage(embedding_dropout=0.5, compact_dropout=0.5)
    assert model.training and not model.backbone.training
    one, two = (policy.rollout(interaction).context.hidden for _ in range(2))
    assert torch.equal(one, two)


@pytest.mark.parametrize("ratio", ["token", "latent"])
def test_without_kl_there_is_no_reference(stage, ratio):
    model, policy, interaction = stage(kl_coef=0.0, grpo_ratio=ratio)
    assert policy.reference is None
    rollout = policy.rollout(interaction)
    policy.loss(rollout).backward()
    assert rollout.reference is None and "kl" not in policy.figures.means()


def test_latent_ratio_by_the_score_function(stage):
    """At the first step the thought's gradient is the mean over the members of -A_i eps_i / s^2."""
    model, policy, interaction = stage(grpo_ratio="latent", kl_coef=0.0, noise_scale=1.0, orthogonality_loss=False,
                                       diversity_loss=False, sparsity_loss=False)
    rollout, thoughts = policy.rollout(interaction), []
    think = model.reasoner.think
    model.reasoner.think = lambda *args: thoughts.append(think(*args)) or thoughts[-1]
    loss = policy.loss(rollout)
    grad, = torch.autograd.grad(loss, thoughts[0].seed)
    expected = torch.zeros_like(grad)
    for b in range(len(grad)):
        for g in range(4):
            expected[b] -= rollout.advantages[b, g] * rollout.noise[b, g] / rollout.deviation[b] ** 2 / 4 / len(grad)
    assert expected.abs().max() > 0
    torch.testing.assert_close(grad, expected)


def test_groups_do_not_depend_on_their_batch(stage):
    """Any number of groups in a batch: the mean of the single groups' losses is the batch's (own-group advantages)."""
    model, policy, interaction = stage(grpo_ratio="token")
    move(model)
    rollout = policy.rollout(interaction)
    together = policy.loss(rollout)
    alone = []
    for row in range(len(interaction)):
        single = policy.rollout(interaction[torch.tensor([row])])
        grpo_perturb, grpo.perturb = grpo.perturb, lambda *_: (rollout.noise[row:row + 1], rollout.deviation[row:row + 1])
        try:
            alone.append(policy.loss(single))
        finally:
            grpo.perturb = grpo_perturb
    torch.testing.assert_close(together, torch.stack(alone).mean())


def test_updates_repeat_a_rollout(stage):
    model, policy, interaction = stage(grpo_updates=3)

    class Loader:
        generator = sampler = dataset = _dataset = None

        def __len__(self):
            return 2

        def __iter__(self):
            return iter([interaction, interaction])

    loader = RolloutLoader(Loader(), policy)
    seen = [rollout for rollout in loader if policy.loss(rollout) is not None]
    assert len(loader) == len(seen) == 6
    assert [id(r) == id(seen[0]) for r in seen] == [True] * 3 + [False] * 3
    assert seen[0].noise is not seen[3].noise


def test_a_model_without_a_thought_is_refused(build):
    config, model, _ = build("BIGRec")
    with pytest.raises(ConfigError, match="BIGRec has no thought"):
        LatentGRPO(model, config)


def test_the_mean_reward_under_noise_rises(stage):
    """The stage on one batch, over and over: the members' mean reward, on fresh noise, is higher than before."""
    model, policy, interaction = stage(noise="relative", noise_scale=0.5, group_size=32, kl_coef=0.0)

    def mean_reward():
        policy.figures.flush()
        torch.manual_seed(99)
        with torch.no_grad():
            policy.loss(policy.rollout(interaction))
        return policy.figures.flush()["reward"]

    before = mean_reward()
    optimizer = torch.optim.Adam([p for p in model.parameters() if p.requires_grad], lr=3e-3)
    for step in range(60):
        torch.manual_seed(step)
        optimizer.zero_grad()
        policy.loss(policy.rollout(interaction)).backward()
        optimizer.step()
    assert mean_reward() > before + 0.02
