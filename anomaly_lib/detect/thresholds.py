"""Where the decision threshold comes from, and whether that is fair."""

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from anomaly_lib.detect.contract import EvaluateArgs, Evaluation
from anomaly_lib.errors import UserError
from anomaly_lib.metrics import f1_max_threshold, youden
from anomaly_lib.metrics.inputs import to_numpy


@dataclass(frozen=True)
class Threshold:
    value: float
    source: str  # printed beside every figure that depends on it
    oracle: bool = False  # chosen with the labels of the scored split itself

    def describe(self) -> str:
        return f"threshold {self.value:.4g} ({self.source}{'; oracle' if self.oracle else ''})"


def choose_threshold(evaluation: Evaluation, args: EvaluateArgs) -> Threshold | None:
    """The threshold of `args.policy`; None when the system stored none."""
    if args.policy == "stored":
        stored = evaluation.threshold
        return None if stored is None or math.isnan(stored) else Threshold(float(stored), "stored in training")
    if args.policy == "support-quantile":
        normal = _normal_scores(evaluation)
        if normal is None:
            raise UserError(
                f"--policy support-quantile: {evaluation.system} has no scores of normal training data; "
                "use --policy f1, youden or false-alarms"
            )
        quantile = float(np.quantile(normal, args.support_quantile))
        return Threshold(quantile, f"{args.support_quantile:g} quantile of {normal.size} normal scores")
    if args.policy == "false-alarms":
        normal = _normal_scores(evaluation)
        oracle = normal is None
        if normal is None:
            scores, labels = to_numpy(evaluation.scores), to_numpy(evaluation.labels)
            normal = scores[labels == 0]
        source = f"at most {args.false_alarms:.1%} false alarms on {normal.size} normal scores"
        return Threshold(false_alarm_threshold(normal, args.false_alarms), source, oracle)
    scores, labels = evaluation.validation or (evaluation.scores, evaluation.labels)
    where = "validation" if evaluation.validation is not None else "the scored split"
    value = f1_max_threshold(scores, labels) if args.policy == "f1" else youden(scores, labels)[1]
    if math.isnan(value):
        raise UserError(f"--policy {args.policy}: {where} has images of one label only; use --policy stored")
    return Threshold(value, f"best {args.policy} on {where}", oracle=evaluation.validation is None)


def false_alarm_threshold(normal: Any, rate: float) -> float:
    """The lowest threshold at which no more than `rate` of the normal scores lie at or above it."""
    descending = np.sort(to_numpy(normal).astype(np.float64))[::-1]
    if not descending.size:
        raise UserError("--policy false-alarms needs normal images, but there are none")
    allowed = int(rate * descending.size + 1e-9)
    if allowed >= descending.size:
        return float(descending[-1])
    return float(np.nextafter(descending[allowed], np.inf))


def _normal_scores(evaluation: Evaluation) -> np.ndarray | None:
    if evaluation.normal_scores is not None and len(evaluation.normal_scores):
        return to_numpy(evaluation.normal_scores)
    if evaluation.validation is not None:
        scores, labels = (to_numpy(column) for column in evaluation.validation)
        if (labels == 0).any():
            return np.asarray(scores[labels == 0])
    return None
