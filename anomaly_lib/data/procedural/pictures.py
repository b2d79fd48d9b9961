"""Whole procedural pictures with their attributes: a clean one, the same one damaged, and where it was damaged."""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from anomaly_lib.data.procedural.assemblies import assemble, finish_object
from anomaly_lib.data.procedural.defects import DEFECT_NAMES, DEFECTS, MISSING_PART, blob, visible_change
from anomaly_lib.data.procedural.textures import (
    ASSEMBLY,
    OBJECTS,
    TEXTURES,
    Array,
    Generator,
    fractal_noise,
    silhouette,
)

MATERIALS = tuple(TEXTURES)
SURFACE = -1  # `object` of a picture that shows nothing but material


@dataclass(frozen=True)
class Drawing:
    """`clean` and `damaged` uint8 [S, S, 3], `mask` bool [S, S]; attributes index MATERIALS, OBJECTS, DEFECT_NAMES."""

    clean: NDArray[np.uint8]
    damaged: NDArray[np.uint8]
    mask: NDArray[np.bool_]
    material: int
    object: int
    defect: int


def _coloured(rng: Generator, texture: Array) -> Array:
    """Height to colour: between two related colours, as most real materials are; sometimes grey."""
    base = rng.uniform(0.1, 0.9, 3) if rng.random() < 0.6 else np.full(3, rng.uniform(0.1, 0.9))
    contrast = rng.uniform(0.15, 0.7) * rng.choice([-1, 1])
    other = np.clip(base + contrast + rng.normal(0, 0.08, 3), 0, 1)
    return np.asarray(base + texture[..., None] * (other - base), np.float32)


def _shading(rng: Generator, coverage: Array) -> Array:
    """Rounded light from the distance to the outline."""
    distance = cv2.distanceTransform((coverage > 0.5).astype(np.uint8), cv2.DIST_L2, 5)
    depth = np.minimum(distance / rng.uniform(3, 25), 1.0)
    slope_x, slope_y = cv2.Sobel(depth, cv2.CV_32F, 1, 0), cv2.Sobel(depth, cv2.CV_32F, 0, 1)
    light = rng.normal(0, 1, 2)
    return np.asarray(1 - 0.25 * (1 - depth) + 0.15 * (slope_x * light[0] + slope_y * light[1]), np.float32)


def _decorate(rng: Generator, picture: Array, coverage: Array) -> Array:
    """Regular marks that belong there (a printed band, a groove, bolt holes): damage must be told from these."""
    size = picture.shape[0]
    y, x = np.mgrid[0:size, 0:size].astype(np.float32) - size / 2
    radius = np.hypot(x, y)
    kind = rng.integers(4)
    if kind == 0:
        where = (np.abs(radius - rng.uniform(0.1, 0.3) * size) < rng.uniform(1, 4)).astype(np.float32)
    elif kind == 1:
        where = (np.abs(y - rng.uniform(-0.1, 0.1) * size) < rng.uniform(2, 9)).astype(np.float32)
    elif kind == 2:
        count, ring = int(rng.integers(3, 9)), rng.uniform(0.12, 0.26) * size
        angles = 2 * np.pi * np.arange(count) / count
        where = np.zeros_like(x)
        for angle in angles:
            where = np.maximum(
                where, np.hypot(x - ring * np.cos(angle), y - ring * np.sin(angle)) < rng.uniform(2.5, 3.5)
            )
    else:
        where = (radius < rng.uniform(0.06, 0.16) * size).astype(np.float32)
    where = cv2.GaussianBlur(where.astype(np.float32), (0, 0), 0.7) * coverage
    return np.asarray(picture * (1 - where[..., None]) + where[..., None] * rng.uniform(0, 1, 3), np.float32)


def _scene(rng: Generator, size: int) -> tuple[Array, Array, Array, int, int]:
    """A clean picture, the background behind it, the coverage of the object, and both attributes."""
    material = int(rng.integers(len(MATERIALS)))
    surface = _coloured(rng, TEXTURES[MATERIALS[material]](rng, size))
    if rng.random() < 0.4:
        return surface, surface, np.ones((size, size), np.float32), material, SURFACE
    kind = OBJECTS.index(ASSEMBLY) if rng.random() < 0.35 else int(rng.integers(len(OBJECTS)))
    assembly = OBJECTS[kind] == ASSEMBLY
    coverage = silhouette(rng, size, OBJECTS[kind])
    if assembly or rng.random() < 0.6:  # most things are plainer than a swatch of their material
        plain = rng.uniform(0.05, 0.7)
        surface = surface * plain + surface.mean((0, 1)) * (1 - plain)
    if assembly:
        surface = assemble(rng, np.asarray(surface, np.float32))
    surface = surface * _shading(rng, coverage)[..., None]
    if not assembly:
        surface = finish_object(rng, np.asarray(surface, np.float32))
        if rng.random() < 0.4:
            surface = _decorate(rng, surface, coverage)
    background = np.full(
        (size, size, 3), rng.choice([rng.uniform(0, 0.15), rng.uniform(0.2, 0.8), rng.uniform(0.85, 1)]), np.float32
    )
    if rng.random() < 0.4:
        background = background + (fractal_noise(rng, size, rng.uniform(3, 40))[..., None] - 0.5) * rng.uniform(
            0.05, 0.2
        )
    if rng.random() < 0.5:  # the shadow under it
        below = np.roll(cv2.GaussianBlur(coverage, (0, 0), rng.uniform(1, 8)), rng.integers(-4, 5, 2), (0, 1))
        background = background * (1 - rng.uniform(0.1, 0.6) * below[..., None])
    picture = surface * coverage[..., None] + background * (1 - coverage[..., None])
    return picture.astype(np.float32), background.astype(np.float32), coverage, material, kind


def draw(rng: Generator, size: int) -> Drawing:
    """One clean/damaged pair; a damage that cannot be seen is drawn again."""
    clean, background, coverage, material, kind = _scene(rng, size)
    clean = np.clip(clean, 0, 1)
    inside = np.argwhere(coverage > 0.9)
    light = (1 + rng.uniform(-0.2, 0.2) * np.linspace(-1, 1, size, dtype=np.float32))[:, None, None]
    for _ in range(12):
        names = DEFECT_NAMES if kind != SURFACE else DEFECT_NAMES[:-1]
        name = names[int(rng.integers(len(names)))]
        y, x = inside[int(rng.integers(len(inside)))]
        if name == MISSING_PART:
            edge = np.argwhere((coverage > 0.3) & (coverage < 0.95))
            y, x = edge[int(rng.integers(len(edge)))] if len(edge) else (y, x)
            where = blob(rng, size, (float(x), float(y)), rng.uniform(0.05, 0.2) * size, rough=0.3)[..., None]
            damaged = clean * (1 - where) + background * where
        else:
            damaged = np.clip(DEFECTS[name](rng, clean, (float(x), float(y))), 0, 1)
            keep = np.maximum(coverage, rng.random() < 0.15)[..., None]
            damaged = clean * (1 - keep) + damaged * keep
        mask = visible_change(clean, damaged)
        if 6 < int(mask.sum()) < 0.15 * size * size:
            break
    noise = rng.normal(0, rng.uniform(0, 0.02), clean.shape).astype(np.float32)
    pair = [np.clip(picture * light + noise, 0, 1) for picture in (clean, damaged)]
    uint8 = [(picture * 255).round().astype(np.uint8) for picture in pair]
    return Drawing(uint8[0], uint8[1], mask, material, kind, DEFECT_NAMES.index(name))
