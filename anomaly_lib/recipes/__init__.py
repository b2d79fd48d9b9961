"""One folder a system: its Args, build(), the written-out training loop, predict(), evaluate().

The contract (a convention, checked by one test over all recipes, not a base class):
``Args``, ``build(args, device)``, ``train(args) -> RunResult``, ``predict(model, batch) -> Prediction``,
``tiny() -> Args`` (seconds on a CPU, no download), ``load_detector(path)`` and ``evaluate(checkpoint, ...)``.
"""

import importlib
from pathlib import Path
from types import ModuleType
from typing import Any

from anomaly_lib.errors import UserError

# What a checkpoint says under "system" -> the module of this folder that reads it.
RECIPES: dict[str, str] = {
    "promptad": "promptad.recipe",
    "sowa": "sowa.recipe",
    "causal_film": "weld.causal_film",
    "weld_supcon": "weld.supcon",
    "crystal": "crystal.recipe",
    "detectors": "detectors.recipe",
    "hdmap": "hdmap.recipe",
}


def recipe_of(system: str) -> ModuleType:
    """The recipe module of a system, imported on use so that importing the library stays cheap."""
    if system not in RECIPES:
        raise UserError(f"unknown system {system!r}; there are {', '.join(sorted(RECIPES))}")
    return importlib.import_module(f"anomaly_lib.recipes.{RECIPES[system]}")


def load_detector(path: str | Path) -> Any:
    """The trained detector of any checkpoint this library wrote, ready for ``detector.predict(...)``."""
    from anomaly_lib.engine.checkpoint import system_of

    return recipe_of(system_of(path)).load_detector(path)
