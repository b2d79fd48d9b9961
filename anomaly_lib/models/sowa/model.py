"""SOWA (hierarchical frozen window attention): one frozen CLIP, an adapter for each of four depths, learned prompts.

Legend: B images, L patches, D width of the joint space, M class names, K phrasings of each.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from anomaly_lib.backbones.clip import ClipBackbone
from anomaly_lib.errors import UserError
from anomaly_lib.models.sowa.config import FUSIONS, AnomalyCLIPConfig
from anomaly_lib.models.sowa.text import (
    AnomalyPromptLearner,
    OneClass,
    PromptEncoder,
    TextMapEncoder,
    configured,
    names_of_batch,
    pick_classes,
    pool_text_features,
)
from anomaly_lib.models.sowa.vision import (
    PICTURES,
    Adapters,
    VisionMapEncoder,
    VisionResidualEncoder,
    create_tapped_clip,
    is_named,
)
from anomaly_lib.models.sowa.window_adapter import BasicLayer
from anomaly_lib.ops.smooth import upsample_maps


class Output(NamedTuple):
    """The six outputs of `AnomalyCLIP.forward`."""

    image_features: Tensor  # [B, D] pooled, not normalised
    text_features: Tensor  # [2*M*K, D]
    patches: list[Tensor]  # per stage [B, L, D], as CLIP has them: for the few-shot memory
    patch_features: list[Tensor]  # per stage [B, L, D], adapted: for the text-guided maps
    anomaly_maps: list[Tensor]  # per stage [B, 2, H, W], softmax over (normal, anomaly)
    text_probs: Tensor  # [B, 2]


class DotProductFusion(nn.Module):
    """Cosine of vision [B, L, D] or [B, D] with the pair of text features [B, 2, D]: [B, L, 2] or [B, 2]."""

    def forward(self, text_features: Tensor, vision_features: Tensor) -> Tensor:
        if text_features.shape[0] != vision_features.shape[0]:
            raise UserError(
                f"text features of {len(text_features)} images {list(text_features.shape)} against vision features "
                f"{list(vision_features.shape)}: give one pair for each image"
            )
        text, vision = F.normalize(text_features, dim=-1), F.normalize(vision_features, dim=-1)
        if vision.ndim == 2:
            return torch.einsum("bc,bkc->bk", vision, text)
        return torch.einsum("blc,bkc->blk", vision, text)


class FusionModule(nn.Module):
    """Text features [2*M*K, D] -> (linear map) -> mean over phrasings -> the pair of each image's class -> fusion.

    ``FusionModule(DotProductFusion(), class_names=["cup"], embedding_dim=768)``; without `embedding_dim` no linear map.
    """

    def __init__(
        self, fusion_method: nn.Module, *, class_names: Sequence[str], embedding_dim: int | None = None
    ) -> None:
        super().__init__()
        if isinstance(class_names, str):
            raise UserError(f"class_names={class_names!r}: takes a list")
        self.fusion_method, self.class_names = fusion_method, tuple(class_names)
        self.linear = nn.Linear(embedding_dim, embedding_dim) if embedding_dim else nn.Identity()

    def extra_repr(self) -> str:
        return f"class_names={list(self.class_names)}"

    def pairs(self, text_features: Tensor, cls_names: Sequence[str]) -> Tensor:
        """(normal, anomaly) features of each image's class [B, 2, D]."""
        pooled = pool_text_features(self.linear(text_features), len(self.class_names))
        return pick_classes(pooled, cls_names, self.class_names)

    def forward(self, text_features: Tensor, vision_features: Tensor, cls_names: Sequence[str]) -> Tensor:
        """Cosines [B, 2] or [B, L, 2] with vision features [B, D] or [B, L, D]."""
        names = names_of_batch(cls_names, len(vision_features))
        return self.fusion_method(self.pairs(text_features, names), vision_features)


class AnomalyCLIP(nn.Module):
    """The whole model: images [B, 3, H, W] and their class names -> the six outputs of `Output`.

        model = AnomalyCLIP.from_name("ViT-L/14@336px", class_names=["bottle", "cable"])
        output = model(images, ["bottle", "cable"])
        output.anomaly_maps[0]  # [2, 2, 336, 336]: softmax over (normal, anomaly) of the first stage

    `clip` is a frozen CLIP that answers the blocks the adapters read (`create_tapped_clip`). Parameters and state dict
    are the trained parts only; the CLIP is referred to (``model.frozen[0]``: move it to another device by itself).
    Options: `AnomalyCLIPConfig`. With ``start="zero-shot"`` adapters and linear map begin as the identity and contexts
    say `context_words`; with ``map_calibration="logistic"`` every stage's map has a trained scale and offset and every
    stage a weight (`fit_calibration`): without them the rarity of defects and the worth of a stage can only be learned
    by turning the features themselves.

    Parts of your own: `adapter` (see `vision.Adapters`) and `fusion` (a module as `DotProductFusion`), or their names.
    """

    stage_weights: Tensor

    def __init__(
        self,
        clip: ClipBackbone,
        config: AnomalyCLIPConfig | None = None,
        *,
        adapter: Adapters | None = None,
        fusion: str | nn.Module | None = None,
        **options: Any,
    ) -> None:
        super().__init__()
        if is_named(adapter):
            options["adapter"], adapter = adapter, None
        if isinstance(fusion, str):
            options["fusion"], fusion = fusion, None
        c = self.config = configured(AnomalyCLIPConfig, config, options)
        self.frozen = (clip,)
        self.image_size, self.grid = clip.image_size, clip.grid
        self.text_encoder = TextMapEncoder(clip.text)
        learned = c.prompt_learner == "coop"
        self.prompt_learner = AnomalyPromptLearner(clip.text, c) if learned else PromptEncoder(clip.text, c)
        self.visual_encoder = (VisionMapEncoder if c.vision == "map" else VisionResidualEncoder)(
            clip, c, adapter=adapter
        )
        linear = clip.embed_dim if c.text_linear and c.prompt_learner != "zero" else None
        fuse = FUSIONS.part(c.fusion)() if fusion is None else fusion
        self.cross_fusion = FusionModule(fuse, class_names=c.class_names, embedding_dim=linear)
        stages = len(self.visual_encoder.tap_names)
        calibrated = c.map_calibration == "logistic"
        self.map_scale = nn.Parameter(torch.ones(stages)) if calibrated else None
        self.map_offset = nn.Parameter(torch.zeros(stages)) if calibrated else None
        if calibrated:  # of the stages' logits, then a constant; until they are fitted the mean
            equal = torch.full((stages + 1,), 1 / stages)
            equal[-1] = 0.0
            self.register_buffer("stage_weights", equal)
        if c.start == "zero-shot":
            self.start_from_zero_shot()

    @classmethod
    def from_name(
        cls,
        name: str,
        *,
        weights: str | Path | None = None,
        image_size: int | Sequence[int] | None = None,
        download: bool = False,
        config: AnomalyCLIPConfig | None = None,
        **options: Any,
    ) -> "AnomalyCLIP":
        """The model on the CLIP called `name`: ``"ViT-L/14@336px"``, any CLIP of open_clip, ``"demo-clip"``, or
        ``"tiny-clip"`` with ``weights="random"``.

        `weights`: its weight file, where it is not found by itself; `options` as in the class.
        """
        blocks = options.get("feature_map_idx", ()) if config is None else config.feature_map_idx
        clip = create_tapped_clip(
            name, feature_map_idx=blocks, weights=weights, image_size=image_size, download=download
        )
        return cls(clip, config, **options)

    def __repr__(self) -> str:
        clip = self.frozen[0]
        size = "x".join(map(str, self.image_size))
        trained = sum(p.numel() for p in self.parameters())
        return (
            f"AnomalyCLIP(frozen {clip.name} at {size} ({clip.weights_id[:16]}), {trained:,} trained values\n"
            f"  {self.visual_encoder!r}\n  {self.prompt_learner!r}\n"
            f"  temperature {self.config.temperature}, maps {self.config.map_calibration})"
        )

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
        """Raw text features [2*M*K, D] ([2*M, D] of plain prompts), normal ones first."""
        if isinstance(self.prompt_learner, PromptEncoder):
            return self.prompt_learner()
        return self.text_encoder(*self.prompt_learner())[0]

    def forward(self, images: Tensor, cls_name: Sequence[str] | None = None) -> Output:
        """Images [B, 3, H, W] and a class name for each (unknown ones read the first class's prompts) -> `Output`."""
        return self.from_taps(self.visual_encoder.observe(images), cls_name)

    def from_taps(self, taps: Mapping[str, Tensor], cls_name: Sequence[str] | OneClass | None = None) -> Output:
        """`forward` from stored taps, so that training never runs the frozen tower."""
        image, patches, adapted = self.visual_encoder.from_taps(taps)
        names = names_of_batch(cls_name, image.shape[0])
        text = self.text_features().float()
        pairs = self.cross_fusion.pairs(text, names).expand(image.shape[0], -1, -1)  # [B, 2, D]
        fuse = self.cross_fusion.fusion_method
        maps = [self._map(stage, self.upsampled(fuse(pairs, tokens))) for stage, tokens in enumerate(adapted)]
        return Output(image, text, patches, adapted, maps, (fuse(pairs, image) / self.config.temperature).softmax(-1))

    def _map(self, stage: int, cosines: Tensor) -> Tensor:
        """Softmax over (normal, anomaly) [B, 2, H, W], scaled and offset where the model is calibrated."""
        if self.map_scale is None or self.map_offset is None:
            return cosines.softmax(1)
        logits = cosines * self.map_scale[stage]
        return torch.stack([logits[:, 0], logits[:, 1] + self.map_offset[stage]], dim=1).softmax(1)

    @torch.no_grad()
    def patch_differences(self, taps: Mapping[str, Tensor], cls_name: Sequence[str]) -> Tensor:
        """cosine with "anomaly" - cosine with "normal" of every patch, before calibration: [stages, B, L]."""
        adapted = self.visual_encoder.from_taps(taps)[2]
        pairs = self.cross_fusion.pairs(self.text_features().float(), cls_name)
        cosines = torch.stack([self.cross_fusion.fusion_method(pairs, tokens) for tokens in adapted])
        return cosines[..., 1] - cosines[..., 0]

    @torch.no_grad()
    def fit_calibration(self, differences: Tensor, truth: Tensor) -> None:
        """Logistic regressions of `truth` [N] (defective share of a patch) on `patch_differences` [stages, N].

        Each stage alone starts its scale (kept within 1 and 100, so that a stage that says nothing yet can still learn)
        and offset; all together give the stages' weights, none of them negative.
        """
        assert self.map_scale is not None
        assert self.map_offset is not None
        logits = []
        for stage, values in enumerate(differences):
            scale = float(logistic_fit(values[:, None], truth)[0].clamp(1.0, 100.0))
            offset = float(logistic_fit(values.new_zeros(len(values), 0), truth, fixed=scale * values)[0])
            self.map_scale[stage], self.map_offset[stage] = scale, offset
            logits.append(scale * values + offset)
        rows = torch.stack(logits, dim=1)  # [N, stages]
        used = list(range(len(logits)))
        weights = logistic_fit(rows, truth)
        while len(used) > 1 and float(weights[:-1].min()) < 0:
            used.pop(int(weights[:-1].argmin()))
            weights = logistic_fit(rows[:, used], truth)
        self.stage_weights.zero_()
        self.stage_weights[[*used, -1]] = weights.to(self.stage_weights)

    def fused_map(self, maps: Sequence[Tensor]) -> Tensor:
        """The stages' maps [B, 2, H, W] as one [B, H, W]: the sum of their anomaly channels, or weighted logits."""
        if self.map_scale is None:
            return torch.stack([one[:, 1] for one in maps]).sum(0)
        logits = torch.stack([one[:, 1].log() - one[:, 0].log() for one in maps])  # [stages, B, H, W]
        fused = torch.einsum("s,sbhw->bhw", self.stage_weights[:-1], logits) + self.stage_weights[-1]
        return len(maps) * torch.sigmoid(fused)  # on the scale of the sum

    @property
    def cell(self) -> float:
        """How many pixels of a map one token covers."""
        return self.image_size[0] * self.image_size[1] / (self.grid[0] * self.grid[1])

    def upsampled(self, cosines: Tensor) -> Tensor:
        """Per-token values [B, L, K] -> maps [B, K, H, W] at image size (corners aligned, as published)."""
        grid = cosines.transpose(1, 2).unflatten(-1, self.grid)
        return upsample_maps(grid.flatten(0, 1), self.image_size, align_corners=True).unflatten(0, grid.shape[:2])

    @torch.no_grad()
    def stage_attention(self, taps: Mapping[str, Tensor]) -> list[Tensor]:
        """Per window stage: how much each patch is looked at, as maps [B, h, w] (1 = evenly); [] without taps."""
        if PICTURES in taps:
            return []
        layers = zip(self.visual_encoder.adapters, self.visual_encoder.tap_names, strict=True)
        return [
            cast(BasicLayer, adapter).attention_received(taps[name].float()).unflatten(1, self.grid)
            for adapter, name in layers
            if isinstance(adapter, BasicLayer)
        ]


def logistic_fit(x: Tensor, y: Tensor, *, fixed: Tensor | None = None, steps: int = 25, ridge: float = 1e-6) -> Tensor:
    """Logistic regression of y [N] in [0, 1] on x [N, F] by Newton's method: F slopes and an offset.

    `fixed` [N] is added to the logits as it is. A step that makes the loss larger is halved until it does not: where
    the curve is flat it would leave for infinity.
    """
    rows = torch.cat([x, x.new_ones(len(x), 1)], dim=1).double()  # [N, F + 1]
    truth, base = y.double(), 0.0 if fixed is None else fixed.double()
    weights = rows.new_zeros(rows.shape[1])
    penalty = ridge * torch.eye(len(weights), dtype=rows.dtype, device=rows.device)

    def loss(weights: Tensor) -> Tensor:
        logits = rows @ weights + base
        return (F.softplus(logits) - truth * logits).mean() + ridge * weights.square().sum() / 2

    for _ in range(steps):
        p = torch.sigmoid(rows @ weights + base)
        curve = (rows * (p * (1 - p))[:, None]).T @ rows / len(rows) + penalty
        step = torch.linalg.solve(curve, rows.T @ (p - truth) / len(rows) + penalty @ weights)
        halvings, most = 0, loss(weights) + 1e-9
        while halvings < 50 and not loss(weights - step) <= most:
            step, halvings = step / 2, halvings + 1
        weights = weights - step
    return weights
