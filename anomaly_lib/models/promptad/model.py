"""PromptAD: few-shot anomaly detection with learned prompts (textual branch) and a patch memory (visual branch).

Legend: N images, P patches, D joint width, C width of a memory tap, M anomaly prompts.
Scores and losses never meet: fusion only combines branch scores, so no fusion mode can change what is learned.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from anomaly_lib.losses import triplet_loss
from anomaly_lib.models.promptad.prompts import PromptLearner, TextTower
from anomaly_lib.ops.distance import nearest_neighbours

LOGIT_SCALES = ("exp", "raw")
TRIPLET_AXES = ("channel", "patch")


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


def textual_score(features: Tensor, prototypes: Tensor, scale: Tensor | float) -> Tensor:
    """Probability of the anomalous prototype, softmax(scale * f . [normal, abnormal]): [..., D] -> [...]."""
    # A softmax over two is a sigmoid of the difference; one product instead of two.
    return torch.sigmoid(scale * (features @ (prototypes[1] - prototypes[0])))


@torch.no_grad()
def visual_score(taps: Sequence[Tensor], galleries: Sequence[Tensor], k: int = 1) -> tuple[Tensor, Tensor]:
    """Mean over taps of the smallest (1 - cos) / 2 to the gallery, and the nearest-neighbour margin: each [N, P].

    `taps` [N, P, C] and `galleries` [G, C] have unit rows, for which (1 - cos) / 2 = |x - y|^2 / 4: never negative
    and 0 for a stored patch. The margin is the mean over taps of (second nearest - nearest) (1 - cos); 0 unless k is 2.
    """
    score, margin = torch.zeros(taps[0].shape[:2]), torch.zeros(taps[0].shape[:2])
    score, margin = score.to(taps[0].device), margin.to(taps[0].device)
    for tap, gallery in zip(taps, galleries, strict=True):
        distance, _ = nearest_neighbours(tap.flatten(0, 1), gallery, k=min(k, len(gallery)))
        quarter = (distance.square() / 4).unflatten(0, tap.shape[:2])  # [N, P, k]
        score += quarter[..., 0] / len(taps)
        margin += 2 * (quarter[..., -1] - quarter[..., 0]) / len(taps)
    return score, margin


def promptad_losses(
    features: Tensor, text: TextFeatures, *, scale: Tensor | float, alignment_weight: float, triplet_axis: str
) -> dict[str, Tensor]:
    """The terms of the training loss for unit image features [N, D] (cls) or [N, P, D] (seg) of normal images.

    contrastive  cross-entropy of scale * [f . w_n, f . w_a1 ... f . w_aM] with the normal prototype as truth
    margin       relu(|f - w_n|^2 - |f - w_a|^2), the explicit anomaly margin between the two prototypes
    alignment    |mean(norm manual) - mean(norm learned)|^2, already weighted
    """
    if triplet_axis not in TRIPLET_AXES:
        raise ValueError(f"triplet_axis must be one of {TRIPLET_AXES}, got {triplet_axis!r}")
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
    """Contexts, text prototypes and memory of one (class, k, task). The frozen towers stay outside."""

    text_features: Tensor
    logit_scale: Tensor

    def __init__(
        self,
        learner: PromptLearner,
        *,
        stored_logit_scale: Tensor,
        joint_dim: int,
        memory_shape: Sequence[tuple[int, int]],
        logit_scale_mode: str = "exp",
        triplet_axis: str = "channel",
        alignment_weight: float = 0.001,
    ) -> None:
        super().__init__()
        if logit_scale_mode not in LOGIT_SCALES:
            raise ValueError(f"logit_scale_mode must be one of {LOGIT_SCALES}, got {logit_scale_mode!r}")
        self.learner = learner
        self.triplet_axis = triplet_axis
        self.alignment_weight = alignment_weight
        scale = stored_logit_scale.detach().float().clone()
        self.register_buffer("logit_scale", scale.exp() if logit_scale_mode == "exp" else scale)
        self.register_buffer("text_features", torch.zeros(2, joint_dim))
        for index, shape in enumerate(memory_shape, start=1):
            self.register_buffer(f"feature_gallery{index}", torch.zeros(shape))
        self.num_galleries = len(memory_shape)

    @property
    def galleries(self) -> list[Tensor]:
        """One [G, C] memory of unit rows per tap."""
        return [getattr(self, f"feature_gallery{index}") for index in range(1, self.num_galleries + 1)]

    @torch.no_grad()
    def remember(self, rows: Sequence[Tensor]) -> None:
        """Fill the memory with the unit patch rows [G, C] of the support images, per tap."""
        for gallery, tap_rows in zip(self.galleries, rows, strict=True):
            gallery.copy_(tap_rows)

    def encode_prompts(self, text: TextTower) -> TextFeatures:
        """Run the text tower on the current contexts."""
        return TextFeatures(*self.learner(text))

    @torch.no_grad()
    def keep_text_features(self, text: TextTower) -> None:
        """Keep the prototypes (normal, abnormal) of the contexts: all that inference needs of the text tower."""
        self.text_features.copy_(self.encode_prompts(text).prototypes())

    def losses(self, features: Tensor, text: TextTower) -> dict[str, Tensor]:
        """`promptad_losses` of unit features with the current contexts."""
        return promptad_losses(
            features,
            self.encode_prompts(text),
            scale=self.logit_scale,
            alignment_weight=self.alignment_weight,
            triplet_axis=self.triplet_axis,
        )

    @torch.no_grad()
    def textual(self, features: Tensor) -> Tensor:
        """Textual anomaly score of unit features [..., D] -> [...]."""
        return textual_score(features, self.text_features, self.logit_scale)
