"""Equations 3 to 8 of the paper against loops in plain Python. The regularisers have known values at their extremes."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from recbole_flr.contracts import LossPart, total_loss
from recbole_flr.model import factors as f

sizes = dict(batch=st.integers(1, 3), length=st.integers(1, 6), num_factors=st.integers(1, 4), seed=st.integers(0, 10**6))


def softmax(values):
    top = max(values)
    exps = [math.exp(v - top) for v in values]
    return [e / sum(exps) for e in exps]


@settings(max_examples=25, deadline=None)
@given(**sizes)
def test_factor_attention_equals_a_loop(batch, length, num_factors, seed):
    torch.manual_seed(seed)
    width = 6
    attention = f.FactorAttention(width, num_factors).double()
    hidden = torch.randn(batch, length, width, dtype=torch.float64)
    positions = torch.arange(length).expand(batch, -1)
    mask = torch.rand(batch, length) < 0.7
    mask[:, -1] = True
    got, maps = attention(attention.scores(hidden, positions), hidden[:, :-1], hidden[:, -1:], mask)
    for b in range(batch):
        for k in range(num_factors):
            query = attention.query.weight @ attention.queries[k]
            scores = []
            for p in range(length):
                key = attention.key.weight @ hidden[b, p]
                turned = torch.empty_like(key)
                for pair in range(width // 2):  # rotate the pair (i, i + D/2) by p * 10000^(-i / (D/2))
                    angle = p * 10000 ** (-pair / (width // 2))
                    one, two = key[pair], key[pair + width // 2]
                    turned[pair] = one * math.cos(angle) - two * math.sin(angle)
                    turned[pair + width // 2] = two * math.cos(angle) + one * math.sin(angle)
                scores.append((query @ turned).item() / math.sqrt(width) if mask[b, p] else -math.inf)
            weights = softmax(scores)
            assert maps[b, k].tolist() == pytest.approx(weights, abs=1e-12)
            expected = sum(w * (attention.value.weight @ hidden[b, p]) for p, w in enumerate(weights))
            torch.testing.assert_close(got[b, k], expected, rtol=1e-10, atol=1e-12)


def test_one_factor_is_plain_single_query_attention():
    torch.manual_seed(1)
    step = f.FactorStep(8, 1).double()
    hidden = torch.randn(2, 5, 8, dtype=torch.float64)
    positions = torch.arange(5).expand(2, -1)
    mask = torch.ones(2, 5, dtype=torch.bool)
    state = step(step.scores(hidden, positions), hidden[:, :-1], hidden[:, -1:], mask)
    query = step.attention.query(step.attention.queries)[None].expand(2, 1, 8)
    plain = torch.nn.functional.scaled_dot_product_attention(
        query, f.rotate(step.attention.key(hidden), positions), step.attention.value(hidden)
    )
    torch.testing.assert_close(state.thought, plain[:, 0])
    assert state.alpha.tolist() == [[1.0], [1.0]]
    terms = state.regularisers()
    assert terms["diversity"] == 0 and abs(terms["orthogonality"].item()) < 1e-12 and terms["sparsity"] == 0


def test_the_thought_is_the_sum_of_the_factors_weighted_by_the_gate():
    """Eq. 4 with loops: alpha = softmax(W_2 gelu(W_1 [F_1; ...; F_K] + b_1) + b_2) and z = sum of alpha_k F_k."""
    torch.manual_seed(4)
    step = f.FactorStep(4, 3).double()
    hidden, mask = torch.randn(2, 5, 4, dtype=torch.float64), torch.ones(2, 5, dtype=torch.bool)
    state = step(step.scores(hidden, torch.arange(5).expand(2, -1)), hidden[:, :-1], hidden[:, -1:], mask)
    first, _, second = step.gate.mlp
    for row in range(2):
        inner = first.weight @ torch.cat(list(state.factors[row])) + first.bias
        inner = inner * (1 + torch.erf(inner / math.sqrt(2))) / 2
        alpha = softmax((second.weight @ inner + second.bias).tolist())
        assert max(alpha) - min(alpha) > 0.01
        assert state.alpha[row].tolist() == pytest.approx(alpha)
        torch.testing.assert_close(state.thought[row], sum(weight * factor for weight, factor in zip(alpha, state.factors[row])))


def test_rotation_depends_on_distance_only():
    torch.manual_seed(2)
    query, key = torch.randn(2, 1, 1, 8, dtype=torch.float64)

    def score(q, k):
        return (f.rotate(query, torch.tensor([[q]])) * f.rotate(key, torch.tensor([[k]]))).sum()

    torch.testing.assert_close(score(3, 1), score(12, 10))
    assert not torch.isclose(score(3, 1), score(3, 2))


@settings(max_examples=25, deadline=None)
@given(**sizes)
def test_regularisers_equal_loops(batch, length, num_factors, seed):
    torch.manual_seed(seed)
    factors = torch.randn(batch, num_factors, 5, dtype=torch.float64)
    maps = torch.rand(batch, num_factors, length, dtype=torch.float64).softmax(-1)
    alpha = torch.randn(batch, num_factors, dtype=torch.float64).softmax(-1)
    orth = entropy = 0.0
    cosines = []
    for b in range(batch):
        unit = [v / v.norm() for v in factors[b]]
        orth += sum(
            ((unit[i] @ unit[j]).item() - (i == j)) ** 2 for i in range(num_factors) for j in range(num_factors)
        )
        cosines += [
            torch.cosine_similarity(maps[b, i], maps[b, j], dim=0).item()
            for i in range(num_factors) for j in range(i + 1, num_factors)
        ]
        entropy -= sum(a * math.log(a) for a in alpha[b].tolist())
    assert f.orthogonality(factors).item() == pytest.approx(orth / batch, abs=1e-10)
    assert f.diversity(maps).item() == pytest.approx(sum(cosines) / len(cosines) if cosines else 0.0, abs=1e-10)
    assert f.sparsity(alpha).item() == pytest.approx(entropy / batch, abs=1e-10)


@pytest.mark.parametrize("num_factors", [1, 2, 5])
def test_regularisers_at_their_extremes(num_factors):
    orthonormal = torch.eye(6)[:num_factors].unsqueeze(0) * 3
    identical = torch.ones(2, num_factors, 6)
    assert f.orthogonality(orthonormal).item() == pytest.approx(0, abs=1e-6)
    assert f.orthogonality(identical).item() == pytest.approx(num_factors * (num_factors - 1), abs=1e-5)
    assert f.diversity(torch.eye(6)[:num_factors].unsqueeze(0)).item() == pytest.approx(0)
    assert f.diversity(identical).item() == pytest.approx(1.0 if num_factors > 1 else 0.0)
    assert f.sparsity(torch.eye(num_factors)[:1]).item() == pytest.approx(0)
    assert f.sparsity(torch.full((3, num_factors), 1 / num_factors)).item() == pytest.approx(math.log(num_factors), abs=1e-6)


def test_one_hot_gate_has_finite_gradient():
    logits = torch.tensor([[200.0, 0.0, 0.0]], requires_grad=True)
    f.sparsity(logits.softmax(-1)).backward()
    assert logits.grad.isfinite().all()


def weighted(weights, recommendation, terms):
    """The total of a recommendation loss and the weighted regularisers."""
    return total_loss({"title": LossPart(torch.tensor(recommendation)), **weights(terms)})


def test_loss_weights_by_hand():
    terms = {"orthogonality": torch.tensor(2.0), "sparsity": torch.tensor(3.0)}
    learned = f.LossWeights(["orthogonality", "sparsity"])
    assert weighted(learned, 1.0, terms).item() == pytest.approx(1 + 0.5 * 2 + 0.5 * 3)
    with torch.no_grad():  # softplus(ln 3) = ln 4, so s = ln 2; softplus(-inf) = 0, so s = -ln 2
        learned.unbounded.copy_(torch.tensor([math.log(3), -math.inf]))
    expected = 1 + math.exp(-math.log(2)) / 2 * 2 + math.exp(math.log(2)) / 2 * 3 + (math.log(2) - math.log(2)) / 2
    assert weighted(learned, 1.0, terms).item() == pytest.approx(expected, rel=1e-6)
    with torch.no_grad():  # s = ln 2 for both, so that Kendall's half of the sum of s shows
        learned.unbounded.fill_(math.log(3))
    assert weighted(learned, 1.0, terms).item() == pytest.approx(1 + 2 / 4 + 3 / 4 + math.log(2), rel=1e-6)
    fixed = f.LossWeights(["orthogonality", "sparsity"], "fixed", {"orthogonality": 0.1, "sparsity": 10.0})
    assert weighted(fixed, 1.0, terms).item() == pytest.approx(1 + 0.2 + 30)
    assert f.LossWeights([])({}) == {} and weighted(f.LossWeights([]), 1.0, {}).item() == 1.0


def test_loss_weights_name_their_parts():
    terms = {"orthogonality": torch.tensor(2.0), "diversity": torch.tensor(5.0), "sparsity": torch.tensor(3.0)}
    learned = f.LossWeights(["orthogonality", "sparsity"])(terms)
    assert list(learned) == ["orthogonality", "sparsity", "uncertainty"]  # diversity is not in use
    assert learned["sparsity"].value is terms["sparsity"] and learned["sparsity"].weight.item() == pytest.approx(0.5)
    assert learned["sparsity"].weight.requires_grad and learned["uncertainty"].weight == 0.5
    fixed = f.LossWeights(["sparsity"], "fixed", {"sparsity": 10.0})(terms)
    assert list(fixed) == ["sparsity"] and fixed["sparsity"].weight == 10.0


@pytest.mark.parametrize("loss, settled", [(3.0, 1 / 6), (0.8, 0.625), (0.0, 1.0)])
def test_learned_weights_neither_die_nor_explode(loss, settled):
    # d/ds (L exp(-s)/2 + s/2) = 0 at s = ln L, lambda = 1/(2L). Without Kendall's s/2, lambda would fall forever. With s/2 and
    # no bound on s, lambda would grow forever at L = 0.
    weights = f.LossWeights(["sparsity"])
    optimizer = torch.optim.Adam(weights.parameters(), lr=0.1)
    for _ in range(1500):
        optimizer.zero_grad()
        total = weighted(weights, 0.0, {"sparsity": torch.tensor(loss)})
        total.backward()
        optimizer.step()
    assert weights.lambdas()["sparsity"].item() == pytest.approx(settled, abs=0.02)
    assert total.item() >= -math.log(2) / 2


def test_odd_width_is_refused():
    with pytest.raises(ValueError, match="even, found 7"):
        f.FactorAttention(7, 2)
