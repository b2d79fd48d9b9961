"""The names SOWA's released checkpoints give to what this library trains."""

import re
from pathlib import Path

from torch import Tensor

from anomaly_lib.backbones.weights import StateDict, read_state_dict
from anomaly_lib.errors import UserError

TRAINED = re.compile(
    r"(visual_encoder\.adapters\.\d+\.blocks\.\d+\.(attn\.(logit_scale|cpb_mlp\.\d+\.\w+)|norm[12]\.\w+|mlp\.layers\.\d+\.weight)"
    r"|visual_encoder\.adapters\.\d+\.layers\.\d+\.weight|prompt_learner\.ctx_(pos|neg)|cross_fusion\.linear\.\w+)$"
)


def is_released(path: Path) -> bool:
    """A file of SOWA's authors: a Lightning checkpoint, ending in .ckpt."""
    return path.suffix == ".ckpt"


def read_released(path: Path) -> StateDict:
    """The trained tensors of a released checkpoint under this library's names.

    The file also holds all of CLIP (several times), the frozen projections of every adapter and tables that follow from
    the sizes; those are left out. Everything trained keeps its name behind the prefix ``net.``.
    """
    found: dict[str, Tensor] = {}
    for key, value in read_state_dict(path).items():
        name = key.removeprefix("net.").replace("._orig_mod.", ".")
        if TRAINED.match(name):
            found[name] = value.float()
    if not any(name.startswith("visual_encoder.adapters.") for name in found):
        raise UserError(f"{path}: holds no SOWA adapters (keys net.visual_encoder.adapters.*)")
    return found
