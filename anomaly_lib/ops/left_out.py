"""Distances of samples to a Gaussian fitted to all of them but one, without fitting again."""

import torch
from torch import Tensor

MOST_TERMS = 60


def left_out_mahalanobis(rows: Tensor, mean: Tensor, whitening: Tensor, count: int, *, ridge: float) -> Tensor:
    """sqrt((x - m')^T (S' + ridge I)^-1 (x - m')) with m', S' of the other n - 1 samples, x being one of the n.

    rows [B, P, D] are samples the Gaussians were fitted on, mean [P, D] and whitening [P, D, D] (W W^T = A^-1 with
    A = S + ridge I, S with divisor n - 1) those of all `count` of them -> [B, P].

    Leaving x out is a rank-one change: with d = x - m, S' = a S - b d d^T for a = (n - 1)/(n - 2) and
    b = n / ((n - 1)(n - 2)), and x - m' = n/(n - 1) d. By Sherman and Morrison the distance follows from
    q = d^T (a S + ridge I)^-1 d alone: squared, it is (n/(n - 1))^2 q / (1 - b q). And a S + ridge I = a (A - e I) with
    e = ridge / (n - 1), whose inverse is the series (A^-1 + e A^-2 + e^2 A^-3 + ...) / a: each term is at least n - 1
    times smaller than the one before, since no eigenvalue of A lies below the ridge.
    """
    if count < 3:
        raise ValueError(f"a Gaussian without one of its samples needs at least 3 of them, got {count}")
    n, e = float(count), ridge / (count - 1)
    part = (rows - mean).transpose(0, 1) @ whitening  # [P, B, D]; its square is d^T A^-1 d
    q, factor = torch.zeros_like(part[..., 0]), 1.0
    for number in range(MOST_TERMS):
        term = factor * part.square().sum(2)
        q += term
        if float(term.max()) <= torch.finfo(q.dtype).eps * float(q.max()):
            break
        part = part @ (whitening.mT if number % 2 == 0 else whitening)  # squares: d^T A^-2 d, d^T A^-3 d, ...
        factor *= e
    q *= (n - 2) / (n - 1)
    rest = (1 - n / ((n - 1) * (n - 2)) * q).clamp_min(torch.finfo(q.dtype).tiny)
    return (n / (n - 1) * (q / rest).sqrt()).T
