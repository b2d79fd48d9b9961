"""AnomalyDINO (Damm et al., WACV 2025): distance to the nearest patch of a few turned normal images."""

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from anomaly_lib.config import configure
from anomaly_lib.models.detectors.banks import TurnedBankDetector, cosine_grid, mean_maps
from anomaly_lib.models.detectors.configs import summary_of
from anomaly_lib.models.detectors.contract import Features, Size
from anomaly_lib.models.detectors.family_configs import AnomalyDinoConfig
from anomaly_lib.ops import cell_of, foreground, top_mean, unit_rows, upsample_and_smooth
from anomaly_lib.types import Prediction


class AnomalyDino(TurnedBankDetector):
    """Images [B, 3, H, W] -> scores [B] and maps [B, H, W]: 1 - cos to the nearest patch of the normal images.

    ``AnomalyDino(extractor=net).fit(batches)``. `extractor`, frozen: images -> {output: [B, C, h, w]}. Every normal
    image is learnt in `rotations` turns; an image's score is the mean of its worst patches. With `mask`, patches of the
    background score 0: they are found by the first principal component of the image's own patches.
    """

    def __init__(self, config: AnomalyDinoConfig | None = None, *, extractor: nn.Module, **options: Any) -> None:
        super().__init__(extractor)
        self.config = configure(AnomalyDinoConfig, config, options)

    def __repr__(self) -> str:
        return summary_of("AnomalyDino", AnomalyDinoConfig, self.config, [self.shape_of_banks()])

    def rows_of(self, features: Features) -> Sequence[Iterable[Tensor]]:
        """The unit rows [M, C] of each image in all its turns."""
        maps = mean_maps(features, self.config.layers)  # [B, V, C, h, w]
        rows = unit_rows(maps)  # [B, V, P, C]
        if not (self.config.mask and self.config.mask_support):
            return [rows.flatten(1, 2)]
        kept = self._object(maps.flatten(0, 1)).reshape(rows.shape[:3])  # [B, V, P]
        return [[some[which] for some, which in zip(rows, kept, strict=True)]]

    def judge(self, features: Features, size: Size, numbers: Tensor | None) -> Prediction:
        """Scores [B] and maps [B, *size] of images in their one query view."""
        maps = mean_maps(features, self.config.layers)[:, 0]  # [B, C, h, w]
        grid = cosine_grid(maps, self.memories[0], numbers, self.config.neighbours)
        if self.config.mask:
            grid = torch.where(self._object(maps), grid, 0)
        score = top_mean(grid.flatten(1), self.config.top_share)
        # SciPy's border rule, which the original smooths with.
        drawn = upsample_and_smooth(grid, size, sigma=self.config.sigma, border="symmetric")
        return Prediction(score, drawn, cell=cell_of(grid, size))

    def _object(self, maps: Tensor) -> Tensor:
        """Which patches of maps [B, C, h, w] show the object, bool [B, h, w]."""
        return foreground(maps, self.config.mask_threshold)
