"""Distances between feature vectors: cosine, L1, smooth L1, each averaged over all or over the largest errors."""

from typing import Literal

import torch.nn.functional as F
from torch import Tensor

Reduction = Literal["mean", "none"]


def cosine_loss(predicted: Tensor, target: Tensor, *, dim: int = -1, reduction: Reduction = "mean") -> Tensor:
    """``1 - cos(predicted, target)`` along `dim`; a zero vector has cosine 0 with everything."""
    distance = 1 - F.cosine_similarity(predicted, target, dim=dim, eps=1e-8)
    return distance.mean() if reduction == "mean" else distance


def topk_mean(errors: Tensor, ratio: float = 1.0) -> Tensor:
    """Mean of the ``max(1, floor(ratio * D))`` largest values of each row of `errors` [..., D]."""
    if not 0 < ratio <= 1:
        raise ValueError(f"ratio must lie in (0, 1], got {ratio}")
    width = errors.shape[-1]
    # The 1e-9 undoes products like 0.29 * 100 = 28.999999999999996.
    count = max(1, int(ratio * width + 1e-9))
    return errors.mean(-1) if count == width else errors.topk(count, dim=-1, sorted=False).values.mean(-1)


def feature_l1_loss(
    predicted: Tensor,
    target: Tensor,
    *,
    kind: Literal["l1", "smooth_l1"] = "l1",
    beta: float = 0.1,
    topk_ratio: float = 1.0,
    reduction: Reduction = "mean",
) -> Tensor:
    """L1 (or smooth L1 with corner `beta`) over the channels, kept to each sample's largest errors by `topk_ratio`."""
    if kind == "l1":
        errors = (predicted - target).abs()
    elif kind == "smooth_l1":
        errors = F.smooth_l1_loss(predicted, target, beta=beta, reduction="none")
    else:
        raise ValueError(f"kind must be 'l1' or 'smooth_l1', got {kind!r}")
    per_sample = topk_mean(errors, topk_ratio)
    return per_sample.mean() if reduction == "mean" else per_sample
