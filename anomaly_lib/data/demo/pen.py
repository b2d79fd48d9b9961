"""A pen for flat patterns in canonical coordinates, and the look-up table its drawing becomes."""

import numpy as np
import torch
from PIL import Image, ImageDraw
from torch import Tensor
from torch.nn import functional as F

Colour = tuple[int, int, int]


class Pen:
    """Draws in canonical coordinates on a picture that spans [-1.5, 1.5]."""

    def __init__(self, size: int, background: Colour) -> None:
        self.size = size
        self.image = Image.new("RGB", (size, size), background)
        self.pen = ImageDraw.Draw(self.image)

    def at(self, *values: float) -> list[float]:
        return [(x / 3 + 0.5) * self.size for x in values]

    def track(self, *points: float, width: int, fill: Colour) -> None:
        self.pen.line(self.at(*points), fill=fill, width=width)

    def box(self, u: float, v: float, half_u: float, half_v: float, fill: Colour) -> None:
        self.pen.rectangle(self.at(u - half_u, v - half_v, u + half_u, v + half_v), fill=fill)

    def frame(self, u: float, v: float, half_u: float, half_v: float, fill: Colour) -> None:
        self.pen.rectangle(self.at(u - half_u, v - half_v, u + half_u, v + half_v), outline=fill, width=4)

    def disc(self, u: float, v: float, radius: float, fill: Colour) -> None:
        self.pen.ellipse(self.at(u - radius, v - radius, u + radius, v + radius), fill=fill)

    def wedge(self, u: float, v: float, radius: float, fill: Colour) -> None:
        self.pen.pieslice(self.at(u - radius, v - radius, u + radius, v + radius), 60, 120, fill=fill)


def as_field(image: Image.Image) -> Tensor:
    pixels = torch.from_numpy(np.asarray(image, dtype=np.float32) / 255).permute(2, 0, 1)[None]
    return F.avg_pool2d(pixels, 2)  # [1, 3, H / 2, W / 2]
