import numpy as np
import pytest
import torch
from scipy.spatial.distance import cdist
from scipy.spatial.distance import mahalanobis as scipy_mahalanobis

from anomaly_lib.ops import mahalanobis, nearest_neighbours, whitening_matrix


@pytest.mark.parametrize("k", [1, 4])
@pytest.mark.parametrize("tiles", [(7, 11), (1024, 8192)])
def test_nearest_neighbours_equal_brute_force(k, tiles):
    queries, bank = torch.randn(50, 16), torch.randn(83, 16)
    distances, indices = nearest_neighbours(queries, bank, k, query_tile=tiles[0], bank_tile=tiles[1])
    full = cdist(queries.numpy(), bank.numpy())
    order = np.argsort(full, axis=1)[:, :k]
    assert np.array_equal(indices.numpy(), order)
    np.testing.assert_allclose(distances.numpy(), np.take_along_axis(full, order, 1), rtol=1e-5)


def test_a_bank_row_is_at_distance_exactly_zero_of_itself():
    bank = torch.randn(40, 64) * 100 + 500
    distances, indices = nearest_neighbours(bank, bank)
    assert torch.equal(distances, torch.zeros(40, 1))
    assert torch.equal(indices.squeeze(1), torch.arange(40))


def test_tiles_smaller_than_k():
    queries, bank = torch.randn(5, 4), torch.randn(9, 4)
    got = nearest_neighbours(queries, bank, 6, bank_tile=2)
    torch.testing.assert_close(got[0], torch.cdist(queries, bank).sort(1).values[:, :6])


@pytest.mark.parametrize("k", [0, 10])
def test_impossible_k_is_named(k):
    with pytest.raises(ValueError, match=r"1\.\.9"):
        nearest_neighbours(torch.randn(2, 3), torch.randn(9, 3), k)


def test_half_precision_bank():
    queries, bank = torch.randn(20, 8), torch.randn(30, 8).half()
    distances, _ = nearest_neighbours(queries, bank, 2)
    torch.testing.assert_close(
        distances, torch.cdist(queries, bank.float()).sort(1).values[:, :2], rtol=1e-5, atol=1e-5
    )


def test_mahalanobis_equals_scipy():
    rows, mean = torch.randn(4, 3, 6, dtype=torch.float64), torch.randn(3, 6, dtype=torch.float64)
    root = torch.randn(3, 6, 6, dtype=torch.float64)
    covariance = root @ root.mT + 0.1 * torch.eye(6)
    got = mahalanobis(rows, mean, whitening_matrix(covariance))
    for b in range(4):
        for p in range(3):
            inverse = np.linalg.inv(covariance[p].numpy())
            assert got[b, p].item() == pytest.approx(
                scipy_mahalanobis(rows[b, p].numpy(), mean[p].numpy(), inverse), rel=1e-9
            )


@pytest.mark.parametrize("k", [1, 3])
def test_rows_of_a_querys_own_owner_do_not_count(k):
    torch.manual_seed(2)
    queries, rows = torch.randn(9, 4), torch.randn(40, 4)
    owners, mine = torch.arange(40) % 5, torch.arange(9) % 5
    found, index = nearest_neighbours(queries, rows, k, apart=(mine, owners), query_tile=4, bank_tile=7)
    for n in range(9):
        others = (owners != mine[n]).nonzero()[:, 0]
        want, places = (rows[others] - queries[n]).norm(dim=1).sort()
        torch.testing.assert_close(found[n], want[:k])
        assert torch.equal(index[n], others[places[:k]])
