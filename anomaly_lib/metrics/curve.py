"""One ordering of the scores, every ranking metric read from it.

AUROC, average precision, F1-max and the per-region overlap change only at scores that some positive holds; between
two such scores nothing but false positives arrives. So the curve keeps one row per distinct positive score with the
number of negatives above and at it: a few per cent of the pixels, exact whatever the rest looks like.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from anomaly_lib.metrics.inputs import FloatArray

Counts = NDArray[np.int64]
NAN = float("nan")


@dataclass(frozen=True)
class ThresholdCurve:
    """Counts at each distinct positive score, highest first. `predicted anomalous` means score >= threshold."""

    thresholds: FloatArray  # [D], descending
    tp: Counts  # [D] positives >= threshold
    fp_above: Counts  # [D] negatives > threshold
    fp: Counts  # [D] negatives >= threshold
    positives: int
    negatives: int
    overlap: FloatArray | None = None  # [D] mean share of each region found at >= threshold; None without regions

    def auroc(self) -> float:
        """P(positive > negative) + P(equal) / 2; nan unless both classes are present."""
        if not self.positives or not self.negatives:
            return NAN
        won = self.negatives - (self.fp + self.fp_above) / 2  # [D] negatives beaten, ties count half
        return float(np.dot(np.diff(self.tp, prepend=0), won) / self.positives / self.negatives)

    def average_precision(self) -> float:
        """Sum of precision x recall step over the distinct scores (no interpolation); nan without positives."""
        if not self.positives:
            return NAN
        return float(np.dot(np.diff(self.tp, prepend=0), self.tp / (self.tp + self.fp)) / self.positives)

    def f1_max(self) -> tuple[float, float]:
        """(best F1 over all thresholds, its threshold; the lowest one on ties); nan without positives."""
        if not self.positives:
            return NAN, NAN
        f1 = 2 * self.tp / (self.tp + self.fp + self.positives)
        best = f1.size - 1 - int(np.argmax(f1[::-1]))
        return float(f1[best]), float(self.thresholds[best])

    def youden(self) -> tuple[float, float]:
        """(max of true minus false positive rate, its threshold; the highest one on ties); nan unless both classes
        are present.
        """
        if not self.positives or not self.negatives:
            return NAN, NAN
        gain = self.tp / self.positives - self.fp / self.negatives
        best = int(np.argmax(gain))
        return float(gain[best]), float(self.thresholds[best])

    def aupro(self, fpr_limit: float) -> float:
        """Area under overlap(FPR) on [0, limit], divided by the limit; linear between points, cut exactly at the limit.

        nan when no region or no normal pixel exists.
        """
        if self.overlap is None or not self.overlap.size or not self.negatives:
            return NAN
        limit = fpr_limit * self.negatives
        before = np.concatenate([[0.0], self.overlap[:-1]])  # [D] overlap just above each threshold
        flat_from = np.concatenate([[0], self.fp[:-1]])
        # Between two positive scores only negatives arrive: a horizontal piece. At a positive score that negatives
        # share: a slope.
        flat = before * (np.minimum(self.fp_above, limit) - np.minimum(flat_from, limit))
        width = np.clip(limit - self.fp_above, 0, self.fp - self.fp_above)  # [D] of the slope, up to the limit
        tied = np.maximum(self.fp - self.fp_above, 1)
        slope = width * (before + (self.overlap - before) * width / tied / 2)
        tail = self.overlap[-1] * max(limit - float(self.fp[-1]), 0.0)
        return float((flat.sum() + slope.sum() + tail) / limit)


def build_curve(
    positive_scores: FloatArray,
    count_negatives: Callable[[FloatArray], tuple[Counts, Counts]],
    negatives: int,
    region_weights: FloatArray | None = None,
) -> ThresholdCurve:
    """Sort the positives, ask how many negatives lie at or above and above each distinct score.

    `count_negatives(ascending thresholds)` returns (number >= threshold, number > threshold).
    `region_weights` is 1 / (size of the region) for every positive.
    """
    order = np.argsort(positive_scores)
    ascending = positive_scores[order]
    is_last = np.append(ascending[1:] != ascending[:-1], True) if ascending.size else np.zeros(0, bool)
    ends = np.flatnonzero(is_last)  # [D] last index of each run of equal scores
    starts = np.concatenate([[0], ends[:-1] + 1]) if ends.size else ends
    fp, fp_above = count_negatives(ascending[ends])
    overlap = None
    if region_weights is not None and ends.size:
        covered = np.cumsum(region_weights[order][::-1], dtype=np.float64)  # from the highest score down
        overlap = covered[ascending.size - 1 - starts[::-1]] / covered[-1]
    return ThresholdCurve(
        thresholds=ascending[ends][::-1],
        tp=(ascending.size - starts)[::-1],
        fp_above=fp_above[::-1],
        fp=fp[::-1],
        positives=ascending.size,
        negatives=negatives,
        overlap=overlap,
    )


def count_in_sorted(ascending: FloatArray, thresholds: FloatArray) -> tuple[Counts, Counts]:
    """(number of values >= threshold, number > threshold) in a sorted array."""
    left = np.searchsorted(ascending, thresholds, side="left")
    right = left.copy()
    if ascending.size:
        # Ties with a normal pixel are rare in real maps, so the second search is made only where there is one.
        tied = np.flatnonzero(ascending[np.minimum(left, ascending.size - 1)] == thresholds)
        right[tied] = np.searchsorted(ascending, thresholds[tied], side="right")
    return ascending.size - left, ascending.size - right
