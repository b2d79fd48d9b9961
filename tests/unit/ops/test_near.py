"""Searches near the same place, and of each image in every other, against loops."""

import pytest
import torch

from anomaly_lib.ops import best_nearby, nearest_in_each


@pytest.mark.parametrize("radius", [0, 1, 2, 5])
def test_best_nearby_equals_loops(radius):
    torch.manual_seed(radius)
    query, bank = torch.randn(3, 4, 5), torch.randn(6, 20, 3)
    found = best_nearby(query, bank, radius, tile=4)
    for y in range(4):
        for x in range(5):
            near = [
                float(query[:, y, x] @ bank[k, 5 * r + c])
                for k in range(6)
                for r in range(4)
                for c in range(5)
                if abs(r - y) <= radius and abs(c - x) <= radius
            ]
            assert float(found[y, x]) == pytest.approx(max(near), abs=1e-6)


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
