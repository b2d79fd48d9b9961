"""Regions: 8-connected components of a mask."""

import numpy as np

from anomaly_lib.metrics.inputs import Array, FloatArray


def label_regions(mask: Array) -> tuple[Array, int]:
    """([H, W] int labels with 0 = normal, number of regions); pixels that touch at a corner belong together."""
    import cv2

    labels = np.zeros(mask.shape, np.int32)
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    if not rows.size:
        return labels, 0
    box = (
        slice(rows[0], rows[-1] + 1),
        slice(columns[0], columns[-1] + 1),
    )  # labelling costs by area: only the marked box
    count, labels[box] = cv2.connectedComponents(np.ascontiguousarray(mask[box], dtype=np.uint8), connectivity=8)
    return labels, count - 1


def without_specks(mask: Array, least: float) -> Array:
    """The mask [H, W] without regions of fewer than `least` pixels."""
    labels, count = label_regions(mask)
    if not count or least <= 1:
        return mask
    large = np.bincount(labels.ravel(), minlength=count + 1) >= least
    large[0] = False
    kept: Array = large[labels]
    return kept


def region_weights(mask: Array) -> FloatArray:
    """[number of marked pixels] 1 / (size of the pixel's region), in the order of `scores[mask]`."""
    labels, _ = label_regions(mask)
    owner = labels[mask]
    return (1.0 / np.bincount(owner)[1:])[owner - 1]
