"""k-NN and nearest-centroid evaluation of contrastive features, and what is left when modalities are missing."""

import itertools
from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from anomaly_lib.metrics import accuracy, auroc, average_precision, class_f1, confusion_matrix, knn_vote, macro_f1
from anomaly_lib.models.weld.supcon_quad import MODALITIES
from anomaly_lib.systems.weld.data.manifest import CLASSES


def nearest_centroid(bank: Tensor, bank_labels: Tensor, queries: Tensor) -> Tensor:
    """Class [Q] whose mean direction is closest in cosine."""
    classes = bank_labels.unique()
    centres = torch.stack([bank[bank_labels == c].mean(0) for c in classes])
    return classes[(F.normalize(queries, dim=1) @ F.normalize(centres, dim=1).T).argmax(1)]


def defect_margin(bank: Tensor, bank_labels: Tensor, queries: Tensor) -> Tensor:
    """Similarity to the nearest defect minus that to the nearest good run: positive = closer to a defect."""
    similarity = F.normalize(queries, dim=1) @ F.normalize(bank, dim=1).T
    good = bank_labels == 0
    if not bool(good.any()) or bool(good.all()):
        return 1 - similarity.amax(1)
    return similarity[:, ~good].amax(1) - similarity[:, good].amax(1)


def knn_metrics(
    bank: Tensor, bank_labels: Tensor, queries: Tensor, labels: Tensor, *, k: int = 5, metric: str = "cosine"
) -> dict[str, float]:
    """The k-NN protocol: bank from the training split, majority vote, classes and good/defect."""
    voted, share = knn_vote(bank, bank_labels, queries, k=min(k, len(bank)), metric=metric)
    score = defect_margin(bank, bank_labels, queries)
    defect = (labels != 0).long()
    metrics = {
        "knn_accuracy": accuracy(voted, labels),
        "knn_macro_f1": macro_f1(voted, labels),
        "centroid_accuracy": accuracy(nearest_centroid(bank, bank_labels, queries), labels),
        "image_auroc": auroc(score, defect),
        "image_ap": average_precision(score, defect),
        "knn_auroc": auroc(1 - share[:, 0], defect),
    }
    return {name: float(value) for name, value in metrics.items()}


def knn_report(bank: Tensor, bank_labels: Tensor, queries: Tensor, labels: Tensor, *, k: int, metric: str) -> list[str]:
    """Lines: F1 of each class and the confusion matrix."""
    voted, _ = knn_vote(bank, bank_labels, queries, k=min(k, len(bank)), metric=metric)
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
    return "+".join(name for name, there in zip(MODALITIES, keep, strict=True) if there)
