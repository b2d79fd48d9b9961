"""Figures of scored welds beside the general ones: of each class, at a threshold from VAL, with intervals."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from anomaly_lib.detect.scores import Scores
from anomaly_lib.detect.tables import Cell, Table
from anomaly_lib.metrics import Interval, auroc, bootstrap_ci, threshold_metrics, youden
from anomaly_lib.systems.weld.data.demo import MISMATCH
from anomaly_lib.systems.weld.data.manifest import CLASSES, WeldRun

FPR_LIMITS = (0.3, 0.1, 0.05, 0.01)
AT_THRESHOLD = ("precision", "recall", "f1")
Labelled = tuple[Any, Any]  # scores and labels [N], tensors or arrays


def own_figures(scores: Tensor, runs: Sequence[WeldRun], validation: Labelled | None = None) -> dict[str, float]:
    """At Youden's threshold (of `validation` where it has good and defective welds, else of these very runs), partial
    areas, and mismatches of drawn welds."""
    labels = torch.tensor([run.label for run in runs])
    own: dict[str, float] = {}
    chosen = validation if validation is not None and has_both(validation) else (scores, labels)
    _, threshold = youden(*chosen)
    if np.isfinite(threshold):
        at = threshold_metrics(scores, labels, threshold)
        own = {"youden_threshold": threshold, **{name: float(at[name]) for name in AT_THRESHOLD}}
    own |= {f"pseudo_aupro_{limit:g}": partial_auroc(scores, labels, limit) for limit in FPR_LIMITS}
    if runs and runs[0].render is not None:
        own["mismatch_auroc"] = mismatch_auroc(scores, runs)
    return own


def has_both(found: Labelled) -> bool:
    """Are there good and defective welds among them?"""
    return 0 < int((found[1] > 0).sum()) < len(found[1])


def mismatch_auroc(scores: Tensor, runs: Sequence[WeldRun]) -> float:
    """AUROC of the defects whose bead is normal, but belongs to another process, against good welds."""
    chosen = [i for i, run in enumerate(runs) if run.label == 0 or run.class_name in MISMATCH]
    return auroc(scores[chosen], torch.tensor([runs[i].label for i in chosen]))


def partial_auroc(scores: Tensor, labels: Tensor, limit: float) -> float:
    """Area under the ROC curve up to a false-positive rate, divided by it.

    Without pixel truth the original's "P-AUPRO" is this number: its map is the score everywhere.
    """
    order = torch.argsort(scores, descending=True, stable=True)
    sorted_scores, truth = scores[order].double(), labels[order].double()
    last = torch.cat([sorted_scores[1:] != sorted_scores[:-1], torch.ones(1, dtype=torch.bool)])
    tpr = torch.cat([torch.zeros(1), (truth.cumsum(0) / truth.sum().clamp_min(1))[last]]).numpy()
    fpr = torch.cat([torch.zeros(1), ((1 - truth).cumsum(0) / (1 - truth).sum().clamp_min(1))[last]]).numpy()
    inside = fpr <= limit
    x, y = np.append(fpr[inside], limit), np.append(tpr[inside], np.interp(limit, fpr, tpr))
    return float(np.sum((x[1:] - x[:-1]) * (y[1:] + y[:-1]) / 2) / limit)


def class_table(scores: Tensor, runs: Sequence[WeldRun]) -> Table:
    """Of every class: how many, mean, std, min and max of their scores, and AUROC against the good ones."""
    good = [i for i, run in enumerate(runs) if run.label == 0]
    rows: list[dict[str, Cell]] = []
    for name in CLASSES:
        mine = [i for i, run in enumerate(runs) if run.class_name == name]
        if not mine:
            continue
        s = scores[mine].double()
        row: dict[str, Cell] = {"class": name, "n": len(mine), "mean": float(s.mean())}
        row |= {"std": float(s.std(unbiased=False)), "min": float(s.min()), "max": float(s.max())}
        if name != "good" and good:
            truth = torch.tensor([0] * len(good) + [1] * len(mine))
            row["auroc"] = auroc(torch.cat([scores[good], scores[mine]]), truth)
        rows.append(row)
    return Table(["class", "n", "mean", "std", "min", "max", "auroc"], rows)


def class_aurocs(scores: Tensor, runs: Sequence[WeldRun]) -> dict[str, float]:
    """AUROC of each kind of defect against the good welds."""
    return {str(row["class"]): float(row["auroc"] or 0) for row in class_table(scores, runs).rows if "auroc" in row}


# -- intervals ----------------------------------------------------------------------------------------------------


def auroc_line(scores: Scores) -> str:
    """AUROC with its 95 % interval, and how many welds stand behind it."""
    labels = np.asarray(scores.labels) > 0
    counts = f"{int((~labels).sum())} good and {int(labels.sum())} defective welds"
    if labels.all() or not labels.any():
        return f"{scores.split} AUROC: none, there are {counts}"
    found = bootstrap_ci(auroc, scores.scores, labels, groups=labels)
    return f"{scores.split} AUROC {in_words(found)}: 95 % of 1000 resamples of {counts}"


def difference(one: Tensor, other: Tensor, labels: Tensor) -> Interval:
    """AUROC of `one` [N] minus that of `other` [N] on the same resampled welds."""
    return bootstrap_ci(lambda a, b, y: auroc(a, y) - auroc(b, y), one, other, labels, groups=labels)


def in_words(found: Interval) -> str:
    """``0.697 [0.580, 0.803]``."""
    return f"{found.value:.3f} [{found.low:.3f}, {found.high:.3f}]"
