"""From PromptAD's branch scores to a prediction: calibrate, fuse by name, draw maps."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from anomaly_lib.fusion import REFERENCE_MODES, fuse
from anomaly_lib.models.promptad.model import PromptAD, visual_score
from anomaly_lib.ops.smooth import upsample_and_smooth, upsample_maps
from anomaly_lib.types import Prediction

TASKS = ("cls", "seg")
BRANCHES = ("textual", "visual")
IMAGE_MAXIMA = ("map", "grid")


@dataclass(frozen=True)
class ImageFeatures:
    """Unit features of N images; `pooled` or `tokens` may be absent when the task does not need them."""

    taps: list[Tensor]  # each [N, P', C]
    grid: tuple[int, int]  # of the tokens, P = rows * columns
    tap_grid: tuple[int, int]  # of the memory patches, P' = rows * columns; another backbone may have another
    pooled: Tensor | None = None  # [N, D]
    tokens: Tensor | None = None  # [N, P, D]

    def __len__(self) -> int:
        return self.taps[0].shape[0]

    def __getitem__(self, rows: slice | Tensor | list[int]) -> "ImageFeatures":
        return ImageFeatures(
            taps=[tap[rows] for tap in self.taps],
            grid=self.grid,
            tap_grid=self.tap_grid,
            pooled=None if self.pooled is None else self.pooled[rows],
            tokens=None if self.tokens is None else self.tokens[rows],
        )

    def gallery_rows(self) -> list[Tensor]:
        """All patches of all images, [N * P', C] per tap: what a memory holds."""
        return [tap.flatten(0, 1) for tap in self.taps]

    def for_task(self, task: str) -> Tensor:
        """What the textual branch and the loss read: [N, D] for cls, [N, P, D] for seg."""
        features = self.pooled if task == "cls" else self.tokens
        assert features is not None, f"features for task {task} were not extracted"
        return features


@dataclass(frozen=True)
class ScoreSettings:
    """How branch scores become a prediction. `calibration` and `references` come from support images only."""

    task: str
    fusion: str = "harmonic"
    weights: tuple[float, ...] | None = None
    map_size: tuple[int, int] = (400, 400)
    sigma: float = 4.0
    image_max: str = "map"
    calibration: Mapping[str, Callable[[Tensor], Tensor]] = field(default_factory=dict)
    references: Mapping[str, Tensor] = field(default_factory=dict)


@dataclass(frozen=True)
class Branches:
    """Branch scores before calibration and fusion: image level [N] for cls, patch level [N, h, w] for seg."""

    textual: Tensor
    visual: Tensor
    visual_grid: Tensor  # [N, h, w]
    margin: Tensor  # [N] mean over patches of (second nearest - nearest)


def branch_scores(
    model: PromptAD,
    features: ImageFeatures,
    settings: ScoreSettings,
    *,
    neighbours: int = 1,
    galleries: Sequence[Tensor] | None = None,
) -> Branches:
    """Score all images at once; the visual image score is the maximum of its upsampled map (or of the patch grid).

    `galleries` replaces the model's memory (leave-one-out); `neighbours` 2 also measures the neighbour margin.
    """
    flat, margin = visual_score(features.taps, model.galleries if galleries is None else galleries, neighbours)
    grid = flat.unflatten(1, features.tap_grid)  # [N, h, w]
    textual = model.textual(features.for_task(settings.task))
    if settings.task == "seg":
        grid = upsample_maps(grid, features.grid)
        return Branches(textual.unflatten(1, features.grid), grid, grid, margin.mean(1))
    rendered = upsample_maps(grid, settings.map_size) if settings.image_max == "map" else grid
    return Branches(textual, rendered.flatten(1).amax(1), grid, margin.mean(1))


def fuse_branches(textual: Tensor, visual: Tensor, settings: ScoreSettings) -> Tensor:
    """Calibrate (if asked for) and fuse two equally shaped branch scores."""
    parts = {"textual": textual, "visual": visual}
    parts = {name: settings.calibration[name](part) if settings.calibration else part for name, part in parts.items()}
    references = [settings.references[name] for name in BRANCHES] if settings.fusion in REFERENCE_MODES else None
    weights = settings.weights if settings.fusion == "weighted" else None
    return fuse(*parts.values(), mode=settings.fusion, weights=weights, references=references).to(textual.dtype)


def combine(branches: Branches, settings: ScoreSettings, *, branch_maps: bool = False) -> Prediction:
    """The prediction: cls scores [N] and the visual map; seg maps fused per patch, then drawn, and their maximum."""
    fused = fuse_branches(branches.textual, branches.visual, settings)
    if settings.task == "cls":
        parts = {"textual": branches.textual, "visual": branches.visual, "margin": branches.margin}
        return Prediction(fused, upsample_maps(branches.visual_grid, settings.map_size), parts)
    maps = render(fused, settings)
    parts = {"margin": branches.margin}
    if branch_maps:
        parts |= {name: render(getattr(branches, name), settings) for name in BRANCHES}
    return Prediction(maps.flatten(1).amax(1), maps, parts)


def render(grid: Tensor, settings: ScoreSettings) -> Tensor:
    """Patch scores [N, h, w] -> smoothed maps [N, H, W] (SciPy's border rule, which the original smooths with)."""
    return upsample_and_smooth(grid, settings.map_size, sigma=settings.sigma, border="symmetric")


def predict_features(
    model: PromptAD, features: ImageFeatures, settings: ScoreSettings, *, branch_maps: bool = False
) -> Prediction:
    """Branch scores and their fusion in one call."""
    return combine(branch_scores(model, features, settings), settings, branch_maps=branch_maps)


def concatenate(features: Sequence[ImageFeatures]) -> ImageFeatures:
    """Stack image features of several sources."""
    first = features[0]
    return ImageFeatures(
        taps=[torch.cat([f.taps[i] for f in features]) for i in range(len(first.taps))],
        grid=first.grid,
        tap_grid=first.tap_grid,
        pooled=None if first.pooled is None else torch.cat([f.for_task("cls") for f in features]),
        tokens=None if first.tokens is None else torch.cat([f.for_task("seg") for f in features]),
    )
