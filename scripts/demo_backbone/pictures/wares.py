"""Things designed at random and drawn with the kit of the demo data (`data.demo`): no capsule, no circuit board.

Everything flat is drawn once into two atlases, with and without what can be missing; each piece of a product is posed,
shaded and lit by itself.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from anomaly_lib.data.demo.draw import Draws, Scene, blend, edge, noise_field, sample, smooth_step
from anomaly_lib.data.demo.pen import as_field
from anomaly_lib.data.demo.surfaces import Surface
from scripts.demo_backbone.pictures.outlines import SHAPES, Distance, outline
from scripts.demo_backbone.pictures.patterns import Pattern, Place
from scripts.demo_backbone.pictures.textures import Generator

THICKNESS = 0.35  # of a round body: from its outline to where it is level


@dataclass(frozen=True)
class Ware:
    """What all pieces of a product share."""

    shape: str
    distance: Distance
    full: Tensor  # [1, 3, H, W] over [-1.5, 1.5]
    bare: Tensor
    places: tuple[Place, ...]
    table: Tensor  # [3] its colour
    rounding: float  # 0 flat; towards 1 round all over
    bevel: float  # width of the lit rim of a flat one
    gloss: float
    coarse: float  # strength of the two kinds of grain
    fine: float
    cells: tuple[int, int]  # of the fine one; streaks where they differ
    light: float  # direction

    @property
    def boxes(self) -> tuple[tuple[float, float, float, float], ...]:
        return tuple(place.box for place in self.places)


def design(rng: Generator) -> Ware:
    """A random product; a third of them are panels full of parts."""
    shape = "panel" if rng.random() < 0.35 else SHAPES[int(rng.integers(len(SHAPES)))]
    panel = shape == "panel"
    pattern = Pattern(rng, outline(rng, shape))
    pattern.marks()
    pattern.seat_parts(int(rng.integers(3, 10)) if panel else int(rng.random() < 0.25))
    bare = as_field(pattern.image)
    pattern.place_parts()
    if rng.random() < (0.35 if panel else 0.6):
        pattern.imprint()
    flat = panel or rng.random() < 0.4
    tone = rng.choice([rng.uniform(0.05, 0.25), rng.uniform(0.3, 0.6), rng.uniform(0.7, 0.9)])
    cells = (100, 100) if rng.random() < 0.6 else (int(rng.integers(100, 400)), int(rng.integers(4, 30)))
    return Ware(
        shape=shape,
        distance=pattern.distance,
        full=as_field(pattern.image),
        bare=bare,
        places=tuple(pattern.places),
        table=torch.tensor(np.clip(tone * (1 + 0.05 * rng.standard_normal(3)), 0, 1), dtype=torch.float32),
        rounding=0.0 if flat else float(rng.uniform(0.3, 0.6)),
        bevel=float(rng.uniform(0.03, 0.1)) if rng.random() < 0.6 else 0.0,
        gloss=float(rng.uniform(0.15, 0.55)) if rng.random() < 0.6 else 0.0,
        coarse=float(rng.uniform(0, 0.03)),
        fine=float(rng.uniform(0, 0.05)),
        cells=cells,
        light=float(rng.uniform(0, math.tau)),
    )


def surface(ware: Ware, draws: Draws, scene: Scene) -> Surface:
    """Pieces of a product [n, 3, S, S]: shades, seats and grain vary from piece to piece, the design does not."""
    u, v, n = scene.u, scene.v, len(draws)
    distance = ware.distance(u, v)
    table = _table(ware, draws, scene)
    shade = 1 + ware.fine * noise_field(draws, scene, *ware.cells) + ware.coarse * noise_field(draws, scene, 6, 6)
    factor, gloss = _lit(ware, u, v, distance)
    shade = shade * factor
    gloss = gloss * (1 + draws.uniform(-0.2, 0.2)) * (1 + 0.15 * noise_field(draws, scene, 8, 8))
    seat = 0.004 * torch.stack([noise_field(draws, scene, 5, 5), noise_field(draws, scene, 5, 5)])
    hue = (1 + 0.03 * draws.normal(3))[:, :, None, None]
    cover = edge(distance, scene.pixel)
    layers = []
    for atlas in (ware.full, ware.bare):
        body = sample(atlas.expand(n, -1, -1, -1), u + seat[0], v + seat[1]) * shade[:, None] * hue
        layers.append(blend(table, body + gloss[:, None], cover))
    return Surface(layers[0], layers[1], lambda a, b: ware.distance(a, b) + 0.06, ware.boxes)


def _table(ware: Ware, draws: Draws, scene: Scene) -> Tensor:
    """[n, 3, S, S] with some structure, and the shadow of the thing on it."""
    grain = 1 + 0.02 * noise_field(draws, scene, 120, 120) + 0.03 * noise_field(draws, scene, 5, 5)
    drop_u, drop_v = 0.04 * math.cos(ware.light), 0.06 * math.sin(ware.light)
    shadow = smooth_step(-ware.distance(scene.u - drop_u, scene.v - drop_v) / 0.09 + 0.5)
    return grain[:, None] * ware.table[:, None, None] * (1 - 0.45 * shadow)[:, None]


def _lit(ware: Ware, u: Tensor, v: Tensor, distance: Tensor) -> tuple[Tensor, Tensor]:
    """Factor and gloss [n, S, S] of a round body or a bevelled rim; the outline's distance tells which way it faces."""
    step = 0.02
    slope_u, slope_v = ware.distance(u + step, v) - distance, ware.distance(u, v + step) - distance
    facing = -(math.cos(ware.light) * slope_u + math.sin(ware.light) * slope_v) / step
    depth = (-distance).clamp_min(0)
    if ware.rounding:
        level = (depth / THICKNESS).clamp(0, 1)
        body = 1 - ware.rounding * (1 - (1 - (1 - level) ** 2).sqrt())
        band = torch.exp(-(((level - 0.45) / 0.09) ** 2)) * (facing - 0.5).clamp_min(0)
        return body * (1 + 0.14 * facing * (1 - level)), 2 * ware.gloss * band
    if ware.bevel:
        return 1 + 0.25 * facing * torch.exp(-((depth / ware.bevel) ** 2)), torch.zeros_like(distance)
    return torch.ones_like(distance), torch.zeros_like(distance)
