"""Drawn damage: every function takes a clean picture and returns the damaged one; the mask is what visibly changed."""

from __future__ import annotations

import math
from collections.abc import Callable

import cv2
import numpy as np

from anomaly_lib.data.demo.damage import (
    Point,
    blob,
    contrasting_tone,
    cover,
    crack,
    draw_lines,
    hole,
    pits,
    random_path,
    random_radius,
    scratch,
    worn,
)
from scripts.demo_backbone.pictures.assemblies import Box, Layers
from scripts.demo_backbone.pictures.textures import TEXTURES, Array, Generator, fractal_noise


def spot(rng: Generator, image: Array, centre: Point) -> Array:
    where = blob(rng, image.shape[0], centre, random_radius(rng, image.shape[0]), rough=0.6) * rng.uniform(0.5, 1)
    return cover(image, where, contrasting_tone(rng, image, where, least=0.3))


def stain(rng: Generator, image: Array, centre: Point) -> Array:
    size = image.shape[0]
    where = blob(rng, size, centre, 1.5 * random_radius(rng, size), rough=0.8, soft=rng.uniform(2, 10))
    tint = rng.uniform(0.25, 1.0, 3).astype(np.float32) if rng.random() < 0.6 else np.float32(rng.uniform(0.2, 0.6))
    return cover(image, where * rng.uniform(0.6, 1), image * tint)


def _resample(image: Array, dx: Array, dy: Array) -> Array:
    y, x = np.mgrid[0 : image.shape[0], 0 : image.shape[1]].astype(np.float32)
    out = cv2.remap(
        image, x + dx.astype(np.float32), y + dy.astype(np.float32), cv2.INTER_LINEAR, borderMode=cv2.BORDER_REFLECT
    )
    return np.asarray(out, np.float32)


def dent(rng: Generator, image: Array, centre: Point) -> Array:
    size = image.shape[0]
    radius = 0.7 * random_radius(rng, size) + 1
    y, x = np.mgrid[0:size, 0:size].astype(np.float32)
    dx, dy = x - centre[0], y - centre[1]
    bump = np.exp(-(dx**2 + dy**2) / (2 * radius**2))
    light = rng.uniform(0, 2 * math.pi)
    shade = bump * (dx * math.cos(light) + dy * math.sin(light)) / radius * rng.uniform(0.3, 0.7)
    moved = _resample(image, bump * dx * rng.uniform(-0.6, 0.4), bump * dy * rng.uniform(-0.6, 0.4))
    return np.asarray(np.clip(moved + shade[..., None], 0, 1), np.float32)


def bend(rng: Generator, image: Array, centre: Point) -> Array:
    """The pattern is displaced, as by a pulled thread or a bent wire."""
    size = image.shape[0]
    radius = random_radius(rng, size) + 1
    y, x = np.mgrid[0:size, 0:size].astype(np.float32)
    bump = np.exp(-((x - centre[0]) ** 2 + (y - centre[1]) ** 2) / (2 * radius**2))
    angle, reach = rng.uniform(0, 2 * math.pi), rng.uniform(0.4, 1.0) * radius + 3
    return _resample(image, bump * reach * math.cos(angle), bump * reach * math.sin(angle))


def contamination(rng: Generator, image: Array, centre: Point) -> Array:
    """A patch of another material lies on it."""
    size = image.shape[0]
    where = blob(rng, size, centre, 1.2 * random_radius(rng, size), rough=0.6)
    texture = list(TEXTURES.values())[int(rng.integers(len(TEXTURES)))](rng, rng, size)
    colour = contrasting_tone(rng, image, where)
    return cover(image, where, texture[..., None] * (1 - colour) * rng.uniform(0, 0.5) + colour)


def thread(rng: Generator, image: Array, centre: Point) -> Array:
    size = image.shape[0]
    where = draw_lines(
        size, [random_path(rng, centre, rng.uniform(0.3, 0.9) * size, wander=0.35, steps=30)], int(rng.integers(1, 3))
    )
    return cover(image, where, contrasting_tone(rng, image, where, least=0.3))


def misplaced(rng: Generator, image: Array, centre: Point) -> Array:
    """A piece from elsewhere, turned, sits in the wrong place."""
    size = image.shape[0]
    where = blob(rng, size, centre, 1.3 * random_radius(rng, size), rough=0.2 * (rng.random() < 0.5))
    turned = np.rot90(image, int(rng.integers(1, 4))) if rng.random() < 0.7 else image
    shift = rng.integers(size // 6, size, 2)
    return cover(image, where, np.roll(turned, (int(shift[0]), int(shift[1])), (0, 1)) * rng.uniform(0.85, 1.15))


def rough(rng: Generator, image: Array, centre: Point) -> Array:
    size = image.shape[0]
    where = blob(rng, size, centre, 1.3 * random_radius(rng, size), rough=0.7, soft=3)
    grain = (fractal_noise(rng, size, rng.uniform(2, 5), octaves=2) - 0.5) * rng.uniform(0.4, 1.0)
    return cover(image, where, image + grain[..., None])


def rust(rng: Generator, image: Array, centre: Point) -> Array:
    size = image.shape[0]
    patch = blob(rng, size, centre, 1.6 * random_radius(rng, size), rough=0.8, soft=6)
    where = patch * (fractal_noise(rng, size, 8) > rng.uniform(0.3, 0.55))
    colour = np.array([rng.uniform(0.4, 0.7), rng.uniform(0.2, 0.4), rng.uniform(0.02, 0.2)], np.float32)
    return cover(image, cv2.GaussianBlur(where.astype(np.float32), (0, 0), 0.6), colour)


def burn(rng: Generator, image: Array, centre: Point) -> Array:
    size = image.shape[0]
    where = blob(rng, size, centre, 1.5 * random_radius(rng, size), rough=0.5, soft=rng.uniform(4, 14))
    return cover(image, where * rng.uniform(0.6, 0.95), np.array([0.12, 0.08, 0.05], np.float32))


def discolored(rng: Generator, image: Array, centre: Point) -> Array:
    size = image.shape[0]
    where = blob(rng, size, centre, 2 * random_radius(rng, size), rough=0.4, soft=rng.uniform(1, 10))
    shifted = image[..., rng.permutation(3)] * 0.5 + image * 0.5 + rng.uniform(-0.3, 0.3, 3).astype(np.float32)
    return cover(image, where, shifted)


def pinch(rng: Generator, image: Array, coverage: Array) -> Array:
    """The whole object is pressed in (or swollen) at one place of its length."""
    size = image.shape[0]
    y, x = np.mgrid[0:size, 0:size].astype(np.float32)
    weight = coverage / max(float(coverage.sum()), 1e-6)
    cx, cy = float((x * weight).sum()), float((y * weight).sum())
    xx, xy, yy = (float((a * b * weight).sum()) for a, b in ((x - cx, x - cx), (x - cx, y - cy), (y - cy, y - cy)))
    angle = 0.5 * math.atan2(2 * xy, xx - yy)  # of the longer axis
    c, s = math.cos(angle), math.sin(angle)
    along, across = (x - cx) * c + (y - cy) * s, (y - cy) * c - (x - cx) * s
    reach = math.sqrt(xx * c * c + 2 * xy * c * s + yy * s * s)
    at, width = rng.uniform(-1.3, 1.3) * reach, rng.uniform(0.25, 0.6) * reach + 2
    amount = rng.uniform(0.2, 0.6) * (1 if rng.random() < 0.7 else -0.6)
    move = across * amount * np.exp(-(((along - at) / width) ** 2))
    return _resample(image, -s * move, c * move)


def take_away(layers: Layers, box: Box) -> Array:
    """The part is gone: what lies beneath it shows."""
    where = _box_mask(layers.full.shape[0], box, grow=1.5)
    return cover(layers.full, where, layers.bare)


def turn_away(rng: Generator, layers: Layers, box: Box) -> Array:
    """The part sits turned and off its place, which is laid bare."""
    size = layers.full.shape[0]
    angle = math.degrees(rng.choice([-1, 1]) * rng.uniform(0.15, 0.6))
    move = cv2.getRotationMatrix2D((box.x, box.y), angle, 1.0)
    move[:, 2] += rng.uniform(-0.5, 0.5, 2) * (box.half_x, box.half_y)
    part = cv2.warpAffine(layers.full, move, (size, size), borderMode=cv2.BORDER_REFLECT)
    there = cv2.warpAffine(_box_mask(size, box, grow=0.0), move, (size, size))
    return cover(take_away(layers, box), there, np.asarray(part, np.float32))


def _box_mask(size: int, box: Box, *, grow: float) -> Array:
    y, x = np.mgrid[0:size, 0:size].astype(np.float32)
    outside = np.maximum(np.abs(x - box.x) - box.half_x, np.abs(y - box.y) - box.half_y)
    return np.asarray(np.clip(0.5 + grow - outside, 0, 1), np.float32)


DEFECTS: dict[str, Callable[[Generator, Array, Point], Array]] = {
    "scratch": scratch,
    "crack": crack,
    "spot": spot,
    "stain": stain,
    "hole": hole,
    "dent": dent,
    "bend": bend,
    "contamination": contamination,
    "thread": thread,
    "wear": worn,
    "misplaced piece": misplaced,
    "rough patch": rough,
    "rust": rust,
    "burn": burn,
    "discoloration": discolored,
    "pits": pits,
}
MISSING_PART, MISPLACED, BEND = "missing part", "misplaced piece", "bend"
DEFECT_NAMES = (*DEFECTS, MISSING_PART)
