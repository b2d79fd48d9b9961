"""Things made of parts: panels with rows of keys, labels and pipes; objects in two tones with print on them.

A network that has only seen bare materials calls every part a damage. What is drawn here belongs there, and what lies
beneath it is drawn too, so that a part can be missing or out of place.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import NamedTuple

import cv2
import numpy as np
from numpy.typing import NDArray

from scripts.demo_backbone.pictures.textures import Array, Generator, coordinates

LETTERS = "ABCDEFGHKLMNPRSTUVXYZ0123456789"
FONTS = (cv2.FONT_HERSHEY_SIMPLEX, cv2.FONT_HERSHEY_DUPLEX, cv2.FONT_HERSHEY_TRIPLEX, cv2.FONT_HERSHEY_COMPLEX_SMALL)
SEATS = ("pads", "frame", "recess", "none")  # what shows where a part is missing
Vector = NDArray[np.float64]


class Box(NamedTuple):
    """Where one part or print is, in pixels; `seated`: its place shows when it is gone."""

    x: float
    y: float
    half_x: float
    half_y: float
    seated: bool


@dataclass
class Layers:
    """A surface with and without what is mounted or printed on it."""

    full: Array  # [S, S, 3]
    bare: Array
    boxes: list[Box] = field(default_factory=list)


def _box(at: Vector, half: Vector, *, seated: bool) -> Box:
    return Box(float(at[0]), float(at[1]), float(half[0]), float(half[1]), seated)


def random_colour(rng: Generator) -> NDArray[np.float32]:
    grey = rng.random() < 0.4
    return np.full(3, rng.uniform(0.03, 0.97), np.float32) if grey else rng.uniform(0.03, 0.97, 3).astype(np.float32)


def lay(picture: Array, where: Array, colour: NDArray[np.float32]) -> None:
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


def _boxes_mask(size: int, centres: list[Vector], half: Vector, kind: int, line: int = -1) -> Array:
    """Rectangles, rounded rectangles, ellipses or rings of one size; `line` draws outlines of that width."""
    canvas = np.zeros((size, size), np.uint8)
    for at in centres:
        low, high = (tuple(map(int, ((at + sign * half) * 16).round())) for sign in (-1, 1))
        if kind < 2:
            cv2.rectangle(canvas, low, high, 255, line, cv2.LINE_AA, 4)
        else:
            centre, axes = (tuple(map(int, (value * 16).round())) for value in (at, np.maximum(half, 0.5)))
            ring = line if kind == 2 else max(int(half.min() / 2), 1)
            cv2.ellipse(canvas, centre, axes, 0, 0, 360, 255, ring, cv2.LINE_AA, 4)
    if kind == 1:
        soft = cv2.GaussianBlur(canvas, (0, 0), max(float(half.min()) / 3, 0.5))
        canvas = np.asarray((soft > 127) * 255, np.uint8)
    return cv2.GaussianBlur(canvas, (0, 0), 0.5).astype(np.float32) / np.float32(255)


def _row(rng: Generator, size: int, half: Vector) -> list[Vector]:
    """Centres of a row or a small field of equal parts."""
    columns, rows = (int(rng.integers(2, 8)), 1) if rng.random() < 0.6 else (int(rng.integers(2, 5)),) * 2
    pitch = 2 * half * rng.uniform(1.15, 2.2)
    start = rng.uniform(0.2, 0.6, 2) * size
    centres = [start + pitch * (c, r) for r in range(rows) for c in range(columns)]
    return [centre[::-1] for centre in centres] if rng.random() < 0.4 else centres


def _seats(rng: Generator, bare: Array, centres: list[Vector], half: Vector, colour: NDArray[np.float32]) -> bool:
    """Pads, a printed frame or a recess under every part, a little wider than the part itself; whether there is one."""
    size, seat = bare.shape[0], SEATS[int(rng.integers(len(SEATS)))]
    if seat == "pads":
        along = np.array([1.0, 0.0]) if rng.random() < 0.5 else np.array([0.0, 1.0])
        pad = half * (1 - 0.75 * along) * rng.uniform(0.75, 1.0)
        ends = [at + sign * 0.85 * along * half for at in centres for sign in (-1, 1)]
        lay(bare, _boxes_mask(size, ends, pad, 0), colour)
    elif seat == "frame":
        lay(bare, _boxes_mask(size, centres, half + rng.uniform(0.5, 2), 0, line=1), colour)
    elif seat == "recess":
        lay(bare, _boxes_mask(size, centres, half + rng.uniform(0, 1), int(rng.integers(3))) * 0.8, colour * 0.25)
    return seat != "none"


def assemble(rng: Generator, surface: Array) -> Layers:
    """`surface` with two to six kinds of parts on it, each with its own shadow and shading; pipes run between."""
    size = surface.shape[0]
    bare, mounts, boxes = surface.copy(), [], []
    palette = [random_colour(rng) for _ in range(int(rng.integers(2, 5)))]
    if rng.random() < 0.6:
        _pipes(rng, bare, palette)
    for _ in range(int(rng.integers(2, 7))):
        half = size * np.exp(rng.uniform(math.log(0.012), math.log(0.11))) * rng.uniform(0.4, 1.0, 2)
        single = half.max() > 0.05 * size or rng.random() < 0.3
        centres = [rng.uniform(0.2, 0.8, 2) * size] if single else _row(rng, size, half)
        seated = _seats(rng, bare, centres, half, palette[int(rng.integers(len(palette)))])
        mounts.append((half, centres))
        if half.min() > 0.012 * size:
            boxes += [_box(at, half, seated=seated) for at in centres]
    full = bare.copy()
    for half, centres in mounts:
        _mount(rng, full, half, centres, palette[int(rng.integers(len(palette)))])
    return Layers(np.clip(full, 0, 1), np.clip(bare, 0, 1), boxes)


def _mount(rng: Generator, picture: Array, half: Vector, centres: list[Vector], colour: NDArray[np.float32]) -> None:
    """Parts of one kind with shadow, pins, a lit edge, a cap of another colour, print."""
    size, kind = picture.shape[0], int(rng.integers(4))
    where = _boxes_mask(size, centres, half, kind)
    if rng.random() < 0.7:
        drop = rng.uniform(0.5, 3, 2)
        shadow = cv2.warpAffine(where, np.array([[1, 0, drop[0]], [0, 1, drop[1]]], np.float32), (size, size))
        picture *= 1 - rng.uniform(0.1, 0.5) * cv2.GaussianBlur(shadow, (0, 0), rng.uniform(0.5, 3))[..., None]
    if half.min() > 4 and rng.random() < 0.4:  # pins along two sides
        count = int(rng.integers(3, 9))
        steps = (np.arange(count) + 0.5) / count * 2 - 1
        pins = [at + half * (0, step) for at in centres for step in steps]
        lay(picture, _boxes_mask(size, pins, half * (1.2, 0.5 / count), 0), random_colour(rng))
    lay(picture, where, colour)
    if rng.random() < 0.6:
        inner = cv2.erode(where, np.ones((3, 3), np.uint8), iterations=int(rng.integers(1, 4)))
        lay(picture, inner if rng.random() < 0.5 else where - inner, random_colour(rng))
    if half.min() > 4 and rng.random() < 0.4:  # a mark that shows which way round it sits
        mark = [at + half * rng.uniform(-0.5, 0.5, 2) for at in centres]
        lay(picture, _boxes_mask(size, mark, half * rng.uniform(0.1, 0.4, 2), int(rng.integers(3))), random_colour(rng))
    if len(centres) == 1 and rng.random() < 0.6:
        at = centres[0] + half * (-0.8, 0.3)
        lay(picture, text_mask(rng, size, (at[0], at[1]), half[1] * rng.uniform(0.5, 1.2)) * where, random_colour(rng))


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
    lay(picture, canvas.astype(np.float32) / np.float32(255), palette[0])


def finish_object(rng: Generator, surface: Array) -> Layers:
    """What maker's finish adds to an object: a second tone, gloss, print."""
    size = surface.shape[0]
    picture = surface.copy()
    if rng.random() < 0.4:
        x, _ = coordinates(size, rng.uniform(0, 2 * math.pi))
        half = np.clip(x - rng.uniform(-0.15, 0.15) * size + 0.5, 0, 1).astype(np.float32)
        tint = random_colour(rng)
        picture += half[..., None] * (0.75 * tint + 0.25 * picture - picture)
    if rng.random() < 0.5:
        x, _ = coordinates(size, rng.uniform(0, math.pi))
        reach = rng.uniform(0.01, 0.06) * size
        gloss = np.exp(-(((x - rng.uniform(-0.2, 0.2) * size) / reach) ** 2)) * rng.uniform(0.15, 0.7)
        picture += gloss[..., None].astype(np.float32) * (1 - picture)
    bare, boxes = picture.copy(), []
    if rng.random() < 0.5:
        at = rng.uniform(0.3, 0.5), rng.uniform(0.42, 0.62)
        mask = text_mask(rng, size, (at[0] * size, at[1] * size), rng.uniform(0.06, 0.16) * size)
        lay(picture, mask, random_colour(rng))
        inked = np.argwhere(mask > 0.3)
        if len(inked):
            low, high = inked.min(0)[::-1], inked.max(0)[::-1]  # (x, y)
            boxes.append(_box((low + high) / 2, (high - low) / 2 + 1, seated=False))
    return Layers(np.clip(picture, 0, 1), np.clip(bare, 0, 1), boxes)
