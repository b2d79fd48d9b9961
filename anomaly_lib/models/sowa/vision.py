"""SOWA's image side: a frozen CLIP, an adapter for each of four depths."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from anomaly_lib.backbones.clip import ClipBackbone
from anomaly_lib.errors import UserError
from anomaly_lib.models.sowa.window_adapter import BasicLayer, Mlp, share_parameters

ADAPTERS = ("window", "linear", "none")
VISIONS = ("map", "residual")
PICTURES = "image"  # what a residual encoder is given instead of taps


@dataclass(frozen=True)
class AdapterOptions:
    """One value for all stages, or one per stage (small windows for soldiers, shifted ones for officers)."""

    kind: str = "window"
    window_size: Sequence[int] = (0,)  # 0 = half the patch grid, the published 12 of 24
    depth: Sequence[int] = (1,)
    num_heads: int = 8
    cpb_dim: int = 64
    value_only: bool = True
    hidden_features: Sequence[int] = ()
    drop: float = 0.0
    attn_drop: float = 0.1
    drop_path: float = 0.0
    share_weight: bool = False


class VisionMapEncoder(nn.Module):
    """Frozen CLIP taps -> (patches, adapted patches) in the joint space, for the blocks in ``feature_map_idx``."""

    def __init__(self, clip: ClipBackbone, *, feature_map_idx: Sequence[int], adapter: AdapterOptions) -> None:
        super().__init__()
        self.frozen = (clip,)  # in a tuple: frozen towers belong neither to the parameters nor to the checkpoint
        self.feature_map_idx = tuple(feature_map_idx)
        self.tap_names = tuple(f"layer.{index}" for index in self.feature_map_idx)
        missing = [name for name in (*self.tap_names, "pooled") if name not in clip.outputs]
        if missing:
            raise UserError(f"the CLIP was built without the outputs {', '.join(missing)}")
        self.adapters = nn.ModuleList(self._adapter(stage, adapter) for stage in range(len(self.feature_map_idx)))
        if adapter.share_weight:
            for other in list(self.adapters)[1:]:
                share_parameters(self.adapters[0], other)

    def _adapter(self, stage: int, options: AdapterOptions) -> nn.Module:
        clip = self.frozen[0]
        if options.kind == "none":
            return nn.Identity()
        if options.kind == "linear":
            return Mlp(clip.width)
        assert clip.grid is not None
        return BasicLayer(
            clip.attention(self.feature_map_idx[stage]),
            input_resolution=clip.grid,
            window_size=stage_value("--window-size", options.window_size, stage) or max(2, min(clip.grid) // 2),
            depth=stage_value("--depth", options.depth, stage),
            num_heads=options.num_heads,
            cpb_dim=options.cpb_dim,
            value_only=options.value_only,
            hidden_features=options.hidden_features,
            drop=options.drop,
            attn_drop=options.attn_drop,
            drop_path=options.drop_path,
        )

    def forward(self, inputs: Tensor) -> tuple[Tensor, list[Tensor], list[Tensor]]:
        """Images [B, 3, H, W] -> (image feature, raw patch tokens per stage, adapted patch tokens per stage)."""
        return self.from_taps(self.frozen[0].encode(inputs))

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
    """A share ``gamma`` of the adapted tokens flows back into the tower after each stage, so later blocks see it.

    The stream then changes with training: nothing behind the pictures can be stored, every step runs the tower.
    """

    def __init__(
        self, clip: ClipBackbone, *, feature_map_idx: Sequence[int], adapter: AdapterOptions, gamma: float = 0.1
    ) -> None:
        super().__init__(clip, feature_map_idx=feature_map_idx, adapter=adapter)
        self.gamma = gamma

    def observe(self, inputs: Tensor) -> Mapping[str, Tensor]:
        return {PICTURES: inputs}

    def forward(self, inputs: Tensor) -> tuple[Tensor, list[Tensor], list[Tensor]]:
        visual = self.frozen[0].clip.visual
        raw, adapted = [], []
        x = visual._embeds(inputs)  # [B, 1 + L, W]
        for index, block in enumerate(visual.transformer.resblocks):
            x = block(x)
            if index in self.feature_map_idx:
                tokens = x[:, 1:]
                changed = self.adapters[self.feature_map_idx.index(index)](tokens)
                raw.append(self.project(tokens))
                adapted.append(self.project(changed))
                x = torch.cat([x[:, :1], (1 - self.gamma) * tokens + self.gamma * changed], dim=1)
        return visual._pool(x)[0] @ self.frozen[0].projection, raw, adapted

    def from_taps(self, taps: Mapping[str, Tensor]) -> tuple[Tensor, list[Tensor], list[Tensor]]:
        return self(taps[PICTURES])


def stage_value(flag: str, values: Sequence[int], stage: int) -> int:
    """The value of one stage from a list with one entry for all or one per stage."""
    if len(values) not in (1, stage + 1) and stage >= len(values):
        raise UserError(f"{flag}: give one value or one per stage, got {len(values)}")
    return values[0] if len(values) == 1 else values[stage]
