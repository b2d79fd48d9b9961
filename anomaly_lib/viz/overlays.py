"""Heat maps over images, all on one stated colour scale, with the true defect outlined."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from PIL import Image

from anomaly_lib.viz.style import HEAT, REGION_RGB, TRUTH_RGB, heat_table, new_figure, styled

if TYPE_CHECKING:
    from matplotlib.figure import Figure

RANGED = 1 << 24


def as_array(values: Any) -> np.ndarray:
    return values.detach().cpu().numpy() if isinstance(values, torch.Tensor) else np.asarray(values)


def map_range(maps: Any, *, low: float = 0.5, high: float = 0.999) -> tuple[float, float]:
    """One colour range for many maps: from their median (background stays dark) to nearly their maximum.

    Of more than `RANGED` values every second, third ... is looked at.
    """
    values = [as_array(one).ravel() for one in maps]
    if not values:
        return 0.0, 1.0
    step = max(1, -(-sum(one.size for one in values) // RANGED))
    bottom, top = np.quantile(np.concatenate([one[::step] for one in values]), [low, high])
    return float(bottom), float(max(top, bottom + 1e-12))


def heat_colours(score_map: Any, value_range: tuple[float, float]) -> np.ndarray:
    """[H, W] scores to [H, W, 3] uint8; scores outside the range take its end colours."""
    low, high = value_range
    level = (as_array(score_map).astype(np.float64) - low) / max(high - low, 1e-12)
    return heat_table()[np.round(level.clip(0, 1) * 255).astype(np.uint8)]


def overlay(
    image: Any, score_map: Any, value_range: tuple[float, float], *, opacity: float = 0.55, region: Any = None
) -> np.ndarray:
    """The heat map laid over an image [H, W, 3] uint8, at the image's size: weak where the score is low.

    `region`: [H, W] bool, the part that the detector calls anomalous, outlined.
    """
    image = as_array(image)
    low, high = value_range
    scores = resize_map(as_array(score_map), image.shape[:2])
    level = ((scores - low) / max(high - low, 1e-12)).clip(0, 1)[..., None]
    alpha = opacity * (0.35 + 0.65 * level)
    mixed = image * (1 - alpha) + heat_colours(scores, value_range) * alpha
    drawn = np.round(mixed).astype(np.uint8)
    return drawn if region is None else outline(drawn, region, colour=REGION_RGB)


def resize_map(score_map: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """[h, w] to [H, W], bilinear."""
    if score_map.shape == size:
        return score_map
    picture = Image.fromarray(score_map.astype(np.float32)).resize(size[::-1], Image.Resampling.BILINEAR)
    return np.asarray(picture)


def outline(image: Any, mask: Any, *, width: int | None = None, colour: tuple[int, int, int] = TRUTH_RGB) -> np.ndarray:
    """A copy of the image with the border of the mask drawn just outside it, so that nothing is covered.

    `width` in pixels; None: thin beside the image's height.
    """
    drawn = np.array(as_array(image))
    width = max(1, len(drawn) // 120) if width is None else width
    mask = as_array(mask).astype(bool)
    if mask.shape != drawn.shape[:2]:
        mask = resize_mask(mask, drawn.shape[:2])
    drawn[_grow(mask, width) & ~mask] = colour
    return drawn


def resize_mask(mask: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    return np.asarray(Image.fromarray(mask.astype(np.uint8)).resize(size[::-1], Image.Resampling.NEAREST)) > 0


def _grow(mask: np.ndarray, steps: int) -> np.ndarray:
    for _ in range(steps):
        padded = np.pad(mask, 1)
        mask = mask | padded[:-2, 1:-1] | padded[2:, 1:-1] | padded[1:-1, :-2] | padded[1:-1, 2:]
    return mask


@styled
def overlay_grid(
    images: Sequence[Any],
    maps: Sequence[Any],
    *,
    masks: Sequence[Any] | None = None,
    regions: Sequence[Any] | None = None,
    titles: Sequence[str] | None = None,
    value_range: tuple[float, float] | None = None,
    caption: str = "anomaly score",
) -> "Figure":
    """Each image with its true defect outlined, below it the heat map with the region that is called anomalous.

    One colour scale, drawn as a bar.
    """
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import Normalize

    count = len(images)
    value_range = value_range or map_range(maps)
    columns = min(6, count)
    rows = -(-count // columns)
    pictures = [as_array(image) for image in images]
    tallest = max(picture.shape[0] / picture.shape[1] for picture in pictures)
    height = max(2.2, 3.6 * min(tallest, 2.0) + 0.3) * rows + 0.2  # flat images leave no empty rows
    figure, axes = new_figure(1.9 * columns + 0.9, height, rows=2 * rows, columns=columns)
    for axis in axes.ravel():
        axis.set_axis_off()
    for index in range(count):
        row, column = 2 * (index // columns), index % columns
        image = pictures[index]
        truth = None if masks is None else masks[index]
        axes[row, column].imshow(image if truth is None else outline(image, truth))
        axes[row + 1, column].imshow(
            overlay(image, maps[index], value_range, region=None if regions is None else regions[index])
        )
        if titles is not None:
            axes[row, column].set_title(titles[index], fontsize=9)
    bar = figure.colorbar(ScalarMappable(Normalize(*value_range), HEAT), ax=axes, shrink=0.6, aspect=30, extend="both")
    bar.set_label(f"{caption}\n(one scale for all images)")
    return figure


def save_image(path: Path | str, pixels: np.ndarray) -> Path:
    """[H, W, 3] uint8 as a PNG, whole or not at all."""
    from anomaly_lib.files import atomic_file

    with atomic_file(path) as stream:
        Image.fromarray(pixels).save(stream, format="PNG", compress_level=3)
    return Path(path)
