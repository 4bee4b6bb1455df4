"""What all models that write titles share: the parts of their loss, the one way to read a history, the greedy choice."""

from unittest.mock import patch

import pytest
import torch
from conftest import draw_weights

from recbole_flr.contracts import LossPart, total_loss
from recbole_flr.data.prompt import IGNORE
from recbole_flr.model.title_scores import best_children
from recbole_flr.training.reinforcement import LatentGRPO

REGULARISERS = ["orthogonality", "diversity", "sparsity", "uncertainty"]


@pytest.fixture
def writer(build):
    """writer(name, **options) -> config, model, test rows. Float64, no dropout, weights so large that scores differ."""

    def make(name, **options):
        config, model, loaders = build(name, torch_dtype="float64", embedding_dropout=0.0, **options)
        rows = next(iter(loaders[2]))[0]
        return config, draw_weights(model, std=0.2).double().eval(), rows[torch.arange(6)]

    return make


# what is written


@pytest.mark.parametrize("prompt", ["compact", "paper"])
@torch.no_grad()
def test_quoted_titles_are_written_and_ranked(writer, prompt):
    """`title_format: quoted`: each target is the title in quotes and a newline; the ranking is that of full passes over them."""
    _, model, rows = writer("LatentR3", title_format="quoted", prompt=prompt, num_beams=60)
    _, plain, _ = writer("LatentR3", prompt=prompt)
    items = torch.arange(1, model.n_items)
    ids, labels = model.collator.targets(items)
    for item, row, label in zip(items, ids, labels):
        written = row[label != IGNORE].tolist()
        assert written[-1] == model.backbone.end_id
        assert model.backbone.tokenizer.decode(written[:-1]) == f'"{model.catalog.texts[item]}"\n'
    assert torch.equal(model.prompts(rows["item_id_list"], rows["item_length"]).ids,
                       plain.prompts(rows["item_id_list"], rows["item_length"]).ids)
    scores, thought = model.full_sort_predict(rows), model.think(model.read_context(rows))
    assert ((scores > -torch.inf).sum(1) >= model.top_items).all()
    for item in items:
        reached = scores[:, item] > -torch.inf
        torch.testing.assert_close(scores[reached, item], model.title_log_probs(thought, item.expand(len(rows)))[reached])


def test_free_text_may_be_as_long_as_a_quoted_title(build):
    plain, quoted = (build("BIGRec", grounding="embedding", max_title_tokens=6, title_format=kind)[1] for kind in ("plain", "quoted"))
    around = [len(tokens) for tokens in quoted.backbone.encode(['"', '"\n'])]
    assert plain.backbone.lm.generation_config.max_new_tokens == 7
    assert quoted.backbone.lm.generation_config.max_new_tokens == 7 + sum(around) == quoted.collator.titles.lengths().max()


# the loss


@pytest.mark.parametrize("name, own", [("FLR", REGULARISERS), ("LatentR3", []), ("BIGRec", [])])
def test_the_loss_is_the_sum_of_its_named_parts(writer, name, own):
    _, model, rows = writer(name)
    parts = model.losses(rows)
    assert list(parts) == ["title", *own]
    expected = sum(part.weight * part.value for part in parts.values())
    torch.testing.assert_close(model.calculate_loss(rows), expected)
    assert all(part.value.shape == () for part in parts.values())
    for regulariser in own[:3]:
        assert parts[regulariser].weight.item() == pytest.approx(0.5) and parts[regulariser].value > 0


def test_a_switched_off_regulariser_is_no_part(writer):
    _, model, rows = writer("FLR", loss_weighting="fixed", diversity_loss=False, sparsity_weight=0.25)
    parts = model.losses(rows)
    assert list(parts) == ["title", "orthogonality", "sparsity"] and parts["sparsity"].weight == 0.25


def test_total_loss_by_hand():
    parts = {"a": LossPart(torch.tensor(2.0)), "b": LossPart(torch.tensor(3.0), 0.5),
             "c": LossPart(torch.tensor(-1.0), torch.tensor(4.0, requires_grad=True))}
    assert total_loss(parts).item() == 2.0 + 1.5 - 4.0
    total_loss(parts).backward()
    assert parts["c"].weight.grad.item() == -1.0  # a learned weight gets its gradient
    assert [part.has_weight for part in parts.values()] == [False, True, True]


@pytest.mark.parametrize("name", ["FLR", "LatentR3"])
def test_the_own_losses_of_a_model_see_the_target(writer, name, monkeypatch):
    """In both stages. A part that depends on the target counts with its weight, and reaches the log."""
    config, model, rows = writer(name)
    stage = LatentGRPO(model, config)
    plain, own, seen = model.calculate_loss(rows), type(model).own_losses, []

    def with_target(self, thought, target):
        seen.append((thought, target))
        return {**own(self, thought, target), "target": LossPart(target.double().mean(), 2.0)}

    monkeypatch.setattr(type(model), "own_losses", with_target)
    target = rows[model.POS_ITEM_ID]
    torch.testing.assert_close(model.calculate_loss(rows), plain + 2 * target.double().mean())
    stage.enter()
    parts = stage.rollout_losses(stage.rollout(rows))
    assert parts["target"].value == target.double().mean() and parts["target"].weight == 2.0
    assert len(seen) == 2
    for thought, given in seen:
        assert torch.equal(given, target) and thought.embedding.shape == (len(rows), model.backbone.width)


# reading


def uses(config, model, rows, explains=True):
    """All that is made of a history: name -> tensor."""
    pairs = rows[torch.arange(len(rows))]
    pairs[model.ITEM_ID] = rows[model.ITEM_ID]
    with torch.no_grad():
        found = {"supervised loss": model.calculate_loss(rows), "ranking": model.full_sort_predict(rows),
                 "score of one item": model.predict(pairs)}
        if explains:
            stage = LatentGRPO(model, config)
            stage.enter()
            torch.manual_seed(1)
            found["reinforcement loss"] = total_loss(stage.rollout_losses(stage.rollout(rows)))
            found["explanation"] = model.explain(rows)[1]
    return found


def with_other_histories(model, rows):
    """The same targets behind the histories of other rows."""
    moved, order = rows[torch.arange(len(rows))], torch.arange(len(rows)).roll(1)
    for field in (model.ITEM_SEQ, model.ITEM_SEQ_LEN):
        moved[field] = rows[field][order]
    assert (moved[model.ITEM_SEQ] != rows[model.ITEM_SEQ]).any(1).all()
    return moved


@pytest.mark.parametrize("decode", ["beam", "exact"])
@pytest.mark.parametrize("name", ["FLR", "LatentR3", "BIGRec"])
def test_a_history_is_read_by_read_context_alone(writer, name, decode):
    """A `read_context` that reads other histories gives in every use exactly what the model gives for those histories."""
    config, model, rows = writer(name, decode=decode)
    moved, explains = with_other_histories(model, rows), name != "BIGRec"
    plain, expected = uses(config, model, rows, explains), uses(config, model, moved, explains)
    whole = model.read_context
    model.read_context = lambda interaction, prompt_only=False: whole(moved, prompt_only)
    found = uses(config, model, rows, explains)
    assert len(found) == (5 if explains else 3)
    for use, value in found.items():
        assert torch.equal(value, expected[use]), use
        assert not torch.allclose(value, plain[use]), use


@pytest.mark.parametrize("name", ["FLR", "LatentR3"])
def test_a_change_of_the_embeddings_in_read_context_reaches_every_use(writer, name):
    """A model may add a vector to some of the prompt's embeddings: here to those of the oldest item's title."""
    config, model, rows = writer(name)
    plain, whole, embed = uses(config, model, rows), model.read_context, model.backbone.embed
    added = torch.linspace(-1, 1, model.backbone.width, dtype=torch.float64)

    def read_context(interaction, prompt_only=False):
        oldest = model._prompts(interaction).item == 0
        with patch.object(model.backbone, "embed", lambda ids: embed(ids) + size * oldest.unsqueeze(-1) * added):
            return whole(interaction, prompt_only)

    model.read_context = read_context
    size = 0.0
    assert all(torch.equal(value, plain[use]) for use, value in uses(config, model, rows).items())
    size = 1.0
    for use, value in uses(config, model, rows).items():
        assert not torch.allclose(value, plain[use], rtol=1e-3), use


# the greedy choice


def test_best_children_against_a_loop():
    torch.manual_seed(0)
    logits = torch.randint(0, 4, (6, 3, 9)).double()  # few values: many ties
    children = [sorted(torch.randperm(9)[: 1 + n].tolist()) for n in range(6)]
    target = torch.tensor([c[n % len(c)] for n, c in enumerate(children)])
    position = torch.tensor([n for n, c in enumerate(children) for _ in c])
    token = torch.tensor([t for c in children for t in c])
    got = best_children(logits, target, position, token)
    for n, allowed in enumerate(children):
        for member in range(3):
            best = max(allowed, key=lambda t: (logits[n, member, t].item(), -t))
            assert got[n, member].item() == (best == target[n].item())
    assert 0 < got.double().mean() < 1


@pytest.mark.parametrize("prompt", ["compact", "paper"])
@pytest.mark.parametrize("name", ["FLR", "BIGRec"])
def test_loss_and_gradients_do_not_depend_on_where_the_head_stands(build, monkeypatch, name, prompt):
    """In front of the padding or behind it; read once for all rows (the paper's prompt) or in each row."""
    _, model, (train, *_) = build(name, prompt=prompt, embedding_dropout=0.0)
    batch, found = next(iter(train)), []
    plain = model.collator.prompts
    for head_first in (True, False):
        monkeypatch.setattr(model.collator, "prompts", lambda history, length, head_first=False, to=head_first: plain(
            history, length, head_first=to))
        model.zero_grad()
        loss = model.calculate_loss(batch)
        loss.backward()
        found.append((loss, *(parameter.grad.clone() for parameter in model.parameters() if parameter.grad is not None)))
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)
