"""Shared pieces of the procedural demo images: random draws per image, coordinate fields, noise and distance fields.

Coordinates are canonical: the object fills about [-1, 1] in u (right) and v (down), whatever its pose in the image, so
a surface or a defect is an analytic function of (u, v) and its mask is exact.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import cast

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F


class Draws:
    """One random stream per image, so image i never depends on how many images are made with it."""

    def __init__(self, seeds: Sequence[Sequence[int]]) -> None:
        self.streams = [np.random.Generator(np.random.PCG64(np.random.SeedSequence(list(seed)))) for seed in seeds]

    def __len__(self) -> int:
        return len(self.streams)

    def uniform(self, low: float, high: float, *shape: int) -> Tensor:
        """[n, *shape], shaped [n, 1, 1] for pixel fields when no shape is given."""
        shape = shape or (1, 1)
        return torch.from_numpy(np.stack([s.uniform(low, high, shape) for s in self.streams])).float()

    def normal(self, *shape: int) -> Tensor:
        return torch.from_numpy(np.stack([s.standard_normal(shape, dtype=np.float32) for s in self.streams]))

    def sign(self) -> Tensor:
        return torch.where(self.uniform(-1, 1) < 0, -1.0, 1.0)  # [n, 1, 1]

    def choice(self, values: Sequence[Sequence[float]]) -> Tensor:
        """One row of `values` for each image: [n, len(row)]."""
        return torch.tensor([values[int(s.integers(len(values)))] for s in self.streams])


@dataclass
class Scene:
    """Canonical coordinates of every pixel of n images."""

    u: Tensor  # [n, S, S]
    v: Tensor  # [n, S, S]
    pixel: Tensor  # [n, 1, 1] width of a pixel in canonical units


def posed_scene(draws: Draws, size: int, *, angle: float, shift: float, zoom: float) -> Scene:
    """A scene whose object is turned by up to `angle` degrees, moved by up to `shift` and scaled by up to `zoom`."""
    axis = (torch.arange(size) + 0.5) / size * 2 - 1
    y, x = torch.meshgrid(axis, axis, indexing="ij")
    turn = torch.deg2rad(draws.uniform(-angle, angle))
    scale = 1 + draws.uniform(-zoom, zoom)
    x = (x[None] - draws.uniform(-shift, shift)) / scale
    y = (y[None] - draws.uniform(-shift, shift)) / scale
    return Scene(turn.cos() * x + turn.sin() * y, turn.cos() * y - turn.sin() * x, 2 / size / scale)


def smooth_step(x: Tensor) -> Tensor:
    """0 below 0, 1 above 1, cubic between."""
    x = x.clamp(0, 1)
    return x * x * (3 - 2 * x)


def edge(distance: Tensor, pixel: Tensor) -> Tensor:
    """Anti-aliased coverage of the region where the signed distance is negative."""
    return smooth_step(0.5 - distance / (1.5 * pixel))


def sample(field: Tensor, u: Tensor, v: Tensor) -> Tensor:
    """Look up field [n, C, h, w], spanning [-1.5, 1.5], at (u, v): [n, C, S, S]; mirrored outside."""
    grid = torch.stack([u, v], dim=-1) / 1.5
    return F.grid_sample(field, grid, mode="bilinear", padding_mode="reflection", align_corners=False)


def noise_field(draws: Draws, scene: Scene, rows: int, columns: int, octaves: int = 1) -> Tensor:
    """Smooth unit-variance noise [n, S, S] of about rows x columns cells over [-1.5, 1.5], fixed to the object."""
    total = torch.zeros_like(scene.u)
    weight = 1.0
    for octave in range(octaves):
        cells = draws.normal(1, rows << octave, columns << octave)
        if max(cells.shape[-2:]) < 128:  # bilinear look-up of a coarse lattice would show its facets
            cells = F.interpolate(cells, scale_factor=4, mode="bicubic", align_corners=False)
        total = total + weight * sample(cells, scene.u, scene.v)[:, 0]
        weight *= 0.5
    return total


def path_distance(scene: Scene, points: Tensor) -> Tensor:
    """Distance [n, S, S] of every pixel to the polyline points [n, P, 2]."""
    best = torch.full_like(scene.u, torch.inf)
    for start, end in zip(points[:, :-1].unbind(1), points[:, 1:].unbind(1), strict=True):
        along = end - start  # [n, 2]
        du, dv = scene.u - start[:, 0, None, None], scene.v - start[:, 1, None, None]
        step = along[:, :, None, None]
        t = ((du * step[:, 0] + dv * step[:, 1]) / (along * along).sum(1)[:, None, None].clamp_min(1e-9)).clamp(0, 1)
        best = torch.minimum(best, (du - t * step[:, 0]) ** 2 + (dv - t * step[:, 1]) ** 2)
    return cast(Tensor, best.sqrt())


def blend(below: Tensor, above: Tensor, alpha: Tensor) -> Tensor:
    """Lay colour `above` ([n, 3, S, S] or [n, 3]) over [n, 3, S, S] with coverage alpha [n, S, S]."""
    if above.dim() == 2:
        above = above[:, :, None, None]
    return below + alpha[:, None] * (above - below)
