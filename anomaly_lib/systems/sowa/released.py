"""Checkpoints of SOWA's authors (``.ckpt`` files of Lightning) in the form of ours."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from anomaly_lib.config import to_plain
from anomaly_lib.engine.checkpoint import FORMAT, Checkpoint
from anomaly_lib.models.sowa.keys import trained_tensors
from anomaly_lib.systems.sowa.options import Args


def adopt(content: Mapping[str, Any], path: Path) -> Checkpoint | None:
    """A file that holds SOWA's adapters as our checkpoint, or None; the frozen CLIP is read from the same file."""
    state = content.get("state_dict")
    if not isinstance(state, Mapping):
        return None
    trained = trained_tensors({name: value for name, value in state.items() if isinstance(value, Tensor)})
    if not trained:
        return None
    # Published as they are: bare cosines, P(anomaly) alone; the backbone is the published one.
    args = Args(weights=str(path), map_calibration="none", image_score="text")
    return Checkpoint(
        path, {"format": FORMAT, "system": "sowa", "args": to_plain(args), "model": trained, "extra": {}, "epoch": 0}
    )
