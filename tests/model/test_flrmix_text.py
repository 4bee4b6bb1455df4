"""FLRMix with an encoder that reads titles: how it reads, what it is trained on, and its three rankings."""

import pytest
import torch
from conftest import TINY_LATENT, TINY_OPTIONS, assert_learns, draw_weights
from helpers_data import ranking_parts

import recbole_flr
from recbole_flr.errors import ConfigError, DataError
from recbole_flr.model.blend import REPEAT
from recbole_flr.training import checkpoint

TEXT = {**TINY_LATENT, **TINY_OPTIONS["FLRMix"], "backbone": "compact", "embedding_dropout": 0.0}


@pytest.fixture
def mix(build):
    """mix(**options) -> model, a training batch, a test batch; float64, no dropout, weights so large that scores differ."""

    def make(**options):
        _, model, loaders = build("FLRMix", **{**TEXT, "torch_dtype": "float64", **options})
        model = draw_weights(model, std=0.2).double().eval()
        return model, next(iter(loaders[0])), next(iter(loaders[2]))[0][torch.arange(6)]

    return make


def read_slowly(model, history, vectors):
    """The prompt of one history as the backbone should see it, token by token: [L, D]."""
    reader = model.reader
    chunks, table = reader.collator.chunks, reader.backbone.lm.get_input_embeddings().weight
    rows = [table[token] for token in chunks.row(model.n_items)]
    for item in history:
        tokens = [table[token] for token in chunks.row(item)]
        tokens[-1] = tokens[-1] + vectors[item]
        rows += tokens
    return torch.stack(rows + [table[token] for token in chunks.row(model.n_items + 1)])


@pytest.mark.parametrize("prompt", ["compact", "paper"])
def test_an_item_vector_is_added_to_the_last_token_of_its_title(mix, prompt):
    model, _, rows = mix(prompt=prompt)
    context = model.read_context(rows)
    for row in range(len(rows)):
        history = rows[model.ITEM_SEQ][row, :rows[model.ITEM_SEQ_LEN][row]].tolist()
        embeddings = read_slowly(model, history, context.vectors)
        torch.testing.assert_close(context.embeddings[row, context.mask[row]], embeddings)
        hidden = model.reader.backbone.lm.base_model(inputs_embeds=embeddings[None]).last_hidden_state[0]
        torch.testing.assert_close(context.hidden[row, context.mask[row]], hidden.double(), rtol=1e-5, atol=1e-5)


def test_the_text_of_an_item_is_the_mean_of_its_title_tokens(mix):
    model, *_ = mix()
    titles, table = model.reader.collator.titles, model.reader.backbone.lm.get_input_embeddings().weight
    found = model.reader.title_means()
    assert found.shape == (model.n_items, model.reader.width) and not found[0].any()
    for item in range(1, model.n_items):
        torch.testing.assert_close(found[item], torch.stack([table[token] for token in titles.row(item)]).mean(0))
    projected = model.vectors.project(found)
    torch.testing.assert_close(model.vectors(found), torch.where(model.vectors.known, model.vectors.ids.weight, 0) + projected)


def test_the_loss_ranks_and_writes(mix):
    model, batch, _ = mix(memory=None, fit_weights=False, repeat_weight=0.0, title_loss_weight=0.5)
    parts, target = model.losses(batch), batch[model.POS_ITEM_ID]
    thought = model.think(model.read_context(batch))
    item = -model.full_sort_predict(batch).gather(1, target.unsqueeze(1)).mean()
    torch.testing.assert_close(parts["item"].value, item)
    labels = model.reader.collator.targets(target)[1] >= 0
    title = -model.reader.title_log_probs(thought, target).sum() / labels.sum()
    torch.testing.assert_close(parts["title"].value, title)
    assert parts["title"].weight == 0.5
    model.calculate_loss(batch).backward()
    moved = {name for name, p in model.named_parameters() if p.grad is not None and p.grad.abs().sum() > 0}
    for name in ("vectors.ids.weight", "vectors.project.weight", "head.output.weight", "reasoner.step.attention.queries"):
        assert name in moved


def test_without_the_loss_of_titles(mix):
    model, batch, _ = mix(title_loss_weight=0.0)
    assert "title" not in model.losses(batch)


@pytest.mark.parametrize("backbone, score", [("compact", "full"), ("compact", "trie"), ("gpt2", "full"), ("llama", "trie")])
def test_candidates_have_the_scores_of_full_passes(mix, saved_models, monkeypatch, backbone, score):
    """Each title alone, by a pass over all of its tokens."""
    monkeypatch.setattr("recbole_flr.model.title_scores.LABELS_AT_ONCE", 50)
    model, _, rows = mix(backbone=str(saved_models.get(backbone, backbone)), length_penalty=0.3, score=score)
    with torch.no_grad():
        thought = model.think(model.read_context(rows))
        items = torch.stack([torch.randperm(model.n_items - 1)[:18] + 1 for _ in range(len(rows))])  # more than are read in one pass
        found = model.reader.candidate_log_probs(thought, items)
        for place in range(items.shape[1]):
            expected = model.reader.title_log_probs(thought, items[:, place])
            torch.testing.assert_close(found[:, place], expected, rtol=1e-5, atol=1e-5)


def test_rank_both_by_hand(mix):
    """The best items by all else, again with the titles; all others stay behind them in their order."""
    model, _, rows = mix(rank="both", num_candidates=10)
    model.ranking.weights["title"] = 0.7
    with torch.no_grad():
        scores = model.full_sort_predict(rows)
        parts = ranking_parts(model, rows)
        thought = model.think(model.read_context(rows))
        for row in range(len(rows)):
            plain = sum(model.ranking.weights.get(name, 1.0) * part[row] for name, part in parts.items())
            order = plain[1:].argsort(descending=True) + 1
            best = order[:10]
            titles = torch.stack([model.reader.title_log_probs(thought, item.expand(len(rows)))[row] for item in best])
            expected = best[(plain[best] + 0.7 * titles).argsort(descending=True)].tolist() + order[10:].tolist()
            assert scores[row, 1:].argsort(descending=True).add(1).tolist() == expected
            torch.testing.assert_close(scores[row, best], plain[best] + 0.7 * titles, rtol=1e-5, atol=1e-5)
    assert (scores[:, 0] == -torch.inf).all() and scores[:, 1:].isfinite().all()


def test_more_items_than_candidates_are_explained_with_their_titles(mix):
    """As many items are ranked anew as are asked for, so the parts of each add up to its score."""
    model, _, rows = mix(rank="both", num_candidates=10)
    with torch.no_grad():
        scores = model.best_scores(rows[:1], 15)
    items = scores[0].topk(15).indices.tolist()
    for item, source in zip(items, model.explain_items(rows[:1], items)):
        assert sum(source["parts"].values()) == pytest.approx(scores[0, item].item(), rel=1e-4, abs=1e-4)


@pytest.mark.parametrize("score", ["full", "trie"])
def test_a_written_title_is_explained_by_its_score(mix, score):
    model, _, rows = mix(rank="write", score=score)
    with torch.no_grad():
        scores = model.best_scores(rows[:1], 5)[0].topk(5)
    for value, source in zip(scores.values.tolist(), model.explain_items(rows[:1], scores.indices.tolist())):
        assert source == {"parts": {"title": pytest.approx(value, rel=1e-4, abs=1e-4)}}


def test_rank_write_is_the_beam_search_of_the_titles(mix):
    model, _, rows = mix(rank="write")
    with torch.no_grad():
        scores = model.full_sort_predict(rows)
        thought = model.think(model.read_context(rows))
        for item in range(1, model.n_items):
            own = model.reader.title_log_probs(thought, torch.full((len(rows),), item))
            reached = scores[:, item] > -torch.inf
            torch.testing.assert_close(scores[reached, item], own[reached], rtol=1e-5, atol=1e-5)
        assert ((scores > -torch.inf).sum(1) >= 10).all() and model.most_items() == model.reader.num_beams
        torch.testing.assert_close(model.predict(rows), model.reader.title_log_probs(thought, rows[model.ITEM_ID]))


def test_the_weight_of_the_titles_is_chosen_on_validation_rows(build, monkeypatch):
    """Titles that are always right get a weight and raise the result."""
    _, model, loaders = build("FLRMix", **TEXT, rank="both")
    target = {}

    def oracle(thought):
        rows = target["batch"]
        return lambda items: torch.where(items == rows.unsqueeze(1), 5.0, -5.0)

    read = model.read_context

    def remember(interaction, prompt_only=False):
        target["batch"] = interaction[model.POS_ITEM_ID]
        return read(interaction, prompt_only)

    monkeypatch.setattr(model, "read_context", remember)
    monkeypatch.setattr(model, "_titles", oracle)
    model.before_validation(loaders[1])
    assert model.ranking.weights["title"] > model.ranking.start_weights["title"]
    assert set(model.ranking.weights) == {"transitions", "neighbors", "title", REPEAT}
    assert set(model.ranking.start_weights) == set(model.ranking.weights)
    batch = next(iter(loaders[1]))[0]
    own = batch[model.POS_ITEM_ID].unsqueeze(1)
    with torch.no_grad():
        model.eval()
        with_titles = model.full_sort_predict(batch)
        model.ranking.weights["title"] = 0.0
        without = model.full_sort_predict(batch)
    ranks = [(scores > scores.gather(1, own)).sum(1) for scores in (with_titles, without)]
    assert ranks[0].sum() < ranks[1].sum()


@pytest.mark.parametrize("options, message", [
    ({"backbone": "items", "rank": "both"}, "rank: found both, and backbone items, which writes no titles"),
    ({"backbone": "items", "rank": "write"}, "rank: found write, and backbone items"),
    ({"rank": "both", "title_loss_weight": 0.0}, "rank: found both, and title_loss_weight 0"),
    ({"rank": "write", "num_beams": 5}, "num_beams: found 5, expected at least 10"),
    ({"backbone": "items", "item_text": "backbone"}, "item_text: found backbone, and backbone items"),
    ({"backbone": "no/such/model"}, "no/such/model"),
], ids=str)
def test_bad_options(build, options, message):
    with pytest.raises(ConfigError, match=message):
        build("FLRMix", **{**TEXT, **options})


def test_few_beams_do_not_matter_where_no_beams_are_used(build):
    build("FLRMix", **{**TEXT, "num_beams": 5})


def test_without_titles(build, tiny_data):
    (tiny_data / "tiny" / "tiny.item").unlink()
    with pytest.raises(DataError, match="title"):
        build("FLRMix", **TEXT, title_metrics=False)


@pytest.mark.parametrize("options", [{"item_text": "none"}, {"item_text": "words"}, {"use_ids": False}, {"memory": None},
                                     {"gradient_checkpointing": True}], ids=str)
def test_options_with_text(build, options):
    _, model, loaders = build("FLRMix", **TEXT, **options)
    assert_learns(model, loaders)


def test_a_run_with_all_stages_and_all_rankings(trained):
    options = {**TEXT, "rank": "both", "stages": "sft,grpo", "grpo_learning_rate": 0.01}
    folder, result = trained("FLRMix", **options)
    assert list(result["stages"]) == ["sft", "grpo"] and (folder / "tokenizer.json").is_file()
    before, after = (checkpoint.read(folder / f"{name}.safetensors")[0] for name in ("sft", "grpo"))
    moved = {name for name in before if name.startswith("model.") and not torch.equal(before[name], after[name])}
    assert moved and all(name.startswith("model.reasoner.") for name in moved)
    answer = recbole_flr.recommend(folder, ["Robot", "Robot Wars"], k=4)
    for item in answer["items"]:
        assert set(item["parts"]) == {"mixture", "transitions", "neighbors", REPEAT, "title"} and item["after"] is not None
        assert sum(item["parts"].values()) == pytest.approx(item["score"], rel=1e-4)
    assert len(answer["factors"]) == 3
    written = recbole_flr.recommend(folder, ["Robot"], k=4, config_dict={"rank": "write"})["items"]
    assert all(item["parts"] == {"title": pytest.approx(item["score"], rel=1e-4)} for item in written)
    retrieved = recbole_flr.recommend(folder, ["Robot"], k=4, config_dict={"rank": "retrieve"})["items"]
    assert all("title" not in item["parts"] for item in retrieved)


def test_lora_is_saved_without_the_backbone(trained, saved_models):
    folder, _ = trained("FLRMix", **{**TEXT, "backbone": str(saved_models["llama"]), "trainable": "lora", "epochs": 1})
    tensors, _ = checkpoint.read(folder / checkpoint.BEST)
    names = [name for name in tensors if "reader.backbone" in name]
    assert names and all("lora" in name for name in names)
    _, model, _, _, _, test = recbole_flr.load_data_and_model(folder)
    with torch.no_grad():
        assert model.full_sort_predict(next(iter(test))[0])[:, 1:].isfinite().all()
