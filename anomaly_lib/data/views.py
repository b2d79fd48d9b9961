"""Images seen again through mild, mirrored or turned views."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from anomaly_lib.data.base import Item, load_pixels

Pixels = np.ndarray


def _zoom(top: float, left: float) -> Callable[[Pixels], Pixels]:
    def view(pixels: Pixels) -> Pixels:
        height, width = pixels.shape[:2]
        h, w = round(0.92 * height), round(0.92 * width)
        y, x = round(top * (height - h)), round(left * (width - w))
        return np.ascontiguousarray(pixels[y : y + h, x : x + w])

    return view


def _light(factor: float) -> Callable[[Pixels], Pixels]:
    def view(pixels: Pixels) -> Pixels:
        top = 255 if pixels.dtype == np.uint8 else 1.0
        return np.clip(pixels.astype(np.float32) * factor, 0, top).astype(pixels.dtype)

    return view


def _turn(quarters: int) -> Callable[[Pixels], Pixels]:
    return lambda pixels: np.ascontiguousarray(np.rot90(pixels, quarters))


VIEWS: dict[str, dict[str, Callable[[Pixels], Pixels]]] = {
    "none": {},
    "flips": {
        "mirrored": lambda p: np.ascontiguousarray(p[:, ::-1]),
        "upside_down": lambda p: np.ascontiguousarray(p[::-1]),
    },
    "rotations": {f"turned{90 * n}": _turn(n) for n in (1, 2, 3)},
    # What a camera does between two shots of one part: stands in for a second support image when there is none.
    "mild": {"zoom_a": _zoom(0.1, 0.2), "zoom_b": _zoom(0.9, 0.7), "darker": _light(0.9), "brighter": _light(1.1)},
}
VIEWS["all"] = VIEWS["flips"] | VIEWS["rotations"]


def with_views(items: Sequence[Item], kind: str) -> list[Item]:
    """In-memory copies of `items` seen through every view of `kind`, item by item; [] for 'none'."""
    seen = []
    for item in items:
        for name, view in VIEWS[kind].items():
            path = Path(f"{item.path}#{name}")
            seen.append(replace(item, path=path, image=view(load_pixels(item)[0]), mask_path=None, mask=None))
    return seen
