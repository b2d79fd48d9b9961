"""How the scores of several branches become one score. Every function is element-wise over equally shaped branches.

Higher is more anomalous. The harmonic forms expect scores >= 0 (a slightly negative rounding error counts as 0);
calibrate branches of different ranges first (see `fusion.calibration`).
"""

import functools
from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor

from anomaly_lib.errors import UserError
from anomaly_lib.fusion.calibration import quantile_calibration, z_score_calibration
from anomaly_lib.fusion.names import REFERENCE_MODES

Scores = Tensor | np.ndarray | Sequence[float] | float


def _harmonic_pair(a: Tensor, b: Tensor) -> Tensor:
    # low * (high / (low + high)): never overflows, never above low, and 0 (not 0/0) where a branch is 0.
    low, high = torch.minimum(a, b), torch.maximum(a, b)
    total = low + high
    return low * (high / total.clamp_min(torch.finfo(total.dtype).tiny))


def harmonic(*branches: Tensor, eps: float = 0.0) -> Tensor:
    """``1 / (1/a + 1/b + ...)``, the harmonic sum of PromptAD: at most the smallest branch, ``a/2`` for two equal ones.

    `eps` is added to every branch first (1e-8 in the modular fork).
    """
    return functools.reduce(_harmonic_pair, [branch.clamp_min(0) + eps for branch in branches])


def harmonic_mean(*branches: Tensor, eps: float = 0.0) -> Tensor:
    """``n / (1/a + 1/b + ...)``: between the smallest branch and the mean."""
    return len(branches) * harmonic(*branches, eps=eps)


def maximum(*branches: Tensor) -> Tensor:
    """The most alarmed branch decides."""
    return functools.reduce(torch.maximum, branches)


def minimum(*branches: Tensor) -> Tensor:
    """All branches must be alarmed."""
    return functools.reduce(torch.minimum, branches)


def mean(*branches: Tensor) -> Tensor:
    """``(a + b + ...) / n``."""
    return weighted(*branches)


def weighted(*branches: Tensor, weights: Sequence[float] | None = None) -> Tensor:
    """``sum(w_i s_i) / sum(w_i)``; equal weights unless given."""
    values = [1.0] * len(branches) if weights is None else [float(w) for w in weights]
    if len(values) != len(branches) or min(values) < 0 or sum(values) <= 0:
        raise UserError(f"fusion weights must be {len(branches)} numbers >= 0 with a positive sum, got {values}")
    total = torch.zeros_like(branches[0])
    for weight, branch in zip(values, branches, strict=True):
        total = total + weight * branch
    return total / sum(values)


def product(*branches: Tensor) -> Tensor:
    """``a * b * ...``."""
    return functools.reduce(torch.mul, branches)


def noisy_or(*branches: Tensor) -> Tensor:
    """``1 - (1-a)(1-b)...``: at least one of several independent alarms is right; scores are cut to [0, 1]."""
    return 1 - functools.reduce(torch.mul, [1 - branch.clamp(0, 1) for branch in branches])


def z_score_sum(*branches: Tensor, references: Sequence[Tensor]) -> Tensor:
    """Late fusion ``sum_i (s_i - mean_i) / std_i`` with the statistics of normal reference scores."""
    calibrations = [z_score_calibration(reference) for reference in _checked(references, branches)]
    return functools.reduce(torch.add, [c(branch) for c, branch in zip(calibrations, branches, strict=True)])


def rank_mean(*branches: Tensor, references: Sequence[Tensor]) -> Tensor:
    """Mean of the branches' positions in the distribution of normal reference scores (0 lowest ... 1 beyond all)."""
    calibrations = [quantile_calibration(reference) for reference in _checked(references, branches)]
    return mean(*[c(branch) for c, branch in zip(calibrations, branches, strict=True)])


def _checked(references: Sequence[Tensor], branches: Sequence[Tensor]) -> Sequence[Tensor]:
    if len(references) != len(branches):
        raise UserError(
            f"{len(branches)} branches need {len(branches)} sets of reference scores, got {len(references)}"
        )
    return references


FUSIONS: dict[str, Callable[..., Tensor]] = {
    "harmonic": harmonic,
    "harmonic-mean": harmonic_mean,
    "max": maximum,
    "mean": mean,
    "min": minimum,
    "product": product,
    "weighted": weighted,
    "noisy-or": noisy_or,
    "z-score": z_score_sum,
    "rank": rank_mean,
}
"""Score fusion by name, the values of option ``fusion_mode``."""


def fusion_by_name(mode: str) -> Callable[..., Tensor]:
    """The fusion function called `mode`; an unknown name lists the known ones."""
    try:
        return FUSIONS[mode]
    except KeyError:
        raise UserError(f"unknown fusion mode {mode!r}; choose one of {', '.join(FUSIONS)}") from None


def fuse(
    *branches: Scores,
    mode: str = "harmonic",
    weights: Sequence[float] | None = None,
    references: Sequence[Scores] | None = None,
) -> Tensor:
    """Fuse equally shaped branch scores (tensors, arrays, lists or numbers) by name.

    `weights` belongs to ``weighted`` alone, `references` (normal scores per branch) to ``z-score`` and ``rank``.
    """
    function = fusion_by_name(mode)
    if not branches:
        raise UserError("fuse() needs at least one branch")
    tensors = _as_tensors(branches)
    if any(tensor.shape != tensors[0].shape for tensor in tensors):
        raise UserError(f"branches to fuse must have one shape, got {[tuple(t.shape) for t in tensors]}")
    if weights is not None and mode != "weighted":
        raise UserError(f"weights belong to fusion mode 'weighted', not to {mode!r}")
    if mode in REFERENCE_MODES:
        if references is None:
            raise UserError(f"fusion mode {mode!r} needs references=: the branch scores of normal samples")
        return function(*tensors, references=_as_tensors(references))
    return function(*tensors, weights=weights) if mode == "weighted" else function(*tensors)


def _as_tensors(values: Sequence[Scores]) -> list[Tensor]:
    tensors = [torch.as_tensor(value) for value in values]
    return [tensor if tensor.is_floating_point() else tensor.float() for tensor in tensors]
