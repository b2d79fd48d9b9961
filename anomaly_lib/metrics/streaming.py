"""Pixel metrics of any number of images in bounded memory, with a certified error bound."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from anomaly_lib.errors import UserError
from anomaly_lib.metrics.curve import NAN, ThresholdCurve
from anomaly_lib.metrics.inputs import FloatArray, first_non_finite, maps_and_masks
from anomaly_lib.metrics.pixel import STANDARD_LIMIT, aupro_name, curve_metrics
from anomaly_lib.metrics.regions import region_weights


class PixelHistogram:
    """Counts scores by the leading `bits` of their float32 representation: no score range has to be known beforehand.

    20 bits are bins of 0.05 % relative width and 24 MiB in all. Scores within one bin count as equal; `error_bounds`
    says, from the counts themselves, how far each metric can at most lie from its exact value.
    """

    def __init__(self, *, bits: int = 20) -> None:
        if not 10 <= bits <= 26:
            raise UserError(f"a pixel histogram takes 10 to 26 bits, got {bits}")
        self.bits = bits
        self.normal = np.zeros(1 << bits, np.int64)
        self.anomalous = np.zeros(1 << bits, np.int64)
        self.covered = np.zeros(1 << bits, np.float64)  # anomalous pixels, each weighted 1 / (size of its region)
        self.images = 0

    def update(self, maps: Any, masks: Any) -> None:
        """Add images: [N, H, W] maps and masks, or lists of [H, W] of any sizes."""
        map_list, mask_list = maps_and_masks(maps, masks)
        if (bad := first_non_finite(map_list)) is not None:
            raise UserError(f"anomaly map of sample {self.images + bad} has NaN or infinite values")
        size = 1 << self.bits
        for plane, mask in zip(map_list, mask_list, strict=True):
            keys = score_keys(plane, self.bits)
            everything = np.bincount(keys.reshape(-1), minlength=size)
            self.normal += everything
            if mask is not None and mask.any():
                marked = mask.astype(bool, copy=False)
                found = np.bincount(keys[marked], minlength=size)
                self.normal -= found
                self.anomalous += found
                self.covered += np.bincount(keys[marked], weights=region_weights(marked), minlength=size)
        self.images += len(map_list)

    def merge(self, other: "PixelHistogram") -> None:
        """Add the counts of another process or loader worker."""
        if other.bits != self.bits:
            raise UserError(f"histograms of {self.bits} and {other.bits} bits cannot be merged")
        self.normal += other.normal
        self.anomalous += other.anomalous
        self.covered += other.covered
        self.images += other.images

    def curve(self) -> ThresholdCurve:
        """The same curve as the exact metrics use, one row per bin that holds an anomalous pixel; thresholds are
        lower bin edges.
        """
        if not self.images:
            raise UserError("the pixel histogram is empty: call update(maps, masks) first")
        bins = np.flatnonzero(self.anomalous)[::-1]  # highest score first
        at_least = np.cumsum(self.normal[::-1])[::-1]
        covered = np.cumsum(self.covered[bins])
        return ThresholdCurve(
            thresholds=bin_edges(bins, self.bits),
            tp=np.cumsum(self.anomalous[bins]),
            fp_above=at_least[bins] - self.normal[bins],
            fp=at_least[bins],
            positives=int(self.anomalous.sum()),
            negatives=int(self.normal.sum()),
            overlap=covered / covered[-1] if bins.size else None,
        )

    def metrics(self, fpr_limits: Sequence[float] = (STANDARD_LIMIT,)) -> dict[str, float]:
        """The dictionary of `pixel_metrics`."""
        return curve_metrics(self.curve(), fpr_limits)

    def error_bounds(self, fpr_limits: Sequence[float] = (STANDARD_LIMIT,)) -> dict[str, float]:
        """For each metric the largest possible |histogram value - exact value|, whatever the order within the bins."""
        curve = self.curve()
        if not curve.positives:
            return dict.fromkeys(["auroc", "ap", "f1_max", *map(aupro_name, fpr_limits)], NAN)
        gained, shared = np.diff(curve.tp, prepend=0), curve.fp - curve.fp_above
        before = curve.tp - gained
        pairs = curve.positives * curve.negatives
        # Precision of the k-th positive of a bin: worst after all its negatives, best before any of them.
        worst = np.dot(gained, (before + 1) / (before + 1 + curve.fp)) / curve.positives
        best = np.dot(gained, curve.tp / (curve.tp + curve.fp_above)) / curve.positives
        ap, f1 = curve.average_precision(), curve.f1_max()[0]
        f1_best = (2 * curve.tp / (curve.tp + curve.fp_above + curve.positives)).max()
        bounds = {
            "auroc": float(np.dot(gained, shared) / 2 / pairs) if pairs else NAN,
            "ap": float(max(best - ap, ap - worst)),
            "f1_max": float(f1_best - f1),
        }
        return bounds | {aupro_name(limit): _aupro_bound(curve, limit) for limit in fpr_limits}


def score_keys(plane: FloatArray, bits: int) -> np.ndarray:
    """Bin of each score; the order of bins is the order of the scores (float32 bits, made monotone over the sign)."""
    raw = (plane.astype(np.float32) + np.float32(0)).view(
        np.uint32
    )  # adding 0 turns -0.0 into 0.0, which compares equal
    monotone = np.where(raw >> 31, ~raw, raw | np.uint32(1 << 31))
    return monotone >> np.uint32(32 - bits)


def bin_edges(bins: np.ndarray, bits: int) -> FloatArray:
    """Lowest score of each bin."""
    monotone = bins.astype(np.uint32) << np.uint32(32 - bits)
    return np.where(monotone >> 31, monotone & np.uint32((1 << 31) - 1), ~monotone).astype(np.uint32).view(np.float32)


def _aupro_bound(curve: ThresholdCurve, fpr_limit: float) -> float:
    """Inside a bin the true curve is any monotone path between its corners: half the box; where the limit cuts, all
    of it.
    """
    if curve.overlap is None or not curve.negatives:
        return NAN
    limit = fpr_limit * curve.negatives
    rise = np.diff(curve.overlap, prepend=0.0)
    width = np.clip(limit - curve.fp_above, 0, curve.fp - curve.fp_above)
    cut = curve.fp > limit
    return float(np.dot(rise * width, np.where(cut, 1.0, 0.5)) / limit)
