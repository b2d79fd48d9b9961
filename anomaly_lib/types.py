"""The few shapes of data that cross the borders between the library's rooms."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor

Sample = dict[str, Any]
"""One example: ``image|video|audio|graph...``, ``label`` (0 normal, 1 anomalous), ``mask``, ``path``..."""


@dataclass
class Prediction:
    """What every detector answers. Higher is more anomalous, always."""

    score: Tensor  # [B]
    map: Tensor | None = None  # [B, H, W]
    parts: dict[str, Tensor] = field(default_factory=dict)  # branch name -> its score [B] or map [B, H, W]

    def __len__(self) -> int:
        return self.score.shape[0]


@dataclass
class RunResult:
    """What ``train(args)`` returns and a script prints."""

    run_dir: Path
    checkpoint: Path | None
    metrics: dict[str, float]
    already_done: bool = False
