"""Image-level metrics: one score and one label a sample, floats out. Higher score = more anomalous.

Undefined values are nan, never 0: AUROC with one class, AP and F1 without anomalies, precision without a prediction.
"""

from typing import Any

import numpy as np

from anomaly_lib.errors import UserError
from anomaly_lib.metrics.curve import NAN, ThresholdCurve, build_curve, count_in_sorted
from anomaly_lib.metrics.inputs import scores_and_labels, to_float, to_numpy


def score_curve(scores: Any, labels: Any) -> ThresholdCurve:
    """The ordering all metrics of this file are read from."""
    score, anomalous = scores_and_labels(scores, labels)
    normal = np.sort(score[~anomalous])
    return build_curve(score[anomalous], lambda at: count_in_sorted(normal, at), normal.size)


def auroc(scores: Any, labels: Any) -> float:
    """Area under the ROC curve (ties count half); nan unless both classes are present."""
    return score_curve(scores, labels).auroc()


def average_precision(scores: Any, labels: Any) -> float:
    """Step-wise area under precision-recall, as scikit-learn's; nan without anomalies."""
    return score_curve(scores, labels).average_precision()


def f1_max(scores: Any, labels: Any) -> float:
    """Best F1 over all thresholds (an oracle: it looks at the labels); nan without anomalies."""
    return score_curve(scores, labels).f1_max()[0]


def f1_max_threshold(scores: Any, labels: Any) -> float:
    """The threshold of `f1_max`: the lowest of the best ones; nan without anomalies."""
    return score_curve(scores, labels).f1_max()[1]


def youden(scores: Any, labels: Any) -> tuple[float, float]:
    """(Youden's J = max of TPR - FPR, its threshold; the highest on ties); nan unless both classes are present."""
    return score_curve(scores, labels).youden()


def threshold_metrics(scores: Any, labels: Any, threshold: float) -> dict[str, float]:
    """Accuracy, precision, recall, specificity, F1 and the four counts of `score >= threshold`."""
    score, anomalous = scores_and_labels(scores, labels)
    if not np.isfinite(threshold):
        raise UserError(f"the decision threshold must be finite, got {threshold}")
    flagged = score.astype(np.float64) >= threshold  # as `Decision.decide` compares
    tp, fp = int((flagged & anomalous).sum()), int((flagged & ~anomalous).sum())
    fn, tn = int(anomalous.sum()) - tp, int((~anomalous).sum()) - fp
    return {
        "accuracy": (tp + tn) / score.size,
        "precision": _ratio(tp, tp + fp),
        "recall": _ratio(tp, tp + fn),
        "specificity": _ratio(tn, tn + fp),
        "f1": _ratio(2 * tp, 2 * tp + fp + fn),
        "tp": float(tp),
        "fp": float(fp),
        "fn": float(fn),
        "tn": float(tn),
    }


def image_metrics(scores: Any, labels: Any, *, threshold: float | None = None) -> dict[str, float]:
    """`auroc`, `ap`, `f1_max`, `f1_max_threshold` (oracle); with `threshold` also `threshold_metrics` at it."""
    curve = score_curve(scores, labels)
    best, at = curve.f1_max()
    metrics = {"auroc": curve.auroc(), "ap": curve.average_precision(), "f1_max": best, "f1_max_threshold": at}
    return metrics if threshold is None else metrics | threshold_metrics(scores, labels, threshold)


def expected_calibration_error(probabilities: Any, labels: Any, *, bins: int = 15) -> float:
    """ECE = sum over equal-width bins of (share of samples) x |accuracy - mean confidence|.

    [N] probabilities: calibration of P(anomalous) against 0/1 labels. [N, C]: of the top class against class indices.
    """
    probability, label = to_float(probabilities), to_numpy(labels).reshape(-1)
    if probability.size == 0 or len(probability) != label.size:
        raise UserError(f"calibration needs one label per probability; got {len(probability)} and {label.size}")
    if not (np.isfinite(probability).all() and probability.min() >= 0 and probability.max() <= 1):
        raise UserError("calibration error needs probabilities within [0, 1]; apply a sigmoid or softmax first")
    if probability.ndim == 2:
        confidence, correct = probability.max(axis=1), probability.argmax(axis=1) == label
    else:
        confidence, correct = probability, label.astype(bool)
    index = np.minimum((confidence * bins).astype(np.int64), bins - 1)
    gap = np.bincount(index, weights=correct - confidence.astype(np.float64), minlength=bins)
    return float(np.abs(gap).sum() / label.size)


def _ratio(part: int, whole: int) -> float:
    return part / whole if whole else NAN
