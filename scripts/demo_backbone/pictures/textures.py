"""Drawn surfaces for pre-training: every function returns values in [0, 1].

`rng` decides what all pieces of a product share (pitch, direction, contrast), `grain` what differs from piece to piece.
Nothing here is shared with the demo data set (`anomaly_lib.data.demo`): that one tests what is learned from this one.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import cv2
import numpy as np

from anomaly_lib.data.demo.damage import Array, Generator, smooth_noise


def coordinates(size: int, angle: float) -> tuple[Array, Array]:
    """Pixel coordinates rotated by `angle` (radians), origin in the centre."""
    y, x = np.mgrid[0:size, 0:size].astype(np.float32) - size / 2
    return x * math.cos(angle) + y * math.sin(angle), y * math.cos(angle) - x * math.sin(angle)


def fractal_noise(rng: Generator, size: int, cell: float, *, octaves: int = 4, stretch: float = 1.0) -> Array:
    """Sum of noise octaves, each half as large and half as strong, scaled to [0, 1]."""
    total = np.zeros((size, size), np.float32)
    for octave in range(octaves):
        total += smooth_noise(rng, size, max(cell / 2**octave, 1.0), stretch=stretch) / 2**octave
    return stretch_range(total)


def stretch_range(values: Array) -> Array:
    low, high = float(values.min()), float(values.max())
    return (values - low) / max(high - low, 1e-6)


def rotated(image: Array, angle: float) -> Array:
    """Rotate a texture drawn on a larger canvas and keep the centre."""
    size = image.shape[0]
    turn = cv2.getRotationMatrix2D((size / 2, size / 2), math.degrees(angle), 1.0)
    return np.asarray(cv2.warpAffine(image, turn, (size, size), borderMode=cv2.BORDER_REFLECT), np.float32)


def _wave(values: Array, sharpness: float) -> Array:
    return np.asarray(0.5 + 0.5 * np.tanh(sharpness * np.sin(values)) / math.tanh(sharpness), np.float32)


def straight_angle(rng: Generator) -> float:
    """Any direction, half of the time one of the four straight ones."""
    straight = rng.random() < 0.5
    return float(rng.integers(0, 4) * math.pi / 4 if straight else rng.uniform(0, math.pi))


def stripes(rng: Generator, _grain: Generator, size: int) -> Array:
    x, _ = coordinates(size, straight_angle(rng))
    return _wave(x * 2 * math.pi / rng.uniform(5, 26) + rng.uniform(0, 6), rng.uniform(0.3, 6))


def checker(rng: Generator, _grain: Generator, size: int) -> Array:
    x, y = coordinates(size, straight_angle(rng))
    period = rng.uniform(8, 30)
    sharp = rng.uniform(1, 6)
    product = np.sin(2 * math.pi * x / period + 1) * np.sin(2 * math.pi * y / period + 2)
    return np.asarray(0.5 + 0.5 * np.tanh(sharp * product), np.float32)


def dots(rng: Generator, _grain: Generator, size: int) -> Array:
    x, y = coordinates(size, straight_angle(rng))
    period = rng.uniform(8, 24)
    if rng.random() < 0.5:
        x = x + period / 2 * (np.floor(y / period) % 2)
    dx, dy = (x / period) % 1 - 0.5, (y / period) % 1 - 0.5
    radius = rng.uniform(0.15, 0.4)
    return np.asarray(1 / (1 + np.exp((np.hypot(dx, dy) - radius) * period * 1.2)), np.float32)


def cloth(rng: Generator, grain: Generator, size: int) -> Array:
    """Threads over and under each other: plain, twill or basket."""
    x, y = coordinates(size, straight_angle(rng))
    period = rng.uniform(5, 13)
    step = int(rng.integers(1, 4))
    column, row = np.floor(x / period), np.floor(y / period)
    over = ((column + step * row) % (2 if step == 1 else step + 1)) < 1
    warp = np.abs(np.sin(math.pi * x / period))
    weft = np.abs(np.sin(math.pi * y / period))
    thread = np.where(over, warp, weft * rng.uniform(0.5, 0.9))
    return np.asarray(thread * 0.9 + 0.1 * fractal_noise(grain, size, 3, octaves=2), np.float32)


def mesh(rng: Generator, _grain: Generator, size: int) -> Array:
    x, y = coordinates(size, straight_angle(rng))
    period = rng.uniform(9, 26)
    width = rng.uniform(0.06, 0.22)
    line = np.minimum(np.abs((x / period) % 1 - 0.5), np.abs((y / period) % 1 - 0.5))
    return np.asarray(1 / (1 + np.exp((line - width) * period * 1.5)), np.float32)


def wood(rng: Generator, grain: Generator, size: int) -> Array:
    x, y = coordinates(size, straight_angle(rng))
    bend = fractal_noise(grain, size, rng.uniform(30, 80), octaves=2) * rng.uniform(10, 40)
    rings = np.sin((y + bend + 0.05 * x) * 2 * math.pi / rng.uniform(6, 20))
    fibres = rotated(fractal_noise(grain, size, 2, octaves=2, stretch=12), 0.0)
    return stretch_range((0.5 + 0.35 * rings + 0.3 * fibres).astype(np.float32))


def marble(rng: Generator, grain: Generator, size: int) -> Array:
    x, _ = coordinates(size, straight_angle(rng))
    veins = fractal_noise(grain, size, rng.uniform(25, 60), octaves=5) * rng.uniform(40, 110)
    return np.asarray(
        1 - np.abs(np.sin((x + veins) * math.pi / rng.uniform(25, 60))) ** rng.uniform(0.3, 1), np.float32
    )


def stone(rng: Generator, grain: Generator, size: int) -> Array:
    return fractal_noise(grain, size, rng.uniform(6, 40), octaves=5)


def metal(rng: Generator, grain: Generator, size: int) -> Array:
    streaks = fractal_noise(grain, size, rng.uniform(1.0, 3.0), octaves=2, stretch=rng.uniform(15, 60))
    streaks = rotated(streaks, straight_angle(rng))
    x, _ = coordinates(size, rng.uniform(0, math.pi))
    shine = np.exp(-((x / size - rng.uniform(-0.4, 0.4)) ** 2) / rng.uniform(0.02, 0.3))
    return np.asarray(rng.uniform(0.2, 0.7) * streaks + 0.5 * shine, np.float32)


def cells(rng: Generator, grain: Generator, size: int) -> Array:
    """Leather: distance to the border between nearest seeds."""
    count = int(rng.integers(40, 320))
    seeds = np.full((size, size), 255, np.uint8)
    points = grain.integers(0, size, (count, 2))
    seeds[points[:, 0], points[:, 1]] = 0
    distance = cv2.distanceTransform(seeds, cv2.DIST_L2, 3)
    return stretch_range(np.minimum(distance, np.percentile(distance, 97)).astype(np.float32))


def bricks(rng: Generator, _grain: Generator, size: int) -> Array:
    x, y = coordinates(size, straight_angle(rng))
    height, ratio = rng.uniform(14, 34), rng.choice([1.0, 1.0, 2.0, 2.5])
    row = np.floor(y / height)
    column = (x + height * ratio / 2 * (row % 2) * (rng.random() < 0.6)) / (height * ratio)
    joint = np.minimum(np.abs((y / height) % 1 - 0.5) - 0.5, (np.abs(column % 1 - 0.5) - 0.5) * ratio) * -height
    shade = (np.sin(np.floor(column) * 12.9 + row * 78.2) * 43758.5) % 1 * rng.uniform(0, 0.3)
    return np.asarray(np.clip(joint / rng.uniform(1, 3), 0, 1) * (0.7 + shade), np.float32)


def carpet(rng: Generator, grain: Generator, size: int) -> Array:
    fine = grain.random((size, size), dtype=np.float32)
    return stretch_range(cv2.GaussianBlur(fine, (0, 0), rng.uniform(0.6, 1.8)))


def paint(rng: Generator, grain: Generator, size: int) -> Array:
    x, _ = coordinates(size, rng.uniform(0, 2 * math.pi))
    return np.asarray(0.5 + x / size * rng.uniform(0, 0.7) + 0.05 * smooth_noise(grain, size, 20), np.float32)


def ripples(rng: Generator, _grain: Generator, size: int) -> Array:
    y, x = np.mgrid[0:size, 0:size].astype(np.float32)
    centre = rng.uniform(-0.3, 1.3, 2) * size
    radius = np.hypot(x - centre[0], y - centre[1])
    return _wave(radius * 2 * math.pi / rng.uniform(4, 18), rng.uniform(0.3, 4))


def fibres(rng: Generator, _grain: Generator, size: int) -> Array:
    canvas = np.full((size, size), 90, np.uint8)
    ends = rng.integers(-20, size + 20, (int(rng.integers(80, 220)), 2))
    angles = rng.uniform(0, rng.choice([0.5, math.pi]), len(ends))
    lengths = rng.uniform(15, 60, len(ends))
    for (x, y), angle, length, grey in zip(ends, angles, lengths, rng.integers(40, 255, len(ends)), strict=True):
        end = (int(x + length * math.cos(angle)), int(y + length * math.sin(angle)))
        cv2.line(canvas, (int(x), int(y)), end, int(grey), 1, cv2.LINE_AA)
    return cv2.GaussianBlur(canvas, (0, 0), 0.7).astype(np.float32) / 255


def granite(rng: Generator, grain: Generator, size: int) -> Array:
    base = fractal_noise(grain, size, rng.uniform(4, 10), octaves=3)
    levels = np.floor(base * rng.integers(3, 6)) / 5
    return stretch_range(cv2.GaussianBlur(levels.astype(np.float32), (0, 0), 0.8))


def waffle(rng: Generator, _grain: Generator, size: int) -> Array:
    x, y = coordinates(size, straight_angle(rng))
    period = rng.uniform(8, 24)
    product = np.abs(np.sin(math.pi * x / period)) * np.abs(np.sin(math.pi * y / period))
    return np.asarray(product ** rng.uniform(0.3, 2), np.float32)


def knit(rng: Generator, _grain: Generator, size: int) -> Array:
    x, y = coordinates(size, straight_angle(rng))
    period = rng.uniform(8, 18)
    zigzag = np.abs((x / period) % 1 - 0.5) * period * rng.uniform(0.6, 1.4)
    return _wave((y + zigzag) * 2 * math.pi / rng.uniform(4, 10), rng.uniform(0.5, 2))


TEXTURES: dict[str, Callable[[Generator, Generator, int], Array]] = {
    "striped plastic": stripes,
    "checkered tile": checker,
    "dotted paper": dots,
    "woven cloth": cloth,
    "wire mesh": mesh,
    "wood": wood,
    "marble": marble,
    "concrete": stone,
    "steel": metal,
    "leather": cells,
    "brick": bricks,
    "carpet": carpet,
    "painted plastic": paint,
    "vinyl": ripples,
    "fiber": fibres,
    "granite": granite,
    "rubber": waffle,
    "wool": knit,
}
