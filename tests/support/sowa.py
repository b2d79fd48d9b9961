"""A tiny CLIP for SOWA's tests, and pictures for it."""

from typing import Any

import torch
from torch import Tensor, nn

from anomaly_lib.backbones.clip import ClipBackbone, create_clip

STAGES = (0, 1, 2, 3)
PUBLISHED: dict[str, Any] = {"start": "random", "map_calibration": "none"}  # of AnomalyCLIP, as in the paper


def tiny_clip() -> ClipBackbone:
    return create_clip("tiny-clip", weights="random", layers=(*STAGES, "pooled"))


def randomise(module: nn.Module) -> None:
    """Nothing may stay at a value that hides a mistake (unit norms, zero biases)."""
    torch.manual_seed(3)
    for parameter in module.parameters():
        parameter.data.add_(0.3 * torch.randn_like(parameter))


def images(count: int = 2) -> Tensor:
    return torch.randn(count, 3, 64, 64, generator=torch.Generator().manual_seed(1))
