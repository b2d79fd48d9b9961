"""Losses for maps: focal and Dice."""

import torch
import torch.nn.functional as F
from torch import Tensor

from anomaly_lib.losses.distance import Reduction


def focal_loss(
    logits: Tensor,
    target: Tensor,
    *,
    gamma: float = 2.0,
    alpha: float | None = None,
    smoothing: float = 0.0,
    reduction: Reduction = "mean",
) -> Tensor:
    """``-w_y (1 - p_y)^gamma log p_y`` with p the softmax of `logits` [B, K, ...], `target` [B, ...] class numbers.

    `alpha` None weighs all classes equally; a number weighs class 0 by ``1 - alpha`` and the others by `alpha`
    (1 therefore silences the background, the trap of several published DRAEM runs). The mean is over pixels.
    `smoothing` cuts the true class's probability to [smoothing, 1 - smoothing], as DRAEM does with 1e-5.
    """
    if smoothing:
        true_probability = logits.softmax(1).gather(1, target.unsqueeze(1)).squeeze(1)
        true_probability = true_probability.clamp(smoothing, 1 - smoothing)
        log_true = true_probability.log()
    else:
        log_true = F.log_softmax(logits, dim=1).gather(1, target.unsqueeze(1)).squeeze(1)
        true_probability = log_true.exp()
    loss = -((1 - true_probability) ** gamma) * log_true
    if alpha is not None:
        loss = loss * torch.where(target == 0, 1 - alpha, alpha)
    return loss.mean() if reduction == "mean" else loss


def dice_loss(
    probability: Tensor, target: Tensor, *, smooth: float = 1.0, squared: bool = False, reduction: Reduction = "mean"
) -> Tensor:
    """``1 - (2 sum(p t) + s) / (sum(p) + sum(t) + s)`` per sample of [B, ...]; `squared` sums p^2 and t^2 below."""
    p = probability.flatten(1)
    t = target.flatten(1).to(p.dtype)
    total = p.square().sum(1) + t.square().sum(1) if squared else p.sum(1) + t.sum(1)
    loss = 1 - (2 * (p * t).sum(1) + smooth) / (total + smooth)
    return loss.mean() if reduction == "mean" else loss
