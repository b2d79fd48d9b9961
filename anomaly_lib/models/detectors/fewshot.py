"""The library's own default for few normal images: the nearest normal patch and the subspace of normal patches."""

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from anomaly_lib.config import configure
from anomaly_lib.models.detectors.banks import TurnedBankDetector, cosine_grid
from anomaly_lib.models.detectors.configs import summary_of
from anomaly_lib.models.detectors.contract import Features, Size
from anomaly_lib.models.detectors.family_configs import FewShotConfig
from anomaly_lib.models.detectors.shapes import maps_by_image, take_saved_sizes
from anomaly_lib.models.detectors.subspacead import Sums
from anomaly_lib.ops import cell_of, scaled_rows, stack_layers, top_mean, unit_rows, upsample_and_smooth
from anomaly_lib.types import Prediction


class FewShot(TurnedBankDetector):
    """Images [B, 3, H, W] -> scores [B] and maps [B, H, W]: how far patches lie from the normal ones, and beyond them.

    ``FewShot(extractor=net).fit(batches)``. `extractor`, frozen: images -> {output: [B, C, h, w]}. The outputs, each at
    length 1, stand side by side in a patch's vector. A patch's score is the geometric mean of its distance to the
    nearest normal vector and of the squared length that the principal subspaces of the outputs leave of it: whatever
    scale either has, it drops out of every comparison. Neighbours are searched in `rotations` turns of each normal
    image; the subspaces are those of the images as they are, which turns would widen.
    """

    mean: Tensor
    axes: Tensor
    widths: Tensor

    def __init__(self, config: FewShotConfig | None = None, *, extractor: nn.Module, **options: Any) -> None:
        super().__init__(extractor)
        self.config = configure(FewShotConfig, config, options)
        self.register_buffer("mean", torch.empty(0))  # [C]
        self.register_buffer("axes", torch.empty(0))  # [C, k], block by block those of each output
        self.register_buffer("widths", torch.empty(0, dtype=torch.long))  # channels of each output

    def __repr__(self) -> str:
        facts = [self.shape_of_banks(), f"{self.axes.shape[-1]} axes"]
        return summary_of("FewShot", FewShotConfig, self.config, facts)

    def rows_of(self, features: Features) -> Sequence[Iterable[Tensor]]:
        """The unit rows [M, C] of each image in all its turns."""
        rows = unit_rows(self._maps(features))  # [B * V, P, C]
        views = next(iter(features.values())).shape[1]
        return [rows.unflatten(0, (-1, views)).flatten(1, 2)]

    @torch.no_grad()
    def fit_features(self, batches: Iterable[Features]) -> "FewShot":
        """Keep the rows of normal images, find means and principal axes of those that were not turned."""
        super().fit_features(self._measured(batches))
        self.mean, self.axes = self._subspaces(self._sums(self._plain_rows().flatten(0, 1)))
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
            beyond = torch.stack([residual(some, *subspaces) for some, subspaces in each])
        grid = (near * beyond.reshape(near.shape)).sqrt()
        drawn = upsample_and_smooth(grid, size, sigma=self.config.sigma)
        return Prediction(top_mean(grid.flatten(1), self.config.top_share), drawn, cell=cell_of(grid, size))

    def _maps(self, features: Features) -> Tensor:
        """The outputs side by side on the grid of the first, [B * V, C, h, w]."""
        return stack_layers([scaled_rows(maps, "unit") for maps in maps_by_image(features, self.config.layers)])

    def _measured(self, batches: Iterable[Features]) -> Iterator[Features]:
        """The same batches; says how wide each output is."""
        for features in batches:
            widths = [maps.shape[1] for maps in maps_by_image(features, self.config.layers)]
            self.widths = torch.tensor(widths, device=next(iter(features.values())).device)
            yield features

    def _plain_rows(self) -> Tensor:
        """The normal rows of images that were not turned, [N, P, C]; the bank begins each image with them."""
        bank = self.memories[0]
        images = int(bank.owners[-1]) + 1
        return bank.rows.unflatten(0, (images, self.config.rotations, -1))[:, 0]

    def _sums(self, rows: Tensor) -> list[Sums]:
        """Of rows [M, C], output by output."""
        return [Sums.of(part) for part in rows.split(self.widths.tolist(), dim=1)]

    def _subspaces(self, sums: Iterable[Sums]) -> tuple[Tensor, Tensor]:
        """Means [C] and axes [C, k] of all outputs together."""
        means, axes = zip(*(one.subspace(self.config.variance) for one in sums), strict=True)
        return torch.cat(means), torch.block_diag(*axes)

    def _subspaces_without(self, numbers: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
        """Means and axes of all normal images but one, image after image."""
        plain = self._plain_rows()
        whole = self._sums(plain.flatten(0, 1))
        for number in numbers.tolist():
            pairs = zip(whole, self._sums(plain[number]), strict=True)
            yield self._subspaces(all_of.plus(one, -1) for all_of, one in pairs)

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *rest: Any) -> None:
        take_saved_sizes(self, ("mean", "axes", "widths"), state_dict, prefix)
        super()._load_from_state_dict(state_dict, prefix, *rest)


def residual(rows: Tensor, mean: Tensor, axes: Tensor) -> Tensor:
    """Squared length [...] of what the subspace leaves of rows [..., C]."""
    centred = rows - mean
    return (centred - (centred @ axes) @ axes.mT).square().sum(-1)
