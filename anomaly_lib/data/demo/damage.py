"""Damage drawn into a picture [S, S, 3] of values in 0..1: scratches, cracks, holes, pits and rubbed-off patterns.

Used for synthetic weld photographs, and by the pictures that the demo backbone was trained on (scripts/demo_backbone).
"""

import math

import cv2
import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float32]
Generator = np.random.Generator
Point = tuple[float, float]


def smooth_noise(rng: Generator, size: int, cell: float, *, stretch: float = 1.0) -> Array:
    """Value noise with features of about `cell` pixels, `stretch` times longer horizontally."""
    rows, columns = max(2, round(size / cell) + 1), max(2, round(size / (cell * stretch)) + 1)
    grid = rng.random((rows, columns), dtype=np.float32)
    return np.clip(cv2.resize(grid, (size, size), interpolation=cv2.INTER_CUBIC), 0, 1)


def blob(rng: Generator, size: int, centre: Point, radius: float, *, rough: float = 0.5, soft: float = 1.0) -> Array:
    """Irregular patch with coverage in [0, 1]; `rough` bends the outline, `soft` is the width of the edge in pixels."""
    y, x = np.mgrid[0:size, 0:size].astype(np.float32)
    angle = rng.uniform(0, math.pi)
    dx, dy = x - centre[0], y - centre[1]
    along = dx * math.cos(angle) + dy * math.sin(angle)
    across = (dy * math.cos(angle) - dx * math.sin(angle)) * rng.uniform(1.0, 2.5)
    wobble = 1 + rough * (smooth_noise(rng, size, max(radius, 4.0)) - 0.5) * 2
    return np.asarray(np.clip((radius * wobble - np.hypot(along, across)) / soft + 0.5, 0, 1), np.float32)


def random_path(rng: Generator, start: Point, length: float, *, wander: float, steps: int) -> NDArray[np.int32]:
    """Random walk with slowly turning direction, in 1/16 pixels for `cv2.polylines`."""
    directions = rng.uniform(0, 2 * math.pi) + np.cumsum(rng.normal(0, wander, steps))
    moves = np.stack([np.cos(directions), np.sin(directions)], 1) * (length / steps)
    points = np.cumsum(moves, 0)
    return np.round((points - points.mean(0) + np.array(start)) * 16).astype(np.int32)


def draw_lines(size: int, paths: list[NDArray[np.int32]], width: int) -> Array:
    canvas = np.zeros((size, size), np.uint8)
    cv2.polylines(canvas, paths, False, 255, width, cv2.LINE_AA, 4)
    return np.asarray(canvas, np.float32) / np.float32(255)


def contrasting_tone(rng: Generator, image: Array, where: Array, *, least: float = 0.22) -> Array:
    """A colour that stands out from what is under `where`."""
    under = (image * where[..., None]).sum((0, 1)) / max(float(where.sum()), 1e-6)
    for _ in range(8):
        grey = rng.random() < 0.5
        colour = np.full(3, rng.random(), np.float32) if grey else rng.random(3, dtype=np.float32)
        if float(np.abs(colour - under).max()) > least:
            break
    return colour.astype(np.float32)


def cover(image: Array, where: Array, colour: Array | float) -> Array:
    return np.asarray(image * (1 - where[..., None]) + where[..., None] * colour, np.float32)


def random_radius(rng: Generator, size: int) -> float:
    return float(size * math.exp(rng.uniform(math.log(0.025), math.log(0.16))))


def scratch(rng: Generator, image: Array, centre: Point) -> Array:
    size = image.shape[0]
    count = 1 if rng.random() < 0.7 else int(rng.integers(2, 5))
    starts = [(centre[0] + rng.normal(0, 5) * (i > 0), centre[1] + rng.normal(0, 5) * (i > 0)) for i in range(count)]
    paths = [random_path(rng, start, rng.uniform(0.1, 0.6) * size, wander=0.06, steps=12) for start in starts]
    where = draw_lines(size, paths, int(rng.integers(1, 5))) * rng.uniform(0.6, 1.0)
    return cover(image, where, contrasting_tone(rng, image, where))


def crack(rng: Generator, image: Array, centre: Point) -> Array:
    size = image.shape[0]
    trunk = random_path(rng, centre, rng.uniform(0.15, 0.6) * size, wander=0.5, steps=16)
    paths = [trunk]
    for _ in range(int(rng.integers(0, 4))):
        joint = trunk[rng.integers(0, len(trunk))] / 16
        paths.append(
            random_path(rng, (float(joint[0]), float(joint[1])), rng.uniform(0.05, 0.25) * size, wander=0.5, steps=8)
        )
    where = draw_lines(size, paths, int(rng.integers(1, 3)))
    return cover(image, where, image * rng.uniform(0.0, 0.35))


def hole(rng: Generator, image: Array, centre: Point) -> Array:
    size = image.shape[0]
    radius = random_radius(rng, size)
    where = blob(rng, size, centre, radius, rough=0.5)
    rim = np.clip(cv2.GaussianBlur(where, (0, 0), 2) * 2, 0, 1) - where
    lit = cover(image, np.clip(rim, 0, 1) * rng.uniform(0, 0.6), np.float32(rng.choice([0.05, 0.95])))
    return cover(
        lit, where, np.float32(rng.uniform(0, 0.15)) if rng.random() < 0.7 else contrasting_tone(rng, image, where)
    )


def worn(rng: Generator, image: Array, centre: Point) -> Array:
    """The pattern is rubbed off."""
    size = image.shape[0]
    where = blob(rng, size, centre, 1.6 * random_radius(rng, size), rough=0.6, soft=rng.uniform(2, 8))
    smooth = cv2.GaussianBlur(image, (0, 0), rng.uniform(3, 8))
    return cover(image, where, smooth * rng.uniform(0.85, 1.15) + rng.uniform(-0.12, 0.12))


def pits(rng: Generator, image: Array, centre: Point) -> Array:
    size = image.shape[0]
    where = np.zeros((size, size), np.float32)
    for _ in range(int(rng.integers(3, 12))):
        near = (centre[0] + rng.normal(0, 8), centre[1] + rng.normal(0, 8))
        where = np.maximum(where, blob(rng, size, near, rng.uniform(1.2, 3), rough=0.2))
    return cover(image, where, contrasting_tone(rng, image, where, least=0.3))


def visible_change(before: Array, after: Array, *, least: float = 0.06) -> NDArray[np.bool_]:
    """Pixels that visibly differ (largest channel), with one-pixel gaps closed."""
    changed = (np.abs(after - before).max(-1) > least).astype(np.uint8)
    return np.asarray(cv2.morphologyEx(changed, cv2.MORPH_CLOSE, np.ones((3, 3), np.uint8)) > 0)
