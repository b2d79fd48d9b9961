"""Outlines of staged things as signed distances in canonical coordinates."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from scripts.demo_backbone.pictures.textures import Generator

Distance = Callable[[Tensor, Tensor], Tensor]  # of points (u, v), negative inside
SHAPES = ("plate", "disc", "ring", "nut", "gear", "screw", "bracket", "cross", "seed", "panel")
UPRIGHT = ("panel", "plate")  # not turned: the others lie at any angle


def rounded_box(half_u: float, half_v: float, radius: float, *, u: float = 0.0, v: float = 0.0) -> Distance:
    """A box around (u, v) with rounded corners."""

    def distance(x: Tensor, y: Tensor) -> Tensor:
        dx, dy = (x - u).abs() - half_u + radius, (y - v).abs() - half_v + radius
        return torch.hypot(dx.clamp_min(0), dy.clamp_min(0)) + torch.maximum(dx, dy).clamp_max(0) - radius

    return distance


def either(first: Distance, second: Distance) -> Distance:
    return lambda u, v: torch.minimum(first(u, v), second(u, v))


def outline(rng: Generator, shape: str) -> Distance:
    """A random thing of this shape. A plate is never a capsule: its corners keep some of their sides straight."""
    wide, tall = rng.uniform(0.5, 0.85), rng.uniform(0.3, 0.8)
    corner = rng.uniform(0.02, 0.55) * min(wide, tall)
    size, inner = rng.uniform(0.55, 0.82), rng.uniform(0.25, 0.45)
    teeth, depth = int(rng.integers(5, 13)), rng.uniform(0.03, 0.09)
    slim = rng.uniform(0.12, 0.3)

    def nut(u: Tensor, v: Tensor) -> Tensor:
        sides = [u * math.cos(i * math.pi / 3) + v * math.sin(i * math.pi / 3) for i in range(6)]
        return torch.maximum(torch.stack(sides).amax(0) - size * 0.9, inner * 0.8 - torch.hypot(u, v))

    def gear(u: Tensor, v: Tensor) -> Tensor:
        tooth = (3 * torch.sin(teeth * torch.atan2(v, u))).tanh()
        return 0.8 * (torch.hypot(u, v) - size * (1 + depth * tooth))

    def seed(u: Tensor, v: Tensor) -> Tensor:
        return (torch.hypot(u / wide, v / (tall * (1 - 0.35 * u))) - 1) * min(wide, tall) * 0.8

    shapes: dict[str, Distance] = {
        "plate": rounded_box(wide, tall, corner),
        "panel": rounded_box(max(wide, 0.65), max(tall, 0.65), min(corner, 0.12)),
        "disc": lambda u, v: torch.hypot(u, v) - size,
        "ring": lambda u, v: (torch.hypot(u, v) - size * 0.8).abs() - slim,
        "nut": nut,
        "gear": gear,
        "screw": either(rounded_box(0.22, max(slim * 2, 0.4), 0.06, u=-0.5), rounded_box(0.65, slim, 0.04, u=0.1)),
        "bracket": either(rounded_box(0.75, slim, 0.05, v=-0.45), rounded_box(slim, 0.45 + slim, 0.05, u=slim - 0.75)),
        "cross": either(rounded_box(size, slim * 1.3, 0.06), rounded_box(slim * 1.3, size, 0.06)),
        "seed": seed,
    }
    plain, angle = shapes[shape], 0.0 if shape in UPRIGHT else rng.uniform(0, math.tau)
    cosine, sine = math.cos(angle), math.sin(angle)
    return lambda u, v: plain(cosine * u + sine * v, cosine * v - sine * u)
