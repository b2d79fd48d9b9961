"""What a decision does on labelled samples: false alarms beside the promise, and how many anomalies it finds."""

import numpy as np

from anomaly_lib.detect.decision import Decision
from anomaly_lib.detect.scores import Scores
from anomaly_lib.detect.tables import Cell, Table
from anomaly_lib.metrics.inputs import to_numpy
from anomaly_lib.metrics.rates import CountedRate, counted_rate


def alarm_line(scores: Scores, decision: Decision) -> str:
    """``false alarms 3/60 = 5.0% [1.0, 13.9] (promised 5.0%), found 41/52 = 78.8% [65.3, 88.9]``."""
    called, anomalous = _called(scores, decision), to_numpy(scores.labels) > 0
    parts = []
    if (~anomalous).any():
        promise = "" if decision.false_alarms is None else f" (promised {decision.false_alarms:.1%})"
        parts.append(f"false alarms {_rate(called, ~anomalous)}{promise}")
    if anomalous.any():
        parts.append(f"found {_rate(called, anomalous)}")
    return ", ".join(parts)


def alarm_table(scores: Scores, decision: Decision) -> Table:
    """A row for the normal samples of each class, and one for each kind of defect."""
    called, labels = _called(scores, decision), to_numpy(scores.labels)
    defects = scores.defects or ["good" if label == 0 else "anomalous" for label in labels]
    kinds = [(g, int(y > 0), d) for g, y, d in zip(scores.groups, labels, defects, strict=True)]
    rows: list[dict[str, Cell]] = []
    for group, anomalous, kind in sorted(set(kinds)):
        found = _rate(called, np.array([one == (group, anomalous, kind) for one in kinds]))
        rows.append(
            {
                "class": group, "kind": kind, "meaning": "found" if anomalous else "false alarms", "called": found.hits,
                "of": found.total, "rate": found.rate, "rate_low": found.low, "rate_high": found.high,
            }
        )  # fmt: skip
    promise = [] if decision.false_alarms is None else [f"promised: {decision.false_alarms:.1%} false alarms"]
    return Table(["class", "kind", "meaning", "called", "of", "rate", "rate_low", "rate_high"], rows, promise)


def _called(scores: Scores, decision: Decision) -> np.ndarray:
    """[N] which samples the decision calls anomalous."""
    return to_numpy(scores.scores).astype(np.float64) >= decision.threshold


def _rate(called: np.ndarray, chosen: np.ndarray) -> CountedRate:
    return counted_rate(int((called & chosen).sum()), int(chosen.sum()))
