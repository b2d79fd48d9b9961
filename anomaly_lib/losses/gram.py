"""Distance of Gram matrices (channel co-activation patterns)."""

from typing import Literal

import torch
from torch import Tensor


def gram_loss(
    first: Tensor, second: Tensor, *, mode: Literal["feature", "batch"] = "feature", norm: Literal["mse", "fro"] = "mse"
) -> Tensor:
    """Distance of ``F^T F / D`` between two feature sets [B, D] or [B, N, D].

    ``feature``: one D x D matrix a sample, which is never built. With S = F+G and E = F-G,
    ``F^T F - G^T G = (S^T E + E^T S) / 2``, so its squared Frobenius norm is
    ``(sum(SS^T * EE^T) + sum(SE^T * (SE^T)^T)) / 2``: N x N products only, exact and free of cancellation.
    ``batch``: one B x B matrix ``F F^T / D`` of the whole batch (features [B, D]).
    ``mse`` averages the squared entries; ``fro`` is the Frobenius norm (averaged over samples).
    """
    if mode == "batch":
        if first.ndim != 2:
            raise ValueError(f"the batch Gram matrix needs features [B, D], got {tuple(first.shape)}")
        squared = ((first @ first.T - second @ second.T) / first.shape[1]).square().sum().reshape(1)
        entries = first.shape[0] ** 2
    elif mode == "feature":
        if first.ndim == 2:
            first, second = first.unsqueeze(1), second.unsqueeze(1)
        width = first.shape[-1]
        total, difference = first + second, first - second  # [B, N, D]
        cross = total @ difference.mT  # [B, N, N]
        squared = ((total @ total.mT) * (difference @ difference.mT)).sum((1, 2)) + (cross * cross.mT).sum((1, 2))
        squared = squared / (2 * width**2)
        entries = width**2
    else:
        raise ValueError(f"mode must be 'feature' or 'batch', got {mode!r}")
    if norm == "mse":
        return (squared / entries).mean()
    # The square root has no gradient at 0: equal features must not turn the weights into NaN.
    return squared.clamp_min(torch.finfo(squared.dtype).tiny).sqrt().mean()
