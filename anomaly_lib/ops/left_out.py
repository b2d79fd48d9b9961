"""Distances of samples to a Gaussian fitted to all of them but one, without fitting again."""

import torch
from torch import Tensor

from anomaly_lib.ops.distance import whitening_matrix


def left_out_mahalanobis(rows: Tensor, mean: Tensor, covariance: Tensor, count: int, *, ridge: float) -> Tensor:
    """sqrt((x - m')^T (S' + ridge I)^-1 (x - m')) with m', S' of the other n - 1 samples, x being one of the n.

    rows [B, P, D] are samples the Gaussians were fitted on, mean [P, D] and covariance [P, D, D] (divisor n - 1, no
    ridge) those of all `count` of them -> [B, P].

    Leaving x out is a rank-one change: with d = x - m, S' = a S - b d d^T for a = (n - 1)/(n - 2) and
    b = n / ((n - 1)(n - 2)), and x - m' = n/(n - 1) d. By Sherman and Morrison the distance follows from
    q = d^T (a S + ridge I)^-1 d alone: squared, it is (n/(n - 1))^2 q / (1 - b q).
    """
    if count < 3:
        raise ValueError(f"a Gaussian without one of its samples needs at least 3 of them, got {count}")
    n = float(count)
    wider = covariance * ((n - 1) / (n - 2))
    wider.diagonal(dim1=1, dim2=2).add_(ridge)
    whitening = whitening_matrix(wider)  # [P, D, D]
    centred = (rows - mean).transpose(0, 1)  # [P, B, D]
    q = (centred @ whitening).square().sum(2)  # [P, B]
    rest = (1 - n / ((n - 1) * (n - 2)) * q).clamp_min(torch.finfo(q.dtype).tiny)
    return (n / (n - 1) * (q / rest).sqrt()).T
