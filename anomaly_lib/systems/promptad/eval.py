"""What a trained PromptAD is worth: support thresholds, test metrics of the fusion and of each branch, selection."""

from dataclasses import replace
from math import isnan

import torch
from torch import Tensor

from anomaly_lib.fusion import CALIBRATIONS, calibrate
from anomaly_lib.metrics import auroc, image_metrics, pixel_auroc, pixel_metrics
from anomaly_lib.models.promptad.model import PromptAD
from anomaly_lib.models.promptad.scores import (
    BRANCHES,
    Branches,
    ImageFeatures,
    ScoreSettings,
    branch_scores,
    combine,
    fuse_branches,
    render,
)
from anomaly_lib.systems.promptad.options import Args
from anomaly_lib.types import Prediction


def settings_of(args: Args) -> ScoreSettings:
    """The score settings the options ask for; calibration is fitted later, on support images."""
    return ScoreSettings(
        task=args.task,
        fusion=args.fusion_mode,
        weights=tuple(args.fusion_weights),
        map_size=(args.resolution, args.resolution),
        sigma=args.sigma,
        image_max=args.image_max,
    )


# -- what the support images say about normal scores ----------------------------------------------------------------


@torch.no_grad()
def left_out_branches(
    model: PromptAD, support: ImageFeatures, views: ImageFeatures | None, settings: ScoreSettings
) -> Branches:
    """Branch scores of normal images the memory does not know.

    Each support image against the memory of the others; with `views` (one support image a class: the others show
    other things) those mild views against the whole memory.
    """
    if views is not None:
        return branch_scores(model, views, settings, galleries=support.gallery_rows())
    parts = []
    for left_out in range(len(support)):
        others = support[[index for index in range(len(support)) if index != left_out]]
        parts.append(branch_scores(model, support[[left_out]], settings, galleries=others.gallery_rows()))
    return Branches(*(torch.cat([getattr(p, name) for p in parts]) for name in Branches.__dataclass_fields__))


def fit_support(settings: ScoreSettings, normal: Branches, method: str) -> ScoreSettings:
    """Settings with references (and calibration by `method`) from the branch scores of normal images."""
    references = {name: getattr(normal, name).flatten() for name in BRANCHES}
    fitted = {name: calibrate(values, method) for name, values in references.items()} if method in CALIBRATIONS else {}
    return replace(settings, references=references, calibration=fitted)


def image_scores(branches: Branches, settings: ScoreSettings) -> Tensor:
    """Image scores [N] alone; for seg the maximum of the drawn map."""
    fused = fuse_branches(branches.textual, branches.visual, settings)
    return fused if settings.task == "cls" else render(fused, settings).flatten(1).amax(1)


# -- metrics --------------------------------------------------------------------------------------------------------


def selection_value(branches: Branches, settings: ScoreSettings, labels: Tensor, masks: Tensor | None) -> float:
    """The figure an epoch is chosen by: image AUROC for cls, pixel AUROC for seg."""
    fused = fuse_branches(branches.textual, branches.visual, settings)
    if settings.task == "cls" or masks is None:
        return auroc(fused.flatten(1).amax(1) if fused.ndim > 1 else fused, labels)
    return pixel_auroc(render(fused, settings), masks)


def test_metrics(
    branches: Branches, settings: ScoreSettings, labels: Tensor, masks: Tensor | None, threshold: float
) -> tuple[Prediction, dict[str, float]]:
    """The prediction of all test images and its figures; branches are measured on their own maps and scores."""
    prediction = combine(branches, settings)
    # A checkpoint of PromptAD's authors has no threshold, hence no accuracy.
    found = image_metrics(prediction.score, labels, threshold=None if isnan(threshold) else threshold)
    metrics = {f"image_{name}": found[name] for name in ("auroc", "ap", "f1_max", "accuracy", "f1") if name in found}
    if settings.task == "cls":
        metrics |= {f"{name}_auroc": auroc(getattr(branches, name), labels) for name in BRANCHES}
    elif masks is not None:
        pixels = pixel_metrics(prediction.map, masks)
        metrics |= {f"pixel_{name}": pixels[name] for name in ("auroc", "ap", "f1_max", "aupro")}
        metrics |= {
            f"{name}_pixel_auroc": pixel_auroc(render(getattr(branches, name), settings), masks) for name in BRANCHES
        }
    return prediction, metrics
