"""SubspaceAD (Lendering et al., CVPR 2026): what of a patch lies outside the principal subspace of normal patches."""

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from anomaly_lib.config import configure
from anomaly_lib.models.detectors.banks import mean_maps, one_of
from anomaly_lib.models.detectors.configs import summary_of
from anomaly_lib.models.detectors.contract import FeatureDetector, Features, Size
from anomaly_lib.models.detectors.family_configs import SubspaceAdConfig
from anomaly_lib.models.detectors.shapes import take_saved_sizes
from anomaly_lib.ops import cell_of, gaussian_blur, generator_of, grid_to_rows, top_mean, turned, upsample_maps
from anomaly_lib.ops.predictions import joined
from anomaly_lib.types import Prediction

LARGEST_TURN = 345.0  # degrees
BLUR_RADIUS = 1  # the published kernel is 3 x 3, whatever sigma


class Sums:
    """Number, sum [C] and product sum [C, C] of rows in float64: adding and taking away images is exact enough."""

    def __init__(self, count: int, total: Tensor, outer: Tensor) -> None:
        self.count, self.total, self.outer = count, total, outer

    @classmethod
    def of(cls, rows: Tensor) -> "Sums":
        """Of rows [M, C]."""
        rows = rows.double()
        return cls(len(rows), rows.sum(0), rows.mT @ rows)

    def plus(self, other: "Sums", sign: int = 1) -> "Sums":
        return Sums(self.count + sign * other.count, self.total + sign * other.total, self.outer + sign * other.outer)

    def subspace(self, variance: float, components: int | None = None) -> tuple[Tensor, Tensor]:
        """Mean [C] and principal axes [C, k], in float32."""
        mean = self.total / self.count
        covariance = (self.outer - self.count * torch.outer(mean, mean)) / (self.count - 1)
        values, axes = torch.linalg.eigh(covariance)  # ascending
        shares = values.flip(0).clamp_min(0).cumsum(0)
        wanted = torch.searchsorted(shares / shares[-1], torch.tensor([variance], dtype=shares.dtype).to(shares))
        kept = min(int(wanted) + 1 if components is None else components, len(values))
        return mean.float(), axes.flip(1)[:, :kept].float().contiguous()


class SubspaceAd(FeatureDetector):
    """Images [B, 3, H, W] -> scores [B] and maps [B, H, W]: squared length of what the subspace does not explain.

    ``SubspaceAd(extractor=net).fit(batches)``. `extractor`, frozen: images -> {output: [B, C, h, w]}. Each normal image
    is learnt as it is and in `rotations` random turns, which its content and `seed` decide.
    """

    least_images = 2
    mean: Tensor
    axes: Tensor

    def __init__(self, config: SubspaceAdConfig | None = None, *, extractor: nn.Module, **options: Any) -> None:
        super().__init__()
        self.config = configure(SubspaceAdConfig, config, options)
        self.extractor = extractor
        self.sums: Sums | None = None  # of the fit in this process, as `single`; leaving an image out needs both
        self.single: list[Sums] = []  # of each image in all its turns
        self.register_buffer("mean", torch.empty(0))  # [C]
        self.register_buffer("axes", torch.empty(0))  # [C, k]

    def __repr__(self) -> str:
        fitted = f"{self.axes.shape[1]} of {len(self.mean)} dimensions" if self.mean.numel() else "not fitted"
        return summary_of("SubspaceAd", SubspaceAdConfig, self.config, [fitted])

    def support_views(self, images: Tensor) -> Tensor:
        """[B, 3, H, W] -> [B, 1 + rotations, 3, H, W]: as they are, then turned, with black moved in."""
        views = []
        for image in images:
            generator = generator_of(image, self.config.seed)
            angles = torch.rand(self.config.rotations, generator=generator) * LARGEST_TURN
            views.append(turned(image[None], [0.0, *angles.tolist()], beyond="zeros", mode="nearest"))
        return torch.cat(views)

    @property
    def view_names(self) -> tuple[str, str]:
        count = self.config.rotations
        return f"{count} random turns, seed {self.config.seed}" if count else "", ""

    @torch.no_grad()
    def fit_features(self, batches: Iterable[Features]) -> "SubspaceAd":
        """Mean and principal axes of all patches of normal images in all their views; the features are not kept."""
        self.sums, self.single = None, []
        for features in batches:
            for maps in mean_maps(features, self.config.layers):  # [V, C, h, w]
                one = Sums.of(grid_to_rows(maps))
                self.sums = one if self.sums is None else self.sums.plus(one)
                # Where one view is learnt it is the scored one, so nothing need be kept to take it away again.
                self.single += [one] if len(maps) > 1 else []
        if self.sums is None:
            raise ValueError("no normal images to learn from")
        self.mean, self.axes = self._subspace(self.sums)
        return self

    @torch.no_grad()
    def score_features(self, features: Features, size: Size) -> Prediction:
        """Scores [B] and maps [B, *size] of images in their one query view."""
        if not self.mean.numel():
            raise ValueError("SubspaceAD has no subspace yet: fit the detector before it is asked")
        return self._judge(mean_maps(features, self.config.layers)[:, 0], size, self.mean, self.axes)

    @torch.no_grad()
    def left_out_features(self, features: Features, numbers: Sequence[int], size: Size) -> Prediction:
        """The same of images of the fit (in their query view), each by the subspace of the others. Exact."""
        if self.sums is None:
            raise ValueError("only the process that fitted SubspaceAD can leave an image out")
        ones = []
        for place, number in enumerate(numbers):
            maps = mean_maps(one_of(features, place), self.config.layers)
            gone = self.single[number] if self.single else Sums.of(grid_to_rows(maps[0]))
            ones.append(self._judge(maps[:, 0], size, *self._subspace(self.sums.plus(gone, -1))))
        return joined(ones)

    def memory_in_words(self, features: Features, count: int) -> str:
        """What `count` images take when they are learnt."""
        width = mean_maps(features, self.config.layers).shape[2]
        kept = count if self.config.rotations else 0
        return f"products of {width} channels for each image, {8 * width**2 * (kept + 1) / 2**30:.2f} GiB of memory"

    def _subspace(self, sums: Sums) -> tuple[Tensor, Tensor]:
        return sums.subspace(self.config.variance, self.config.components)

    def _judge(self, maps: Tensor, size: Size, mean: Tensor, axes: Tensor) -> Prediction:
        """Of maps [B, C, h, w]."""
        rows = maps.flatten(2).mT.float() - mean  # [B, P, C]
        residual = rows - (rows @ axes) @ axes.mT
        grid = residual.square().sum(2).reshape(maps.shape[0], *maps.shape[-2:])
        drawn = gaussian_blur(upsample_maps(grid, size), self.config.sigma, radius=BLUR_RADIUS)
        return Prediction(top_mean(drawn.flatten(1), self.config.top_share), drawn, cell=cell_of(maps, size))

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *rest: Any) -> None:
        take_saved_sizes(self, ("mean", "axes"), state_dict, prefix)
        super()._load_from_state_dict(state_dict, prefix, *rest)
