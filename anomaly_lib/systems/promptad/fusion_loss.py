"""--fusion-in-loss, an extension: the fused score itself learns to tell pasted defects from the support images.

PromptAD trains its textual branch by itself and meets the visual one only when it scores. Here the contexts also answer
for the fused score. Nothing else changes: the visual branch is fixed, and the images are those PromptAD has.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from anomaly_lib.data.views import with_views
from anomaly_lib.models.promptad.model import PromptAD
from anomaly_lib.models.promptad.scores import ImageFeatures, Scoring, textual_score
from anomaly_lib.systems.promptad.data import TaskData, synthetic_anomalies, truth_of
from anomaly_lib.systems.promptad.features import Towers
from anomaly_lib.systems.promptad.options import Args

PASTED_PER_IMAGE = 12
WHOLLY = 0.5  # share of a patch that is pasted, from which it counts as a defect


@dataclass(frozen=True)
class FusedRanking:
    """How badly the fused score orders what is normal and what is pasted.

    Called with text prototypes [2, D] and the temperature, it answers the mean over all (pasted, normal) pairs of
    softplus(-(difference of their fused scores) / spread of all of them): log 2 where the score says nothing, towards 0
    where it ranks every pasted patch (cls: image) above every normal one, whatever the scale of the fusion.
    """

    features: Tensor  # [N, D] or [N, P, D]: what the textual branch reads of normal images, then of pasted ones
    visual: Tensor  # [N] or [N, P], which training does not change
    pasted: Tensor  # bool, as `visual`: what counts as a defect
    normal: Tensor  # bool: what counts as normal (untouched patches of pasted images are neither)
    scoring: Scoring

    def __call__(self, prototypes: Tensor, scale: Tensor) -> Tensor:
        fused = self.scoring.fuse(textual_score(self.features, prototypes, scale), self.visual)
        gap = fused[self.pasted][:, None] - fused[self.normal][None, :]
        spread = fused[self.pasted | self.normal].detach().std().clamp_min(1e-6)
        return F.softplus(-gap / spread).mean()


def fused_ranking(args: Args, data: TaskData, towers: Towers, model: PromptAD, support: ImageFeatures) -> FusedRanking:
    """The loss on these support images, each judged without itself in the memory; of one alone mild views stand for it.

    Copies of a support image with a pasted patch are judged by the same memory as the image itself.
    """
    items = synthetic_anomalies(data.support, PASTED_PER_IMAGE, args.seed + 1)  # --select val judges by another draw
    pasted = towers.features(items, test=False)
    views = towers.features(with_views(data.support, "mild"), test=False) if args.shot == 1 else None
    normal = support if views is None else views
    visual = [
        model.left_out_branches(support, views).visual,
        pasted_visual(model, support, pasted, alone=args.shot == 1),
    ]
    features = [one.for_task(args.task) for one in (normal, pasted)]
    defects = torch.ones(len(pasted), dtype=torch.bool, device=visual[1].device)
    if args.task == "seg":
        masks = truth_of(items, towers.transform(test=False), args.resolution)[1]
        assert masks is not None
        share = F.adaptive_avg_pool2d(masks.float().unsqueeze(1), pasted.grid).flatten(1)  # [N, P]
        visual = [one.flatten(1) for one in visual]
        most = share.amax(1, keepdim=True).clamp(max=WHOLLY)  # a scar may be thinner: then what it covers most
        defects = (share >= most).to(defects.device)
    nothing = torch.zeros_like(visual[0], dtype=torch.bool)
    return FusedRanking(
        torch.cat(features), torch.cat(visual), torch.cat([nothing, defects]),
        torch.cat([~nothing, torch.zeros_like(defects)]), Scoring(args),
    )  # fmt: skip


def pasted_visual(model: PromptAD, support: ImageFeatures, pasted: ImageFeatures, *, alone: bool) -> Tensor:
    """Visual scores of the pasted copies, which follow each other support image by support image."""
    found = []
    for number, rows in enumerate(torch.arange(len(pasted)).split(PASTED_PER_IMAGE)):
        others: Sequence[int] = [index for index in range(len(support)) if index != number or alone]
        found.append(model.branches(pasted[rows], galleries=support[list(others)].gallery_rows()).visual)
    return torch.cat(found)
