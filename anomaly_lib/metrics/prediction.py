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
    from sklearn import metrics

    return metrics.confusion_matrix(*_classes(predicted, target, num_classes), labels=range(num_classes))


def class_f1(predicted: Any, target: Any, *, num_classes: int) -> FloatArray:
    """[C] F1 of each class; nan for a class that is neither predicted nor present."""
    from sklearn.metrics import f1_score

    wanted, found = _classes(predicted, target, num_classes)
    return f1_score(wanted, found, labels=range(num_classes), average=None, zero_division=NAN)


def macro_f1(predicted: Any, target: Any) -> float:
    """Unweighted mean F1 over the classes that occur in the predictions or the targets."""
    from sklearn.metrics import f1_score

    found, wanted = _pair(to_numpy(predicted), to_numpy(target))
    return float(f1_score(wanted, found, average="macro"))


def _classes(predicted: Any, target: Any, num_classes: int) -> tuple[Array, Array]:
    """(targets, predictions) as class indices."""
    found, wanted = _pair(to_numpy(predicted).astype(np.int64), to_numpy(target).astype(np.int64))
    if min(found.min(), wanted.min()) < 0 or max(found.max(), wanted.max()) >= num_classes:
        raise UserError(f"class indices must lie in 0..{num_classes - 1}")
    return wanted, found


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
    from sklearn.metrics import precision_score, recall_score

    probability, truth = _pair(to_float(probabilities), to_numpy(target) > 0.5)
    positive = probability > threshold
    return {
        "accuracy": accuracy(positive, truth),
        "precision": float(precision_score(truth, positive, zero_division=0)),
        "recall": float(recall_score(truth, positive, zero_division=0)),
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
