"""Beam search against plain Python. A small random recurrent model in float64 takes the place of a language model."""

import math

import pytest
import torch
from helpers_decoding import BUSHY, CATALOGUE, END, SCORE, VOCAB, Model, Scorer, children, log_prob, path_of_leaves, title_score
from hypothesis import given, settings
from hypothesis import strategies as st

from recbole_flr.decoding import Beams, Trie, beam_search, item_scores
from recbole_flr.errors import ConfigError, DataError, FLRError

pytestmark = pytest.mark.usefixtures("one_thread")


def slow_search(model, user, titles, num_beams, score):
    """The titles that beam search must find, by plain Python."""
    titles = sorted({tuple(title) for title in titles})
    beams, finished = [((), 0.0)], []
    while beams:
        candidates = [
            (-(total + log_prob(model, user, titles, prefix, token, score)), place, prefix + (token,))
            for place, (prefix, total) in enumerate(beams)
            for token in children(titles, prefix)
        ]
        beams = []
        for total, _, prefix in sorted(candidates)[:num_beams]:
            below = [title for title in titles if title[: len(prefix)] == prefix]
            if len(below) == 1:
                finished.append(below[0])
            else:
                beams.append((prefix, -total))
    return finished


def check(beams, trie, model, titles, num_beams, score, length_penalty=0.0, users=None):
    """The titles are those of the slow search; the scores are those of scoring every token by itself."""
    paths, keys = path_of_leaves(trie), {tuple(title) for title in titles}
    users = range(len(model.prompt)) if users is None else users
    found_most = 0
    for row, user in enumerate(users):
        found = slow_search(model, user, titles, num_beams, score)
        expected = {title: title_score(model, user, keys, title, score, length_penalty) for title in found}
        real = beams.nodes[row] >= 0
        nodes, scores = beams.nodes[row][real].tolist(), beams.scores[row][real].tolist()
        assert not real[len(nodes) :].any()  # padding is on the right
        assert (beams.scores[row][~real] == -math.inf).all()
        got = dict(zip((paths[node] for node in nodes), scores))
        assert len(got) == len(nodes) and got == pytest.approx(expected, rel=1e-9, abs=1e-9)
        assert scores == sorted(scores, reverse=True)
        assert len(nodes) >= min(num_beams, len(keys))
        found_most = max(found_most, len(nodes))
    assert beams.nodes.shape == beams.scores.shape == (len(users), found_most)


@settings(deadline=None, max_examples=40)
@given(CATALOGUE, SCORE, st.integers(0, 2**31), st.sampled_from([0.0, 1.0, -0.5]))
def test_with_beams_for_all_every_title_gets_its_exact_score(titles, score, seed, length_penalty):
    trie, model = Trie.build(titles), Model(seed, users=3)
    beams = beam_search(Scorer(model), trie, 50, score=score, length_penalty=length_penalty)
    assert (beams.nodes >= 0).sum(1).tolist() == [len(set(map(tuple, titles)))] * 3
    check(beams, trie, model, titles, 50, score, length_penalty)


@settings(deadline=None, max_examples=40)
@given(CATALOGUE, SCORE, st.integers(0, 2**31), st.integers(1, 5))
def test_fewer_beams_equal_the_slow_search(titles, score, seed, num_beams):
    trie, model = Trie.build(titles), Model(seed, users=3)
    check(beam_search(Scorer(model), trie, num_beams, score=score), trie, model, titles, num_beams, score)


@pytest.mark.parametrize("score", ["full", "trie"])
@pytest.mark.parametrize("num_beams", [1, 2, 4, 7, 18, 30])
def test_a_bushy_catalogue(score, num_beams):
    """Beams compete at every depth, and different beams stay for different users."""
    trie, model = Trie.build(BUSHY), Model(5, users=4)
    beams = beam_search(Scorer(model), trie, num_beams, score=score)
    check(beams, trie, model, BUSHY, num_beams, score)
    if num_beams >= 18 and score == "trie":
        assert beams.scores.exp().sum(1).tolist() == pytest.approx([1] * 4)


@pytest.mark.parametrize("score", ["full", "trie"])
def test_several_users_at_once_equal_single_ones(score):
    titles = BUSHY + [[4, 5, 6, 5, END], [4, END], [1, 1, END], [5, END]]
    trie, model = Trie.build(titles), Model(11, users=5)
    together = beam_search(Scorer(model), trie, 4, score=score)
    counts = set()
    for user in range(5):
        alone = beam_search(Scorer(model, slice(user, user + 1)), trie, 4, score=score)
        count = alone.nodes.shape[1]
        counts.add(count)
        assert together.nodes[user, :count].tolist() == alone.nodes[0].tolist()
        torch.testing.assert_close(together.scores[user, :count], alone.scores[0])
        assert (together.nodes[user, count:] == -1).all()
    assert len(counts) > 1, "the users should differ in how many titles they finish, or padding is not tested"


def test_the_length_penalty_divides_the_final_score_only():
    titles = [[1, 2, 3, 1, 2, END], [1, 3, END], [2, END], [3, 1, END]]
    trie, model = Trie.build(titles), Model(3)
    plain = beam_search(Scorer(model), trie, 2)
    for penalty in (0.5, 1.0, 2.0):
        beams = beam_search(Scorer(model), trie, 2, length_penalty=penalty)
        check(beams, trie, model, titles, 2, "full", penalty)
        assert sorted(beams.nodes[0].tolist()) == sorted(plain.nodes[0].tolist())


@pytest.mark.parametrize("score", ["full", "trie"])
@pytest.mark.parametrize("length", [2, 10, 40])
def test_passes_do_not_grow_with_the_tails(score, length):
    """Titles branch at depth 1 and 2; from there each has `length` tokens of its own."""
    titles = [[a, b] + [4] * (length - 1) + [END] for a in (1, 2) for b in (1, 2)]
    trie, scorer = Trie.build(titles), Scorer(Model(1, users=2))
    beams = beam_search(scorer, trie, 4, score=score)
    check(beams, trie, scorer.model, titles, 4, score)
    # One pass for the two tokens at depth 1; the tails of all four titles in another.
    assert scorer.calls == ([2, 4 * length] if score == "full" else [2])


def test_a_single_title():
    titles = [[1, 2, 3, END]]
    trie = Trie.build(titles)
    scorer = Scorer(Model(2, users=3))
    check(beam_search(scorer, trie, 5), trie, scorer.model, titles, 5, "full")
    assert scorer.calls == [3]
    scorer = Scorer(Model(2, users=3))
    beams = beam_search(scorer, trie, 5, score="trie")
    assert beams.scores.tolist() == [[0.0]] * 3 and scorer.calls == []


def test_logits_are_computed_in_chunks():
    titles = BUSHY + [[4, 5, 6, 5, 6, END], [5, 5, 5, 5, END]]
    trie, model = Trie.build(titles), Model(9, users=3)
    whole, chunked = Scorer(model), Scorer(model)
    expected = beam_search(whole, trie, 6)
    for limit, rows in ((3 * VOCAB + 2, 3), (1, 1)):
        chunked.__init__(model)
        beams = beam_search(chunked, trie, 6, max_logits=limit)
        assert max(chunked.rows) == rows < max(whole.rows) and sum(chunked.rows) == sum(whole.rows)
        assert torch.equal(beams.nodes, expected.nodes)
        torch.testing.assert_close(beams.scores, expected.scores)


def test_ties_go_to_the_earlier_beam_then_to_the_lower_token():
    """With equal logits all prefixes tie. The search keeps the first ones in the order of their tokens."""
    model = Model(0, users=2)
    model.head.zero_()
    trie = Trie.build(BUSHY[::-1])
    beams = beam_search(Scorer(model), trie, 5)
    paths = path_of_leaves(trie)
    expected = [tuple(title) for title in BUSHY[:5]]
    assert [[paths[node] for node in row] for row in beams.nodes.tolist()] == [expected, expected]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_low_precision_logits_are_scored_in_float32(dtype):
    model = Model(4, users=2, dtype=dtype)
    trie = Trie.build(BUSHY + [[4, 5, END]])
    beams = beam_search(Scorer(model), trie, 30)
    assert beams.scores.dtype == torch.float32
    exact = Model(4, users=2, dtype=dtype)
    exact.logits = lambda state: (state @ exact.head).float()
    torch.testing.assert_close(beams.scores, beam_search(Scorer(exact), trie, 30).scores)


@pytest.mark.parametrize("score", ["full", "trie"])
def test_impossible_titles_are_still_reached_last(score):
    model = Model(6)
    logits = model.logits
    model.logits = lambda state: logits(state).index_fill(-1, torch.tensor([1]), -math.inf)
    titles = [[1, 2, END], [2, 1, END], [2, 2, END], [1, 1, END], [2, 3, 1, END], [3, END]]
    trie = Trie.build(titles)
    beams = beam_search(Scorer(model), trie, 6, score=score)
    assert beams.nodes.shape == (1, 6) and beams.scores.isfinite().all()
    paths = path_of_leaves(trie)
    possible = {path for path in paths.values() if 1 not in path}
    if score == "trie":
        possible.add((2, 3, 1, END))  # its 1 is an only child, which costs nothing
    assert {paths[node] for node in beams.nodes[0, : len(possible)].tolist()} == possible
    assert (item_scores(beams, trie, 6) > -math.inf).all()


@pytest.mark.parametrize("score", ["full", "trie"])
def test_logits_that_are_no_numbers_are_an_error(score):
    model = Model(6)
    model.head[:, 1] = math.nan
    with pytest.raises(FLRError, match="NaN or infinite"):
        beam_search(Scorer(model), Trie.build([[1, END], [2, END]]), 2, score=score)


@pytest.mark.parametrize(
    "options, message",
    [
        (dict(num_beams=0), "num_beams must be at least 1; it is 0"),
        (dict(num_beams=1, top=0), "top must be at least 1; it is 0"),
        (dict(num_beams=2, score="tree"), "one of full, trie; it is 'tree'"),
    ],
)
def test_options_that_cannot_be(options, message):
    with pytest.raises(ConfigError, match=message):
        beam_search(Scorer(Model()), Trie.build([[1, END]]), **options)


def ordered_items(scores):
    """Items by falling score; fails if two have the same."""
    values = [value for value in scores.tolist() if value > -math.inf]
    assert len(set(values)) == len(values)
    return [int(item) for item in scores.argsort(descending=True)[: len(values)]]


@settings(deadline=None, max_examples=60)
@given(CATALOGUE, SCORE, st.integers(0, 2**31), st.integers(1, 4), st.randoms(use_true_random=False))
def test_items_stand_in_the_order_of_titles_then_of_priority(titles, score, seed, num_beams, random):
    items = random.sample(range(1, 40), len(titles))
    trie = Trie.build(titles, items)
    beams = beam_search(Scorer(Model(seed, users=2)), trie, num_beams, score=score)
    scores, paths = item_scores(beams, trie, 40), path_of_leaves(trie)
    assert scores.shape == (2, 40) and scores.dtype == torch.float64
    for user in range(2):
        reached = [paths[node] for node in beams.nodes[user].tolist() if node >= 0]
        expected = [item for path in reached for item, title in zip(items, titles) if tuple(title) == path]
        assert ordered_items(scores[user]) == expected
        of_title = {path: float(total) for path, total in zip(reached, beams.scores[user])}
        for item in expected:
            assert float(scores[user, item]) == pytest.approx(of_title[tuple(titles[items.index(item)])], abs=1e-9)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("base", [-3.7, 0.0, -1e-30, 2.0, 1e-3])
def test_items_of_a_title_do_not_cross_titles_that_are_as_close_as_can_be(dtype, base):
    """The scores of titles 1 and 2 are adjacent floats, 3 equals 2, and 4 is far below. Title 1 has five items."""
    titles = [[1, END]] * 5 + [[2, END], [3, END], [4, END]]
    trie = Trie.build(titles, [7, 3, 5, 1, 6, 0, 2, 4])
    by_token = {path[0]: node for node, path in path_of_leaves(trie).items()}
    first = torch.tensor(base, dtype=dtype)
    second = first.nextafter(torch.tensor(-math.inf, dtype=dtype)) if base else -torch.tensor(1e-37, dtype=dtype)
    far = first - 1
    beams = Beams(
        torch.tensor([[by_token[token] for token in (1, 2, 3, 4)], [by_token[4], by_token[2], -1, -1]]),
        torch.stack([torch.stack([first, second, second, far]), torch.tensor([1, 0, -math.inf, -math.inf], dtype=dtype)]),
    )
    scores = item_scores(beams, trie, 9)
    assert ordered_items(scores[0]) == [7, 3, 5, 1, 6, 0, 2, 4]
    assert float(scores[0, 7]) == float(first) and float(scores[0, 4]) == float(far)
    assert float(scores[0, 2]) == pytest.approx(base, rel=1e-5, abs=1e-30)
    assert ordered_items(scores[1]) == [4, 0] and scores[1, [4, 0]].tolist() == [1, 0]
    assert scores[:, 8].tolist() == [-math.inf] * 2


def test_an_item_beyond_the_scores_is_an_error():
    trie = Trie.build([[1, END]], [5])
    beams = beam_search(Scorer(Model()), trie, 1)
    with pytest.raises(DataError, match="holds item 5, but n_items is 5"):
        item_scores(beams, trie, 5)


# only the best are wanted


@settings(deadline=None, max_examples=135)
@given(
    titles=CATALOGUE, score=SCORE, seed=st.integers(0, 2**31), top=st.integers(1, 8), num_beams=st.integers(1, 8),
    length_penalty=st.sampled_from([0.0, 1.0, 2.0, -1.0]), sharpness=st.sampled_from([0.0, 2.0, 8.0]),
)  # fmt: skip
def test_the_best_are_the_same_when_no_more_are_wanted(titles, score, seed, top, num_beams, length_penalty, sharpness):
    users = 3
    trie, model = Trie.build(titles), Model(seed, users, sharpness)
    options = dict(score=score, length_penalty=length_penalty)
    every, best = Scorer(model), Scorer(model)
    expected = beam_search(every, trie, num_beams, **options)
    found = beam_search(best, trie, num_beams, top=top, **options)
    width = min(top, expected.nodes.shape[1])
    assert found.nodes.shape == found.scores.shape == (users, width)
    torch.testing.assert_close(found.scores, expected.scores[:, :width], rtol=1e-12, atol=1e-12)
    lists = (found.nodes, found.scores, expected.nodes, expected.scores)
    for nodes, scores, others, other_scores in zip(*map(torch.Tensor.tolist, lists)):
        score_of = dict(zip(others, other_scores))  # of titles whose scores round to the same another may come first
        real = [node for node in nodes if node >= 0]  # users may have found different numbers of titles
        assert len(set(real)) == len(real) == min(top, sum(node >= 0 for node in others))
        assert scores == pytest.approx([score_of[node] for node in nodes], rel=1e-12, abs=1e-12)
    assert sum(best.asked) <= sum(every.asked)


def test_with_a_length_penalty_no_other_titles_are_found_when_one_is_wanted():
    """The search drops a beam that cannot win. Its place must not go to a beam with a lower sum and a long title that wins."""
    titles = [[1, 2, 2, 2], [3], [3, 1, 1, 2], [3, 1, 1, 3], [3, 1, 2, 2], [3, 1, 2, 3, 2, 1]]
    trie, model = Trie.build([title + [END] for title in titles]), Model(23, 1, 0.3)
    options = dict(score="trie", length_penalty=3.0)
    every, best = (beam_search(Scorer(model), trie, 3, top=top, **options) for top in (None, 1))
    assert torch.equal(best.nodes, every.nodes[:, :1])


@pytest.mark.parametrize("score", ["full", "trie"])
def test_what_cannot_come_among_the_best_is_not_followed(score):
    """The model is certain of the tails and only two titles are wanted, so the search does not score most tails."""
    titles = [[a, b, c, 4, 4, 4, 4, 4, END] for a in (1, 2, 3) for b in (1, 2, 3) for c in (1, 2, 3)]
    trie, model = Trie.build(titles), Model(3, 2, 8.0)
    plain = model.logits
    sure = torch.tensor([50.0, 0, 0, 0, 50, 0, 0])  # of the end and of 4; all titles have the same three others
    model.logits = lambda state: plain(state) * (sure == 0) + sure
    every, best = Scorer(model), Scorer(model)
    expected, found = beam_search(every, trie, 20, score=score), beam_search(best, trie, 20, top=2, score=score)
    assert torch.equal(found.nodes, expected.nodes[:, :2])
    asked, wanted = sum(every.asked), sum(best.asked)
    assert wanted < asked / 2 if score == "full" else wanted <= asked
