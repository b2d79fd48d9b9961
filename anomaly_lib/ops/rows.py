"""Rows of patch grids at unit length, and the mean of the largest scores."""

import torch.nn.functional as F
from torch import Tensor


def unit_rows(maps: Tensor) -> Tensor:
    """[..., C, h, w] -> [..., h * w, C], every position's vector at length 1."""
    return F.normalize(maps.flatten(-2).mT, dim=-1)


def scaled_rows(maps: Tensor, how: str) -> Tensor:
    """Maps [B, C, h, w] whose vectors are as they are ("raw"), of length 1 ("unit"), or of mean 0 and deviation 1."""
    if how == "unit":
        return F.normalize(maps, dim=1)
    if how == "layernorm":
        return F.layer_norm(maps.movedim(1, -1), maps.shape[1:2]).movedim(-1, 1)
    return maps


def top_mean(values: Tensor, share: float) -> Tensor:
    """Mean of the largest int(share * N) of values [B, N], at least one -> [B]."""
    return values.topk(max(1, int(values.shape[1] * share)), dim=1).values.mean(1)
