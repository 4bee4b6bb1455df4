"""AlphaRec against a plain loop over a dense graph with the user as one more node, and its loss against a loop."""

import math

import numpy as np
import pytest
import torch
from helpers_counted import assert_predict_equals_full_ranking
from helpers_data import batch_of_histories

from recbole_flr.errors import ConfigError, DataError
from recbole_flr.model.alpharec import TextGraph, info_nce
from recbole_flr.model.counted import TrainingRows


def training_rows(rng, n_items, users=5):
    """Rows with repeats within a history, users of several rows, and an item that nobody has (the last)."""
    histories, targets, names = [], [], []
    for user in range(1, users + 1):
        for _ in range(rng.integers(1, 4)):
            items = rng.integers(1, n_items - 1, rng.integers(1, 5)).tolist()
            histories.append(items + [0] * (4 - len(items)))
            targets.append(int(rng.integers(1, n_items - 1)))
            names.append(7 * user)  # ids need not be dense
    size = len(targets)
    return TrainingRows(np.array(histories), np.array(targets), np.array(names), np.arange(size, dtype=float))


def light_gcn(sets, text, mlp, layers):
    """LightGCN by its definition. `sets`: for each user the set of his items. Returns the mean over layers of users and items."""
    count = np.zeros(len(text))
    for items in sets:
        for item in items:
            count[item] += 1
    users = torch.stack([mlp(sum(text[item] for item in sorted(items)) / len(items)) for items in sets])
    items = mlp(text)
    all_users, all_items = [users], [items]
    for _ in range(layers):
        new_users, new_items = torch.zeros_like(users), torch.zeros_like(items)
        for user, own in enumerate(sets):
            for item in own:
                weight = 1 / math.sqrt(len(own) * count[item])
                new_users[user] += weight * items[item]
                new_items[item] += weight * users[user]
        users, items = new_users, new_items
        all_users.append(users)
        all_items.append(items)
    return sum(all_users) / (layers + 1), sum(all_items) / (layers + 1)


@pytest.mark.parametrize("layers", [0, 1, 2, 3])
@pytest.mark.parametrize("seed", range(3))
def test_items_and_users_of_the_graph_are_those_of_light_gcn(layers, seed):
    rng = np.random.default_rng(seed)
    torch.manual_seed(seed)
    n_items = 8
    rows, text = training_rows(rng, n_items), torch.randn(n_items, 5)
    text[0] = 0
    mlp = torch.nn.Sequential(torch.nn.Linear(5, 6), torch.nn.LeakyReLU(), torch.nn.Linear(6, 3))
    sets = {}
    for history, target, user in zip(rows.histories, rows.targets, rows.users):
        sets.setdefault(user, set()).update([*history[history != 0], target])
    users, items = light_gcn([sets[user] for user in sorted(sets)], text, mlp, layers)
    graph = TextGraph(rows, text, layers)
    found = graph.item_layers(mlp)
    torch.testing.assert_close(found.mean(0), items, rtol=1e-5, atol=1e-6)
    # a history with all items of a user of the graph, in any order and with repeats, is that user
    for number, user in enumerate(sorted(sets)):
        history = [*sorted(sets[user], reverse=True), min(sets[user]), 0]
        own = graph.user_vectors(mlp, found, torch.tensor([history]))
        torch.testing.assert_close(own[0], users[number], rtol=1e-5, atol=1e-6)


def plain_info_nce(users, items, histories, target, negatives, temperature):
    """The loss by its definition. A negative that is the target or stands in the history does not count."""
    losses = []
    for row in range(len(target)):
        own = {*histories[row].tolist(), target[row].item()}
        positive = math.exp(float(users[row] @ items[target[row]]) / temperature)
        others = sum(math.exp(float(users[row] @ items[item]) / temperature)
                     for item in negatives[row].tolist() if item not in own)
        losses.append(-math.log(positive / (positive + others)))
    return sum(losses) / len(losses)


@pytest.mark.parametrize("seed", range(3))
def test_the_loss_is_the_plain_loop(seed):
    torch.manual_seed(seed)
    users, items = (torch.nn.functional.normalize(torch.randn(n, 4), dim=-1) for n in (3, 9))
    histories, target = torch.tensor([[1, 2, 0], [3, 0, 0], [4, 4, 5]]), torch.tensor([6, 3, 1])
    negatives = torch.randint(1, 9, (3, 20))
    found = info_nce(users, items, histories, target, negatives, 0.2)
    assert found.item() == pytest.approx(plain_info_nce(users, items, histories, target, negatives, 0.2), rel=1e-5)


def test_the_model_trains_and_ranks_by_cosines_on_the_graph(build):
    """A history with all items of a user of the graph is that user. The same seed draws the same negatives."""
    _, model, (train, *_) = build("AlphaRec", temperature=0.3, num_negatives=7, repeat_penalty=0.5)
    sets, feat = {}, train._dataset.inter_feat
    for user, history, target in zip(*(feat[name].tolist() for name in (model.USER_ID, model.ITEM_SEQ, model.POS_ITEM_ID))):
        sets.setdefault(user, set()).update([item for item in history if item], [target])
    sets = list(sets.values())
    with torch.no_grad():
        users, items = light_gcn(sets, model.graph.text, model.mlp, layers=2)
    users, items = (torch.nn.functional.normalize(vectors, dim=-1) for vectors in (users, items))
    batch = batch_of_histories(model, [sorted(own) for own in sets])
    batch[model.POS_ITEM_ID] = torch.arange(len(sets)) % (model.n_items - 1) + 1
    with torch.no_grad():
        scores = model.full_sort_predict(batch)
    for row, own in enumerate(sets):
        for item in range(1, model.n_items):
            expected = float(users[row] @ items[item]) - (0.5 if item in own else 0)
            assert scores[row, item].item() == pytest.approx(expected, abs=1e-5)
    torch.manual_seed(5)
    negatives = torch.randint(1, model.n_items, (len(sets), 7))
    expected = plain_info_nce(users, items, batch[model.ITEM_SEQ], batch[model.POS_ITEM_ID], negatives, 0.3)
    torch.manual_seed(5)
    assert model.calculate_loss(batch).item() == pytest.approx(expected, rel=1e-5)


def test_a_step_or_other_weights_change_what_is_ranked(build):
    _, model, (train, *_) = built = build("AlphaRec")
    with torch.no_grad():
        assert_predict_equals_full_ranking((built[0], model.eval(), built[2]))
        batch = next(iter(train))
        before = model.full_sort_predict(batch)
        assert torch.equal(before, model.full_sort_predict(batch))
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    model.train().calculate_loss(batch).backward()
    assert all(parameter.grad.abs().sum() > 0 for parameter in model.parameters())
    optimizer.step()
    with torch.no_grad():
        after = model.eval().full_sort_predict(batch)
    assert (after - before).abs().max() > 1e-4 and after.max() <= 1 + 1e-5 and after.min() >= -3 - 1e-5
    with torch.no_grad():  # in evaluation mode, as when a checkpoint is loaded
        model.load_state_dict({name: 2 * value if "mlp.2.bias" in name else value for name, value in model.state_dict().items()})
        assert (model.full_sort_predict(batch) - after).abs().max() > 1e-6


def test_items_of_the_history_come_last_or_stay(build):
    _, model, (_, _, test_data) = build("AlphaRec")
    rows = next(iter(test_data))[0]
    with torch.no_grad():
        low = model.eval().full_sort_predict(rows)
        model.repeat_penalty = 0.0
        plain = model.full_sort_predict(rows)
    for number, history in enumerate(rows[model.ITEM_SEQ].tolist()):
        own = sorted({item for item in history if item})
        others = [item for item in range(1, model.n_items) if item not in own]
        assert low[number, own].max() <= low[number, others].min() + 1e-6
        torch.testing.assert_close(low[number, own] + 2, plain[number, own])
        assert torch.equal(low[number, others], plain[number, others])


@pytest.mark.parametrize("layers", [0, 2])
def test_histories_of_unknown_items_and_of_none_have_vectors(layers):
    """No training row has the last item, so it has no edge; in a history it counts as an item with one."""
    torch.manual_seed(0)
    rows, text = training_rows(np.random.default_rng(0), 8), torch.randn(8, 5)
    mlp, graph = torch.nn.Linear(5, 3), TextGraph(rows, text, layers)
    assert graph.degree[7] == 0
    items = graph.item_layers(mlp)
    found = graph.user_vectors(mlp, items, torch.tensor([[7, 0], [0, 0]]))
    torch.testing.assert_close(found[0], (mlp(text[7]) + items[:-1, 7].sum(0)) / (layers + 1))
    assert found[1].isfinite().all()


def test_an_encoder_that_does_not_exist_and_a_catalogue_without_titles(build):
    with pytest.raises(ConfigError, match="is neither a folder nor in the cache"):
        build("AlphaRec", item_text="no/such-model")
    with pytest.raises(DataError):
        build("AlphaRec", TITLE_FIELD="no_such_column")


def test_titles_may_be_encoded_by_a_language_model(build, saved_models):
    """The vectors are the mean hidden states of the language model."""
    _, model, _ = build("AlphaRec", item_text=str(saved_models["llama"]))
    from transformers import AutoModel, AutoTokenizer

    tokenizer, encoder = (kind.from_pretrained(saved_models["llama"]) for kind in (AutoTokenizer, AutoModel))
    for item in (1, 4, 9):
        ids = tokenizer(model.catalog.titles[item], return_tensors="pt")["input_ids"]
        with torch.no_grad():
            mean = encoder(input_ids=ids).last_hidden_state[0].mean(0)
        torch.testing.assert_close(model.graph.text[item], mean / mean.norm(), rtol=1e-4, atol=1e-5)
