"""Whole procedural pictures: pieces of one product, one of them damaged, and where it was damaged."""

from __future__ import annotations

import math
from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from anomaly_lib.data.demo.damage import Point, blob, visible_change
from scripts.demo_backbone.pictures.assemblies import Box, Layers, assemble, finish_object
from scripts.demo_backbone.pictures.defects import (
    BEND,
    DEFECT_NAMES,
    DEFECTS,
    MISPLACED,
    MISSING_PART,
    pinch,
    take_away,
    turn_away,
)
from scripts.demo_backbone.pictures.objects import ASSEMBLY, OBJECTS, silhouette
from scripts.demo_backbone.pictures.textures import TEXTURES, Array, Generator, fractal_noise

MATERIALS = tuple(TEXTURES)
SURFACE = -1  # `object` of a picture that shows nothing but material
SURFACE_SHARE = 0.25  # of the products: damage on bare material is learned long before damage on things
PIECES = 3  # two normal ones, and the second one damaged


@dataclass(frozen=True)
class Drawing:
    """`pieces` uint8 [PIECES, S, S, 3], damaged one last; `mask` bool [S, S] of its damage.

    `compared`: only a look at other pieces tells that it is damaged (a print is missing).
    Attributes index MATERIALS, OBJECTS, DEFECT_NAMES.
    """

    pieces: NDArray[np.uint8]
    mask: NDArray[np.bool_]
    compared: bool
    material: int
    object: int
    defect: int
    posed: bool = False  # photographed already: the camera of `batches` only turns, mirrors and cuts it


@dataclass(frozen=True)
class Scene:
    """One piece in front of its background, before the camera."""

    layers: Layers  # of the whole picture: `bare` without parts and print
    background: Array  # [S, S, 3]
    coverage: Array  # [S, S] of the object
    material: int
    kind: int


def _coloured(rng: Generator, texture: Array) -> Array:
    """Height to colour: between two related colours, as most real materials are; sometimes grey."""
    base = rng.uniform(0.1, 0.9, 3) if rng.random() < 0.6 else np.full(3, rng.uniform(0.1, 0.9))
    contrast = rng.uniform(0.15, 0.7) * rng.choice([-1, 1])
    other = np.clip(base + contrast + rng.normal(0, 0.08, 3), 0, 1)
    return np.asarray(base + texture[..., None] * (other - base), np.float32)


def _light(rng: Generator, surface: Array, coverage: Array) -> Array:
    """A bevelled rim, or a body that is round all over with a gloss along its outline, from the distance to that."""
    distance = cv2.distanceTransform((coverage > 0.5).astype(np.uint8), cv2.DIST_L2, 5)
    rounded = rng.random() < 0.4
    depth = np.minimum(distance / (max(float(distance.max()), 3.0) if rounded else rng.uniform(3, 25)), 1.0)
    height = cv2.GaussianBlur(np.sqrt(1 - (1 - depth) ** 2), (0, 0), 2) * 2 if rounded else depth
    slope_x, slope_y = cv2.Sobel(height, cv2.CV_32F, 1, 0), cv2.Sobel(height, cv2.CV_32F, 0, 1)
    light = rng.normal(0, 1, 2)
    facing = slope_x * light[0] + slope_y * light[1]
    lit = surface * np.clip(1 - 0.25 * (1 - depth) + 0.15 * facing, 0, 2)[..., None]
    if rounded and rng.random() < 0.7:
        band = np.exp(-(((depth - rng.uniform(0.3, 0.8)) / rng.uniform(0.05, 0.25)) ** 2))
        gloss = band * np.clip(facing / max(float(facing.max()), 1e-3) * 2, 0, 1) * rng.uniform(0.2, 0.8)
        lit = lit + gloss[..., None] * (1 - lit)
    return np.asarray(lit, np.float32)


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


def _scene(design: Generator, grain: Generator, size: int) -> Scene:
    """One piece of the product that `design` describes; `grain` draws what no two pieces share."""
    material = int(design.integers(len(MATERIALS)))
    surface = _coloured(design, TEXTURES[MATERIALS[material]](design, grain, size))
    if design.random() < SURFACE_SHARE:
        return Scene(Layers(surface, surface), surface, np.ones((size, size), np.float32), material, SURFACE)
    kind = OBJECTS.index(ASSEMBLY) if design.random() < 0.35 else int(design.integers(len(OBJECTS)))
    assembly = OBJECTS[kind] == ASSEMBLY
    coverage = silhouette(design, size, OBJECTS[kind])
    if assembly or design.random() < 0.85:  # most things are plainer than a swatch of their material
        plain = design.uniform(0.0, 0.45)
        surface = surface * plain + surface.mean((0, 1)) * (1 - plain)
    surface = _light(design, surface, coverage)
    if not assembly and design.random() < 0.4:
        surface = _decorate(design, surface, coverage)
    layers = (assemble if assembly else finish_object)(design, surface)
    background = _background(design, grain, coverage)
    full, bare = (background + coverage[..., None] * (x - background) for x in (layers.full, layers.bare))
    return Scene(Layers(full, bare, layers.boxes), background, coverage, material, kind)


def _background(design: Generator, grain: Generator, coverage: Array) -> Array:
    """A table with some structure, and the shadow of the object on it."""
    size = coverage.shape[0]
    tone = design.choice([design.uniform(0, 0.15), design.uniform(0.2, 0.8), design.uniform(0.85, 1)])
    background = np.full((size, size, 3), tone, np.float32)
    if design.random() < 0.4:
        cell, reach = design.uniform(3, 40), design.uniform(0.05, 0.2)
        background = background + (fractal_noise(grain, size, cell)[..., None] - 0.5) * np.float32(reach)
    if design.random() < 0.5:
        below = np.roll(cv2.GaussianBlur(coverage, (0, 0), design.uniform(1, 8)), design.integers(-4, 5, 2), (0, 1))
        background = background * (1 - design.uniform(0.1, 0.6) * below[..., None])
    return np.asarray(background, np.float32)


def draw(key: tuple[int, ...], size: int) -> Drawing:
    """The pieces that follow from `key` alone; a damage that can hardly be seen is drawn again."""
    grains = [np.random.default_rng((*key, piece)) for piece in range(PIECES - 1)]
    pieces = [_scene(np.random.default_rng(key), grain, size) for grain in grains]
    scene, rng = pieces[-1], np.random.default_rng((*key, PIECES))
    clean = np.clip(scene.layers.full, 0, 1)
    inside = np.argwhere(scene.coverage > 0.9)
    edge = size // 8  # the camera may cut this much off
    inside = inside[((inside > edge) & (inside < size - edge)).all(1)]
    for _ in range(16):
        name = _pick(rng, scene)
        y, x = inside[int(rng.integers(len(inside)))] if len(inside) else (size // 2, size // 2)
        damaged, compared = _damage(rng, scene, name, (float(x), float(y)))
        mask = visible_change(clean, damaged)
        if _shows(clean, damaged, mask):
            break
    pictures = [*(piece.layers.full for piece in pieces), damaged]
    uint8 = (np.clip(np.stack(pictures), 0, 1) * 255).round().astype(np.uint8)
    return Drawing(uint8, mask, compared, scene.material, scene.kind, DEFECT_NAMES.index(name))


def _shows(clean: Array, damaged: Array, mask: NDArray[np.bool_]) -> bool:
    """Whether a damage is small enough to be one and can be told from grain: the fainter it is, the larger."""
    area, size = int(mask.sum()), len(mask)
    if not 0.001 * size * size < area < 0.15 * size * size:
        return False
    strength = float(np.abs(damaged - clean).max(-1)[mask].mean())
    return strength * math.sqrt(area) > 0.017 * size


def _pick(rng: Generator, scene: Scene) -> str:
    """A kind of damage that this thing can have; parts are missing or astray more often where there are any."""
    if scene.layers.boxes and rng.random() < 0.25:
        return MISSING_PART if rng.random() < 0.5 else MISPLACED
    names = DEFECT_NAMES if scene.kind != SURFACE else DEFECT_NAMES[:-1]
    return names[int(rng.integers(len(names)))]


def _damage(rng: Generator, scene: Scene, name: str, at: Point) -> tuple[Array, bool]:
    """The damaged picture, and whether only a comparison shows it."""
    clean, coverage, size = np.clip(scene.layers.full, 0, 1), scene.coverage, scene.coverage.shape[0]
    if name in (MISSING_PART, MISPLACED) and scene.layers.boxes:
        box: Box = scene.layers.boxes[int(rng.integers(len(scene.layers.boxes)))]
        if name == MISSING_PART:
            return take_away(scene.layers, box), not box.seated
        return turn_away(rng, scene.layers, box), False
    if name == MISSING_PART:
        rim = np.argwhere((coverage > 0.3) & (coverage < 0.95))
        y, x = rim[int(rng.integers(len(rim)))] if len(rim) else at[::-1]
        where = blob(rng, size, (float(x), float(y)), rng.uniform(0.05, 0.2) * size, rough=0.3)[..., None]
        return np.asarray(clean + where * (scene.background - clean), np.float32), False
    if name == BEND and scene.kind != SURFACE and rng.random() < 0.5:
        return pinch(rng, clean, coverage), False
    damaged = np.clip(DEFECTS[name](rng, clean, at), 0, 1)
    keep = np.maximum(coverage, rng.random() < 0.15)[..., None]
    return np.asarray(clean + keep * (damaged - clean), np.float32), False
