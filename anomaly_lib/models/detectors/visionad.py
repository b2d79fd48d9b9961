"""VisionAD (Wang et al., 2025): distance to the nearest normal patch, summed over three views of the image."""

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from anomaly_lib.config import configure
from anomaly_lib.models.detectors.banks import BankDetector, cosine_grid, mean_maps
from anomaly_lib.models.detectors.configs import summary_of
from anomaly_lib.models.detectors.contract import Features, Size
from anomaly_lib.models.detectors.family_configs import VisionAdConfig
from anomaly_lib.ops import cell_of, six_views, top_mean, unit_rows, upsample_and_smooth
from anomaly_lib.types import Prediction


class VisionAd(BankDetector):
    """Images [B, 3, H, H] -> scores [B] and maps [B, H, H]: sum over views of 1 - cos to the nearest normal patch.

    ``VisionAd(extractor=net).fit(batches)``. `extractor`, frozen: images -> {output: [B, C, h, h]}. An image is scored
    as it is, mirrored top to bottom, and with every value below the network's mean raised to it; each view has a bank
    of its own, filled with normal images that were changed alike and then turned and mirrored (six views).
    """

    def __init__(self, config: VisionAdConfig | None = None, *, extractor: nn.Module, **options: Any) -> None:
        config = configure(VisionAdConfig, config, options)
        super().__init__(extractor, 3 if config.augment_query else 1)
        self.config = config

    def __repr__(self) -> str:
        return summary_of("VisionAd", VisionAdConfig, self.config, [self.shape_of_banks()])

    def query_views(self, images: Tensor) -> Tensor:
        """[B, 3, H, H] -> [B, 3, 3, H, H]: as they are, mirrored top to bottom, cut from below."""
        if not self.config.augment_query:
            return images.unsqueeze(1)
        # The published cut is at 0 behind the network's own normalisation: at its mean before it.
        floor = getattr(self.extractor, "mean", torch.zeros((), device=images.device))
        return torch.stack([images, images.flip(-2), torch.maximum(images, floor)], dim=1)

    def support_views(self, images: Tensor) -> Tensor:
        """[B, 3, H, H] -> [B, 18, 3, H, H]: the six views of each query view, one bank's after the other's."""
        views = self.query_views(images)
        if not self.config.augment_support:
            return views
        return six_views(views.flatten(0, 1)).unflatten(0, views.shape[:2]).flatten(1, 2)

    @property
    def view_names(self) -> tuple[str, str]:
        query = "as it is, mirrored, cut" if self.config.augment_query else ""
        return f"six views of: {query}" if self.config.augment_support else query, query

    def rows_of(self, features: Features) -> Sequence[Iterable[Tensor]]:
        """For each query view the unit rows [B, M, C] of the supports' six views of it."""
        rows = unit_rows(mean_maps(features, self.config.layers))  # [B, V, P, C]
        return [some.flatten(1, 2) for some in rows.chunk(len(self.banks), dim=1)]

    def judge(self, features: Features, size: Size, numbers: Tensor | None) -> Prediction:
        """Scores [B] and maps [B, *size] of images in their query views."""
        maps = mean_maps(features, self.config.layers)  # [B, V, C, h, w]
        grids = [cosine_grid(maps[:, view], bank, numbers) for view, bank in enumerate(self.memories)]
        if len(grids) > 1:
            grids[1] = grids[1].flip(-2)
        drawn = upsample_and_smooth(torch.stack(grids).sum(0), size, sigma=self.config.sigma)
        return Prediction(top_mean(drawn.flatten(1), self.config.top_share), drawn, cell=cell_of(maps, size))
