"""The mixture over items, against loops over items and factors in double precision."""

import math
from types import SimpleNamespace

import pytest
import torch

from recbole_flr.model.factors import gate_balance
from recbole_flr.model.mixture import ItemVectors, LogProbOfOne, MixtureHead, log_probs, target_log_probs

B, K, D, N = 3, 4, 6, 7


def drawn(seed=0):
    torch.manual_seed(seed)
    alpha = torch.rand(B, K, dtype=torch.float64).softmax(-1)
    return torch.randn(B, K, D, dtype=torch.float64), alpha, torch.randn(N, D, dtype=torch.float64)


def by_hand(queries, alpha, vectors):
    """p(i), one item and one factor after the other; [B][N], 0 for the padding."""
    found = []
    for row in range(len(queries)):
        total = [0.0] * len(vectors)
        for factor in range(queries.shape[1]):
            weights = [0.0] + [math.exp(sum(float(q) * float(e) for q, e in zip(queries[row, factor], vector)))
                               for vector in vectors[1:]]
            for item, weight in enumerate(weights):
                total[item] += float(alpha[row, factor]) * weight / sum(weights)
        found.append(total)
    return torch.tensor(found, dtype=torch.float64)


def test_log_probs_are_those_of_the_loop():
    queries, alpha, vectors = drawn()
    found = log_probs(queries, alpha.log(), vectors)
    expected = by_hand(queries, alpha, vectors)
    torch.testing.assert_close(found.exp(), expected)
    assert (found[:, 0] == -math.inf).all()
    torch.testing.assert_close(expected.sum(1), torch.ones(B, dtype=torch.float64))


def test_the_target_alone_has_the_same_log_prob_and_gradient():
    queries, alpha, vectors = (x.requires_grad_() for x in drawn(1))
    target = torch.tensor([1, 6, 3])
    alone = target_log_probs(queries, alpha.log(), vectors, target)
    among_all = log_probs(queries, alpha.log(), vectors).gather(1, target.unsqueeze(1)).squeeze(1)
    torch.testing.assert_close(alone, among_all)
    for one, other in zip(*(torch.autograd.grad(x.sum(), (queries, alpha, vectors), retain_graph=True)
                            for x in (alone, among_all))):
        torch.testing.assert_close(one, other)


def test_the_gradient_of_one_log_prob():
    torch.manual_seed(4)
    logits = (3 * torch.randn(2, 3, 5, dtype=torch.float64)).requires_grad_()
    items = torch.tensor([[0, 4, 2], [1, 1, 3]])
    expected = logits.log_softmax(-1).gather(-1, items.unsqueeze(-1)).squeeze(-1)
    found = LogProbOfOne.apply(logits, items)
    assert torch.equal(found, expected)
    weights = torch.randn(2, 3, dtype=torch.float64)
    one, other = (torch.autograd.grad((x * weights).sum(), logits, retain_graph=True)[0] for x in (found, expected))
    torch.testing.assert_close(one, other)
    with pytest.raises(RuntimeError, match="inplace"):  # the second pass would be wrong
        found.sum().backward()


def test_several_thoughts_share_a_target():
    queries, alpha, vectors = drawn(2)
    group = torch.stack([queries, queries.flip(0), -queries], dim=1)  # [B, G, K, D]
    weights = torch.stack([alpha, alpha.flip(0), alpha], dim=1).log()
    target = torch.tensor([2, 5, 1])
    found = target_log_probs(group, weights, vectors, target)
    for member in range(3):
        torch.testing.assert_close(found[:, member], target_log_probs(group[:, member], weights[:, member], vectors, target))


def test_a_mixture_can_rank_what_one_softmax_cannot():
    """Two factors put two opposite items first and second; the sum of their queries is 0 and ranks nothing."""
    vectors = torch.tensor([[0.0, 0.0], [1.0, 0.0], [-1.0, 0.0], [0.0, 0.1]], dtype=torch.float64)
    factors = torch.tensor([[[9.0, 0.0], [-9.0, 0.0]]], dtype=torch.float64)
    alpha = torch.tensor([[0.5, 0.5]], dtype=torch.float64)
    mixed = log_probs(factors, alpha.log(), vectors)
    assert set(mixed[0].topk(2).indices.tolist()) == {1, 2}
    summed = log_probs((alpha.unsqueeze(1) @ factors), torch.zeros(1, 1, dtype=torch.float64), vectors)
    assert (summed[0, 1:] - summed[0, 1]).abs().max() < 1e-12


@pytest.mark.parametrize("mixture", [True, False])
def test_queries(mixture):
    torch.manual_seed(3)
    head = MixtureHead(D, 0.0, mixture).double()
    factors, alpha = torch.randn(B, K, D, dtype=torch.float64), torch.rand(B, K, dtype=torch.float64).softmax(-1)
    state = SimpleNamespace(factors=factors, alpha=alpha, thought=(alpha.unsqueeze(1) @ factors).squeeze(1))
    thought = torch.randn(B, D, dtype=torch.float64)
    queries, weights = head.queries(thought, state)
    for row in range(B):
        if mixture:
            for factor in range(K):
                expected = thought[row] + head.output.weight @ factors[row, factor] + head.output.bias
                torch.testing.assert_close(queries[row, factor], expected)
            torch.testing.assert_close(weights[row].exp(), alpha[row])
        else:
            torch.testing.assert_close(queries[row, 0], thought[row] + head.output.weight @ state.thought[row] + head.output.bias)
            assert weights.shape == (B, 1) and not weights.any()


def test_dropout_acts_on_the_factors_in_training_alone():
    torch.manual_seed(5)
    head = MixtureHead(D, 0.5)
    thought, state = torch.randn(B, D), SimpleNamespace(factors=torch.randn(B, K, D), alpha=torch.rand(B, K))
    torch.manual_seed(6)
    expected = thought.unsqueeze(1) + head.output(torch.nn.functional.dropout(state.factors, 0.5))
    torch.manual_seed(6)
    torch.testing.assert_close(head.queries(thought, state)[0], expected)
    assert not torch.equal(head.queries(thought, state)[0], expected)  # the next draw
    head.eval()
    torch.testing.assert_close(head.queries(thought, state)[0], thought.unsqueeze(1) + head.output(state.factors))


def test_a_probability_and_a_weight_of_0_have_finite_logarithms_and_gradients():
    """The products are 200, 0 and -200, so float32 knows two probabilities as 0. The weight of the second factor is exactly 0."""
    vectors = torch.tensor([[0.0, 0.0], [20.0, 0.0], [0.0, 1.0], [-20.0, 0.0]], requires_grad=True)
    thought = torch.tensor([[10.0, 0.0]], requires_grad=True)
    factors = torch.tensor([[[0.0, 0.0], [-10.0, 3.0]]], requires_grad=True)
    alpha = torch.tensor([[1.0, 0.0]], requires_grad=True)
    head = MixtureHead(2, 0.0)
    with torch.no_grad():
        head.output.weight.copy_(torch.eye(2))
        head.output.bias.zero_()
    queries, weights = head.queries(thought, SimpleNamespace(factors=factors, alpha=alpha))
    assert weights[0, 0] == 0 and weights[0, 1].isfinite() and weights[0, 1] < -80
    every = log_probs(queries, weights, vectors)[:, 1:]
    assert every[0, 0] == 0 and (every[0, 1:] < -80).all() and every.isfinite().all()
    one = target_log_probs(queries, weights, vectors, torch.tensor([1]))
    assert one.item() == 0
    for value in (every.sum(), one.sum()):
        for gradient in torch.autograd.grad(value, (vectors, thought, factors, alpha), retain_graph=True):
            assert gradient.isfinite().all()


def test_an_unknown_item_is_its_text_alone():
    texts = torch.randn(N, 3)
    known = torch.tensor([False, True, True, True, True, True, False])
    vectors = ItemVectors(N, D, True, texts.shape[1], texts, known)
    found = vectors()
    torch.testing.assert_close(found[6], vectors.project(texts[6]))
    torch.testing.assert_close(found[2], vectors.project(texts[2]) + vectors.ids.weight[2])
    found.sum().backward()
    assert not vectors.ids.weight.grad[6].any() and vectors.ids.weight.grad[2].any()


def test_without_ids_or_without_texts():
    known = torch.ones(N, dtype=torch.bool)
    texts = torch.randn(N, 3)
    only_text = ItemVectors(N, D, False, texts.shape[1], texts, known)
    torch.testing.assert_close(only_text(), only_text.project(texts))
    only_ids = ItemVectors(N, D, True, None, None, known)
    torch.testing.assert_close(only_ids(), only_ids.ids.weight)


def test_gate_balance():
    """Its least value is that of equal mean weights, whatever each user's gate is."""
    one_for_all = torch.tensor([[1.0, 0.0], [1.0, 0.0]])
    one_for_each = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
    assert gate_balance(one_for_all).item() == 0
    assert gate_balance(one_for_each).item() == pytest.approx(-math.log(2))
    mean = torch.tensor([[0.2, 0.8], [0.4, 0.6]])
    assert gate_balance(mean).item() == pytest.approx(0.3 * math.log(0.3) + 0.7 * math.log(0.7))
    alpha = torch.tensor([[1.0, 0.0]], requires_grad=True)
    gate_balance(alpha).backward()
    assert alpha.grad.isfinite().all()
