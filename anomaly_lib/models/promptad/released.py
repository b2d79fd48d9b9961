"""The checkpoints of PromptAD's authors: memory and text prototypes of one class, without backbone and contexts."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch.nn.functional as F
from torch import Tensor

from anomaly_lib.errors import UserError

KEYS = ("feature_gallery1", "feature_gallery2", "text_features")
# Task, seed and class stand in the file's name and nowhere else.
NAME = re.compile(r"(CLS|SEG)-Seed_(\d+)-(.+)-check_point\.\w+$")
IMAGE_SIZE, PATCHES = 240, 15 * 15  # of every image its scripts see
BACKBONES = {896: "ViT-B-16-plus-240", 768: "ViT-B-16"}  # by the width of the memory: the two its scripts accept


@dataclass(frozen=True)
class Released:
    """One released checkpoint: unit rows under this library's names, and what its name and shapes tell."""

    tensors: dict[str, Tensor]
    task: str
    seed: int
    class_name: str
    backbone: str
    shot: int


def is_released(content: object) -> bool:
    """True for what a file with the authors' three tensors holds."""
    return isinstance(content, Mapping) and set(KEYS) <= set(content)


def read_released(
    content: Mapping[str, Any],
    name: str,
    *,
    backbone: str | None = None,
    shot: int | None = None,
    task: str | None = None,
    class_name: str | None = None,
    seed: int | None = None,
) -> Released:
    """The three tensors in float32; other keys (its test script once wrote the whole network) are left out.

    `name`: what the file is called. What it and the tensors' shapes do not tell has to be said: a `backbone` that is
    none of the original's two with the number of images remembered (`shot`), `task` and `class_name`.
    """
    named = NAME.search(name)
    if named is not None:
        task, class_name = task or named[1].lower(), class_name or named[3]
        seed = int(named[2]) if seed is None else seed
    if task is None or class_name is None:
        raise UserError(
            "task and class stand only in the name PromptAD gives its checkpoints;"
            " call the file CLS-Seed_111-<class>-check_point.pt or SEG-..."
        )
    # Stored in half precision, in which unit length is lost a little.
    tensors = {key: F.normalize(content[key].float(), dim=-1) for key in KEYS}
    rows, width = tensors[KEYS[0]].shape
    backbone = backbone or BACKBONES.get(width)
    if backbone is None:
        known = ", ".join(f"{name} ({size})" for size, name in BACKBONES.items())
        raise UserError(
            f"a memory {width} wide belongs to none of PromptAD's backbones: {known}; for another one"
            " scripts/promptad/convert_checkpoint.py takes --backbone and --shot"
        )
    if shot is None and rows % PATCHES:
        raise UserError(f"a memory of {rows} patches is no whole number of {IMAGE_SIZE} px images")
    if shot is not None and rows % shot:
        raise UserError(f"a memory of {rows} patches is not that of {shot} images")
    shot = rows // PATCHES if shot is None else shot
    return Released(tensors, task, seed or 0, class_name, backbone, shot)


def as_released(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """What the original saves of a model: exactly its three tensors, in half precision."""
    return {key: state[key].half() for key in KEYS}
