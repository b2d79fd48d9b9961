"""Damage of staged products: the demo data's own kinds of defect with parameters drawn at random."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from torch import Tensor

from anomaly_lib.data.demo.defects import (
    Bend,
    Defect,
    Paint,
    Painted,
    blob,
    dent,
    line,
    shift_part,
    squeeze,
    take_away,
    warp,
)
from anomaly_lib.data.demo.draw import Draws, Scene
from anomaly_lib.data.demo.surfaces import Surface
from scripts.demo_backbone.pictures.textures import Generator
from scripts.demo_backbone.pictures.wares import Ware

DARK = [[0.07, 0.07, 0.07], [0.16, 0.12, 0.10]]
RUST = np.array([0.37, 0.21, 0.12])
# What the seen demo categories' own defects are called in captions.
WORDS = {
    "cut": "scratch", "hole": "hole", "loose_thread": "thread", "missing_thread": "missing part", "stain": "stain",
    "distorted": "bend", "corrosion": "rust", "dent": "dent", "pit": "pits", "scratch": "scratch",
    "wrong_finish": "rough patch", "bent": "bend", "broken": "missing part", "foreign_fibre": "thread",
    "glue": "contamination", "rust": "rust", "soot": "burn",
}  # fmt: skip


class Damage(NamedTuple):
    defect: Defect
    word: str  # one of DEFECT_NAMES
    compared: bool = False  # only other pieces tell


def random_damage(rng: Generator, ware: Ware | None) -> Damage:
    """Of a thing, or (None) of a bare surface."""
    if ware is not None and ware.places and rng.random() < 0.3:
        return _of_a_part(rng, ware)
    kind = int(rng.integers(len(KINDS) + (1 if ware is None else 2)))  # beyond the paints: bends
    rough, soft = rng.uniform(0.3, 2.2), rng.uniform(0.15, 0.8)
    if kind > len(KINDS) and ware is not None:
        pinch = squeeze(outline=ware.distance, half_length=0.5, push=rng.uniform(0.25, 0.5))
        return Damage(Defect(bend=pinch if rng.random() < 0.5 else _turned(pinch)), "bend")
    if kind == len(KINDS):
        return Damage(Defect(bend=warp(radius=_about(rng, 0.14, 0.32), push=rng.uniform(0.14, 0.25))), "bend")
    word, make = KINDS[kind]
    return Damage(Defect(make(rng, rough, soft)), word)


def _of_a_part(rng: Generator, ware: Ware) -> Damage:
    place = ware.places[int(rng.integers(len(ware.places)))]

    def there(paint: Paint) -> Paint:
        def painted(draws: Draws, scene: Scene, whole: Surface, strength: Tensor) -> Painted:
            return paint(draws, scene, Surface(whole.colour, whole.beneath, whole.inside, (place.box,)), strength)

        return painted

    if place.part and rng.random() < 0.5:
        return Damage(Defect(there(shift_part)), "misplaced piece")
    return Damage(Defect(there(take_away())), "missing part" if place.part else "wear", not place.seated)


def _turned(bend: Bend) -> Bend:
    """The same along the other axis."""

    def other(draws: Draws, scene: Scene, strength: Tensor) -> tuple[Scene, Tensor]:
        moved, touched = bend(draws, Scene(scene.v, scene.u, scene.pixel), strength)
        return Scene(moved.v, moved.u, moved.pixel), touched

    return other


def _colours(rng: Generator) -> list[list[float]]:
    """One: dark, light or any."""
    kind = rng.random()
    if kind < 0.3:
        return [[float(rng.uniform(0.03, 0.25))] * 3]
    if kind < 0.6:
        return [[float(rng.uniform(0.65, 0.95))] * 3]
    return [rng.uniform(0.05, 0.95, 3).tolist()]


def _about(rng: Generator, low: float, high: float) -> tuple[float, float]:
    """A size, small ones more often than large ones, as the range the defects ask for."""
    size = float(np.exp(rng.uniform(np.log(low), np.log(high))))
    return size, size


def _scratch(rng: Generator, *_: float) -> Paint:
    return line(colours=_colours(rng), width=_about(rng, 0.007, 0.018), length=_about(rng, 0.2, 0.9), bow=0.2)


def _crack(rng: Generator, *_: float) -> Paint:
    width, length = _about(rng, 0.008, 0.018), _about(rng, 0.2, 0.7)
    return line(colours=DARK, width=width, length=length, bow=0.1, jagged=rng.uniform(0.01, 0.05))


def _thread(rng: Generator, *_: float) -> Paint:
    width, length = (0.008, 0.015), (0.3, 0.9)
    return line(colours=_colours(rng), width=_about(rng, *width), length=_about(rng, *length), bow=0.6, lift=0.015)


def _stain(rng: Generator, rough: float, soft: float) -> Paint:
    tint = [rng.uniform(0.3, 0.75, 3).tolist()]
    return blob(colours=tint, radius=_about(rng, 0.07, 0.28), rough=rough, soft=soft, multiply=True)


def _contamination(rng: Generator, rough: float, _: float) -> Paint:
    return blob(colours=_colours(rng), radius=_about(rng, 0.06, 0.22), rough=rough, opacity=rng.uniform(0.5, 0.9))


def _rust(rng: Generator, *_: float) -> Paint:
    colours = [(RUST * rng.uniform(0.7, 1.5)).tolist()]
    return blob(colours=colours, radius=_about(rng, 0.06, 0.2), rough=2.0, soft=0.35, opacity=0.85)


def _burn(rng: Generator, *_: float) -> Paint:
    colours = [[rng.uniform(0.2, 0.45)] * 3]
    return blob(colours=colours, radius=_about(rng, 0.08, 0.26), soft=0.8, multiply=True)


def _spot(rng: Generator, *_: float) -> Paint:
    return blob(colours=_colours(rng), radius=_about(rng, 0.03, 0.09), rough=0.9, soft=0.3, opacity=0.9)


def _dent(rng: Generator, *_: float) -> Paint:
    return dent(radius=_about(rng, 0.07, 0.2), depth=rng.uniform(0.8, 1.4))


KINDS: tuple[tuple[str, Callable[[Generator, float, float], Paint]], ...] = (
    ("scratch", _scratch),
    ("scratch", _scratch),
    ("crack", _crack),
    ("thread", _thread),
    ("stain", _stain),
    ("contamination", _contamination),
    ("rust", _rust),
    ("burn", _burn),
    ("spot", _spot),
    ("dent", _dent),
)
