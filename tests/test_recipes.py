"""Every recipe obeys the contract: it trains at tiny size, its checkpoint opens plainly, its detector answers."""

import dataclasses
import math
from pathlib import Path

import pytest
import torch

import anomaly_lib
from anomaly_lib.errors import UserError
from anomaly_lib.recipes import RECIPES, recipe_of

PARTS = ("Args", "build", "train", "predict", "tiny", "load_detector", "evaluate")
SYSTEMS = sorted(RECIPES)


@pytest.mark.parametrize("system", SYSTEMS)
def test_recipe_has_every_part(system: str) -> None:
    missing = [part for part in PARTS if not hasattr(recipe_of(system), part)]
    assert not missing


@pytest.mark.parametrize("system", SYSTEMS)
def test_tiny_run_trains_loads_and_repeats(system: str, tmp_path: Path) -> None:
    recipe = recipe_of(system)
    args = dataclasses.replace(recipe.tiny(), output_dir=str(tmp_path / "run"))
    result = recipe.train(args)
    assert result.metrics
    assert all(math.isfinite(value) for value in result.metrics.values())
    for path in [*result.run_dir.rglob("*.pt"), *result.run_dir.rglob("*.pth")]:
        torch.load(path, weights_only=True)
    assert hasattr(anomaly_lib.load(result.checkpoint), "predict")
    assert recipe.train(args).metrics == result.metrics  # already done: reported, not repeated


def test_unknown_system_names_the_known_ones() -> None:
    with pytest.raises(UserError, match="promptad"):
        recipe_of("nothing")
