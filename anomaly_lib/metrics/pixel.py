"""Pixel-level metrics of score maps [N, H, W] against masks: AUROC, AP, F1-max, AUPRO from one ordering.

How it stays fast and small: only the anomalous pixels (a few per cent) are kept and ordered with their region; normal
pixels are sorted in place, chunk by chunk on a few threads, counted against them and thrown away. Exact, ties
included.
Memory: the anomalous pixels plus one chunk a thread. `anomaly_lib.metrics.PixelHistogram` is the variant for endless
streams.
"""

import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np

from anomaly_lib.errors import UserError
from anomaly_lib.metrics.curve import Counts, ThresholdCurve, build_curve, count_in_sorted
from anomaly_lib.metrics.inputs import Array, FloatArray, first_non_finite, maps_and_masks
from anomaly_lib.metrics.regions import region_weights

CHUNK_PIXELS = 1 << 23
STANDARD_LIMIT = 0.3


def pixel_curve(
    maps: Any, masks: Any, *, regions: bool = True, chunk_pixels: int = CHUNK_PIXELS, threads: int = 2
) -> ThresholdCurve:
    """The ordering all pixel metrics are read from; `regions=False` skips the component labelling that only AUPRO
    needs.
    """
    map_list, mask_list = maps_and_masks(maps, masks)
    dtype = np.result_type(np.float32, *{one.dtype for one in map_list})
    marked = [None if mask is None or not mask.any() else mask.astype(bool, copy=False) for mask in mask_list]
    scores = [plane[mask] for plane, mask in zip(map_list, marked, strict=True) if mask is not None]
    weights = [region_weights(mask) for mask in marked if mask is not None] if regions else []
    positives = np.concatenate([np.zeros(0, dtype), *scores]).astype(dtype, copy=False)
    if not np.isfinite(positives).all():
        _refuse_non_finite(map_list)
    chunks = _chunks([plane.size for plane in map_list], max(chunk_pixels, 2 * positives.size), threads)

    def count_chunk(chunk: range, thresholds: FloatArray) -> tuple[Counts, Counts]:
        return count_in_sorted(_sorted_normal(map_list, marked, chunk, dtype), thresholds)

    def count(thresholds: FloatArray) -> tuple[Counts, Counts]:
        at_least, above = np.zeros(thresholds.size, np.int64), np.zeros(thresholds.size, np.int64)
        with ThreadPoolExecutor(max(1, min(threads, os.cpu_count() or 1, len(chunks)))) as pool:
            for chunk_at_least, chunk_above in pool.map(lambda chunk: count_chunk(chunk, thresholds), chunks):
                at_least += chunk_at_least
                above += chunk_above
        return at_least, above

    negatives = sum(plane.size for plane in map_list) - positives.size
    return build_curve(positives, count, negatives, np.concatenate(weights) if weights else None)


def pixel_auroc(maps: Any, masks: Any) -> float:
    """Area under the ROC curve over all pixels; nan unless anomalous and normal pixels exist."""
    return pixel_curve(maps, masks, regions=False).auroc()


def pixel_average_precision(maps: Any, masks: Any) -> float:
    """Average precision over all pixels; nan without anomalous pixels."""
    return pixel_curve(maps, masks, regions=False).average_precision()


def pixel_f1_max(maps: Any, masks: Any) -> float:
    """Best F1 over all thresholds and pixels; nan without anomalous pixels."""
    return pixel_curve(maps, masks, regions=False).f1_max()[0]


def aupro(maps: Any, masks: Any, fpr_limit: float = STANDARD_LIMIT) -> float:
    """Area under the per-region overlap up to `fpr_limit`, divided by it: exact over all distinct scores.

    Regions are the 8-connected components of each mask; FPR counts the normal pixels of all images, defect-free ones
    included.
    """
    _check_limits((fpr_limit,))
    return pixel_curve(maps, masks).aupro(fpr_limit)


def pixel_metrics(maps: Any, masks: Any, fpr_limits: Sequence[float] = (STANDARD_LIMIT,)) -> dict[str, float]:
    """`auroc`, `ap`, `f1_max`, `f1_max_threshold` and one AUPRO a limit: `aupro` is the standard 0.3, others
    `aupro_0.05`...
    """
    _check_limits(fpr_limits)
    return curve_metrics(pixel_curve(maps, masks, regions=bool(fpr_limits)), fpr_limits)


def curve_metrics(curve: ThresholdCurve, fpr_limits: Sequence[float]) -> dict[str, float]:
    """The dictionary of `pixel_metrics`, read from a curve."""
    best, at = curve.f1_max()
    metrics = {"auroc": curve.auroc(), "ap": curve.average_precision(), "f1_max": best, "f1_max_threshold": at}
    return metrics | {aupro_name(limit): curve.aupro(limit) for limit in fpr_limits}


def aupro_name(limit: float) -> str:
    return "aupro" if limit == STANDARD_LIMIT else f"aupro_{limit:g}"


def per_image_iou(maps: Any, masks: Any, threshold: float) -> FloatArray:
    """[N] intersection over union of `map >= threshold` and the mask; nan where both are empty."""
    map_list, mask_list = maps_and_masks(maps, masks)
    if (index := first_non_finite(map_list)) is not None:
        raise UserError(f"anomaly map of sample {index} has NaN or infinite values")
    values = np.full(len(map_list), np.nan)
    for index, (plane, mask) in enumerate(zip(map_list, mask_list, strict=True)):
        flagged, marked = plane >= threshold, np.zeros(plane.shape, bool) if mask is None else mask != 0
        union = np.count_nonzero(flagged | marked)
        if union:
            values[index] = np.count_nonzero(flagged & marked) / union
    return values


def _sorted_normal(maps: Sequence[FloatArray], marked: Sequence[Array | None], chunk: range, dtype: Any) -> FloatArray:
    """The normal pixels of some images in ascending order, in one fresh buffer."""
    buffer = np.empty(sum(maps[i].size for i in chunk), dtype)
    start = hidden = 0
    for i in chunk:
        part = buffer[start : start + maps[i].size]
        part[:] = maps[i].reshape(-1)
        start += part.size
        if (mask := marked[i]) is not None:
            # Sending anomalous pixels to -inf and cutting them off after the sort is cheaper than gathering the others.
            np.putmask(part, mask.reshape(-1), -np.inf)
            hidden += int(np.count_nonzero(mask))
    buffer.sort()
    normal = buffer[hidden:]
    if normal.size and not (np.isfinite(normal[0]) and np.isfinite(normal[-1])):  # NaN sorts last: two looks suffice
        _refuse_non_finite(maps)
    return normal


def _chunks(sizes: Sequence[int], limit: int, threads: int) -> list[range]:
    """Runs of consecutive images of about equal work, of at most `limit` pixels each (or one image)."""
    rounds = -(-sum(sizes) // (limit * threads))
    share = min(limit, -(-sum(sizes) // (rounds * threads)))
    chunks, first, filled = [], 0, 0
    for index, size in enumerate(sizes):
        if filled and filled + size > share:
            chunks.append(range(first, index))
            first, filled = index, 0
        filled += size
    return [*chunks, range(first, len(sizes))]


def _refuse_non_finite(maps: Sequence[FloatArray]) -> None:
    index = first_non_finite(maps)
    raise UserError(
        f"anomaly map of sample {index} has NaN or infinite values; mend the detector's output before scoring"
    )


def _check_limits(limits: Sequence[float]) -> None:
    for limit in limits:
        if not 0 < limit <= 1:
            raise UserError(f"an AUPRO limit must lie in (0, 1], got {limit}")
