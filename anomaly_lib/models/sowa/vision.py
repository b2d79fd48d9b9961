"""SOWA's image side: a frozen CLIP, an adapter for each of four depths.

Legend: B images, L patches, W width of the image tower, D width of the joint space.
"""

from collections.abc import Callable, Mapping, Sequence
from copy import deepcopy
from pathlib import Path
from typing import Any, TypeGuard

import torch
from torch import Tensor, nn

from anomaly_lib.backbones.base import output_names
from anomaly_lib.backbones.clip import ClipBackbone, create_clip
from anomaly_lib.config import configure
from anomaly_lib.errors import UserError
from anomaly_lib.models.sowa.config import ADAPTERS, AdapterConfig
from anomaly_lib.models.sowa.window_adapter import share_parameters

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


def is_named(adapter: "Adapters | None") -> "TypeGuard[str | list[str]]":
    """Is an ``adapter=`` the option of that name: names alone?"""
    return isinstance(adapter, str) or (isinstance(adapter, list) and all(isinstance(one, str) for one in adapter))


def default_blocks(depth: int) -> list[int]:
    """The last block of each quarter of the tower: 5 11 17 23 of 24."""
    return sorted({max(0, round((stage + 1) * depth / 4) - 1) for stage in range(4)})


OneAdapter = str | AdapterConfig | nn.Module | Callable[..., nn.Module]
Adapters = OneAdapter | Sequence[OneAdapter]
"""What may be given as ``adapter=``: a name of `ADAPTERS`, options of one of them, a module [B, L, C] -> [B, L, C] or a
function ``make(attn, grid, config)`` that makes one; for all stages, or a list with one for each."""


class VisionMapEncoder(nn.Module):
    """Images [B, 3, H, W] -> (image feature [B, D], patch tokens, adapted patch tokens), both per stage [B, L, D].

        encoder = VisionMapEncoder(create_tapped_clip("demo-clip"), adapter="window", share_weight=False)

    `clip` must answer the blocks `feature_map_idx` and ``pooled``. It is frozen and no part of the parameters.
    `adapter`: names (an option as the others), or anything that `Adapters` lists; one module for all stages is copied
    for each, or with ``share_weight`` used by all. Options: `AdapterConfig`.
    """

    def __init__(
        self,
        clip: ClipBackbone,
        config: AdapterConfig | None = None,
        *,
        adapter: Adapters | None = None,
        **options: Any,
    ) -> None:
        super().__init__()
        if is_named(adapter):
            options["adapter"], adapter = adapter, None
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
        stages = len(self.feature_map_idx)
        chosen = c.adapter if adapter is None else adapter
        each = list(chosen) if isinstance(chosen, Sequence) and not isinstance(chosen, str) else [chosen]
        if len(each) not in (1, stages):
            raise UserError(f"adapter={each}: give one for all stages, or one for each of {stages}")
        each = each * stages if len(each) == 1 else each
        own = len(set(map(id, each))) == 1 and not c.share_weight  # one module was given: every stage has a copy
        self.adapters = nn.ModuleList(
            deepcopy(one) if own and isinstance(one, nn.Module) else self._adapter(one, stage)
            for stage, one in enumerate(each)
        )
        if c.share_weight:
            for stage, one in enumerate(each):
                share_parameters(self.adapters[each.index(one)], self.adapters[stage])

    def __repr__(self) -> str:
        blocks = " ".join(map(str, self.feature_map_idx))
        trained = sum(p.numel() for p in self.parameters())
        shared = "one shared" if self.config.share_weight else f"{len(self.adapters)}"
        kinds = ", ".join(dict.fromkeys(type(one).__name__ for one in self.adapters))
        return (
            f"{type(self).__name__}({self.frozen[0].name}, blocks {blocks}, {shared} adapter(s) {kinds}, "
            f"{trained:,} trained values)"
        )

    def _adapter(self, chosen: OneAdapter, stage: int) -> nn.Module:
        if isinstance(chosen, nn.Module):
            return chosen
        config = chosen if isinstance(chosen, AdapterConfig) else self.config.of_stage(stage, len(self.feature_map_idx))
        if isinstance(chosen, AdapterConfig):
            config = chosen.of_stage(0, 1)
            chosen = config.adapter[0]
        make = ADAPTERS.part(chosen) if isinstance(chosen, str) else chosen
        clip = self.frozen[0]
        return make(clip.attention(self.feature_map_idx[stage]), clip.grid, config)

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
