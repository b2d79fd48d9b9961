"""k-NN and nearest-centroid evaluation of contrastive features, and what is left when modalities are missing."""

import itertools
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from anomaly_lib.metrics import accuracy, auroc, class_f1, confusion_matrix, knn_vote, macro_f1
from anomaly_lib.models.weld.quad_config import MODALITIES
from anomaly_lib.systems.weld.data.manifest import CLASSES


class Bank(NamedTuple):
    """The runs that others are compared with, usually the training split."""

    features: Tensor  # [N, D]
    classes: Tensor  # [N], 0 = good


def nearest_centroid(bank: Bank, queries: Tensor) -> Tensor:
    """Class [Q] whose mean direction is closest in cosine to each of the features [Q, D]."""
    classes = bank.classes.unique()
    centres = torch.stack([bank.features[bank.classes == c].mean(0) for c in classes])
    return classes[(F.normalize(queries, dim=1) @ F.normalize(centres, dim=1).T).argmax(1)]


def defect_margin(bank: Bank, queries: Tensor) -> Tensor:
    """The anomaly score [Q] of features [Q, D]: similarity to the nearest defect minus that to the nearest good run.

    Positive = closer to a defect. A bank of one kind alone answers the distance to its nearest run.
    """
    similarity = F.normalize(queries, dim=1) @ F.normalize(bank.features, dim=1).T
    good = bank.classes == 0
    if not bool(good.any()) or bool(good.all()):
        return 1 - similarity.amax(1)
    return similarity[:, ~good].amax(1) - similarity[:, good].amax(1)


def knn_figures(bank: Bank, queries: Tensor, labels: Tensor, *, k: int, metric: str) -> dict[str, float]:
    """What the k-NN protocol says beside the margin's AUROC: majority vote and nearest centroid on features [Q, D]."""
    voted, share = knn_vote(bank.features, bank.classes, queries, k=min(k, len(bank.classes)), metric=metric)
    figures = {
        "knn_accuracy": accuracy(voted, labels),
        "knn_macro_f1": macro_f1(voted, labels),
        "centroid_accuracy": accuracy(nearest_centroid(bank, queries), labels),
        "knn_auroc": auroc(1 - share[:, 0], (labels != 0).long()),
    }
    return {name: float(value) for name, value in figures.items()}


def knn_report(bank: Bank, queries: Tensor, labels: Tensor, *, k: int, metric: str) -> list[str]:
    """Lines: F1 of each class and the confusion matrix."""
    voted, _ = knn_vote(bank.features, bank.classes, queries, k=min(k, len(bank.classes)), metric=metric)
    each = class_f1(voted, labels, num_classes=len(CLASSES))
    seen = sorted(int(c) for c in torch.cat([labels, voted]).unique())
    matrix = confusion_matrix(voted, labels, num_classes=len(CLASSES))[seen][:, seen]
    lines = [f"  {CLASSES[c]:34} F1 {float(each[c]):.3f}  n {int((labels == c).sum())}" for c in seen]
    return [*lines, "confusion (rows: truth):", *[" ".join(f"{int(v):4d}" for v in row) for row in matrix]]


def missing_subsets() -> list[tuple[bool, ...]]:
    """All non-empty subsets of the modalities, most complete first."""
    subsets = [keep for keep in itertools.product([True, False], repeat=len(MODALITIES)) if any(keep)]
    return sorted(subsets, key=lambda keep: -sum(keep))


def hide(batch: Mapping[str, Any], keep: Sequence[bool]) -> dict[str, Any]:
    """The batch with only the modalities of `keep` marked present."""
    return {**batch, "present": batch["present"] & torch.tensor(keep, device=batch["present"].device)}


def subset_name(keep: Sequence[bool]) -> str:
    """``video+audio`` for a choice of modalities."""
    return "+".join(name for name, there in zip(MODALITIES, keep, strict=True) if there)
