"""Gaussian smoothing and resizing of anomaly maps."""

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

Border = Literal["reflect", "symmetric", "replicate", "constant"]
"""What lies beyond the edge: ``reflect`` (torch, torchvision, anomalib: c b | a b c), ``symmetric`` (SciPy's "reflect":
b a | a b c), ``replicate`` (a a | a b c), ``constant`` (zeros)."""


def gaussian_radius(sigma: float, truncate: float = 4.0) -> int:
    """int(truncate * sigma + 0.5): sigma 4 gives 16, hence the usual kernel of 33 (SciPy's and anomalib's rule)."""
    return int(truncate * sigma + 0.5)


def gaussian_kernel(sigma: float, radius: int | None = None, *, dtype: torch.dtype = torch.float32) -> Tensor:
    """Normalised samples of exp(-x^2 / 2 sigma^2) at -radius..radius."""
    radius = gaussian_radius(sigma) if radius is None else radius
    offsets = torch.arange(-radius, radius + 1, dtype=torch.float64)
    weights = torch.exp(-0.5 * (offsets / sigma) ** 2) if sigma > 0 else (offsets == 0).double()
    return (weights / weights.sum()).to(dtype)


def border_index(size: int, radius: int, border: Border) -> Tensor:
    """Source row of each row of a padded axis, [size + 2 radius]; -1 where zeros belong. Any radius."""
    position = torch.arange(-radius, size + radius)
    if border == "replicate":
        return position.clamp(0, size - 1)
    if border == "constant":
        return torch.where((position >= 0) & (position < size), position, -1)
    if border == "symmetric":
        folded = position % (2 * size)
        return torch.minimum(folded, 2 * size - 1 - folded)
    if border == "reflect":
        period = max(2 * (size - 1), 1)
        folded = position % period
        return torch.minimum(folded, period - folded) if size > 1 else torch.zeros_like(position)
    raise ValueError(f"unknown border {border!r}: choose reflect, symmetric, replicate or constant")


def blur_matrix(size: int, sigma: float, radius: int | None = None, border: Border = "reflect") -> Tensor:
    """Banded [size, size] matrix that blurs one axis, border rule included, in float64."""
    kernel = gaussian_kernel(sigma, radius, dtype=torch.float64)
    reach = (len(kernel) - 1) // 2
    source = border_index(size, reach, border).unfold(0, len(kernel), 1)  # [size, taps]
    matrix = torch.zeros(size, size, dtype=torch.float64)
    weights = torch.where(source >= 0, kernel, 0.0)
    return matrix.scatter_add_(1, source.clamp(min=0), weights)


def gaussian_blur(maps: Tensor, sigma: float, *, radius: int | None = None, border: Border = "reflect") -> Tensor:
    """Blur the last two axes: M_h @ map @ M_w^T, equal to the dense 2-D kernel at a fraction of its work.

    Two small matrix products beat two 1-D convolutions on one-channel maps, and no axis is too short for its border.
    """
    if sigma <= 0:
        return maps
    dtype = maps.dtype if maps.is_floating_point() else torch.float32
    rows = blur_matrix(maps.shape[-2], sigma, radius, border).to(maps.device, dtype)
    columns = blur_matrix(maps.shape[-1], sigma, radius, border).to(maps.device, dtype)
    return rows @ (maps.to(dtype) @ columns.mT)


def upsample_maps(
    maps: Tensor,
    size: tuple[int, int],
    *,
    mode: Literal["bilinear", "nearest", "bicubic"] = "bilinear",
    align_corners: bool = False,
) -> Tensor:
    """Resize [B, h, w] or [B, 1, h, w] maps to `size`, rank kept."""
    stack = maps if maps.dim() == 4 else maps.unsqueeze(1)
    if tuple(stack.shape[-2:]) != tuple(size):
        stack = F.interpolate(stack, size=size, mode=mode, align_corners=None if mode == "nearest" else align_corners)
    return stack if maps.dim() == 4 else stack.squeeze(1)


def cell_of(grid: Tensor, size: tuple[int, int]) -> float:
    """How many pixels of a map of `size` one value of a grid [..., h, w] covers."""
    return size[0] * size[1] / (grid.shape[-2] * grid.shape[-1])


def upsample_and_smooth(
    maps: Tensor,
    size: tuple[int, int],
    *,
    sigma: float = 4.0,
    mode: Literal["bilinear", "nearest", "bicubic"] = "bilinear",
    align_corners: bool = False,
    border: Border = "reflect",
) -> Tensor:
    """Patch scores [B, h, w] -> smoothed anomaly maps at image size (resize first: the order changes the maximum).

    Both steps are linear and separable, so one narrow matrix per axis does both: rows [H, h] @ map @ columns [w, W].
    """
    if mode == "nearest" or sigma <= 0 or not maps.is_floating_point():
        return gaussian_blur(upsample_maps(maps, size, mode=mode, align_corners=align_corners), sigma, border=border)
    axes = zip(maps.shape[-2:], size, strict=True)
    rows, columns = (_resize_and_blur_matrix(small, large, mode, align_corners, sigma, border) for small, large in axes)
    return rows.to(maps) @ maps @ columns.to(maps).mT


def _resize_and_blur_matrix(
    small: int, large: int, mode: str, align_corners: bool, sigma: float, border: Border
) -> Tensor:
    """[large, small] in float64: resize one axis, then blur it."""
    if small == large:
        return blur_matrix(large, sigma, border=border)
    # Resizing the identity along one axis of a 2-D map reads the axis' weights off the library's own kernel.
    basis = torch.eye(small, dtype=torch.float64)[None, :, :, None].expand(1, small, small, 2)
    resized = F.interpolate(basis, size=(large, 2), mode=mode, align_corners=align_corners)[
        0, :, :, 0
    ]  # [small, large]
    return blur_matrix(large, sigma, border=border) @ resized.T
