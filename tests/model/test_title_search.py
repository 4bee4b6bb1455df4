"""FLR's ranking by beam search under the trie against the scores of all titles, each by a full pass of the language model."""

import math

import pytest
import torch
from conftest import TITLES, write_dataset

from recbole_flr.data.prompt import IGNORE
from recbole_flr.evaluation import title_ranks

CATALOGUES = {
    "mixed": TITLES,
    "one item": ["Robot"],
    "one token": ["a", "b", "c", "d"],
    "prefixes": ["Robot", "Robot Wars", "Robot Wars II", "Robot Wars II Deluxe", "Robo"],
    "all the same": ["Robot Wars"] * 5,
}


def brute_force(model, interaction):
    """Score of each item's title, [B, n_items]: the sum of its tokens' log-probabilities, by full passes without a cache."""
    backbone, reasoner = model.backbone, model.reasoner
    ends = {tuple(model.collator.titles.row(item)) for item in range(1, model.n_items)}
    scores = torch.full((len(interaction), model.n_items), -math.inf, dtype=torch.float64)
    for row in range(len(interaction)):
        history = interaction[model.ITEM_SEQ][row, :interaction[model.ITEM_SEQ_LEN][row]].tolist()
        prompt = [backbone.start_id] + [t for item in history for t in model.collator.titles.row(item)]
        embeddings = backbone.embed(torch.tensor(prompt))[None]
        thought = reasoner.initial[None, None]
        for _ in range(reasoner.num_refinements):
            hidden = backbone.lm.base_model(inputs_embeds=torch.cat([embeddings, thought], 1)).last_hidden_state
            positions = torch.arange(hidden.shape[1])[None]
            looked, seen = reasoner.step.scores(hidden, positions), torch.ones(hidden.shape[:2], dtype=torch.bool)
            state = reasoner.step(looked, hidden[:, :-1], hidden[:, -1:], seen)
            thought = state.thought[:, None]
        for item in range(1, model.n_items):
            title = model.collator.titles.row(item)
            tokens = torch.cat([embeddings, thought, backbone.embed(torch.tensor(title))[None]], 1)
            logits = backbone.lm.get_output_embeddings()(backbone.lm.base_model(inputs_embeds=tokens).last_hidden_state)[0]
            total = 0.0
            for place, token in enumerate(title):
                row_logits = logits[len(prompt) + place]
                if model.score == "trie":
                    allowed = sorted({end[place] for end in ends if end[:place] == tuple(title[:place])})
                    row_logits = row_logits[allowed]
                    token = allowed.index(token)
                total += row_logits.log_softmax(-1)[token].item()
            scores[row, item] = total / len(title) ** model.length_penalty
    return scores


def some_rows(loaders, count=5):
    interaction = next(iter(loaders[2]))[0]
    return interaction[torch.arange(min(count, len(interaction)))]


@pytest.mark.parametrize("catalogue", CATALOGUES)
@pytest.mark.parametrize("score", ["full", "trie"])
@pytest.mark.parametrize("policy", ["suffix", "share"])
def test_ranking_equals_brute_force(build, tiny_data, catalogue, score, policy):
    write_dataset(tiny_data, "tiny2", CATALOGUES[catalogue], users=12)
    config, model, loaders = build_on(build, tiny_data, "tiny2", score=score, duplicate_titles=policy)
    rows = some_rows(loaders, 3)
    with torch.no_grad():
        expected, got = brute_force(model, rows), model.full_sort_predict(rows, top=model.n_items)
        ids = torch.arange(1, model.n_items)
        pairs = rows[torch.arange(len(rows)).repeat_interleave(len(ids))]
        pairs[model.ITEM_ID] = ids.repeat(len(rows))
        single = model.predict(pairs).view(len(rows), -1)
    assert got[:, 0].eq(-math.inf).all()
    torch.testing.assert_close(got[:, 1:].double(), expected[:, 1:], rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(single.double(), expected[:, 1:], rtol=1e-6, atol=1e-6)
    for row in range(len(rows)):
        order = got[row, 1:].argsort(descending=True) + 1
        along = expected[row, order]
        assert (along[:-1] >= along[1:] - 1e-6).all()  # the same order, except for ties between items of one title
    if policy == "share":
        popularity = model.catalog.popularity
        for row in range(len(rows)):
            for one in range(1, model.n_items):
                for two in range(1, model.n_items):
                    if model.catalog.titles[one] == model.catalog.titles[two] and popularity[one] > popularity[two]:
                        assert got[row, one] > got[row, two]
    else:
        assert len({tuple(model.collator.titles.row(item)) for item in range(1, model.n_items)}) == model.n_items - 1


def build_on(build, data, name, **options):
    """Like the fixture `build`, but on another data set, in float64 and with more beams than titles."""
    from recbole_flr.config import Config
    from recbole_flr.data.loading import load_dataset, split
    from recbole_flr.registry import get_model
    from conftest import TINY_FLR

    torch.manual_seed(11)
    settings = {**TINY_FLR, "num_beams": 40, "torch_dtype": "float64", "data_path": str(data), **options}
    config = Config("FLR", name, config_dict=settings)
    loaders = split(config, load_dataset(config))
    model = get_model("FLR")(config, loaders[0]._dataset).double().eval()
    for parameter in model.parameters():  # larger than an untrained model has, so that the scores differ
        if parameter.dim() > 1:
            torch.nn.init.normal_(parameter, std=0.15)
    return config, model, loaders


def test_length_penalty_divides_final_scores(build, tiny_data):
    _, model, loaders = build_on(build, tiny_data, "tiny", length_penalty=0.7)
    rows = some_rows(loaders, 2)
    with torch.no_grad():
        torch.testing.assert_close(
            model.full_sort_predict(rows, model.n_items)[:, 1:].double(), brute_force(model, rows)[:, 1:], rtol=1e-6, atol=1e-6
        )


@pytest.mark.parametrize("num_beams", [10, 40])
def test_batch_equals_singles(build, tiny_data, num_beams):
    _, model, loaders = build_on(build, tiny_data, "tiny", num_beams=num_beams)
    rows = some_rows(loaders, 6)
    with torch.no_grad():
        together = model.full_sort_predict(rows)
        for number in range(len(rows)):
            alone = model.full_sort_predict(rows[torch.tensor([number])])
            torch.testing.assert_close(together[number], alone[0], rtol=1e-6, atol=1e-6)


def test_few_beams_reach_enough_items(build, tiny_data):
    _, model, loaders = build_on(build, tiny_data, "tiny", num_beams=10)
    with torch.no_grad():
        scores = model.full_sort_predict(some_rows(loaders, 6))
    assert (scores.isfinite().sum(1) >= 10).all()


@pytest.mark.parametrize("family", ["qwen2", "llama", "gpt2"])
def test_tree_decoding_works_for_each_family(build, tiny_data, saved_models, family):
    _, model, loaders = build_on(build, tiny_data, "tiny", backbone=str(saved_models[family]), prompt="compact")
    rows = some_rows(loaders, 2)
    with torch.no_grad():
        torch.testing.assert_close(
            model.full_sort_predict(rows, model.n_items)[:, 1:].double(), brute_force(model, rows)[:, 1:], rtol=1e-6, atol=1e-6
        )


def test_loss_is_the_cross_entropy_of_the_titles_alone(build, tiny_data):
    """Logits are computed at labelled positions only. The loss is that of plain full passes."""
    _, model, loaders = build_on(build, tiny_data, "tiny", loss_weighting="fixed", orthogonality_weight=0.0,
                                 diversity_weight=0.0, sparsity_weight=0.0)
    rows = some_rows(loaders, 5)
    projected = []
    own = model.backbone.logits
    model.backbone.logits = lambda hidden: projected.append(hidden.shape[:-1].numel()) or own(hidden)
    with torch.no_grad():
        loss = model.calculate_loss(rows)
        model.backbone.logits = own
        scores = brute_force(model, rows)
    _, labels = model.collator.targets(rows[model.ITEM_ID])
    count = (labels != IGNORE).sum().item()
    assert projected == [count]
    expected = -sum(scores[row, item] for row, item in enumerate(rows[model.ITEM_ID].tolist())) / count
    assert loss.item() == pytest.approx(expected.item(), rel=1e-6)


@pytest.mark.parametrize("options", [{}, {"decode": "exact"}, {"duplicate_titles": "share"}], ids=str)
def test_title_metrics_are_those_of_the_whole_ranking(build, tiny_data, options):
    """Where many items share a title, the best texts hold too few titles, so the search must return more texts."""
    endings = [f"{one} and {two} of the long long title" for one in ("Cat", "Dog", "Sun") for two in ("One", "Two", "Three")]
    write_dataset(tiny_data, "tiny2", ["a"] * 9 + ["b"] * 3 + endings, users=12)
    _, model, loaders = build_on(build, tiny_data, "tiny2", topk=[4], valid_metric="NDCG@4", num_beams=60, **options)
    rows, ids = some_rows(loaders, 12), model.catalog.title_ids
    with torch.no_grad():
        found, every = model.full_sort_predict(rows), model.full_sort_predict(rows, top=model.n_items)
    for title in range(1, model.n_items):
        target = torch.full((len(rows),), title)
        ranks, expected = title_ranks(found, ids, target, 4), title_ranks(every, ids, target, 4)
        assert torch.equal(ranks[expected < 4], expected[expected < 4]) and ((ranks < 4) == (expected < 4)).all()
    if not options:  # the four best texts would not be enough
        with torch.no_grad():
            few = model.full_sort_predict(rows, top=4)
        assert any(
            ((title_ranks(few, ids, target, 4) < 4) != (title_ranks(every, ids, target, 4) < 4)).any()
            for target in torch.arange(1, model.n_items).unsqueeze(1).expand(-1, len(rows))
        )
