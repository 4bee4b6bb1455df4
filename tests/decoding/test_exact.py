"""Exact search against plain Python over all titles, and with real models against a full pass over every title."""

import math
import sys
from importlib import import_module

import pytest
import torch
from conftest import draw_weights
from helpers_decoding import BUSHY, CATALOGUE, END, SCORE, TOKEN, Model, Recurrent, Scorer, path_of_leaves, title_score
from hypothesis import given, settings
from hypothesis import strategies as st

from recbole_flr.decoding import Trie, beam_search, item_scores
from recbole_flr.decoding.exact import exact_search
from recbole_flr.errors import ConfigError, FLRError

pytestmark = pytest.mark.usefixtures("one_thread")

DENSE = st.lists(st.lists(TOKEN, max_size=4).map(lambda title: title + [END]), min_size=15, max_size=30)
MEDIUM = [[a, b, c, d, END] for a in (1, 2, 3) for b in (1, 2, 3) for c in (1, 2, 3) for d in (1, 2, 3)]
DEEP = [[*title[:-1], e, END] for title in MEDIUM for e in (1, 2, 3)]


def all_scores(model, user, titles, score, length_penalty=0.0):
    keys = {tuple(title) for title in titles}
    return {title: title_score(model, user, keys, title, score, length_penalty) for title in keys}


def check(beams, trie, model, titles, top, score, length_penalty=0.0):
    """The beams are the best titles with their scores. Titles whose scores are equal (to 1e-9) may replace each other."""
    paths = path_of_leaves(trie)
    for user in range(len(model.prompt)):
        expected = all_scores(model, user, titles, score, length_penalty)
        ranked = sorted(expected.values(), reverse=True)[:top]
        found, scores = [paths[node] for node in beams.nodes[user].tolist()], beams.scores[user].tolist()
        assert scores == pytest.approx(ranked, rel=1e-9, abs=1e-9)
        assert scores == pytest.approx([expected[title] for title in found], rel=1e-9, abs=1e-9)
        assert len(set(found)) == len(found) == min(top, len(expected))
        places = list(zip([-score for score in scores], beams.nodes[user].tolist()))
        assert places == sorted(places)  # equal scores in the order of leaves


@settings(deadline=None, max_examples=100)
@given(
    titles=CATALOGUE | DENSE, score=SCORE, seed=st.integers(0, 2**31), top=st.integers(1, 15),
    width=st.sampled_from([1, 2, 5, 16, 100]), length_penalty=st.sampled_from([0.0, 0.5, 1.0, 2.0, -0.5, -1.0]),
    sharpness=st.sampled_from([0.0, 0.1, 2.0, 8.0]), max_logits=st.sampled_from([1, 30, 2**26]),
)  # fmt: skip
def test_the_best_of_all_titles(titles, score, seed, top, width, length_penalty, sharpness, max_logits):
    trie, model = Trie.build(titles), Model(seed, 3, sharpness)
    model.prompt *= torch.tensor([3.0, 0.3, 1.0])[:, None]  # some users are harder than others
    options = dict(score=score, length_penalty=length_penalty, max_logits=max_logits, width=width)
    check(exact_search(Scorer(model), trie, top, **options), trie, model, titles, top, score, length_penalty)


@settings(deadline=None, max_examples=20)
@given(DENSE, SCORE, st.integers(0, 2**31), st.integers(1, 20), st.sampled_from([0.0, 1.0, -0.5]))
def test_as_beam_search_with_beams_for_all(titles, score, seed, top, length_penalty):
    """It finds the same leaves and scores, with one token a pass and with many."""
    trie, model = Trie.build(titles), Model(seed, users=4)
    every = beam_search(Scorer(model), trie, 50, score=score, length_penalty=length_penalty)
    for width in (1, 50):
        beams = exact_search(Scorer(model), trie, top, score=score, length_penalty=length_penalty, width=width)
        assert torch.equal(beams.nodes, every.nodes[:, :top])
        torch.testing.assert_close(beams.scores, every.scores[:, :top], rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("score", ["full", "trie"])
@pytest.mark.parametrize("width", [1, 2, 7, 100])
def test_of_equal_titles_the_first_leaves_stay(score, width):
    """With equal logits all titles tie, so their order is free."""
    model = Model(0, users=2)
    model.head.zero_()
    trie = Trie.build(MEDIUM[::-1])
    paths = path_of_leaves(trie)
    for top in (1, 2, 5, 30):
        beams = exact_search(Scorer(model), trie, top, score=score, width=width)
        assert [[paths[node] for node in row] for row in beams.nodes.tolist()] == [list(map(tuple, MEDIUM[:top]))] * 2


def test_an_open_node_that_ties_with_the_last_title_is_left_alone_behind_it():
    model = Model(0)
    model.head.zero_()
    for titles, calls in (([[1, END], [2, 1, END], [2, 2, END]], []), ([[2, END], [1, 1, END], [1, 2, END]], [1])):
        trie, scorer = Trie.build(titles), Scorer(model)
        beams = exact_search(scorer, trie, 1, score="trie")
        assert path_of_leaves(trie)[int(beams.nodes)] == tuple(titles[0]) and scorer.calls == calls


@pytest.mark.parametrize("score", ["full", "trie"])
@pytest.mark.parametrize("top", [1, 4, 20])
def test_asks_no_more_than_any_search_that_is_sure(score, top):
    """With one token a pass, the search expands exactly the nodes whose bound is above the score of the last title found."""
    titles = BUSHY + [[4, 5, 6, 5, END], [4, END], [1, 1, END], [5, 1, 1, 1, END], [6, 6, END], [6, 5, 1, END], [6, 5, 2, END]]
    trie, prefixes = Trie.build(titles), {tuple(title[:at]) for title in titles for at in range(1, len(title))}
    for seed in range(5):
        scorer = Scorer(Model(seed))
        last = float(exact_search(scorer, trie, top, score=score, width=1).scores[0, -1])
        expected = 0
        for prefix in prefixes:
            below = [title for title in titles if tuple(title[: len(prefix)]) == prefix]
            one_before = sum(title[: len(prefix) - 1] == list(prefix[:-1]) for title in titles) == 1
            if title_score(scorer.model, 0, titles_as(titles), prefix, score) > last and not one_before:
                expected += (len(below[0]) - len(prefix) if score == "full" else 0) if len(below) == 1 else 1
        assert sum(scorer.asked) == expected


def titles_as(titles):
    return {tuple(title) for title in titles}


def test_users_do_not_change_one_another():
    model = Model(11, users=5, sharpness=4.0)
    model.prompt *= torch.tensor([5.0, 2.0, 1.0, 0.5, 0.0])[:, None]
    trie, together = Trie.build(DEEP), Scorer(model)
    beams, rounds = exact_search(together, trie, 4, width=2), set()
    for user in range(5):
        scorer = Scorer(model, slice(user, user + 1))
        alone = exact_search(scorer, trie, 4, width=2)
        assert beams.nodes[user].tolist() == alone.nodes[0].tolist()
        torch.testing.assert_close(beams.scores[user], alone.scores[0])
        assert together.asked[user] == scorer.asked[0]  # whoever is done asks for nothing
        rounds.add(len(scorer.calls))
    assert len(rounds) > 1 and len(together.calls) == max(rounds)


@pytest.mark.parametrize("score", ["full", "trie"])
def test_stops_early_on_a_sure_model(score):
    model, trie = Model(3, users=2, sharpness=8.0), Trie.build(DEEP)
    scorer = Scorer(model)
    check(exact_search(scorer, trie, 3, score=score, width=2), trie, model, DEEP, 3, score)
    assert 0 < sum(scorer.asked) < 2 * trie.num_nodes / 10


class Lookup(Recurrent):
    """A model with a table of logits for each prefix. Its state is the prefix as a number to base 16."""

    def __init__(self, chances, vocabulary):
        super().__init__()
        self.chances, self.vocabulary, self.prompt = chances, vocabulary, torch.zeros(1, 1, dtype=torch.float64)

    def step(self, state, token):
        return state * 16 + token

    def logits(self, state):
        out = torch.empty(*state.shape[:-1], self.vocabulary, dtype=state.dtype)
        for place, code in enumerate(state.flatten().tolist()):
            given = self.chances.get(code, {})
            rest = (1 - sum(given.values())) / (self.vocabulary - len(given))
            out.view(-1, self.vocabulary)[place] = torch.tensor([given.get(t, rest) for t in range(self.vocabulary)]).log()
        return out


def test_finds_what_a_beam_of_ten_misses():
    """Ten first tokens without a good title are more likely than the first token of the best title."""
    titles = [[first, second, END] for first in range(1, 12) for second in (1, 2)]
    chances = {0.0: {**{first: 0.09 for first in range(1, 11)}, 11: 0.05}, 11.0: {1: 0.9, 2: 0.05}}
    chances |= {float(first): {1: 0.01, 2: 0.01} for first in range(1, 11)}
    chances |= {16.0 * first + second: {END: 0.999} for first in range(1, 12) for second in (1, 2)}
    model, trie = Lookup(chances, 13), Trie.build(titles)
    paths = path_of_leaves(trie)
    best, score = (11, 1, END), math.log(0.05 * 0.9 * 0.999)
    beam = beam_search(Scorer(model), trie, 10)
    exact = exact_search(Scorer(model), trie, 10)
    assert best not in {paths[node] for node in beam.nodes[0].tolist()}
    assert paths[int(exact.nodes[0, 0])] == best and float(exact.scores[0, 0]) == pytest.approx(score, rel=1e-5)
    assert paths[int(exact.nodes[0, 1])] == (11, 2, END) and exact.nodes.shape == (1, 10)


def test_a_single_title():
    trie = Trie.build([[1, 2, 3, END]])
    scorer = Scorer(Model(2, users=3))
    check(exact_search(scorer, trie, 5), trie, scorer.model, [[1, 2, 3, END]], 5, "full")
    assert scorer.calls == [3]
    scorer = Scorer(Model(2, users=3))
    beams = exact_search(scorer, trie, 5, score="trie")
    assert beams.scores.tolist() == [[0.0]] * 3 and scorer.calls == []


@pytest.mark.parametrize("score", ["full", "trie"])
def test_a_tail_takes_one_pass(score):
    titles = [[a, b] + [4] * 39 + [END] for a in (1, 2) for b in (1, 2)]
    trie, scorer = Trie.build(titles), Scorer(Model(1, users=2))
    check(exact_search(scorer, trie, 4, score=score, width=160), trie, scorer.model, titles, 4, score)
    assert scorer.calls == ([2, 4 * 40] if score == "full" else [2])
    for width, calls in ((1, {1, 40}), (16, {2, 40}), (80, {2, 80}), (159, {2, 120, 40})):  # but no more than `width` at once
        scorer = Scorer(scorer.model)
        check(exact_search(scorer, trie, 4, score=score, width=width), trie, scorer.model, titles, 4, score)
        assert set(scorer.calls) == (calls if score == "full" else {min(width, 2)})


@pytest.mark.parametrize("length_penalty", [1.0, -1.0])
def test_the_bound_knows_the_lengths_below_a_node(length_penalty):
    """A much longer or shorter title below another node does not change the bound of this node."""
    near = [title[:3] + [END] for title in DEEP] + [[4, 1, END], [4, 2, END]]
    far = [[5] + [6] * 60 + [END], [5, 1, END]]
    asked = []
    for titles in (near, near + far):
        scorer = Scorer(Model(5, sharpness=4.0))
        trie = Trie.build(titles)
        beams = exact_search(scorer, trie, 3, length_penalty=length_penalty, width=1)
        check(beams, trie, scorer.model, titles, 3, "full", length_penalty)
        asked.append(sum(scorer.asked))
    assert asked[1] <= asked[0] + 62


def test_logits_are_computed_in_chunks():
    titles = BUSHY + [[4, 5, 6, 5, 6, END], [5, 5, 5, 5, END]]
    trie, model = Trie.build(titles), Model(9, users=3)
    whole, chunked = Scorer(model), Scorer(model)
    expected = exact_search(whole, trie, 6)
    beams = exact_search(chunked, trie, 6, max_logits=3 * 7 + 2)
    assert max(chunked.rows) == 3 < max(whole.rows) and sum(chunked.rows) == sum(whole.rows)
    assert torch.equal(beams.nodes, expected.nodes)
    torch.testing.assert_close(beams.scores, expected.scores)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_low_precision_logits_are_scored_in_float32(dtype):
    model, trie = Model(4, users=2, dtype=dtype), Trie.build(BUSHY + [[4, 5, END]])
    beams, every = exact_search(Scorer(model), trie, 30), beam_search(Scorer(model), trie, 30)
    assert beams.scores.dtype == torch.float32 and torch.equal(beams.nodes, every.nodes)
    torch.testing.assert_close(beams.scores, every.scores)


@pytest.mark.parametrize("score", ["full", "trie"])
@pytest.mark.parametrize("length_penalty", [0.0, 1.0, -1.0])
def test_impossible_titles_are_still_reached_last(score, length_penalty):
    model = Model(6)
    logits = model.logits
    model.logits = lambda state: logits(state).index_fill(-1, torch.tensor([1]), -math.inf)
    titles = [[1, 2, END], [2, 1, END], [2, 2, END], [1, 1, END], [2, 3, 1, END], [3, END]]
    trie = Trie.build(titles)
    every = beam_search(Scorer(model), trie, 6, score=score, length_penalty=length_penalty)
    for top in range(1, 8):
        beams = exact_search(Scorer(model), trie, top, score=score, length_penalty=length_penalty, width=1)
        assert beams.scores.isfinite().all()
        torch.testing.assert_close(beams.scores, every.scores[:, :top])
    assert torch.equal(beams.nodes, every.nodes)


def test_titles_that_items_share_count_once():
    titles = [[1, 2, END], [1, 2, END], [1, 3, END], [2, END], [1, 3, END], [3, 1, END]]
    trie, model = Trie.build(titles, [5, 3, 4, 9, 7, 2]), Model(1, users=2)
    for top in (1, 2, 3):
        beams = exact_search(Scorer(model), trie, top)
        check(beams, trie, model, titles, top, "full")
        reached, paths = item_scores(beams, trie, 10) > -math.inf, path_of_leaves(trie)
        items = dict(zip([5, 3, 4, 9, 7, 2], titles))
        for user in range(2):
            found = {paths[node] for node in beams.nodes[user].tolist()}
            assert reached[user].nonzero().flatten().tolist() == sorted(i for i, t in items.items() if tuple(t) in found)


@pytest.mark.parametrize("score", ["full", "trie"])
def test_logits_that_are_no_numbers_are_an_error(score):
    model = Model(6)
    model.head[:, 1] = math.nan
    with pytest.raises(FLRError, match="NaN or infinite"):
        exact_search(Scorer(model), Trie.build([[1, END], [2, END]]), 2, score=score)


@pytest.mark.parametrize("options, message", [
    (dict(top=0), "top must be at least 1; it is 0"), (dict(top=2, width=0), "width must be at least 1; it is 0"),
    (dict(top=2, score="tree"), "one of full, trie; it is 'tree'"),
])  # fmt: skip
def test_options_that_cannot_be(options, message):
    with pytest.raises(ConfigError, match=message):
        exact_search(Scorer(Model()), Trie.build([[1, END]]), **options)


# the option


@pytest.mark.parametrize("name", ["FLR", "LatentR3", "BIGRec"])
def test_ranking_is_that_of_a_full_pass_over_every_title(build, name):
    options = dict(decode="exact", num_beams=1, topk=[3, 7], valid_metric="NDCG@7", score="trie", length_penalty=-0.7)
    _, model, loaders = build(name, torch_dtype="float64", duplicate_titles="share", **options)
    assert (model.score, model.length_penalty) == ("trie", -0.7)  # below they are set by hand, as a model takes long to build
    model = draw_weights(model.double(), 0.15).eval()
    rows = next(iter(loaders[2]))[0][torch.arange(6)]
    items = torch.arange(1, model.n_items)
    pairs = rows[torch.arange(6).repeat_interleave(len(items))]
    pairs[model.ITEM_ID] = items.repeat(6)
    titles = [tuple(model.collator.titles.row(item)) for item in items.tolist()]
    assert len(set(titles)) < len(titles)
    for model.score, model.length_penalty in [("trie", -0.7), ("full", 0.0), ("trie", 0.0), ("full", 0.7)]:
        with torch.no_grad():
            got, every = model.full_sort_predict(rows)[:, 1:], model.predict(pairs).view(6, -1)
        for row in range(6):
            score_of = dict(zip(titles, every[row].tolist()))
            best = sorted(score_of, key=score_of.get, reverse=True)[:7]
            reached = [title in best for title in titles]
            assert got[row].isfinite().tolist() == reached
            torch.testing.assert_close(got[row, reached].double(), every[row, reached].double(), rtol=1e-6, atol=1e-6)


def test_few_beams_and_exact_search_differ_and_other_words_are_refused(build):
    with pytest.raises(ConfigError, match=r"decode: found 'best', expected beam \| exact"):
        build(decode="best")
    with pytest.raises(ConfigError, match="num_beams: found 3, expected at least 10"):
        build(num_beams=3)
    assert build(decode="exact", num_beams=3)[1].exact and not build()[1].exact


def test_a_run_with_beams_does_not_load_exact_search(monkeypatch):
    """The package and the beams import nothing of the exact search, and the exact search nothing of the beams."""
    package = "recbole_flr.decoding"
    monkeypatch.setattr(sys.modules["recbole_flr"], "decoding", sys.modules[package])  # undone afterwards
    for name in [name for name in sys.modules if name == package or name.startswith(f"{package}.")]:
        monkeypatch.delitem(sys.modules, name)
    assert import_module(package).beam_search and f"{package}.exact" not in sys.modules
    exact = import_module(f"{package}.exact")
    assert not [name for name, value in vars(exact).items() if getattr(value, "__module__", None) == f"{package}.beam"]
