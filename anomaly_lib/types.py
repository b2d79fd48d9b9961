"""The few shapes of data that cross the borders between the library's rooms."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor

Sample = dict[str, Any]
"""One example: ``image|video|audio|graph...``, ``label`` (0 normal, 1 anomalous), ``mask``, ``path``..."""


@dataclass
class Prediction:
    """What every detector answers. Higher is more anomalous, always."""

    score: Tensor  # [B]
    map: Tensor | None = None  # [B, H, W]
    parts: dict[str, Tensor] = field(default_factory=dict)  # branch name -> its score [B] or map [B, H, W]
    anomalous: Tensor | None = None  # [B] bool; None for a detector without a decision
    p_value: Tensor | None = None  # [B]; None without scores of normal data to compare with
    threshold: float | None = None  # the score from which on `anomalous` is true
    region: Tensor | None = None  # [B, H, W] bool: the anomalous part; None without a map or a threshold for it
    cell: float = 1.0  # pixels of the map that one value covered before the map was enlarged

    def __len__(self) -> int:
        return self.score.shape[0]

    @property
    def area(self) -> Tensor | None:
        """[B] share of the map that is anomalous, 0..1; None without a region."""
        return None if self.region is None else self.region.double().mean((1, 2))


@dataclass
class RunResult:
    """What ``train(args)`` returns and a script prints."""

    run_dir: Path
    checkpoint: Path | None
    metrics: dict[str, float]
    already_done: bool = False
