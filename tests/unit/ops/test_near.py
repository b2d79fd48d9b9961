"""Searches near the same place, and of each image in every other, against loops."""

import itertools

import pytest
import torch

from anomaly_lib.ops import best_nearby, nearest_in_each


@pytest.mark.parametrize("radius", [0, 1, 2, 5])
def test_best_nearby_equals_loops(radius):
    torch.manual_seed(radius)
    queries, bank = torch.randn(2, 3, 4, 5), torch.randn(20, 6, 3)
    allowed = torch.tensor([[True] * 6, [False, True, False, True, False, True]])
    found = best_nearby(queries, bank, allowed, radius, tile=4)
    for n, y, x in itertools.product(range(2), range(4), range(5)):
        near = [
            float(queries[n, :, y, x] @ bank[5 * r + c, k])
            for k in range(6)
            if allowed[n, k]
            for r in range(4)
            for c in range(5)
            if abs(r - y) <= radius and abs(c - x) <= radius
        ]
        assert float(found[n, y, x]) == pytest.approx(max(near), abs=1e-6)


@pytest.mark.parametrize("most", [1, 60, 1 << 20])
def test_nearest_in_each_equals_loops(most):
    torch.manual_seed(0)
    rows = torch.nn.functional.normalize(torch.randn(4, 5, 3), dim=-1)
    found = nearest_in_each(rows, most=most)
    for i in range(4):
        assert found[i, :, i].isinf().all()
        for j in set(range(4)) - {i}:
            want = torch.stack([(rows[j] - row).norm(dim=1).min() for row in rows[i]])
            torch.testing.assert_close(found[i, :, j], want, atol=1e-5, rtol=1e-5)
