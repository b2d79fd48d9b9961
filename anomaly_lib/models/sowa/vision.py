"""SOWA's image side: a frozen CLIP, an adapter for each of four depths.

Legend: B images, L patches, W width of the image tower, D width of the joint space.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from anomaly_lib.backbones.base import output_names
from anomaly_lib.backbones.clip import ClipBackbone, create_clip
from anomaly_lib.config import configure
from anomaly_lib.errors import UserError
from anomaly_lib.models.sowa.config import AdapterConfig
from anomaly_lib.models.sowa.window_adapter import BasicLayer, Mlp, share_parameters

PICTURES = "image"  # what a residual encoder is given instead of taps


def create_tapped_clip(
    name: str,
    *,
    feature_map_idx: Sequence[int] = (),
    weights: str | Path | None = None,
    image_size: int | Sequence[int] | None = None,
    download: bool = False,
) -> ClipBackbone:
    """A frozen CLIP that answers what the adapters read: blocks `feature_map_idx` (none = the last of each quarter).

    `image_size`: one number for a square, height and width, or nothing for the CLIP's own.
    """
    size = [image_size] if isinstance(image_size, int) else list(image_size or ())
    clip = create_clip(name, weights=weights, image_size=(size[0], size[-1]) if size else None, download=download)
    clip.answer([*(feature_map_idx or default_blocks(clip.depth)), "pooled"])
    return clip


def default_blocks(depth: int) -> list[int]:
    """The last block of each quarter of the tower: 5 11 17 23 of 24."""
    return sorted({max(0, round((stage + 1) * depth / 4) - 1) for stage in range(4)})


class VisionMapEncoder(nn.Module):
    """Images [B, 3, H, W] -> (image feature [B, D], patch tokens, adapted patch tokens), both per stage [B, L, D].

        encoder = VisionMapEncoder(create_tapped_clip("demo-clip"), adapter="window", share_weight=False)

    `clip` must answer the blocks `feature_map_idx` and ``pooled``. It is frozen and no part of the parameters.
    Options: `AdapterConfig`.
    """

    def __init__(self, clip: ClipBackbone, config: AdapterConfig | None = None, **options: Any) -> None:
        super().__init__()
        c = self.config = configure(AdapterConfig, config, options)
        self.frozen = (clip,)  # in a tuple: frozen towers belong neither to the parameters nor to the checkpoint
        blocks = c.feature_map_idx or default_blocks(clip.depth)
        self.tap_names = output_names(blocks, depth=clip.depth, named=(), default=(), owner=clip.name)
        self.feature_map_idx = tuple(int(name.removeprefix("layer.")) for name in self.tap_names)
        missing = [name for name in (*self.tap_names, "pooled") if name not in clip.outputs]
        if missing:
            layers = [*self.feature_map_idx, "pooled"]
            raise UserError(
                f"the CLIP {clip.name} does not answer {', '.join(missing)}, which the adapters read: make it with "
                f"create_clip({clip.name!r}, layers={layers}), or let AnomalyCLIP.from_name({clip.name!r}) make it"
            )
        self.adapters = nn.ModuleList(self._adapter(stage) for stage in range(len(self.feature_map_idx)))
        if c.share_weight:
            for other in list(self.adapters)[1:]:
                share_parameters(self.adapters[0], other)

    def __repr__(self) -> str:
        blocks = " ".join(map(str, self.feature_map_idx))
        trained = sum(p.numel() for p in self.parameters())
        shared = "one shared" if self.config.share_weight else f"{len(self.adapters)}"
        return (
            f"{type(self).__name__}({self.frozen[0].name}, blocks {blocks}, {shared} {self.config.adapter} adapter(s), "
            f"{trained:,} trained values)"
        )

    def _adapter(self, stage: int) -> nn.Module:
        clip, c = self.frozen[0], self.config
        if c.adapter == "none":
            return nn.Identity()
        if c.adapter == "linear":
            return Mlp(clip.width, hidden_features=c.hidden_features)
        attn = clip.attention(self.feature_map_idx[stage])
        return BasicLayer(attn, clip.grid, c, stage=stage, stages=len(self.feature_map_idx))

    def forward(self, inputs: Tensor) -> tuple[Tensor, list[Tensor], list[Tensor]]:
        """Images [B, 3, H, W] -> (image feature, raw patch tokens per stage, adapted patch tokens per stage)."""
        return self.from_taps(self.observe(inputs))

    def from_taps(self, taps: Mapping[str, Tensor]) -> tuple[Tensor, list[Tensor], list[Tensor]]:
        """The same from stored taps ``{"layer.N": [B, L, W], "pooled": [B, D]}``."""
        stages = [taps[name].float() for name in self.tap_names]
        adapted = [adapter(x) for adapter, x in zip(self.adapters, stages, strict=True)]
        return taps["pooled"].float(), [self.project(x) for x in stages], [self.project(x) for x in adapted]

    def observe(self, inputs: Tensor) -> Mapping[str, Tensor]:
        """What `from_taps` needs of images [B, 3, H, W]: frozen, so it can be stored."""
        return self.frozen[0].encode(inputs)

    def project(self, tokens: Tensor) -> Tensor:
        """[B, L, W] -> joint space [B, L, D], without CLIP's final norm (as published)."""
        return tokens @ self.frozen[0].projection.to(tokens.dtype)


class VisionResidualEncoder(VisionMapEncoder):
    """A share `gamma` of the adapted tokens flows back into the tower after each stage, so later blocks see it.

    The stream then changes with training: nothing behind the pictures can be stored, every step runs the tower.
    """

    def __init__(self, clip: ClipBackbone, config: AdapterConfig | None = None, **options: Any) -> None:
        super().__init__(clip, config, **(options if config else {"vision": "residual", **options}))

    def observe(self, inputs: Tensor) -> Mapping[str, Tensor]:
        return {PICTURES: inputs}

    def from_taps(self, taps: Mapping[str, Tensor]) -> tuple[Tensor, list[Tensor], list[Tensor]]:
        visual, gamma = self.frozen[0].clip.visual, self.config.gamma
        raw, adapted = [], []
        x = visual._embeds(taps[PICTURES])  # [B, 1 + L, W]
        for index, block in enumerate(visual.transformer.resblocks):
            x = block(x)
            if index in self.feature_map_idx:
                tokens = x[:, 1:]
                changed = self.adapters[self.feature_map_idx.index(index)](tokens)
                raw.append(self.project(tokens))
                adapted.append(self.project(changed))
                x = torch.cat([x[:, :1], (1 - gamma) * tokens + gamma * changed], dim=1)
        return visual._pool(x)[0] @ self.frozen[0].projection, raw, adapted
