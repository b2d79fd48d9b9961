"""The errors worth looking at: the highest-scoring normal images and the lowest-scoring anomalies."""

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from anomaly_lib.viz.overlays import as_array, map_range, outline, overlay
from anomaly_lib.viz.style import styled

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def worst_cases(scores: Any, labels: Any, count: int) -> tuple[list[int], list[int]]:
    """Indices of the worst false alarms (normal, highest score first) and misses (anomalous, lowest first)."""
    scores, labels = as_array(scores).astype(float), as_array(labels)
    order = np.argsort(scores, kind="stable")
    misses = [int(i) for i in order if labels[i]][:count]
    alarms = [int(i) for i in order[::-1] if not labels[i]][:count]
    return alarms, misses


@styled
def failure_gallery(
    image: Callable[[int], np.ndarray],
    scores: Any,
    labels: Any,
    *,
    maps: Any = None,
    masks: Any = None,
    regions: Any = None,
    names: Sequence[str] | None = None,
    threshold: float | None = None,
    count: int = 5,
) -> "Figure":
    """Two bands: what looks most anomalous among the normal, what looks most normal among the anomalous."""
    from matplotlib.figure import Figure

    scores = as_array(scores)
    alarms, misses = worst_cases(scores, labels, count)
    value_range = map_range(maps) if maps is not None else (0.0, 1.0)
    bands = [("highest-scoring normal images", alarms), ("lowest-scoring anomalies", misses)]
    columns = max(len(alarms), len(misses), 1)
    rows = 1 if maps is None else 2
    figure = Figure(figsize=(1.9 * columns + 0.3, 2 * (2.0 * rows + 0.4)), layout="constrained")
    for band, (part, (title, indices)) in enumerate(zip(figure.subfigures(2, 1), bands, strict=True)):
        part.suptitle(title, x=0.01, ha="left", fontweight="bold")
        axes = part.subplots(rows, columns, squeeze=False)
        for axis in axes.ravel():
            axis.set_axis_off()
        for column, index in enumerate(indices):
            picture = image(index)
            truth = None if masks is None else masks[index]
            shown = picture if truth is None else outline(picture, truth)
            axes[0, column].imshow(shown)
            wrong = threshold is not None and (scores[index] >= threshold) == (band == 0)
            name = "" if names is None else f"{names[index]}\n"
            axes[0, column].set_title(f"{name}{scores[index]:.3f}{' WRONG' if wrong else ''}", fontsize=8)
            if maps is not None:
                region = None if regions is None else regions[index]
                axes[1, column].imshow(overlay(picture, maps[index], value_range, region=region))
    return figure
