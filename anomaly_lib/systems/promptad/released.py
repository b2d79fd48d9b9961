"""The checkpoints of PromptAD's authors as checkpoints of ours: scored as published, but on RGB images."""

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from anomaly_lib.engine.checkpoint import Checkpoint
from anomaly_lib.errors import UserError
from anomaly_lib.models.promptad.released import IMAGE_SIZE, is_released, read_released
from anomaly_lib.systems.promptad.options import Args


def adopt(content: Mapping[str, Any], path: Path) -> Checkpoint | None:
    """The file's content in the form of ours, or None when it is none of theirs.

    No support scores are in it, so there is no decision and no fusion that refers to them.
    """
    if not is_released(content):
        return None
    try:
        found = read_released(content, path.name)
    except UserError as error:
        raise UserError(f"{path}: {error}") from None
    args = Args(
        protocol="paper", test_color="rgb", select="last", task=found.task, obj=found.class_name, seed=found.seed,
        shot=found.shot, backbone=found.backbone, image_size=[IMAGE_SIZE],
    )  # fmt: skip
    extra = {"class_name": found.class_name, "normal": None, "decision": None}
    return Checkpoint(path, {"system": "promptad", "args": asdict(args), "model": found.tensors, "extra": extra})
