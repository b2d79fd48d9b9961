"""Confidence intervals of pixel metrics: whole images are resampled, for the pixels of one image are not independent.

Scoring every draw anew would order millions of pixels a thousand times. What a draw needs of an image is only how many
of its normal and anomalous pixels lie in each cell of the score axis, so these counts are made once; a draw is then a
weighted sum of rows, and all draws are one matrix product.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from anomaly_lib.metrics.bootstrap import Interval, check_bootstrap, draw_rows
from anomaly_lib.metrics.inputs import FloatArray, maps_and_masks
from anomaly_lib.metrics.pixel import STANDARD_LIMIT, aupro_name, pixel_metrics
from anomaly_lib.metrics.regions import region_weights

# N images, A of them with anomalous pixels, C cells of the score axis (highest scores first), R draws
_BLOCK = 16  # draws evaluated together: their curves stay in the processor's cache
_LARGEST = 1 << 25  # counts kept at most (256 MiB): with very many images the cells get coarser


@dataclass(frozen=True)
class _Counts:
    """What the metrics of any selection of images follow from."""

    normal: FloatArray  # [N, C] pixels
    anomalous: FloatArray  # [A, C]
    covered: FloatArray  # [A, C] anomalous pixels, each weighted 1 / (size of its region)
    marked: np.ndarray  # [A] which images these are


def pixel_bootstrap(
    maps: Any,
    masks: Any,
    *,
    fpr_limits: Sequence[float] = (STANDARD_LIMIT,),
    repeats: int = 1000,
    level: float = 0.95,
    seed: int = 0,
    cells: int = 8192,
) -> dict[str, Interval]:
    """Value and percentile interval of every figure of `pixel_metrics` (but the threshold), over resampled images.

    Images with and without anomalous pixels are resampled apart, so no draw loses a class. The values are exact. So are
    the ends when the anomalous pixels hold at most `cells` / 2 distinct scores; otherwise a cell holds several scores,
    which count as equal, and every draw is moved by what that changes on the images themselves.
    """
    check_bootstrap(level, repeats)
    exact = pixel_metrics(maps, masks, fpr_limits)
    exact.pop("f1_max_threshold")
    if np.isnan([exact["auroc"], exact["ap"]]).any():  # one kind of pixels only: nothing to resample
        return {name: Interval(value, np.nan, np.nan) for name, value in exact.items()}
    counts = _count(maps, masks, cells)
    images = len(counts.normal)
    groups = np.zeros(images, bool)
    groups[counts.marked] = True
    weights = np.stack([np.ones(images), *(np.bincount(r, minlength=images) for r in draw_rows(groups, repeats, seed))])
    found: dict[str, list[FloatArray]] = {name: [] for name in exact}
    for start in range(0, len(weights), _BLOCK):
        for name, values in _metrics(counts, weights[start : start + _BLOCK], fpr_limits).items():
            found[name].append(values)
    intervals = {}
    for name, value in exact.items():
        draws = np.concatenate(found[name])
        low, high = np.quantile(draws[1:] + (value - draws[0]), [(1 - level) / 2, (1 + level) / 2])
        intervals[name] = Interval(value, float(low), float(high))
    return intervals


def _count(maps: Any, masks: Any, cells: int) -> _Counts:
    map_list, mask_list = maps_and_masks(maps, masks)
    found = [None if mask is None or not mask.any() else mask.astype(bool, copy=False) for mask in mask_list]
    marked = [i for i, mask in enumerate(found) if mask is not None]
    dtype = np.result_type(np.float32, *{plane.dtype for plane in map_list})
    edges = np.unique(np.concatenate([map_list[i][found[i]] for i in marked]).astype(dtype))  # ascending
    most = max(2, min(cells, _LARGEST // len(map_list)) // 2)
    if len(edges) > most:
        edges = edges[np.linspace(0, len(edges) - 1, most).round().astype(int)]
    width = 2 * len(edges) + 1  # below, at the first edge, between it and the second, at the second ...
    normal = np.zeros((len(map_list), width))
    anomalous, covered = np.zeros((len(marked), width)), np.zeros((len(marked), width))
    for i, (plane, mask) in enumerate(zip(map_list, found, strict=True)):
        place = np.searchsorted(edges, plane.astype(dtype, copy=False))  # [H, W] edges below the score
        cell = 2 * place + (edges[np.minimum(place, len(edges) - 1)] == plane)
        normal[i] = np.bincount(cell.reshape(-1), minlength=width)
        if mask is not None:
            row = marked.index(i)
            anomalous[row] = np.bincount(cell[mask], minlength=width)
            covered[row] = np.bincount(cell[mask], weights=region_weights(mask), minlength=width)
            normal[i] -= anomalous[row]
    used = np.flatnonzero(normal.any(0) | anomalous.any(0))[::-1]  # [C] highest scores first
    return _Counts(normal[:, used], anomalous[:, used], covered[:, used], np.array(marked))


def _metrics(counts: _Counts, weights: FloatArray, fpr_limits: Sequence[float]) -> dict[str, FloatArray]:
    """The figures of `ThresholdCurve` for some draws, a row each; `weights` [R, N] = how often an image was drawn."""
    negatives = weights @ counts.normal  # [R, C] in each cell
    positives = weights[:, counts.marked] @ counts.anomalous
    gained = weights[:, counts.marked] @ counts.covered
    tp, fp, overlap = positives.cumsum(1), negatives.cumsum(1), gained.cumsum(1)
    all_positive, all_negative = tp[:, -1:], fp[:, -1:]
    above = fp - negatives  # [R, C] negatives in higher cells
    gained, overlap = gained / overlap[:, -1:], overlap / overlap[:, -1:]
    won = (positives * (all_negative - (fp + above) / 2)).sum(1)
    metrics = {
        "auroc": won / (all_positive * all_negative)[:, 0],
        "ap": (positives * (tp / np.maximum(tp + fp, 1))).sum(1) / all_positive[:, 0],
        "f1_max": (2 * tp / (tp + fp + all_positive)).max(1),
    }
    for limit in fpr_limits:
        reach = limit * all_negative
        width = np.clip(reach - above, 0, negatives)  # [R, C] how much of the cell lies left of the limit
        height = overlap - gained + gained * width / np.maximum(negatives, 1) / 2
        metrics[aupro_name(limit)] = (width * height).sum(1) / reach[:, 0]
    return metrics
