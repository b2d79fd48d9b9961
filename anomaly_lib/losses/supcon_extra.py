"""What grows out of SupCon: a queue of past features, hard negatives, mixed labels, and the combined objective."""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from anomaly_lib.losses.contrastive import supcon_loss


class FeatureQueue:
    """The last `size` features and labels, so that gradient accumulation really enlarges the contrastive batch.

    Queued features carry no gradient; they serve as positives and negatives of the current anchors.
    """

    def __init__(self, size: int) -> None:
        self.size = size
        self.features: Tensor | None = None  # [Q, D]
        self.labels: Tensor | None = None  # [Q]

    def __len__(self) -> int:
        return 0 if self.features is None else len(self.features)

    def push(self, features: Tensor, labels: Tensor) -> None:
        """Newest first; the oldest fall out."""
        if self.size == 0:
            return
        features = features.detach().clone()
        if self.features is None or self.labels is None:
            self.features, self.labels = features[: self.size], labels[: self.size].clone()
        else:
            self.features = torch.cat([features, self.features])[: self.size]
            self.labels = torch.cat([labels, self.labels])[: self.size]

    def state_dict(self) -> dict[str, Tensor | None]:
        return {"features": self.features, "labels": self.labels}

    def load_state_dict(self, state: dict[str, Tensor | None]) -> None:
        self.features, self.labels = state["features"], state["labels"]


def supcon_with_negatives(
    features: Tensor,
    labels: Tensor,
    *,
    temperature: float = 0.07,
    queue: FeatureQueue | None = None,
    hard_negatives: float = 1.0,
    hardness: float = 0.0,
) -> Tensor:
    """SupCon of `features` [B, D] against themselves and the queue, with the hardest negatives kept or weighted.

    `hard_negatives` is the share of each anchor's negatives kept, most similar first. `hardness` beta weights a
    negative of similarity s by exp(beta s), scaled to mean 1. With 1.0, 0.0 and no queue this is `supcon_loss`,
    leaving out anchors without positives.
    """
    own = len(features)
    bank, bank_labels = features, labels
    if queue is not None and queue.features is not None and queue.labels is not None:
        bank = torch.cat([features, queue.features.to(features)])
        bank_labels = torch.cat([labels, queue.labels.to(labels)])
    similarity = features @ bank.T  # [B, N]
    itself = torch.eye(own, len(bank), dtype=torch.bool, device=features.device)
    positive = (labels[:, None] == bank_labels[None, :]) & ~itself
    negative = labels[:, None] != bank_labels[None, :]
    if hard_negatives < 1.0:
        negative = negative & _hardest(similarity.detach(), negative, hard_negatives)
    log_weight = torch.zeros_like(similarity)
    if hardness > 0:
        raw = (hardness * similarity.detach()).masked_fill(~negative, float("-inf"))
        count = negative.sum(1, keepdim=True).clamp_min(1)
        level = torch.logsumexp(raw, 1, keepdim=True) - count.log()
        log_weight = torch.where(negative, raw - level, 0.0)
    logits = (similarity / temperature + log_weight).masked_fill(~(positive | negative), float("-inf"))
    counts = positive.sum(1)
    kept = counts > 0
    if not bool(kept.any()):
        return features.sum() * 0.0
    log_softmax = (similarity / temperature - torch.logsumexp(logits, 1, keepdim=True))[kept]
    return (-(log_softmax * positive[kept]).sum(1) / counts[kept]).mean()


def _hardest(similarity: Tensor, negative: Tensor, share: float) -> Tensor:
    """Per row the ceil(share * n) most similar of its n negatives."""
    keep = (negative.sum(1) * share).ceil().long()  # [B]
    order = similarity.masked_fill(~negative, float("-inf")).argsort(1, descending=True).argsort(1)  # rank of each
    return order < keep[:, None]


def mixup(features: Tensor, alpha: float, *, generator: torch.Generator | None = None) -> tuple[Tensor, Tensor, float]:
    """Convex mixture of features [B, D] with a permuted batch, back on the unit sphere: (mixed, permutation, lambda).

    lambda ~ Beta(alpha, alpha); alpha = 0 gives lambda = 1.
    """
    order = torch.randperm(len(features), generator=generator).to(features.device)
    if alpha <= 0:
        return features, order, 1.0
    shape = torch.full((2,), alpha)
    first, second = torch._standard_gamma(shape, generator=generator).clamp_min(1e-12).tolist()
    weight = first / (first + second)
    return F.normalize(weight * features + (1 - weight) * features[order], dim=-1), order, weight


def mixed_loss(loss: Callable[[Tensor], Tensor], labels: Tensor, order: Tensor, weight: float) -> Tensor:
    """lambda * L(y) + (1 - lambda) * L(y permuted): both labels count (the original kept the first only)."""
    if weight == 1.0:
        return loss(labels)
    return weight * loss(labels) + (1 - weight) * loss(labels[order])


def combined_loss(
    features: Tensor,
    logits: Tensor,
    labels: Tensor,
    *,
    temperature: float = 0.07,
    supcon_weight: float = 1.0,
    ce_weight: float = 0.1,
) -> dict[str, Tensor]:
    """The two terms of the V4 objective and their weighted sum `total`."""
    contrast = supcon_loss(features, labels, temperature=temperature, skip_anchors_without_positives=True)
    classify = F.cross_entropy(logits, labels)
    return {"supcon": contrast, "ce": classify, "total": supcon_weight * contrast + ce_weight * classify}
