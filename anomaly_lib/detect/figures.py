"""The figures that a training run of an image detector leaves in its folder, drawn from its scores alone."""

from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from anomaly_lib import viz
from anomaly_lib.detect.decision import Decision
from anomaly_lib.detect.scores import Scores
from anomaly_lib.metrics.inputs import to_numpy
from anomaly_lib.viz.overlays import resize_mask

ANOMALOUS, NORMAL = 8, 4  # images shown of each kind


def draw_maps(folder: Path, scores: Scores, decision: Decision | None) -> list[Path]:
    """Write ``scores.png`` and ``maps.png`` (and the same as SVG) into `folder`; returns the paths.

    ``scores``: histogram of normal and anomalous images, with the decision's threshold. ``maps``: anomalous images from
    the most to the least suspicious and the most suspicious normal ones, the truth outlined, under each its heat map
    with the region outlined; left out for a detector without maps.
    """
    found, labels = to_numpy(scores.scores), to_numpy(scores.labels)
    threshold = None if decision is None else decision.threshold
    name = "threshold" if decision is None or not decision.oracle else "oracle threshold"
    histogram = viz.score_histogram(found, labels, threshold=threshold, threshold_name=name, title=scores.name)
    written = viz.save_figure(histogram, folder / "scores.png")
    if scores.maps is None or scores.image is None:
        return written
    return written + viz.save_figure(overlays(scores, scores.decided(decision).region), folder / "maps.png")


def overlays(scores: Scores, regions: Tensor | None) -> Any:
    """Anomalous images from the most to the least suspicious and the most suspicious normal ones, with their truth.

    `regions` [N, H, W] bool: what the detector calls anomalous, outlined on the heat maps.
    """
    assert scores.image is not None
    shown = images_to_show(to_numpy(scores.scores), to_numpy(scores.labels))
    return viz.overlay_grid(
        [scores.image(i) for i in shown],
        [to_numpy(scores.maps[i]) for i in shown],
        masks=None if scores.masks is None else [to_numpy(scores.masks[i]) for i in shown],
        regions=None if regions is None else [regions[i].numpy() for i in shown],
        titles=[_title(scores, i) for i in shown],
        value_range=viz.map_range(to_numpy(scores.maps)),
    )


def draw_every(folder: Path, scores: Scores) -> int:
    """Write one picture of every sample, (image, truth, heat map) side by side, as FOLDER/CLASS/NUMBER_KIND_NAME.png.

    All heat maps have one colour scale. Returns how many there are: none of a detector without maps.
    """
    if scores.maps is None or scores.image is None:
        return 0
    maps = to_numpy(scores.maps)
    value_range = viz.map_range(maps)
    for index, path in enumerate(scores.paths):
        image = scores.image(index)
        truth = np.zeros_like(image) if scores.masks is None else white(to_numpy(scores.masks[index]), image)
        panels = [image, truth, viz.overlay(image, maps[index], value_range)]
        kind = f"{scores.defects[index]}_" if scores.defects is not None and scores.defects[index] else ""
        name = f"{index:04d}_{kind}{Path(path.replace('#', '_')).stem}.png"
        viz.save_image(folder / scores.groups[index] / name, np.concatenate(panels, axis=1))
    return len(scores)


def white(mask: np.ndarray, image: np.ndarray) -> np.ndarray:
    """The mask as a picture of the image's size, white where it is true."""
    return np.repeat(resize_mask(mask, image.shape[:2])[..., None], 3, axis=2).astype(np.uint8) * 255


def images_to_show(scores: np.ndarray, labels: np.ndarray) -> list[int]:
    """Anomalous images evenly spaced from the highest to the lowest score, then the highest normal ones."""
    order = np.argsort(-scores, kind="stable")
    anomalous, normal = order[labels[order] > 0], order[labels[order] == 0]
    count = min(ANOMALOUS, len(anomalous))
    spaced = np.linspace(0, len(anomalous) - 1, count).round().astype(int) if count else np.array([], int)
    return [int(i) for i in (*anomalous[spaced], *normal[:NORMAL])]


def _title(scores: Scores, index: int) -> str:
    kind = scores.defects[index] if scores.defects is not None else ""
    group = scores.groups[index] if len(set(scores.groups)) > 1 else ""
    return " ".join(word for word in (group, kind, f"{float(scores.scores[index]):.3g}") if word)
