"""Metrics of predicted classes and predicted quantities."""

from typing import Any

import numpy as np

from anomaly_lib.errors import UserError
from anomaly_lib.metrics.curve import NAN
from anomaly_lib.metrics.image import auroc
from anomaly_lib.metrics.inputs import Array, FloatArray, to_float, to_numpy


def accuracy(predicted: Any, target: Any) -> float:
    """Share of equal entries."""
    one, other = _pair(to_numpy(predicted), to_numpy(target))
    return float((one == other).mean())


def confusion_matrix(predicted: Any, target: Any, *, num_classes: int) -> Array:
    """[C, C] counts, row = target, column = prediction."""
    one, other = _pair(to_numpy(predicted).astype(np.int64), to_numpy(target).astype(np.int64))
    if min(one.min(), other.min()) < 0 or max(one.max(), other.max()) >= num_classes:
        raise UserError(f"class indices must lie in 0..{num_classes - 1}")
    return np.bincount(other * num_classes + one, minlength=num_classes**2).reshape(num_classes, num_classes)


def class_f1(predicted: Any, target: Any, *, num_classes: int) -> FloatArray:
    """[C] F1 of each class; nan for a class that is neither predicted nor present."""
    counts = confusion_matrix(predicted, target, num_classes=num_classes)
    hits, whole = np.diag(counts), counts.sum(0) + counts.sum(1)
    return np.divide(2 * hits, whole, out=np.full(num_classes, np.nan), where=whole > 0)


def macro_f1(predicted: Any, target: Any) -> float:
    """Unweighted mean F1 over the classes that occur in the predictions or the targets."""
    one, other = to_numpy(predicted), to_numpy(target)
    names, codes = np.unique(np.concatenate([one.reshape(-1), other.reshape(-1)]), return_inverse=True)
    return float(np.nanmean(class_f1(codes[: one.size], codes[one.size :], num_classes=max(names.size, 1))))


def mae(predicted: Any, target: Any) -> float:
    """Mean absolute error."""
    return float(np.abs(_difference(predicted, target)).mean())


def rmse(predicted: Any, target: Any) -> float:
    """Root of the mean squared error."""
    return float(np.sqrt(np.square(_difference(predicted, target)).mean()))


def r2(predicted: Any, target: Any) -> float:
    """1 - squared error / variance of the targets; nan for constant targets."""
    error = np.square(_difference(predicted, target)).sum()
    wanted = to_float(target).astype(np.float64).reshape(-1)
    spread = np.square(wanted - wanted.mean()).sum()
    return float(1 - error / spread) if spread > 0 else NAN


def regression_metrics(predicted: Any, target: Any) -> dict[str, float]:
    """`mae`, `rmse`, `r2`."""
    return {"mae": mae(predicted, target), "rmse": rmse(predicted, target), "r2": r2(predicted, target)}


def classification_metrics(probabilities: Any, target: Any, *, threshold: float = 0.5) -> dict[str, float]:
    """`accuracy`, `precision`, `recall` of ``probability > threshold``, and `auroc` (nan where a label is missing)."""
    probability, truth = _pair(to_float(probabilities), to_numpy(target) > 0.5)
    positive = probability > threshold
    hit = float((positive & truth).sum())
    return {
        "accuracy": float((positive == truth).mean()),
        "precision": hit / max(1.0, float(positive.sum())),
        "recall": hit / max(1.0, float(truth.sum())),
        "auroc": auroc(probability, truth.astype(np.int64)) if truth.any() and not truth.all() else NAN,
    }


def _difference(predicted: Any, target: Any) -> FloatArray:
    one, other = _pair(to_float(predicted).astype(np.float64), to_float(target).astype(np.float64))
    bad = np.flatnonzero(~(np.isfinite(one) & np.isfinite(other)))
    if bad.size:
        raise UserError(f"prediction or target of sample {bad[0]} is not finite")
    return one - other


def _pair(predicted: Array, target: Array) -> tuple[Array, Array]:
    one, other = predicted.reshape(-1), target.reshape(-1)
    if one.size == 0 or one.size != other.size:
        raise UserError(f"{one.size} predictions and {other.size} targets: equal, non-zero numbers are needed")
    return one, other
