"""The decision a detector carries: from which score on an input is anomalous, and why there."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from math import isnan
from typing import Any

import torch
from torch import Tensor

from anomaly_lib.types import Prediction


@dataclass(frozen=True)
class Decision:
    """``score >= threshold`` is anomalous."""

    threshold: float
    source: str  # in words, e.g. "0.5 quantile of 4 leave-one-out support scores"
    normal: tuple[float, ...] = ()  # ascending scores of normal data the detector has not been fitted on
    oracle: bool = False  # chosen with labels of test data

    @classmethod
    def of(cls, threshold: float, source: str, normal: Sequence[float] | Tensor = ()) -> "Decision | None":
        """The decision at `threshold`; None where there is none (nan)."""
        if isnan(threshold):
            return None
        return cls(float(threshold), source, tuple(sorted(float(value) for value in normal)))

    def describe(self) -> str:
        return f"anomalous from score {self.threshold:.4g} on ({self.source}{'; oracle' if self.oracle else ''})"

    def p_values(self, scores: Tensor) -> Tensor | None:
        """[B] share of normal scores at or above each score, the new one counted in: (1 + count) / (n + 1)."""
        if not self.normal:
            return None
        normal = torch.tensor(self.normal, dtype=torch.float64)
        below = torch.searchsorted(normal, scores.detach().cpu().double().contiguous())  # normal scores < score
        return (1 + len(normal) - below) / (len(normal) + 1)

    def decide(self, prediction: Prediction) -> Prediction:
        """The prediction with `anomalous`, `p_value` and `threshold` filled in."""
        score = prediction.score
        return replace(
            prediction, anomalous=score >= self.threshold, p_value=self.p_values(score), threshold=self.threshold
        )

    def plain(self) -> dict[str, Any]:
        """For a checkpoint."""
        return {
            "threshold": self.threshold, "source": self.source, "normal": list(self.normal), "oracle": self.oracle,
        }  # fmt: skip

    @classmethod
    def from_plain(cls, saved: Mapping[str, Any] | None) -> "Decision | None":
        """What a checkpoint holds under ``decision``."""
        if saved is None:
            return None
        return cls(float(saved["threshold"]), saved["source"], tuple(saved["normal"]), bool(saved["oracle"]))
