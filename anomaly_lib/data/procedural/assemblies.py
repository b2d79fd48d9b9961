"""Things made of parts, for pre-training: panels with rows of keys, labels, pipes; objects in two tones with print on.

A network that has only seen bare materials calls every part a damage. What is drawn here belongs there.
"""

from __future__ import annotations

import math

import cv2
import numpy as np
from numpy.typing import NDArray

from anomaly_lib.data.procedural.textures import Array, Generator, coordinates

LETTERS = "ABCDEFGHKLMNPRSTUVXYZ0123456789"
FONTS = (cv2.FONT_HERSHEY_SIMPLEX, cv2.FONT_HERSHEY_DUPLEX, cv2.FONT_HERSHEY_TRIPLEX, cv2.FONT_HERSHEY_COMPLEX_SMALL)


def _colour(rng: Generator) -> NDArray[np.float32]:
    grey = rng.random() < 0.4
    return np.full(3, rng.uniform(0.03, 0.97), np.float32) if grey else rng.uniform(0.03, 0.97, 3).astype(np.float32)


def _lay(picture: Array, where: Array, colour: NDArray[np.float32]) -> None:
    """Paint `colour` over `picture` in place."""
    picture += where[..., None] * (colour - picture)


def text_mask(rng: Generator, size: int, at: tuple[float, float], height: float) -> Array:
    """Coverage of a few printed characters that start at `at` (pixels)."""
    canvas = np.zeros((size, size), np.uint8)
    word = "".join(rng.choice(list(LETTERS), int(rng.integers(1, 6))))
    font = FONTS[int(rng.integers(len(FONTS)))]
    thick = int(rng.integers(1, 3))
    cv2.putText(canvas, word, (int(at[0]), int(at[1])), font, max(height, 6.0) / 22, 255, thick, cv2.LINE_AA)
    return np.asarray(canvas, np.float32) / np.float32(255)


def _part_mask(size: int, kind: int, at: NDArray[np.float64], half: NDArray[np.float64]) -> Array:
    """Rectangle, rounded rectangle, ellipse or ring."""
    canvas = np.zeros((size, size), np.uint8)
    centre = (round(float(at[0])), round(float(at[1])))
    axes = (max(int(half[0]), 1), max(int(half[1]), 1))
    if kind < 2:
        low, high = (at - half).round().astype(int), (at + half).round().astype(int)
        cv2.rectangle(canvas, tuple(map(int, low)), tuple(map(int, high)), 255, -1)
        if kind == 1:
            canvas = np.asarray(cv2.GaussianBlur(canvas, (0, 0), max(float(half.min()) / 3, 0.5)), np.uint8)
            canvas = np.asarray((canvas > 127) * 255, np.uint8)
    else:
        cv2.ellipse(canvas, centre, axes, 0, 0, 360, 255, -1 if kind == 2 else max(int(half.min() / 2), 1), cv2.LINE_AA)
    return cv2.GaussianBlur(canvas, (0, 0), 0.6).astype(np.float32) / np.float32(255)


def _row(rng: Generator, size: int, part: NDArray[np.float64]) -> list[NDArray[np.float64]]:
    """Centres of a row or a small field of equal parts."""
    columns, rows = (int(rng.integers(2, 8)), 1) if rng.random() < 0.6 else (int(rng.integers(2, 5)),) * 2
    pitch = 2 * part * rng.uniform(1.15, 2.2)
    start = rng.uniform(0.12, 0.6, 2) * size
    centres = [start + pitch * (c, r) for r in range(rows) for c in range(columns)]
    return [centre[::-1] for centre in centres] if rng.random() < 0.4 else centres


def assemble(rng: Generator, surface: Array) -> Array:
    """`surface` with two to six kinds of parts on it, each with its own shadow and shading; pipes run between."""
    size = surface.shape[0]
    picture = surface.copy()
    palette = [_colour(rng) for _ in range(int(rng.integers(2, 5)))]
    if rng.random() < 0.6:
        _pipes(rng, picture, palette)
    for _ in range(int(rng.integers(2, 7))):
        half = size * np.exp(rng.uniform(math.log(0.012), math.log(0.13))) * rng.uniform(0.4, 1.0, 2)
        kind, colour = int(rng.integers(4)), palette[int(rng.integers(len(palette)))]
        single = half.max() > 0.06 * size or rng.random() < 0.3
        centres = [rng.uniform(0.12, 0.88, 2) * size] if single else _row(rng, size, half)
        where = np.zeros((size, size), np.float32)
        for centre in centres:
            where = np.maximum(where, _part_mask(size, kind, centre, half))
        if rng.random() < 0.7:
            drop = rng.uniform(0.5, 3, 2)
            shadow = cv2.warpAffine(where, np.array([[1, 0, drop[0]], [0, 1, drop[1]]], np.float32), (size, size))
            picture *= 1 - rng.uniform(0.1, 0.5) * cv2.GaussianBlur(shadow, (0, 0), rng.uniform(0.5, 3))[..., None]
        _lay(picture, where, colour)
        if rng.random() < 0.6:  # a lit edge, or a cap of another colour on each
            inner = cv2.erode(where, np.ones((3, 3), np.uint8), iterations=int(rng.integers(1, 4)))
            _lay(picture, inner if rng.random() < 0.5 else where - inner, _colour(rng))
        if single and rng.random() < 0.6:
            at = centres[0] + half * (-0.8, 0.3)
            _lay(picture, text_mask(rng, size, (at[0], at[1]), half[1] * rng.uniform(0.5, 1.2)) * where, _colour(rng))
    return np.asarray(np.clip(picture, 0, 1), np.float32)


def _pipes(rng: Generator, picture: Array, palette: list[NDArray[np.float32]]) -> None:
    """A bundle of lines side by side that turn together."""
    size = picture.shape[0]
    canvas = np.zeros((size, size), np.uint8)
    corners = np.cumsum(np.concatenate([rng.uniform(0.1, 0.9, (1, 2)), rng.normal(0, 0.25, (3, 2))]), 0) * size
    if rng.random() < 0.7:
        corners[1::2, 0], corners[2::2, 1] = corners[0:-1:2, 0], corners[1:-1:2, 1]  # right angles
    side = rng.uniform(3, 9, 2) * rng.choice([-1, 1], 2)
    for index in range(int(rng.integers(1, 6))):
        path = np.round((corners + index * side) * 16).astype(np.int32)
        cv2.polylines(canvas, [path], False, 255, int(rng.integers(1, 4)), cv2.LINE_AA, 4)
    _lay(picture, canvas.astype(np.float32) / np.float32(255), palette[0])


def finish_object(rng: Generator, surface: Array) -> Array:
    """What maker's finish adds to an object: a second tone, gloss, print."""
    size = surface.shape[0]
    picture = surface.copy()
    if rng.random() < 0.4:
        x, _ = coordinates(size, rng.uniform(0, 2 * math.pi))
        half = np.clip(x - rng.uniform(-0.15, 0.15) * size + 0.5, 0, 1).astype(np.float32)
        tint = _colour(rng)
        picture += half[..., None] * (0.75 * tint + 0.25 * picture - picture)
    if rng.random() < 0.5:
        x, _ = coordinates(size, rng.uniform(0, math.pi))
        reach = rng.uniform(0.01, 0.06) * size
        gloss = np.exp(-(((x - rng.uniform(-0.2, 0.2) * size) / reach) ** 2)) * rng.uniform(0.15, 0.7)
        picture += gloss[..., None].astype(np.float32) * (1 - picture)
    if rng.random() < 0.5:
        at = rng.uniform(0.3, 0.5), rng.uniform(0.4, 0.65)
        mask = text_mask(rng, size, (at[0] * size, at[1] * size), rng.uniform(0.06, 0.16) * size)
        _lay(picture, mask, _colour(rng))
    return np.asarray(np.clip(picture, 0, 1), np.float32)
