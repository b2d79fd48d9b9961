"""The names SOWA's released checkpoints give to what this library trains."""

import re
from collections.abc import Mapping

from torch import Tensor

TRAINED = re.compile(
    r"(visual_encoder\.adapters\.\d+\.blocks\.\d+\.(attn\.(logit_scale|cpb_mlp\.\d+\.\w+)|norm[12]\.\w+|mlp\.layers\.\d+\.weight)"
    r"|visual_encoder\.adapters\.\d+\.layers\.\d+\.weight|prompt_learner\.ctx_(pos|neg)|cross_fusion\.linear\.\w+)$"
)
ADAPTERS = "visual_encoder.adapters."


def trained_tensors(released: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The trained tensors among those of a released checkpoint, under this library's names; {} without any adapter.

    A released file also holds all of CLIP (several times), the frozen projections of every adapter and tables that
    follow from the sizes; those are left out. Everything trained keeps its name behind the prefix ``net.``.
    """
    found = {}
    for key, value in released.items():
        name = str(key).removeprefix("net.").replace("._orig_mod.", ".")
        if TRAINED.match(name):
            found[name] = value.float()
    return found if any(name.startswith(ADAPTERS) for name in found) else {}
