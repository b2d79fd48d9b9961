"""SOWA (hierarchical frozen window attention): one frozen CLIP, an adapter for each of four depths, learned prompts."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from anomaly_lib.backbones.clip import ClipBackbone
from anomaly_lib.errors import UserError
from anomaly_lib.models.sowa.text import (
    STATE_TEMPLATE,
    AnomalyPromptLearner,
    PromptEncoder,
    TextMapEncoder,
    pick_classes,
    pool_text_features,
)
from anomaly_lib.models.sowa.window_adapter import BasicLayer, Mlp, share_parameters
from anomaly_lib.ops.smooth import upsample_maps

ADAPTERS = ("window", "linear", "none")
PROMPTS = ("coop", "plain", "zero")


class Output(NamedTuple):
    """The six outputs of `AnomalyCLIP.forward`."""

    image_features: Tensor  # [B, D] pooled, not normalised
    text_features: Tensor  # [2*M*K, D]
    patches: list[Tensor]  # per stage [B, L, D], as CLIP has them: for the few-shot memory
    patch_features: list[Tensor]  # per stage [B, L, D], adapted: for the text-guided maps
    anomaly_maps: list[Tensor]  # per stage [B, 2, H, W], softmax over (normal, anomaly)
    text_probs: Tensor  # [B, 2]


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


@dataclass(frozen=True)
class PromptOptions:
    """``coop`` learns contexts, ``plain`` has fixed phrases and a trained linear map, ``zero`` trains no text."""

    kind: str = "coop"
    class_names: Sequence[str] = ("object",)
    prompt_length: int = 12
    state_template: Mapping[str, Sequence[str]] = field(default_factory=lambda: STATE_TEMPLATE)
    truncate: bool = False
    linear: bool = True  # the trained map on text features (published: yes)
    initial_words: str = ""  # what a learned context says before training; "" = random


class DotProductFusion(nn.Module):
    """Cosine of vision [B, L, C] or [B, C] with the pair of text features [B, 2, C]: [B, L, 2] or [B, 2]."""

    def forward(self, text_features: Tensor, vision_features: Tensor) -> Tensor:
        text, vision = F.normalize(text_features, dim=-1), F.normalize(vision_features, dim=-1)
        if vision.ndim == 2:
            return torch.einsum("bc,bkc->bk", vision, text)
        return torch.einsum("blc,bkc->blk", vision, text)


class FusionModule(nn.Module):
    """Text features [2*M*K, C] -> (linear map) -> mean over phrasings -> the pair of each image's class -> fusion."""

    def __init__(
        self, fusion_method: nn.Module, *, class_names: Sequence[str], embedding_dim: int | None = None
    ) -> None:
        super().__init__()
        self.fusion_method, self.class_names = fusion_method, tuple(class_names)
        self.linear = nn.Linear(embedding_dim, embedding_dim) if embedding_dim else nn.Identity()

    def pairs(self, text_features: Tensor, cls_names: Sequence[str]) -> Tensor:
        """(normal, anomaly) features of each image's class [B, 2, C]."""
        pooled = pool_text_features(self.linear(text_features), len(self.class_names))
        return pick_classes(pooled, cls_names, self.class_names)

    def forward(self, text_features: Tensor, vision_features: Tensor, cls_names: Sequence[str]) -> Tensor:
        """Cosines [B, 2] or [B, L, 2]."""
        return self.fusion_method(self.pairs(text_features, cls_names), vision_features)


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

    def project(self, tokens: Tensor) -> Tensor:
        """[B, L, W] -> joint space [B, L, D], without CLIP's final norm (as published)."""
        return tokens @ self.frozen[0].projection.to(tokens.dtype)


def stage_value(flag: str, values: Sequence[int], stage: int) -> int:
    """The value of one stage from a list with one entry for all or one per stage."""
    if len(values) not in (1, stage + 1) and stage >= len(values):
        raise UserError(f"{flag}: give one value or one per stage, got {len(values)}")
    return values[0] if len(values) == 1 else values[stage]


class AnomalyCLIP(nn.Module):
    """The whole model. Its parameters and state dict are the trained parts only; the CLIP is referred to.

    ``stages`` chooses the stages whose maps are used (ablation); training always covers all of them.
    """

    def __init__(
        self,
        clip: ClipBackbone,
        *,
        feature_map_idx: Sequence[int],
        adapter: AdapterOptions | None = None,
        prompt: PromptOptions | None = None,
        temperature: float = 0.07,
    ) -> None:
        super().__init__()
        prompt = prompt or PromptOptions()
        self.frozen = (clip,)
        self.temperature = temperature
        assert clip.image_size is not None
        assert clip.grid is not None
        self.image_size, self.grid = clip.image_size, clip.grid
        self.text_encoder = TextMapEncoder(clip.text)
        self.prompt_learner: AnomalyPromptLearner | PromptEncoder
        if prompt.kind == "coop":
            self.prompt_learner = AnomalyPromptLearner(
                clip.text,
                class_names=prompt.class_names,
                prompt_length=prompt.prompt_length,
                state_template=prompt.state_template,
                truncate=prompt.truncate,
                initial_words=prompt.initial_words,
            )
        else:
            self.prompt_learner = PromptEncoder(clip.text, class_names=prompt.class_names)
        self.visual_encoder = VisionMapEncoder(
            clip, feature_map_idx=feature_map_idx, adapter=adapter or AdapterOptions()
        )
        linear = clip.embed_dim if prompt.linear and prompt.kind != "zero" else None
        self.cross_fusion = FusionModule(DotProductFusion(), class_names=prompt.class_names, embedding_dim=linear)

    @torch.no_grad()
    def start_from_zero_shot(self) -> None:
        """Make adapters and the linear map the identity, so that training begins where plain CLIP stands."""
        for name, parameter in self.visual_encoder.named_parameters():
            if ".norm" in name:
                parameter.zero_()
        if isinstance(self.cross_fusion.linear, nn.Linear):
            nn.init.eye_(self.cross_fusion.linear.weight)
            nn.init.zeros_(self.cross_fusion.linear.bias)

    def text_features(self) -> Tensor:
        """Raw text features [2*M*K, D], normal ones first."""
        if isinstance(self.prompt_learner, PromptEncoder):
            return self.prompt_learner()
        return self.text_encoder(*self.prompt_learner())[0]

    def forward(self, images: Tensor, cls_name: Sequence[str] | None = None) -> Output:
        """Images [B, 3, H, W] and class names (unknown ones read the first class's prompts) -> the six outputs."""
        return self.from_taps(self.frozen[0].encode(images), cls_name)

    def from_taps(self, taps: Mapping[str, Tensor], cls_name: Sequence[str] | None = None) -> Output:
        """`forward` from stored taps, so that training never runs the frozen tower."""
        image, patches, adapted = self.visual_encoder.from_taps(taps)
        names = list(cls_name or [""] * len(image))
        text = self.text_features().float()
        pairs = self.cross_fusion.pairs(text, names)  # [B, 2, D]
        fuse = self.cross_fusion.fusion_method
        maps = [self.upsampled(fuse(pairs, tokens)).softmax(1) for tokens in adapted]
        return Output(image, text, patches, adapted, maps, (fuse(pairs, image) / self.temperature).softmax(-1))

    def upsampled(self, cosines: Tensor) -> Tensor:
        """Per-token values [B, L, K] -> maps [B, K, H, W] at image size (corners aligned, as published)."""
        grid = cosines.transpose(1, 2).unflatten(-1, self.grid)
        return upsample_maps(grid.flatten(0, 1), self.image_size, align_corners=True).unflatten(0, grid.shape[:2])

    @torch.no_grad()
    def stage_attention(self, taps: Mapping[str, Tensor]) -> list[Tensor]:
        """Per window stage: how much each patch is looked at, as maps [B, h, w] (1 = evenly)."""
        layers = zip(self.visual_encoder.adapters, self.visual_encoder.tap_names, strict=True)
        return [
            cast(BasicLayer, adapter).attention_received(taps[name].float()).unflatten(1, self.grid)
            for adapter, name in layers
            if isinstance(adapter, BasicLayer)
        ]
