"""The closed form equals fitting again without the sample."""

import pytest
import torch

from anomaly_lib.ops import mahalanobis, whitening_matrix
from anomaly_lib.ops.left_out import left_out_mahalanobis


def fit(rows: torch.Tensor, ridge: float) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Mean, covariance (divisor n - 1) and whitening of [N, P, D], one Gaussian a position."""
    mean = rows.mean(0)
    centred = (rows - mean).transpose(0, 1)
    covariance = centred.mT @ centred / (len(rows) - 1)
    return mean, covariance, whitening_matrix(covariance + ridge * torch.eye(rows.shape[2], dtype=rows.dtype))


@pytest.mark.parametrize(("count", "dim"), [(3, 5), (9, 4), (40, 12)])
def test_leaving_one_out_equals_fitting_without_it(count: int, dim: int) -> None:
    generator = torch.Generator().manual_seed(count)
    rows = torch.randn(count, 6, dim, generator=generator, dtype=torch.float64) * 2 + 1
    mean, _, whitening = fit(rows, 0.01)
    found = left_out_mahalanobis(rows, mean, whitening, count, ridge=0.01)
    for index in range(count):
        others = torch.cat([rows[:index], rows[index + 1 :]])
        other_mean, _, other_whitening = fit(others, 0.01)
        wanted = mahalanobis(rows[index : index + 1], other_mean, other_whitening)[0]
        torch.testing.assert_close(found[index], wanted, rtol=1e-6, atol=1e-9)


def test_too_few_samples_are_refused() -> None:
    rows = torch.randn(2, 1, 3)
    with pytest.raises(ValueError, match="at least 3"):
        left_out_mahalanobis(rows, rows.mean(0), torch.eye(3)[None], 2, ridge=0.1)
