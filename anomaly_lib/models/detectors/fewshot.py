"""The library's own default for few normal images: the nearest normal patch and the subspace of normal patches."""

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from anomaly_lib.config import configure
from anomaly_lib.models.detectors.banks import BankDetector, cosine_grid
from anomaly_lib.models.detectors.configs import summary_of
from anomaly_lib.models.detectors.contract import Features, Size
from anomaly_lib.models.detectors.family_configs import FewShotConfig
from anomaly_lib.models.detectors.shapes import maps_by_image, take_saved_sizes
from anomaly_lib.models.detectors.subspacead import Sums
from anomaly_lib.ops import cell_of, scaled_rows, stack_layers, top_mean, turned, unit_rows, upsample_and_smooth
from anomaly_lib.types import Prediction


class FewShot(BankDetector):
    """Images [B, 3, H, W] -> scores [B] and maps [B, H, W]: how far patches lie from the normal ones, and beyond them.

    ``FewShot(extractor=net).fit(batches)``. `extractor`, frozen: images -> {output: [B, C, h, w]}. The outputs, each at
    length 1, stand side by side in a patch's vector. Every normal image is learnt in `rotations` turns. A patch's score
    is the geometric mean of its distance to the nearest normal vector and of the squared length that the principal
    subspace of the normal vectors leaves of it: whatever scale either has, it drops out of every comparison.
    """

    mean: Tensor
    axes: Tensor

    def __init__(self, config: FewShotConfig | None = None, *, extractor: nn.Module, **options: Any) -> None:
        super().__init__(extractor)
        self.config = configure(FewShotConfig, config, options)
        self.sums: Sums | None = None  # of all normal rows, once they are needed
        self.register_buffer("mean", torch.empty(0))  # [C]
        self.register_buffer("axes", torch.empty(0))  # [C, k]

    def __repr__(self) -> str:
        facts = [self.shape_of_banks(), f"{self.axes.shape[-1]} axes"]
        return summary_of("FewShot", FewShotConfig, self.config, facts)

    def support_views(self, images: Tensor) -> Tensor:
        """[B, 3, H, W] -> [B, rotations, 3, H, W]: the images turned about their centres."""
        count = self.config.rotations
        return turned(images, [360 * n / count for n in range(count)])

    @property
    def view_names(self) -> tuple[str, str]:
        return f"{self.config.rotations} turns", ""

    def rows_of(self, features: Features) -> Sequence[Iterable[Tensor]]:
        """The unit rows [M, C] of each image in all its turns."""
        rows = unit_rows(self._maps(features))  # [B * V, P, C]
        views = next(iter(features.values())).shape[1]
        return [rows.unflatten(0, (-1, views)).flatten(1, 2)]

    @torch.no_grad()
    def fit_features(self, batches: Iterable[Features]) -> "FewShot":
        """Keep the rows of normal images, find their mean and principal axes."""
        super().fit_features(batches)
        self.sums = Sums.of(self.memories[0].rows)
        self.mean, self.axes = self.sums.subspace(self.config.variance)
        return self

    def judge(self, features: Features, size: Size, numbers: Tensor | None) -> Prediction:
        """Scores [B] and maps [B, *size] of images in their one query view."""
        maps = self._maps(features)  # [B, C, h, w]
        near = cosine_grid(maps, self.memories[0], numbers)  # [B, h, w]
        rows = unit_rows(maps)  # [B, P, C]
        if numbers is None:
            beyond = residual(rows, self.mean, self.axes)
        else:
            each = zip(rows, self._subspaces_without(numbers), strict=True)
            beyond = torch.stack([residual(some, *subspace) for some, subspace in each])
        grid = (near * beyond.reshape(near.shape)).sqrt()
        drawn = upsample_and_smooth(grid, size, sigma=self.config.sigma)
        return Prediction(top_mean(grid.flatten(1), self.config.top_share), drawn, cell=cell_of(grid, size))

    def _maps(self, features: Features) -> Tensor:
        """The outputs side by side on the grid of the first, [B * V, C, h, w]."""
        return stack_layers([scaled_rows(maps, "unit") for maps in maps_by_image(features, self.config.layers)])

    def _subspaces_without(self, numbers: Tensor) -> Iterable[tuple[Tensor, Tensor]]:
        """Mean and axes of the normal rows but for those of one image, image after image."""
        bank = self.memories[0]
        self.sums = self.sums or Sums.of(bank.rows)  # a detector that was loaded has not added them up
        for number in numbers.to(bank.owners):
            yield self.sums.plus(Sums.of(bank.rows[bank.owners == number]), -1).subspace(self.config.variance)

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *rest: Any) -> None:
        self.sums = None
        take_saved_sizes(self, ("mean", "axes"), state_dict, prefix)
        super()._load_from_state_dict(state_dict, prefix, *rest)


def residual(rows: Tensor, mean: Tensor, axes: Tensor) -> Tensor:
    """Squared length [...] of what the subspace leaves of rows [..., C]."""
    centred = rows - mean
    return (centred - (centred @ axes) @ axes.mT).square().sum(-1)
