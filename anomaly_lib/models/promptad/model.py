"""PromptAD: few-shot anomaly detection with learned prompts (textual branch) and a patch memory (visual branch).

Legend: N images, P patches, D joint width, C width of a memory tap, M anomaly prompts.
PromptAD's own losses know no fusion, which only combines branch scores: no fusion mode can change what they teach.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from anomaly_lib.backbones.clip import ClipBackbone, create_clip
from anomaly_lib.config import configure
from anomaly_lib.errors import UserError
from anomaly_lib.losses import triplet_loss
from anomaly_lib.models.promptad.config import PromptADConfig, ScoreConfig
from anomaly_lib.models.promptad.prompts import PromptLearner
from anomaly_lib.models.promptad.scores import Branches, ImageFeatures, Scoring, textual_score, visual_score
from anomaly_lib.models.promptad.towers import TOKENS, FrozenTowers
from anomaly_lib.ops.smooth import upsample_maps
from anomaly_lib.types import Prediction


@dataclass(frozen=True)
class TextFeatures:
    """Raw (not normalised) features of the three prompt groups, each [n, D]."""

    normal: Tensor
    manual: Tensor
    learned: Tensor

    @property
    def abnormal(self) -> Tensor:
        return torch.cat([self.manual, self.learned])

    def prototypes(self) -> Tensor:
        """[2, D]: the normalised means of the raw normal and of all raw anomaly features."""
        return F.normalize(torch.stack([self.normal.mean(0), self.abnormal.mean(0)]), dim=-1)


def promptad_losses(
    features: Tensor, text: TextFeatures, *, scale: Tensor | float, alignment_weight: float, triplet_axis: str
) -> dict[str, Tensor]:
    """The terms of the training loss for unit image features [N, D] (cls) or [N, P, D] (seg) of normal images.

    contrastive  cross-entropy of scale * [f . w_n, f . w_a1 ... f . w_aM] with the normal prototype as truth
    margin       relu(|f - w_n|^2 - |f - w_a|^2), the explicit anomaly margin between the two prototypes
    alignment    |mean(norm manual) - mean(norm learned)|^2, already weighted
    """
    prototypes = text.prototypes()
    classes = torch.cat([prototypes[:1], F.normalize(text.abnormal, dim=-1)])  # [1 + M, D]
    logits = scale * (features @ classes.T)  # [..., 1 + M]
    # -log softmax of class 0; a plain log-sum-exp avoids making targets for every patch.
    contrastive = (logits.logsumexp(-1) - logits[..., 0]).mean()
    # The original sums over axis 1, which is the patch axis in segmentation (features there are [N, P, D]).
    axis = 1 if triplet_axis == "patch" else -1
    margin = triplet_loss(features, prototypes[0], prototypes[1], margin=0.0, dim=axis)
    manual, learned = F.normalize(text.manual, dim=-1).mean(0), F.normalize(text.learned, dim=-1).mean(0)
    alignment = alignment_weight * (manual - learned).square().sum()
    return {"contrastive": contrastive, "margin": margin, "alignment": alignment}


class PromptAD(nn.Module):
    """Contexts, text prototypes and patch memory of one class.

        model = PromptAD(towers=create_clip("demo-clip"), class_name="bottle", fusion_mode="harmonic")
        model.remember(support)                      # normal images [k, 3, H, W], transformed
        losses = model.losses(model.towers.encode(support).pooled)
        prediction = model(images, task="cls")       # [B, 3, H, W] -> score [B], map [B, R, R]

    Made from a `PromptADConfig` or from its options as keywords. `towers` is a frozen CLIP (or `FrozenTowers`: CLIP and
    another network for the memory); it is no part of `parameters()` and `state_dict()`. Trained are
    ``learner.normal_ctx`` [n_pro, n_ctx, D] and ``learner.abnormal_ctx`` [n_pro_ab, n_ctx_ab, D] alone.
    """

    text_features: Tensor
    logit_scale: Tensor
    normal: Branches | None  # scores of normal images the memory lacks, for calibrations and reference fusions

    def __init__(
        self,
        config: PromptADConfig | None = None,
        *,
        towers: FrozenTowers | ClipBackbone,
        class_name: str = "object",
        **options: Any,
    ) -> None:
        super().__init__()
        self.config = configure(PromptADConfig, config, options)
        self.towers = FrozenTowers(towers, self.config) if isinstance(towers, ClipBackbone) else towers
        self.class_name, self.normal = class_name, None
        self.learner = PromptLearner(self.config, text=self.towers.text, class_name=class_name)
        stored = self.towers.logit_scale.detach().float().clone()
        self.register_buffer("logit_scale", stored.exp() if self.config.logit_scale == "exp" else stored)
        self.register_buffer("text_features", torch.zeros(2, self.towers.clip.embed_dim))
        for index, width in enumerate(self.towers.widths, start=1):
            self.register_buffer(f"feature_gallery{index}", torch.zeros(0, width))
        self.to(self.towers.device)

    @classmethod
    def from_name(
        cls,
        backbone: str,
        *,
        weights: str | None = None,
        image_size: int | tuple[int, int] | None = None,
        class_name: str = "object",
        **options: Any,
    ) -> "PromptAD":
        """On the CLIP called `backbone`, e.g. ``"ViT-B-16-plus-240"``, ``"demo-clip"``; `options` as in the class."""
        clip = create_clip(backbone, weights=weights, layers=TOKENS, image_size=image_size)
        return cls(towers=clip, class_name=class_name, **options)

    def extra_repr(self) -> str:
        normal, manual, learned = self.learner.counts
        sizes = ", ".join(str(list(gallery.shape)) for gallery in self.galleries)
        return (
            f"{self.class_name!r}, task={self.config.task}, fusion_mode={self.config.fusion_mode}\n{self.towers!r}\n"
            f"prompts on {self.learner.words!r}: {normal} normal, {manual} manual, {learned} learned anomalous ones\n"
            f"memory: {sizes}"
        )

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> "PromptAD":
        self.towers.apply(fn)
        return super()._apply(fn, recurse)

    # -- memory and prompts -----------------------------------------------------------------------------------------

    @property
    def galleries(self) -> list[Tensor]:
        """One [G, C] memory of unit rows per tap."""
        return [getattr(self, f"feature_gallery{index}") for index, _ in enumerate(self.towers.taps, start=1)]

    @torch.no_grad()
    def remember(self, support: Tensor | Sequence[Tensor]) -> None:
        """Fill the memory with normal images [k, 3, H, W], or with their unit patch rows [G, C], one tensor a tap."""
        rows = self.towers.encode(support).gallery_rows() if isinstance(support, Tensor) else list(support)
        if [row.shape[-1] for row in rows] != self.towers.widths:
            raise UserError(f"expected rows of widths {self.towers.widths}, got {[list(row.shape) for row in rows]}")
        for index, row in enumerate(rows, start=1):
            setattr(self, f"feature_gallery{index}", row.detach().to(self.logit_scale).contiguous())

    def encode_prompts(self) -> TextFeatures:
        """Run the text tower on the current contexts."""
        return TextFeatures(*self.learner(self.towers.text))

    @torch.no_grad()
    def keep_text_features(self) -> None:
        """Keep the prototypes (normal, abnormal) of the contexts: all that inference needs of the text tower."""
        self.text_features.copy_(self.encode_prompts().prototypes())

    def losses(self, features: Tensor, text: TextFeatures | None = None) -> dict[str, Tensor]:
        """`promptad_losses` of unit features [N, D] (cls) or [N, P, D] (seg) with the current contexts.

        `text`: what `encode_prompts` has said of them, if it is known.
        """
        return promptad_losses(
            features,
            text or self.encode_prompts(),
            scale=self.logit_scale,
            alignment_weight=self.config.lambda1,
            triplet_axis=self.config.triplet_axis,
        )

    # -- scores -----------------------------------------------------------------------------------------------------

    @torch.no_grad()
    def textual(self, features: Tensor) -> Tensor:
        """Textual anomaly score of unit features [..., D] -> [...], with the prototypes that were kept."""
        return textual_score(features, self.text_features, self.logit_scale)

    def branches(
        self,
        features: ImageFeatures,
        config: ScoreConfig | None = None,
        *,
        neighbours: int = 1,
        galleries: Sequence[Tensor] | None = None,
    ) -> Branches:
        """Branch scores of all images at once; the visual image score is the maximum of its upsampled map (or grid).

        `config` replaces the model's own options of scoring; `galleries` its memory (leave-one-out); `neighbours` 2
        also measures the neighbour margin.
        """
        config = config or self.config
        flat, margin = visual_score(features.taps, self.galleries if galleries is None else galleries, neighbours)
        grid = flat.unflatten(1, features.tap_grid)  # [N, h, w]
        textual = self.textual(features.for_task(config.task))
        if config.task == "seg":
            grid = upsample_maps(grid, features.grid)
            return Branches(textual.unflatten(1, features.grid), grid, grid, margin.mean(1))
        rendered = upsample_maps(grid, config.map_size) if config.image_max == "map" else grid
        return Branches(textual, rendered.flatten(1).amax(1), grid, margin.mean(1))

    @torch.no_grad()
    def left_out_branches(
        self, support: ImageFeatures, views: ImageFeatures | None = None, *, tiles: int = 1
    ) -> Branches:
        """Branch scores of normal images the memory does not know; of each `tiles` rows are features.

        Each support image against the memory of the others; with `views` (one support image a class: the others show
        other things) those mild views of the support images against the whole memory.
        """
        if views is not None:
            return self.branches(views, galleries=support.gallery_rows())
        parts = []
        for left_out in range(0, len(support), tiles):
            own = range(left_out, left_out + tiles)
            others = support[[index for index in range(len(support)) if index not in own]]
            parts.append(self.branches(support[list(own)], galleries=others.gallery_rows()))
        return Branches.concatenate(parts)

    @torch.no_grad()
    def forward(self, images: Tensor, task: str | None = None) -> Prediction:
        """Score images [B, 3, H, W] at CLIP's input size: ``score`` [B], ``map`` [B, R, R] and the branches' parts.

        `task`: "cls" (the image score and the visual map) or "seg" (the fused map and its maximum); None = the
        model's own. In training mode the prompts are encoded first, in eval mode the kept prototypes are used.
        """
        if not len(self.galleries[0]):
            raise UserError("the memory is empty: give normal images to remember() first")
        config: ScoreConfig = self.config
        if task is not None and task != config.task:
            config = ScoreConfig.from_saved({**vars(self.config), "task": task})
        if self.training:
            self.keep_text_features()
        scoring = Scoring(config, self.normal if config is self.config else None)
        return scoring.predict(self.branches(self.towers.encode(images), config))
