"""The frozen networks of PromptAD: images in, unit features and text features out."""

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from anomaly_lib.backbones import FrozenBackbone
from anomaly_lib.backbones.clip import ClipBackbone
from anomaly_lib.errors import UserError
from anomaly_lib.models.promptad.config import MemoryConfig
from anomaly_lib.models.promptad.prompts import TextTower
from anomaly_lib.models.promptad.scores import ImageFeatures

TOKENS = ("pooled", "vv_tokens")  # what the textual branch reads of CLIP's image tower


class FrozenTowers:
    """A frozen CLIP and, if another network feeds the memory, that one (`visual`, which must answer `visual_taps`).

    What CLIP answers is set here: its image feature, value-value tokens and, without `visual`, the memory's taps.
    """

    def __init__(
        self,
        clip: ClipBackbone,
        config: MemoryConfig | None = None,
        *,
        visual: FrozenBackbone | None = None,
        visual_taps: Sequence[str] = (),
    ) -> None:
        config = config or MemoryConfig()
        self.clip, self.visual = clip, visual
        self.taps = list(visual_taps) if visual is not None else taps_of(clip, clip.depth, config)
        clip.answer([*TOKENS, *([] if visual is not None else self.taps)])

    def __repr__(self) -> str:
        memory = f", memory of {self.visual.name}" if self.visual is not None else ""
        return f"FrozenTowers({self.clip.name} at {self.clip.image_size}{memory}, taps {', '.join(self.taps)})"

    @property
    def device(self) -> torch.device:
        return self.logit_scale.device

    @property
    def text(self) -> TextTower:
        """CLIP's text tower."""
        return self.clip.text

    @property
    def logit_scale(self) -> Tensor:
        """The stored log temperature."""
        return self.clip.logit_scale

    @property
    def widths(self) -> list[int]:
        """Channels of each tap."""
        return [(self.visual or self.clip).width for _ in self.taps]

    def apply(self, change: Callable[[Tensor], Tensor]) -> None:
        """Change every tensor of the networks, as ``module.to(...)`` does."""
        for net in [self.clip] if self.visual is None else [self.clip, self.visual]:
            net._apply(change)

    def encode(self, images: Tensor) -> ImageFeatures:
        """Unit features of a batch of transformed images [B, 3, H, W] at CLIP's input size."""
        if self.visual is not None:
            raise UserError("another network feeds the memory: give pictures, not tensors (each has its own transform)")
        if images.ndim != 4 or images.shape[1] != 3 or tuple(images.shape[2:]) != self.clip.image_size:
            height, width = self.clip.image_size
            raise UserError(f"expected images [B, 3, {height}, {width}] for {self.clip.name}, got {list(images.shape)}")
        out = self.run(self.clip, images)
        return self.unit(out, out)

    def run(self, net: FrozenBackbone, images: Tensor) -> dict[str, Tensor]:
        """One pass of one network."""
        return net.encode(images.to(self.device))

    def unit(self, out: dict[str, Tensor], taps: dict[str, Tensor]) -> ImageFeatures:
        """Unit features of what CLIP (`out`) and the network of the memory (`taps`) answered."""
        return ImageFeatures(
            taps=[F.normalize(_tokens(taps[name].float()), dim=-1) for name in self.taps],
            grid=self.clip.grid,
            tap_grid=_grid(self.visual or self.clip),
            pooled=F.normalize(out["pooled"].float(), dim=-1),
            tokens=F.normalize(out["vv_tokens"].float(), dim=-1),
        )


def taps_of(net: FrozenBackbone, depth: int, config: MemoryConfig) -> list[str]:
    """Outputs of `net` (which has `depth` blocks) that are remembered; by default 2 and 7 of 12, or as deep."""
    layers = config.memory_layers or sorted({max(0, round(share * depth) - 1) for share in (3 / 12, 8 / 12)})
    if max(layers) >= depth or min(layers) < -depth:
        raise UserError(f"memory_layers={layers}: {net.name} has blocks 0..{depth - 1}")
    aliased = config.memory_tap == "post_attn_next" and isinstance(net, ClipBackbone)
    return [f"{'next_attn' if aliased else 'layer'}.{layer % depth}" for layer in layers]


def _grid(net: FrozenBackbone) -> tuple[int, int]:
    if net.grid is None:
        raise UserError(f"backbone {net.name} has no patch grid; choose a vision transformer")
    return net.grid


def _tokens(tap: Tensor) -> Tensor:
    """[N, P, C] of patch tokens or of a feature map [N, C, h, w]."""
    return tap if tap.ndim == 3 else tap.flatten(2).mT
