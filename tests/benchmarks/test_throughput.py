"""What the benchmarks say about throughput: known cards, the search for the largest batch, FLOPs, and the limit on a CPU."""

from types import SimpleNamespace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from benchmarks import throughput

GIVEN = SimpleNamespace(device="cpu", repeats=2, peak_tflops=None, largest_batch=0, memory_limit=None)


@pytest.mark.parametrize("name, peak", [
    ("NVIDIA H200", 989), ("NVIDIA H100 80GB HBM3", 989), ("NVIDIA H100 PCIe", 756), ("NVIDIA A100-SXM4-80GB", 312),
    ("NVIDIA L4", 121), ("NVIDIA L40S", 362), ("NVIDIA A10", 125), ("NVIDIA GeForce RTX 4090", 165), ("Tesla T4", None),
    ("NVIDIA H200 NVL", 835), ("NVIDIA H200 MIG 1g.18gb", None), ("NVIDIA RTX A4000", None),
])
def test_known_cards(name, peak):
    assert throughput.known_peak(name) == peak


@given(st.integers(0, 3000), st.integers(1, 64), st.integers(1, 2000))
def test_the_largest_batch(limit, start, most):
    tried = []

    def fits(rows):
        tried.append(rows)
        return rows <= limit

    found, wanted = throughput.largest(fits, start, most), min(limit, most)
    assert found <= wanted and wanted - found <= max(1, found // 16) - (found < 16)
    assert len(tried) == len(set(tried)) <= 30 and all(1 <= rows <= most for rows in tried)


def test_flops():
    left, right = torch.ones(3, 5, requires_grad=True), torch.ones(5, 7, requires_grad=True)
    assert throughput.flops_of(lambda: left @ right) == 2 * 3 * 5 * 7
    assert throughput.flops_of(lambda: (left @ right).sum().backward()) == 3 * 2 * 3 * 5 * 7
    query, key = torch.ones(2, 4, 6, 8, requires_grad=True), torch.ones(2, 4, 6, 8)
    attention = lambda: torch.nn.functional.scaled_dot_product_attention(query, key, key)
    assert throughput.flops_of(attention) == 2 * 2 * (2 * 4) * 6 * 6 * 8
    assert throughput.flops_of(lambda: attention().sum().backward()) == (2 + 5) * 2 * (2 * 4) * 6 * 6 * 8


def test_rates():
    matrix = torch.ones(200, 200)
    found = throughput.rates(lambda: matrix @ matrix, SimpleNamespace(**{**vars(GIVEN), "peak_tflops": 2.0}), 4, 10)
    assert found["flops"] == 2 * 200**3 and len(found["seconds"]) == 2
    assert found["tokens_a_second"] == pytest.approx(10 * found["rows_a_second"])
    assert found["tflops_a_second"] == pytest.approx(found["flops"] * found["rows_a_second"] / 4 / 1e12)
    assert found["share_of_peak"] == pytest.approx(found["tflops_a_second"] / 2)
    assert found["peak_bytes"] > 2**20


def test_the_limit_on_a_cpu():
    """A row takes 32 MiB. The process takes some memory itself."""
    step_of = lambda rows: lambda: torch.ones(rows * 2**23)
    before = throughput.start_peak() / throughput.GIB
    fits = throughput.fits(step_of, SimpleNamespace(device="cpu", memory_limit=before + 0.25))
    assert fits(2) and not fits(16)


def test_out_of_memory_is_the_limit_of_a_gpu(monkeypatch):
    def step_of(rows):
        def step():
            if rows > 11:
                raise torch.OutOfMemoryError("CUDA out of memory")
        return step

    for name in ("empty_cache", "synchronize", "reset_peak_memory_stats"):
        monkeypatch.setattr(torch.cuda, name, lambda *_: None)
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda *_: 0)
    assert throughput.largest(throughput.fits(step_of, SimpleNamespace(device="cuda")), 4, 100) == 11
