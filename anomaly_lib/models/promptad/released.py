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


def read_released(content: Mapping[str, Any], name: str) -> Released:
    """The three tensors in float32; other keys (its test script once wrote the whole network) are left out.

    `name`: what the file is called.
    """
    named = NAME.search(name)
    if named is None:
        raise UserError(
            "task and class stand only in the name PromptAD gives its checkpoints;"
            " call the file CLS-Seed_111-<class>-check_point.pt or SEG-..."
        )
    # Stored in half precision, in which unit length is lost a little.
    tensors = {key: F.normalize(content[key].float(), dim=-1) for key in KEYS}
    rows, width = tensors[KEYS[0]].shape
    if width not in BACKBONES:
        known = ", ".join(f"{name} ({size})" for size, name in BACKBONES.items())
        raise UserError(f"a memory {width} wide belongs to none of PromptAD's backbones: {known}")
    if rows % PATCHES:
        raise UserError(f"a memory of {rows} patches is no whole number of {IMAGE_SIZE} px images")
    task, seed, class_name = named.groups()
    return Released(tensors, task.lower(), int(seed), class_name, BACKBONES[width], rows // PATCHES)
