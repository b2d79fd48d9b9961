"""Scores of several detectors as evidence on one scale, which is then added up; normal scores alone set the scale."""

from collections.abc import Callable

import torch
from torch import Tensor

from anomaly_lib.fusion.calibration import quantile_calibration, z_score_calibration

Evidence = Callable[[Tensor], Tensor]


def fisher(normal: Tensor) -> Evidence:
    """``-2 ln p`` of the conformal p-value ``(1 + normal scores at or above) / (M + 1)``: Fisher adds these up.

    `normal` [M]. A score above all of them has the smallest p there is, 1 / (M + 1).
    """
    ordered = normal.detach().double().flatten().sort().values

    def evidence(scores: Tensor) -> Tensor:
        smaller = torch.searchsorted(ordered, scores.double().contiguous())
        p = (1 + len(ordered) - smaller).double() / (len(ordered) + 1)
        return -2 * p.log()

    return evidence


EVIDENCE: dict[str, Callable[[Tensor], Evidence]] = {
    "z-score": z_score_calibration,
    "rank": quantile_calibration,
    "fisher": fisher,
}
"""By the names of `fusion.names.EVIDENCES`: normal scores [M] -> what a score says."""
