"""Where the decision of an evaluation comes from, and whether that is fair."""

import math
from dataclasses import replace

import numpy as np
import torch

from anomaly_lib.detect.decision import Decision, at_asked_rate
from anomaly_lib.detect.scores import Scores
from anomaly_lib.errors import UserError
from anomaly_lib.metrics import f1_max_threshold, youden
from anomaly_lib.metrics.inputs import to_numpy

USUAL_RATE = 0.05
BEST = {"f1": f1_max_threshold, "youden": lambda scores, labels: youden(scores, labels)[1]}


def choose_decision(
    scores: Scores, stored: Decision | None, policy: str, *, false_alarms: float | None, support_quantile: float
) -> Decision | None:
    """The decision of `policy`; None when the detector stored none.

    `false_alarms`: the rate to promise, None: as stored (policy "stored") or 5% (policy "false-alarms", which takes
    scores of normal data wherever there are some).
    """
    if policy == "stored":
        return at_asked_rate(stored, false_alarms)
    normal, oracle = _normal_scores(scores, stored)
    if policy == "support-quantile":
        if normal is None or oracle:
            raise UserError(
                f"policy=support-quantile: {scores.system} has no scores of normal training data; "
                "use policy=f1, youden or false-alarms"
            )
        quantile = float(np.quantile(normal, support_quantile))
        source = f"{support_quantile:g} quantile of {normal.size} normal scores"
        scored = stored if stored is not None and stored.normal else Decision(quantile, source, tuple(np.sort(normal)))
        return _moved(scored, quantile, source)
    if policy == "false-alarms":
        rate = USUAL_RATE if false_alarms is None else false_alarms
        if stored is not None and stored.has_p_values:
            return stored.at_rate(rate)
        normal, oracle = _normal_scores(scores, None)  # stored scores of stand-ins promise nothing
        if not oracle:
            return Decision.promising(normal, rate, of="scores of normal validation samples")
        source = f"at most {rate:.1%} false alarms on {normal.size} normal scores"
        return Decision(false_alarm_threshold(normal, rate), source, oracle=True)
    values, labels = scores.validation or (scores.scores, scores.labels)
    where = "the scored split" if scores.validation is None else "validation"
    value = BEST[policy](values, labels)
    if math.isnan(value):
        raise UserError(f"policy={policy}: {where} has images of one label only; use policy=stored")
    oracle = scores.validation is None
    return _moved(stored, value, f"best {policy} on {where}", oracle=oracle)


def _moved(stored: Decision | None, threshold: float, source: str, *, oracle: bool = False) -> Decision:
    """Another threshold for the score, which promises nothing; p-values and region stay as stored."""
    if stored is None:
        return Decision(threshold, source, oracle=oracle)
    return replace(stored, threshold=threshold, source=source, oracle=oracle, false_alarms=None)


def false_alarm_threshold(normal: "np.ndarray | torch.Tensor", rate: float) -> float:
    """The lowest threshold at which no more than `rate` of the normal scores lie at or above it."""
    descending = np.sort(to_numpy(normal).astype(np.float64))[::-1]
    if not descending.size:
        raise UserError("policy=false-alarms needs normal images, but there are none")
    allowed = int(rate * descending.size + 1e-9)
    if allowed >= descending.size:
        return float(descending[-1])
    return float(np.nextafter(descending[allowed], np.inf))


def _normal_scores(scores: Scores, stored: Decision | None) -> tuple[np.ndarray, bool]:
    """Scores of normal samples, and whether they come from the scored split itself (an oracle)."""
    if stored is not None and stored.normal:
        return np.array(stored.normal), False
    if scores.validation is not None:
        values, labels = (to_numpy(column) for column in scores.validation)
        if (labels == 0).any():
            return np.asarray(values[labels == 0]), False
    return to_numpy(scores.scores)[to_numpy(scores.labels) == 0], True
