"""The checkpoints of PromptAD's authors: memory and text prototypes of one class, without backbone and contexts."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch.nn.functional as F
from torch import Tensor

from anomaly_lib.backbones.weights import read_torch_file
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


def is_released(path: Path) -> bool:
    """True for a file with the authors' three tensors (and nothing of ours)."""
    try:
        content = read_torch_file(path) if path.is_file() else None
    except UserError:
        return False
    return isinstance(content, Mapping) and "system" not in content and set(KEYS) <= set(content)


def read_released(path: Path) -> Released:
    """The three tensors in float32; other keys (its test script once wrote the whole network) are left out."""
    named = NAME.search(path.name)
    if named is None:
        raise UserError(
            f"{path}: task and class stand only in the name PromptAD gives its checkpoints;"
            " call the file CLS-Seed_111-<class>-check_point.pt or SEG-..."
        )
    content: Any = read_torch_file(path)
    # Stored in half precision, in which unit length is lost a little.
    tensors = {key: F.normalize(content[key].float(), dim=-1) for key in KEYS}
    width = tensors[KEYS[0]].shape[-1]
    if width not in BACKBONES:
        known = ", ".join(f"{name} ({size})" for size, name in BACKBONES.items())
        raise UserError(f"{path}: a memory {width} wide belongs to none of PromptAD's backbones: {known}")
    task, seed, class_name = named.groups()
    return Released(tensors, task.lower(), int(seed), class_name, BACKBONES[width])
