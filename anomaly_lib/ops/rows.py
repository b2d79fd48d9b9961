"""Rows of patch grids at unit length, and the mean of the largest scores."""

import torch.nn.functional as F
from torch import Tensor


def unit_rows(maps: Tensor) -> Tensor:
    """[..., C, h, w] -> [..., h * w, C], every position's vector at length 1."""
    return F.normalize(maps.flatten(-2).mT, dim=-1)


def top_mean(values: Tensor, share: float) -> Tensor:
    """Mean of the largest int(share * N) of values [B, N], at least one -> [B]."""
    return values.topk(max(1, int(values.shape[1] * share)), dim=1).values.mean(1)
