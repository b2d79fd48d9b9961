"""Patch features: neighbourhoods of a feature grid and stacks of several layers."""

from collections.abc import Sequence
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor


def neighbourhood_mean(features: Tensor, size: int = 3) -> Tensor:
    """Mean of every size x size neighbourhood of [B, C, H, W]; zeros beyond the edge count (as in PatchCore)."""
    return F.avg_pool2d(features, size, stride=1, padding=size // 2)


def stack_layers(layers: Sequence[Tensor], mode: Literal["bilinear", "nearest"] = "bilinear") -> Tensor:
    """Resize every [B, C_i, h_i, w_i] to the first layer's grid, join the channels: [B, sum C_i, h_1, w_1]."""
    size = layers[0].shape[-2:]
    align = None if mode == "nearest" else False
    resized = [
        x if x.shape[-2:] == size else F.interpolate(x, size=size, mode=mode, align_corners=align) for x in layers
    ]
    return torch.cat(resized, dim=1)


def grid_to_rows(features: Tensor) -> Tensor:
    """[B, C, H, W] -> [B * H * W, C], one contiguous row a position."""
    return features.permute(0, 2, 3, 1).reshape(-1, features.shape[1])


def pad_to_multiple(images: Tensor, multiple: int) -> Tensor:
    """Repeat the last row and column of [B, C, H, W] until both sides divide by `multiple`; nothing is cut or moved."""
    bottom, right = -images.shape[-2] % multiple, -images.shape[-1] % multiple
    return F.pad(images, (0, right, 0, bottom), mode="replicate") if bottom or right else images
