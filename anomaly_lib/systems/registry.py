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
    "promptad": "promptad.train",
    "sowa": "sowa.train",
    "causal_film": "weld.causal_film.train",
    "video_ae": "weld.video_ae.train",
    "weld_supcon": "weld.supcon.train",
    "crystal": "crystal.train",
    "detectors": "detectors.train",
    "hdmap": "detectors.hdmap.recipe",
}


def recipe_of(system: str) -> ModuleType:
    """The recipe module of a system, imported on use so that importing the library stays cheap."""
    if system not in RECIPES:
        raise UserError(f"unknown system {system!r}; there are {', '.join(sorted(RECIPES))}")
    return importlib.import_module(f"anomaly_lib.systems.{RECIPES[system]}")


def system_at(path: str | Path) -> str:
    """The system a checkpoint file belongs to: what it says of itself, or whose authors released it."""
    from anomaly_lib.engine.checkpoint import system_of
    from anomaly_lib.models.promptad.released import is_released

    if Path(path).suffix == ".ckpt":
        return "sowa"
    return "promptad" if is_released(Path(path)) else system_of(path)


def load_detector(path: str | Path, *, device: str = "auto") -> Any:
    """The trained detector of any checkpoint, ready for ``detector.predict(...)``."""
    return recipe_of(system_at(path)).load_detector(path, device=device)
