"""Outlines of the drawn objects: a silhouette in polar or polygon form."""

from __future__ import annotations

import math
from collections.abc import Callable

import cv2
import numpy as np
from numpy.typing import NDArray

from scripts.demo_backbone.pictures.textures import Array, Generator, straight_angle


def _polygon(points: NDArray[np.float64], size: int) -> Array:
    """Antialiased filled polygon; `points` [N, 2] are pixels."""
    canvas = np.zeros((size, size), np.uint8)
    cv2.fillPoly(canvas, [np.round(points * 16).astype(np.int32)], 255, cv2.LINE_AA, 4)
    return np.asarray(canvas, np.float32) / np.float32(255)


def _radial(
    size: int, centre: NDArray[np.float64], radius: Callable[[NDArray[np.float64]], NDArray[np.float64]]
) -> Array:
    angles = np.linspace(0, 2 * math.pi, 180, endpoint=False)
    reach = radius(angles)
    return _polygon(np.stack([np.cos(angles), np.sin(angles)], 1) * reach[:, None] + centre, size)


def _rectangle(size: int, centre: NDArray[np.float64], half: tuple[float, float], angle: float) -> Array:
    corners = np.array([[-1, -1], [1, -1], [1, 1], [-1, 1]]) * np.array(half)
    turn = np.array([[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]])
    return _polygon(corners @ turn.T + centre, size)


ASSEMBLY = "panel"  # its parts are drawn by `assemblies`
OBJECTS = (
    ASSEMBLY,
    "disc",
    "ring",
    "nut",
    "gear",
    "plate",
    "screw",
    "star",
    "bracket",
    "seed",
    "flower",
    "tube",
    "cross",
)


def silhouette(rng: Generator, size: int, name: str) -> Array:
    """Coverage of one object in [0, 1]."""
    if name not in OBJECTS:
        raise KeyError(f"unknown object {name!r}; known: {', '.join(OBJECTS)}")
    centre = size / 2 + rng.uniform(-0.03, 0.03, 2) * size
    radius = size * rng.uniform(0.22, 0.34)
    turn = rng.uniform(0, 2 * math.pi)
    count = int(rng.integers(5, 14))

    def circle(scale: float) -> Array:
        return _radial(size, centre, lambda a: np.full_like(a, radius * scale))

    if name == "disc":
        return circle(1.0)
    if name == "ring":
        return circle(1.0) * (1 - circle(rng.uniform(0.3, 0.7)))
    if name == "nut":
        corners = turn + np.arange(6) * math.pi / 3
        outer = _polygon(centre + radius * np.stack([np.cos(corners), np.sin(corners)], 1), size)
        return outer * (1 - circle(rng.uniform(0.35, 0.55)))
    if name == "gear":
        teeth = _radial(size, centre, lambda a: radius * (0.9 + 0.1 * np.sign(np.sin(a * count * 2 + turn))))
        return teeth * (1 - circle(rng.uniform(0.1, 0.4)))
    if name == "star":
        return _radial(size, centre, lambda a: radius * (0.7 + 0.3 * np.abs((a * count / math.pi + turn) % 2 - 1)))
    if name == "flower":
        return _radial(size, centre, lambda a: radius * (0.8 + 0.2 * np.cos(a * count + turn)))
    if name == "seed":
        lobes = rng.uniform(0.02, 0.1)
        squash = rng.uniform(0.65, 0.95)
        return _radial(
            size,
            centre,
            lambda a: radius * (np.hypot(np.cos(a + turn), squash * np.sin(a + turn)) + lobes * np.cos(3 * a)),
        )
    return _straight(rng, size, name, centre, radius)


def _straight(rng: Generator, size: int, name: str, centre: NDArray[np.float64], radius: float) -> Array:
    """The objects made of bars."""
    angle = straight_angle(rng)
    along, across = radius * rng.uniform(0.9, 1.15), radius * rng.uniform(0.2, 0.4)
    if name == ASSEMBLY:
        across = radius * rng.uniform(0.7, 1.3)
        return _rectangle(size, centre, (radius * rng.uniform(0.9, 1.4), across), rng.normal(0, 0.05))
    if name == "plate":
        return _rectangle(size, centre, (along, radius * rng.uniform(0.6, 0.9)), angle)
    if name == "tube":
        return _rectangle(size, centre, (along, across * 1.3), angle)
    if name == "cross":
        return np.maximum(
            _rectangle(size, centre, (along, across), angle), _rectangle(size, centre, (across, along), angle)
        )
    direction = np.array([math.cos(angle), math.sin(angle)])
    if name == "bracket":
        foot = _rectangle(size, centre - direction * (along - across), (across, along), angle)
        return np.maximum(_rectangle(size, centre, (along, across), angle), foot)
    head = _radial(size, centre - direction * along * 0.8, lambda a: np.full_like(a, across * 2.0))  # screw
    return np.maximum(_rectangle(size, centre, (along, across * 0.8), angle), head)
