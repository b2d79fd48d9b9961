"""From frozen features to PromptAD's branch scores, and from those to a prediction: calibrate, fuse by name, draw maps.

Legend: N images, P patches, D joint width, C width of a memory tap.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from functools import cached_property

import torch
from torch import Tensor

from anomaly_lib.errors import UserError
from anomaly_lib.fusion import REFERENCE_MODES, calibrate, fuse
from anomaly_lib.models.promptad.config import BRANCHES, ScoreConfig
from anomaly_lib.ops.distance import nearest_neighbours
from anomaly_lib.ops.predictions import joined
from anomaly_lib.ops.smooth import cell_of, upsample_and_smooth, upsample_maps
from anomaly_lib.ops.tiles import Tiles
from anomaly_lib.types import Prediction


@dataclass(frozen=True, eq=False)
class ImageFeatures:
    """Unit features of N images."""

    taps: list[Tensor]  # each [N, P', C]
    grid: tuple[int, int]  # of the tokens, P = rows * columns
    tap_grid: tuple[int, int]  # of the memory patches, P' = rows * columns; another backbone may have another
    pooled: Tensor  # [N, D]
    tokens: Tensor  # [N, P, D]

    def __len__(self) -> int:
        return len(self.pooled)

    def __getitem__(self, rows: slice | Tensor | list[int]) -> "ImageFeatures":
        taps = [tap[rows] for tap in self.taps]
        return ImageFeatures(taps, self.grid, self.tap_grid, self.pooled[rows], self.tokens[rows])

    @property
    def size_in_bytes(self) -> int:
        """Memory that the features take."""
        return sum(tensor.nbytes for tensor in (*self.taps, self.pooled, self.tokens))

    def gallery_rows(self) -> list[Tensor]:
        """All patches of all images, [N * P', C] per tap: what a memory holds."""
        return [tap.flatten(0, 1) for tap in self.taps]

    def for_task(self, task: str) -> Tensor:
        """What the textual branch and the loss read: [N, D] for cls, [N, P, D] for seg."""
        return self.pooled if task == "cls" else self.tokens

    @classmethod
    def concatenate(cls, parts: Sequence["ImageFeatures"]) -> "ImageFeatures":
        """The images of several sources one after another."""
        first = parts[0]
        taps = [torch.cat([part.taps[i] for part in parts]) for i in range(len(first.taps))]
        pooled, tokens = (torch.cat([getattr(part, name) for part in parts]) for name in ("pooled", "tokens"))
        return cls(taps, first.grid, first.tap_grid, pooled, tokens)


@dataclass(frozen=True, eq=False)
class Branches:
    """Branch scores before calibration and fusion: image level [N] for cls, patch level [N, h, w] for seg."""

    textual: Tensor
    visual: Tensor
    visual_grid: Tensor  # [N, h, w]
    margin: Tensor  # [N] mean over patches of (second nearest - nearest)

    def __len__(self) -> int:
        return len(self.textual)

    def __getitem__(self, rows: slice) -> "Branches":
        return Branches(*(getattr(self, f.name)[rows] for f in fields(self)))

    def plain(self) -> dict[str, Tensor]:
        """For a checkpoint."""
        return {f.name: getattr(self, f.name).cpu() for f in fields(self)}

    @classmethod
    def from_plain(cls, saved: Mapping[str, Tensor], device: torch.device) -> "Branches":
        return cls(**{name: value.to(device) for name, value in saved.items()})

    @classmethod
    def concatenate(cls, parts: Sequence["Branches"]) -> "Branches":
        """The images of several parts one after another."""
        return cls(*(torch.cat([getattr(part, f.name) for part in parts]) for f in fields(cls)))


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


@dataclass(frozen=True, eq=False)
class Scoring:
    """How branch scores become a prediction: the options, and branch scores of normal images the memory lacks.

    `normal` is needed by a calibration and by the fusions `REFERENCE_MODES` alone; it comes from support images only.
    """

    config: ScoreConfig
    normal: Branches | None = None

    @cached_property
    def references(self) -> list[Tensor]:
        """Scores of normal images, one flat tensor a branch."""
        if self.normal is None:
            asked = f"fusion_mode={self.config.fusion_mode}, calibration={self.config.calibration}"
            raise UserError(f"{asked}: needs scores of support images, which a released PromptAD checkpoint lacks")
        return [getattr(self.normal, name).flatten() for name in BRANCHES]

    @cached_property
    def calibrations(self) -> list[Callable[[Tensor], Tensor]]:
        """One a branch, or none."""
        method = self.config.calibration
        return [] if method == "none" else [calibrate(values, method) for values in self.references]

    @property
    def map_size(self) -> tuple[int, int]:
        """Height and width of what is drawn."""
        return self.config.map_size

    def fuse(self, textual: Tensor, visual: Tensor) -> Tensor:
        """Calibrate (if asked for) and fuse two equally shaped branch scores."""
        mode, parts = self.config.fusion_mode, [textual, visual]
        if self.calibrations:
            parts = [scale(part) for scale, part in zip(self.calibrations, parts, strict=True)]
        references = self.references if mode in REFERENCE_MODES else None
        weights = self.config.fusion_weights if mode == "weighted" else None
        return fuse(*parts, mode=mode, weights=weights, references=references).to(textual.dtype)

    def render(self, grid: Tensor) -> Tensor:
        """Patch scores [N, h, w] -> smoothed maps [N, H, W] (SciPy's border rule, which the original smooths with)."""
        return upsample_and_smooth(grid, self.map_size, sigma=self.config.sigma, border="symmetric")

    def image_scores(self, branches: Branches) -> Tensor:
        """Image scores [N] alone; for seg the maximum of the drawn map."""
        fused = self.fuse(branches.textual, branches.visual)
        return fused if self.config.task == "cls" else self.render(fused).flatten(1).amax(1)

    def predict(self, branches: Branches) -> Prediction:
        """cls: scores [N] and the visual map; seg: maps fused per patch, then drawn, and their maximum.

        Parts: the score [N] (cls) or the map [N, H, W] (seg) of each branch, and the neighbour margin [N].
        """
        fused = self.fuse(branches.textual, branches.visual)
        parts = {name: getattr(branches, name) for name in BRANCHES}
        cell = cell_of(branches.visual_grid, self.map_size)
        if self.config.task == "cls":
            drawn = upsample_maps(branches.visual_grid, self.map_size)
            return Prediction(fused, drawn, {**parts, "margin": branches.margin}, cell=cell)
        maps = self.render(fused)
        parts = {name: self.render(part) for name, part in parts.items()}
        return Prediction(maps.flatten(1).amax(1), maps, {**parts, "margin": branches.margin}, cell=cell)


@dataclass(frozen=True, eq=False)
class TiledScoring(Scoring):
    """The same of images whose tiles lie beside one another in the branches: an image has the score of its worst tile.

    A map is drawn at the size of the image, one image at a time, and kept at `resolution`.
    """

    tiles: Tiles = field(kw_only=True)

    @property
    def map_size(self) -> tuple[int, int]:
        return self.tiles.tile

    def image_scores(self, branches: Branches) -> Tensor:
        return super().image_scores(branches).unflatten(0, (-1, len(self.tiles))).amax(1)

    def predict(self, branches: Branches) -> Prediction:
        if torch.compiler.is_compiling():  # a graph is for any number of images: it has no loop over them
            return self._whole(branches)
        count = len(self.tiles)
        return joined([self._whole(branches[start : start + count]) for start in range(0, len(branches), count)])

    def _whole(self, branches: Branches) -> Prediction:
        return self.tiles.joined(super().predict(branches), self.config.map_size)


def scoring_of(config: ScoreConfig, normal: Branches | None, tiles: Tiles | None = None) -> Scoring:
    """How branch scores of whole images, or of their tiles, become a prediction."""
    if tiles is None or len(tiles) == 1:
        return Scoring(config, normal)
    return TiledScoring(config, normal, tiles=tiles)
