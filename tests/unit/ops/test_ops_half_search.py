"""The short-format search gives the float32 answer, whatever rounding would like."""

import pytest
import torch

from anomaly_lib.models.detectors import memory_bank
from anomaly_lib.models.detectors.memory_bank import MemoryBank
from anomaly_lib.ops import half_search, nearest_neighbours
from anomaly_lib.ops.half_search import HalfBank, nearest_by_half


def exact(queries: torch.Tensor, bank: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """All differences in double precision; among equals the lowest row."""
    full = (queries.double().unsqueeze(1) - bank.double().unsqueeze(0)).square().sum(2).sqrt()
    return full.min(1)


def case(kind: str) -> tuple[torch.Tensor, torch.Tensor]:
    """(queries [70, 40], bank [600, 40])."""
    bank, queries = torch.randn(600, 40), torch.randn(70, 40)
    if kind == "far from zero":
        return queries * 0.1 + 500, bank * 0.1 + 500
    if kind == "one huge row":
        bank[17] *= 1e4
    elif kind == "near copies":  # differences far below bfloat16's resolution
        bank = bank[:6].repeat(100, 1) + 1e-4 * torch.randn(600, 40)
        queries = bank[:70] + 1e-5
    elif kind == "lattice":
        bank, queries = torch.randint(0, 3, bank.shape).float(), torch.randint(0, 3, queries.shape).float()
    elif kind == "itself":
        queries = bank[100:170].clone()
    return queries, bank


@pytest.mark.parametrize("kind", ["random", "far from zero", "one huge row", "near copies", "lattice", "itself"])
def test_equals_the_exact_search(kind, monkeypatch):
    monkeypatch.setattr(half_search, "BANK_TILE", 128)
    monkeypatch.setattr(half_search, "QUERY_TILE", 32)
    queries, bank = case(kind)
    distance, index = nearest_by_half(queries, bank, HalfBank.of(bank))
    want, row = exact(queries, bank)
    torch.testing.assert_close(distance.squeeze(1).double(), want, rtol=1e-5, atol=1e-6)
    if kind in ("random", "one huge row", "near copies", "itself"):
        assert torch.equal(index.squeeze(1), row)


def test_rules_most_rows_out():
    bank, queries = torch.randn(5000, 64), torch.randn(64, 64)
    which, row = half_search._candidates(queries, HalfBank.of(bank))
    assert set(which.tolist()) == set(range(64))
    assert len(row) < 64 * 50


def test_nothing_can_be_ruled_out_or_is_no_number():
    same = torch.ones(3000, 8)
    assert half_search._candidates(same[:4] + 1, HalfBank.of(same)) is None
    distance, index = nearest_by_half(same[:4] + 1, same, HalfBank.of(same))
    torch.testing.assert_close(distance, torch.full((4, 1), 8.0**0.5))
    assert ((index >= 0) & (index < 3000)).all()
    bank, queries = torch.randn(50, 4), torch.randn(3, 4)
    queries[1] = torch.nan
    found = nearest_by_half(queries, bank, HalfBank.of(bank))[0]
    assert found.isnan().flatten().tolist() == [False, True, False]


def test_the_bank_uses_it_and_forgets_it(monkeypatch):
    monkeypatch.setattr(memory_bank, "WORTHWHILE", 1)
    monkeypatch.setattr(memory_bank, "half_products_are_fast", lambda: True)
    bank = MemoryBank(torch.randn(90, 12), torch.arange(90) // 30)
    queries = torch.randn(40, 12)
    for _ in range(2):
        got = bank.search(queries)
        assert bank.short is not None
        want = nearest_neighbours(queries, bank.rows)
        torch.testing.assert_close(got[0], want[0])
        assert torch.equal(got[1], want[1])
        bank.remove([1])  # other rows: the short copy must go
    assert len(bank) == 60
