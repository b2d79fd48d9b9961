"""Turned and mirrored views of an image, and random draws that depend on what is in it alone."""

import zlib
from collections.abc import Iterable
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Generator, Tensor

Beyond = Literal["reflect", "zeros"]
"""What a turn moves in from outside: the image reflected about its edge pixels (OpenCV's default), or black."""


def turned(
    images: Tensor,
    degrees: Iterable[float],
    *,
    beyond: Beyond = "reflect",
    mode: Literal["bilinear", "nearest"] = "bilinear",
) -> Tensor:
    """[B, C, H, W] turned counter-clockwise about their centres by each angle -> [B, V, C, H, W].

    Quarter turns of a square and half turns of anything move pixels and mix none.
    """
    return torch.stack([_turn(images, angle % 360, beyond, mode) for angle in degrees], dim=1)


def _turn(images: Tensor, angle: float, beyond: Beyond, mode: Literal["bilinear", "nearest"]) -> Tensor:
    height, width = images.shape[-2:]
    if angle % 90 == 0 and (height == width or angle % 180 == 0):
        return torch.rot90(images, int(angle // 90), dims=(-2, -1))
    # In float64: a grid position that is off by a millionth of a pixel would mix neighbours.
    y = torch.arange(height, dtype=torch.float64, device=images.device).unsqueeze(1) - (height - 1) / 2
    x = torch.arange(width, dtype=torch.float64, device=images.device).unsqueeze(0) - (width - 1) / 2
    radians = torch.deg2rad(torch.tensor(angle, dtype=torch.float64))
    cos, sin = float(radians.cos()), float(radians.sin())
    # Image rows point down, so a counter-clockwise turn reads from where a clockwise one would write.
    source = torch.stack(
        [(cos * x - sin * y) / max((width - 1) / 2, 1), (sin * x + cos * y) / max((height - 1) / 2, 1)]
    )
    padding = "reflection" if beyond == "reflect" else "zeros"
    grid = source.permute(1, 2, 0).expand(len(images), -1, -1, -1)
    return F.grid_sample(images.double(), grid, mode, padding, align_corners=True).to(images)


def six_views(images: Tensor) -> Tensor:
    """Squares [B, C, H, H] as they are, turned by 90, 180 and 270 degrees, mirrored top to bottom and left to right
    -> [B, 6, C, H, H]."""
    if images.shape[-2] != images.shape[-1]:
        raise ValueError(f"a quarter turn keeps the size of squares alone, got {list(images.shape[-2:])}")
    quarters = [torch.rot90(images, n, dims=(-2, -1)) for n in range(4)]
    return torch.stack([*quarters, images.flip(-2), images.flip(-1)], dim=1)


def generator_of(image: Tensor, seed: int) -> Generator:
    """A generator whose draws depend on the image's values (0..1, in steps of 1/255) and `seed`, on nothing else."""
    steps = (image.detach() * 255).round().to(torch.uint8).cpu().contiguous()
    return Generator().manual_seed(zlib.crc32(steps.numpy().tobytes(), seed % 2**32))
