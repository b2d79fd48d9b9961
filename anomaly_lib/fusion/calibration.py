"""Put branch scores on one scale before they are fused, using the scores of normal samples only."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from anomaly_lib.errors import UserError


@dataclass(frozen=True)
class ZScoreCalibration:
    """``(s - mean) / std``, or its normal probability when `probability` (in [0, 1], as harmonic fusion needs)."""

    mean: float
    std: float
    probability: bool = False

    def __call__(self, scores: Tensor) -> Tensor:
        z = (scores - self.mean) / self.std
        return torch.special.ndtr(z) if self.probability else z


@dataclass(frozen=True)
class QuantileCalibration:
    """Position of a score in the sorted normal scores, in (0, 1).

    Linear between the reference points. Beyond both ends the remaining 1/(n+1) is used up exponentially at the rate
    of the reference's own spread, so that all anomalies above the largest normal score keep their order.
    """

    reference: Tensor  # [N] sorted
    scale: float

    def __call__(self, scores: Tensor) -> Tensor:
        reference = self.reference.to(scores.device, scores.dtype)
        count = reference.numel()
        flat = scores.reshape(-1).contiguous()
        right = torch.searchsorted(reference, flat, right=True)
        left = (right - 1).clamp_min(0)
        right_value, left_value = reference[right.clamp_max(count - 1)], reference[left]
        fraction = (flat - left_value) / (right_value - left_value).clamp_min(torch.finfo(flat.dtype).tiny)
        inside = (left + 1 + fraction.clamp(0, 1)) / (count + 1)
        tail = 1 / (count + 1)
        above = 1 - tail * torch.exp(-(flat - reference[-1]).clamp_min(0) / self.scale)
        below = tail * torch.exp(-(reference[0] - flat).clamp_min(0) / self.scale)
        positions = torch.where(flat >= reference[-1], above, torch.where(flat < reference[0], below, inside))
        return positions.reshape(scores.shape)


def z_score_calibration(normal_scores: Tensor, *, probability: bool = False) -> ZScoreCalibration:
    """Mean and (population) standard deviation of normal scores; a constant branch keeps its unit."""
    values = _finite(normal_scores)
    std = float(values.std(correction=0))
    return ZScoreCalibration(mean=float(values.mean()), std=std if std > 1e-12 else 1.0, probability=probability)


def quantile_calibration(normal_scores: Tensor) -> QuantileCalibration:
    """Empirical distribution of normal scores."""
    values = _finite(normal_scores).sort().values
    spread = float(values[-1] - values[values.numel() // 2])
    return QuantileCalibration(reference=values, scale=spread if spread > 1e-12 else max(abs(float(values[-1])), 1e-6))


def _finite(normal_scores: Tensor) -> Tensor:
    values = normal_scores.detach().reshape(-1).double()
    if not values.numel() or not bool(torch.isfinite(values).all()):
        raise UserError("calibration needs at least one normal score, all of them finite")
    return values


CALIBRATIONS: dict[str, Callable[[Tensor], Callable[[Tensor], Tensor]]] = {
    "z-score": lambda scores: z_score_calibration(scores, probability=True),
    "quantile": quantile_calibration,
}
"""Calibrations that answer values in [0, 1], ready for every fusion mode."""


def calibrate(normal_scores: Tensor, method: str) -> Callable[[Tensor], Tensor]:
    """The calibration `method` ("z-score" or "quantile") fitted to the scores of normal samples."""
    try:
        fit = CALIBRATIONS[method]
    except KeyError:
        raise UserError(f"unknown calibration {method!r}; choose one of {', '.join(CALIBRATIONS)}") from None
    return fit(normal_scores)
