"""Contrastive losses: SupCon and InfoNCE."""

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor


def supcon_loss(
    features: Tensor,
    labels: Tensor | None = None,
    *,
    temperature: float = 0.07,
    base_temperature: float | None = None,
    contrast_mode: Literal["all", "one"] = "all",
    skip_anchors_without_positives: bool = False,
) -> Tensor:
    """Supervised contrastive loss of L2-normalised `features` [B, D] or [B, V, D] (V views); no labels = SimCLR.

    Per anchor: minus the mean over its positives of the log-softmax over all others, times temperature/base_temperature
    (`base_temperature` None = no such factor). An anchor without a positive counts 0 in the mean, or is left out of it.
    """
    if features.ndim == 2:
        features = features.unsqueeze(1)
    batch, views, _ = features.shape
    contrast = features.transpose(0, 1).flatten(0, 1)  # [V*B, D], view by view
    identity = torch.arange(batch, device=features.device)
    owners = (identity if labels is None else labels.reshape(-1)).repeat(views)  # [V*B]
    anchors = contrast if contrast_mode == "all" else contrast[:batch]
    logits = anchors @ contrast.T / temperature  # [A, V*B]
    itself = torch.eye(logits.shape[0], logits.shape[1], dtype=torch.bool, device=logits.device)
    log_softmax = F.log_softmax(logits.masked_fill(itself, float("-inf")), dim=1).masked_fill(itself, 0.0)
    positives = (owners[: len(anchors), None] == owners[None, :]) & ~itself
    counts = positives.sum(1)
    per_anchor = -(log_softmax * positives).sum(1) / counts.clamp_min(1)
    if base_temperature is not None:
        per_anchor = per_anchor * (temperature / base_temperature)
    if skip_anchors_without_positives:
        kept = counts > 0
        return per_anchor[kept].mean() if bool(kept.any()) else per_anchor.sum() * 0.0
    return per_anchor.mean()


def info_nce_loss(first: Tensor, second: Tensor, *, temperature: float = 0.1, symmetric: bool = True) -> Tensor:
    """Cross-entropy of cosine similarities [B, B] with the diagonal as truth, averaged over both directions."""
    logits = F.normalize(first, dim=-1) @ F.normalize(second, dim=-1).T / temperature
    target = torch.arange(len(logits), device=logits.device)
    loss = F.cross_entropy(logits, target)
    return (loss + F.cross_entropy(logits.T, target)) / 2 if symmetric else loss
