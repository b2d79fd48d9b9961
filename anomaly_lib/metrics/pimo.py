"""AUPIMO: per-image overlap integrated over log FPR, the FPR taken from normal images only (Bertoldo et al. 2024)."""

from typing import Any

import numpy as np

from anomaly_lib.errors import UserError
from anomaly_lib.metrics.inputs import FloatArray, first_non_finite, maps_and_masks


def aupimo(
    maps: Any,
    masks: Any,
    *,
    fpr_bounds: tuple[float, float] = (1e-5, 1e-4),
    num_thresholds: int = 300_000,
    min_points: int = 31,
) -> FloatArray:
    """[N] area under recall(log shared FPR) between the bounds, divided by its log width; nan for normal images.

    Shared FPR = mean over normal images of their false positive rate, on `num_thresholds` linear steps between the
    least and the greatest normal score. Fewer than `min_points` usable steps within the bounds is an error, as in the
    publication.
    """
    low, high = fpr_bounds
    if not 0 < low < high <= 1:
        raise UserError(f"AUPIMO bounds must satisfy 0 < low < high <= 1, got {fpr_bounds}")
    map_list, mask_list = maps_and_masks(maps, masks)
    if (bad := first_non_finite(map_list)) is not None:
        raise UserError(f"anomaly map of sample {bad} has NaN or infinite values")
    anomalous = [mask is not None and bool(mask.any()) for mask in mask_list]
    normal = [np.sort(plane, axis=None) for plane, marked in zip(map_list, anomalous, strict=True) if not marked]
    if not normal:
        raise UserError("AUPIMO needs at least one normal image: its false positive rate is measured there")
    bottom, top = min(one[0] for one in normal), max(one[-1] for one in normal)
    thresholds = np.linspace(bottom, top, num_thresholds).astype(normal[0].dtype)
    shared_fpr = np.mean([_share_at_least(one, thresholds) for one in normal], axis=0)  # [K], falling

    # The publication takes the thresholds whose FPR is nearest to each bound, without interpolation.
    first, last = int(np.argmin(np.abs(shared_fpr - high))), int(np.argmin(np.abs(shared_fpr - low)))
    window = slice(first, last + 1)
    usable = shared_fpr[window] > 0
    if usable.sum() < min_points:
        raise UserError(
            f"AUPIMO found {int(usable.sum())} thresholds with an FPR near {fpr_bounds}, {min_points} are needed: "
            "use more normal images, larger maps or wider fpr_bounds"
        )
    log_fpr = np.log(shared_fpr[window][usable])
    values = np.full(len(map_list), np.nan)
    for index, (plane, mask) in enumerate(zip(map_list, mask_list, strict=True)):
        if anomalous[index] and mask is not None:
            recall = _share_at_least(np.sort(plane[mask.astype(bool)]), thresholds[window][usable])
            area = np.dot(-np.diff(log_fpr), recall[1:] + recall[:-1]) / 2 / np.log(high / low)
            values[index] = np.clip(area, 0.0, 1.0)
    return values


def _share_at_least(ascending: FloatArray, thresholds: FloatArray) -> FloatArray:
    return 1.0 - np.searchsorted(ascending, thresholds, side="left") / ascending.size
