"""Epochs of the warm-up are no candidates for the best, however good they look."""

from pathlib import Path
from typing import Any

import pytest
import torch

from anomaly_lib.systems.registry import SYSTEMS

WARM = {
    "epochs": 4,
    "warmup_epochs": 2,
    "learning_rate": 1e-12,
}  # nothing is learnt: every epoch is as good as the first
SLOW = pytest.mark.slow


@pytest.mark.parametrize(
    ("system", "options", "best", "first"),
    [
        ("causal_film", {"ema_decay": 0.0}, "best_model.pth", 3),
        pytest.param("weld_supcon", {}, "best_model.pth", 3, marks=SLOW),
        pytest.param("hdmap", {"model": "draem"}, "best_model.pt", 2, marks=SLOW),
    ],
)
def test_the_best_epoch_comes_after_the_warm_up(
    system: str, options: dict[str, Any], best: str, first: int, tmp_path: Path
) -> None:
    SYSTEMS[system].train(SYSTEMS[system].tiny(output_dir=str(tmp_path), **WARM, **options))
    assert torch.load(tmp_path / best, weights_only=True)["best"]["epoch"] >= first
