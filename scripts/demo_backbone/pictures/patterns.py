"""What is drawn flat on a staged thing: tones and marks of its body, parts on their seats, prints."""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
import torch

from anomaly_lib.data.demo.pen import Colour, Pen
from scripts.demo_backbone.pictures.outlines import Distance
from scripts.demo_backbone.pictures.textures import Generator

ATLAS = 1280  # pixels over [-1.5, 1.5], halved after drawing
SEATS = 6  # frame, frame and pads, pads, recess, a patch of glue, nothing
UNSEATED = 5


class Place(NamedTuple):
    """Where a part or a print is; `seated`: the place shows when it is gone."""

    box: tuple[float, float, float, float]  # u, v, half width, half height
    seated: bool
    part: bool


def few(rng: Generator, low: int, high: int) -> int:
    """Small counts more often than large ones."""
    return int(low + (high - low) * rng.random() ** 2)


class Pattern(Pen):
    """One design: first the body, then (what can be missing) parts and prints."""

    def __init__(self, rng: Generator, distance: Distance) -> None:
        self.rng, self.distance = rng, distance
        self.palette = [self._colour() for _ in range(4)]  # body, second tone, seats, ink
        super().__init__(ATLAS, self.palette[0])
        self.places: list[Place] = []
        self._mounts: list[tuple[list[list[float]], float, float]] = []

    def _colour(self) -> Colour:
        base, grey = self.rng.uniform(15, 235, 3), self.rng.random()
        return _rgb(base * (1 - grey) + base.mean() * grey)

    def _near(self, colour: Colour, reach: float) -> Colour:
        """Lighter or darker."""
        return _rgb(np.array(colour) + self.rng.uniform(reach / 3, reach) * self.rng.choice([-1, 1]))

    def _rounded(self, u: float, v: float, a: float, b: float, fill: Colour, radius: float) -> None:
        self.pen.rounded_rectangle(self.at(u - a, v - b, u + a, v + b), radius * self.size / 3, fill=fill)

    def _oval(self, u: float, v: float, a: float, b: float, fill: Colour) -> None:
        self.pen.ellipse(self.at(u - a, v - b, u + a, v + b), fill=fill)

    def _hoop(self, u: float, v: float, a: float, b: float, colour: Colour, width: int) -> None:
        self.pen.ellipse(self.at(u - a, v - b, u + a, v + b), outline=colour, width=width)

    def marks(self) -> None:
        """A second tone, then seams, tracks, holes, grooves, ribs, ticks."""
        rng = self.rng
        if rng.random() < 0.45:
            self._second_tone()
        kinds = (self._tracks, self._tracks, self._holes, self._grooves, self._ribs, self._ticks)
        for _ in range(int(rng.integers(0, 4))):
            kinds[int(rng.integers(len(kinds)))]()

    def _second_tone(self) -> None:
        rng = self.rng
        kind, tint, u = rng.integers(3), self.palette[1], rng.uniform(-0.25, 0.25)
        if kind == 0:  # one half, perhaps with a seam
            self.box(u + 1.5, 0, 1.5, 1.5, tint)
            if rng.random() < 0.6:
                seam = self._near(self.palette[0], 80)
                self.track(u, -1.5, u, 1.5, width=int(rng.integers(3, 12)), fill=seam)
        elif kind == 1:  # a band
            self.box(u, 0, rng.uniform(0.05, 0.25), 1.5, tint)
        else:  # the middle
            a = rng.uniform(0.15, 0.4)
            self._oval(0, 0, a, a * rng.choice([1.0, 0.7]), tint)

    def _tracks(self) -> None:
        """A bundle of lines that turn together."""
        rng, count = self.rng, few(self.rng, 1, 10)
        colour, width = self._near(self.palette[int(rng.integers(2))], 60), int(rng.integers(4, 12))
        points = np.cumsum(np.concatenate([rng.uniform(-0.7, 0.7, (1, 2)), rng.normal(0, 0.5, (3, 2))]), 0)
        if rng.random() < 0.7:
            points[1::2, 1] = points[0:-1:2, 1]
        step = rng.uniform(0.03, 0.07, 2) * rng.choice([-1, 1], 2)
        for i in range(count):
            self.pen.line(self.at(*(points + i * step).ravel().tolist()), fill=colour, width=width, joint="curve")

    def _holes(self) -> None:
        """A row of drilled holes with rims."""
        rng, count = self.rng, few(self.rng, 2, 14)
        start, step = rng.uniform(-0.7, 0.2, 2), np.array([rng.uniform(0.08, 0.2), 0.0])[:: int(rng.choice([-1, 1]))]
        radius, rim, dark = rng.uniform(0.012, 0.05), self._colour(), self._near((25, 25, 28), 20)
        for i in range(count):
            u, v = (start + i * step).tolist()
            self.disc(u, v, radius, rim)
            self.disc(u, v, radius * 0.5, dark)

    def _grooves(self) -> None:
        """Turned around the middle."""
        colour = self._near(self.palette[0], 60)
        for radius in self.rng.uniform(0.1, 0.7, int(self.rng.integers(1, 4))).tolist():
            self._hoop(0, 0, radius, radius, colour, int(self.rng.integers(4, 16)))

    def _ribs(self) -> None:
        pitch, colour = self.rng.uniform(0.06, 0.25), self._near(self.palette[0], 45)
        for u in np.arange(-1.2, 1.2, pitch).tolist():
            self.box(u, 0, pitch * 0.2, 1.5, colour)

    def _ticks(self) -> None:
        """A dial."""
        count, radius, colour = int(self.rng.integers(8, 30)), self.rng.uniform(0.3, 0.6), self._colour()
        for i in range(count):
            end = radius * math.cos(math.tau * i / count), radius * math.sin(math.tau * i / count)
            self.track(*end, *(0.86 * x for x in end), width=6, fill=colour)

    def seat_parts(self, kinds: int) -> None:
        """Choose places for rows of parts, none over another, and draw their seats."""
        rng = self.rng
        for _ in range(kinds):
            half = np.exp(rng.uniform(math.log(0.05), math.log(0.22))) * rng.uniform(0.5, 1, 2)
            count = 1 if half.max() > 0.14 else few(rng, 1, 7)
            pitch, upright = 2 * half * rng.uniform(1.2, 1.8), rng.random() < 0.5
            for _ in range(12):
                start = rng.uniform(-0.75, 0.6, 2)
                row = [(start + pitch * ((0, i) if upright else (i, 0))).tolist() for i in range(count)]
                if all(self._free(u, v, *half.tolist()) for u, v in row):
                    break
            else:
                continue
            seat, (a, b) = int(rng.integers(SEATS)), half.tolist()
            for u, v in row:
                self._seat(seat, u, v, a, b, self.palette[2])
                self.places.append(Place((u, v, a, b), seat != UNSEATED, part=True))
            self._mounts.append((row, a, b))

    def _free(self, u: float, v: float, a: float, b: float) -> bool:
        corners = torch.tensor([(u - a, v - b), (u + a, v - b), (u - a, v + b), (u + a, v + b)])
        if float(self.distance(*corners.unbind(1)).amax()) > -0.03:
            return False
        return all(abs(u - x) > a + c + 0.03 or abs(v - y) > b + d + 0.03 for (x, y, c, d), *_ in self.places)

    def _seat(self, seat: int, u: float, v: float, a: float, b: float, colour: Colour) -> None:
        if seat in (0, 1):
            self.frame(u, v, a + 0.012, b + 0.012, self._near(colour, 10))
        if seat in (1, 2):
            for side in (-1, 1):
                self.box(u + side * a * 0.75, v, a * 0.22, b * 0.85, colour)
        if seat == 3:
            self._rounded(u, v, a, b, self._near((35, 35, 36), 20), 0.02)
        if seat == 4:
            self._oval(u, v, a * 0.7, b * 0.7, colour)

    def place_parts(self) -> None:
        """Parts of a row look alike: a bar in two tones, a block with legs, a key, a button, a screw head."""
        for row, a, b in self._mounts:
            kind, top, side = int(self.rng.integers(5)), self._colour(), self._colour()
            detail = self.rng.uniform(0.3, 0.8)
            for u, v in row:
                self._part(kind, u, v, a, b, top, side, detail)

    def _part(
        self, kind: int, u: float, v: float, a: float, b: float, top: Colour, side: Colour, detail: float
    ) -> None:
        if kind == 0:
            self.box(u, v, a, b, side)
            self.box(u, v, a * detail, b, top)
        elif kind == 1:
            for i in range(6):
                self.box(u, v - b + (i + 0.5) * b / 3, a, b * 0.07, side)
            self.box(u, v, a * 0.8, b, top)
            self.disc(u - a * 0.5, v - b * 0.6, a * 0.12, self._near(top, 60))
        elif kind == 2:
            self._rounded(u, v, a, b, side, min(a, b) * 0.4)
            self._rounded(u, v, a * 0.8, b * 0.8, top, min(a, b) * 0.3)
        elif kind == 3:
            self._oval(u, v, a, b, side)
            self._oval(u, v, a * detail, b * detail, top)
        else:
            self._oval(u, v, a, b, top)
            self.box(u, v, a * 0.7, b * 0.12, side)
            self.box(u, v, a * 0.12, b * 0.7, side)
        if detail > 0.6 and min(a, b) > 0.06:
            self.track(u - a * 0.4, v + b * 0.2, u + a * 0.4, v + b * 0.2, width=8, fill=self._near(top, 70))

    def imprint(self) -> None:
        """A word of made-up characters or a bar code, where there is room."""
        rng, height = self.rng, self.rng.uniform(0.06, 0.14)
        glyphs = int(rng.integers(2, 7))
        a, b = glyphs * height * 0.45, height
        for _ in range(20):
            u, v = rng.uniform(-0.5, 0.5, 2).tolist()
            if self._free(u, v, a, b):
                break
        else:
            return
        self.places.append(Place((u, v, a + 0.02, b + 0.02), seated=False, part=False))
        width = int(rng.integers(6, 14))
        if rng.random() < 0.2:
            self._bars(u, v, a, b, glyphs * 4)
        else:
            self._word(u, v, a, b, glyphs, width)

    def _bars(self, u: float, v: float, a: float, b: float, count: int) -> None:
        for i in range(count):
            if self.rng.random() < 0.6:
                self.box(
                    u - a + 2 * a * (i + 0.5) / count,
                    v,
                    a / (count * 2) * self.rng.uniform(0.5, 1.6),
                    b,
                    self.palette[3],
                )

    def _word(self, u: float, v: float, a: float, b: float, glyphs: int, width: int) -> None:
        """Each character is a line through a few of six nodes, or a ring."""
        nodes = [(x, y) for x in (-0.7, 0.7) for y in (-0.9, 0, 0.9)]
        for i in range(glyphs):
            x = u - a + 2 * a * (i + 0.5) / glyphs
            if self.rng.random() < 0.2:
                self._hoop(x, v, a / glyphs * 0.75, b * 0.9, self.palette[3], width)
                continue
            order = self.rng.permutation(6)[: int(self.rng.integers(3, 6))]
            line = [value for k in order for value in (x + nodes[k][0] * a / glyphs, v + nodes[k][1] * b)]
            self.track(*line, width=width, fill=self.palette[3])


def _rgb(values: np.ndarray) -> Colour:
    red, green, blue = np.clip(values, 5, 250).astype(int).tolist()
    return red, green, blue
