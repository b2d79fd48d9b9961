"""PaDiM (Defard et al., 2021): one Gaussian a position over a random subset of feature channels."""

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from anomaly_lib.config import configure
from anomaly_lib.models.detectors.configs import PadimConfig, summary_of
from anomaly_lib.models.detectors.contract import FeatureDetector, Features, Size
from anomaly_lib.models.detectors.shapes import gigabytes, maps_by_image, rows_for
from anomaly_lib.ops import cell_of, mahalanobis, scaled_rows, stack_layers, upsample_and_smooth, whitening_matrix
from anomaly_lib.ops.left_out import left_out_mahalanobis
from anomaly_lib.types import Prediction

POSITIONS = 64  # factorised at a time: in little memory, and a signal need not wait for all
RIDGE = 0.01 + 1e-5  # the paper's 0.01 and anomalib's further 1e-5 on the covariance's diagonal


class Moments:
    """Running mean and covariance of [B, P, D] batches at every position; memory does not grow with the images.

    Sums are taken about the first batch's mean, so that large means do not eat the variance's digits.
    """

    def __init__(self) -> None:
        self.count = 0
        self.shift = self.total = self.outer = torch.empty(0)

    def add(self, rows: Tensor) -> None:
        rows = rows.transpose(0, 1)  # [P, B, D]
        if self.count == 0:
            self.shift = rows.mean(1)  # [P, D]
            self.total = torch.zeros_like(self.shift)
            self.outer = rows.new_zeros(*self.shift.shape, rows.shape[2])  # [P, D, D]
        centred = rows - self.shift.unsqueeze(1)
        self.count += rows.shape[1]
        self.total += centred.sum(1)
        self.outer.baddbmm_(centred.mT, centred)

    def finish(self) -> tuple[Tensor, Tensor]:
        """Mean [P, D] and covariance [P, D, D] (divisor N - 1); overwrites the sums."""
        if self.count < 2:
            raise ValueError(f"PaDiM needs at least 2 normal images to know a covariance, got {self.count}")
        mean = self.total / self.count
        covariance = self.outer.baddbmm_(mean.unsqueeze(2), mean.unsqueeze(1), alpha=-self.count)
        covariance /= self.count - 1
        return self.shift + mean, covariance


class Padim(FeatureDetector):
    """Images [B, 3, H, W] -> scores [B] and maps [B, H, W]: Mahalanobis distance of every patch vector to its
    position's normal Gaussian.

    ``Padim(extractor=net, features=100).fit(batches)``. `extractor`, frozen: images -> {layer: [B, C, h, w]};
    `features` of its channels are kept, drawn at random. Later images must have the size of those it was fitted on.
    """

    least_images = 3
    channels: Tensor
    mean: Tensor
    whitening: Tensor

    def __init__(self, config: PadimConfig | None = None, *, extractor: nn.Module, **options: Any) -> None:
        super().__init__()
        self.config = configure(PadimConfig, config, options)
        self.extractor = extractor
        self.count = 0  # images of the fit in this process; left_out_features needs it
        self.register_buffer("channels", torch.empty(0, dtype=torch.long))  # which channels were drawn
        self.register_buffer("mean", torch.empty(0))  # [P, D]
        self.register_buffer("whitening", torch.empty(0))  # [P, D, D], W W^T = (covariance + ridge)^-1

    def __repr__(self) -> str:
        fitted = f"{len(self.mean)} Gaussians" if self.mean.numel() else "not fitted"
        return summary_of("Padim", PadimConfig, self.config, [fitted])

    def embed(self, features: Features) -> Tensor:
        """The chosen channels of all layers on the first layer's grid, [B, D, h, w].

        Channels are chosen before the resize: the others are never enlarged.
        """
        how = rows_for(self.config.rows, self.extractor)
        maps = [scaled_rows(maps, how) for maps in maps_by_image(features, self.config.layers)]
        widths = [x.shape[1] for x in maps]
        if not self.channels.numel():
            self._draw_channels(sum(widths), maps[0].device)
        chosen, places, first = [], [], 0
        for x, width in zip(maps, widths, strict=True):
            mine = ((self.channels >= first) & (self.channels < first + width)).nonzero().squeeze(1)
            chosen.append(x[:, self.channels[mine] - first])
            places.append(mine)
            first += width
        back = torch.cat(places).argsort()  # from layer by layer to the drawn order, which foreign checkpoints share
        return stack_layers([maps[0][:, :0], *chosen], "nearest")[:, back]

    def _draw_channels(self, total: int, device: torch.device) -> None:
        if self.config.features > total:
            raise ValueError(f"PaDiM cannot keep {self.config.features} of {total} feature channels")
        drawn = torch.randperm(total, generator=torch.Generator().manual_seed(self.config.seed))
        self.channels = drawn[: self.config.features].to(device)

    @torch.no_grad()
    def fit_features(self, batches: Iterable[Features]) -> "Padim":
        """Estimate every position's Gaussian in one pass; features are not kept."""
        moments = Moments()
        for features in batches:
            moments.add(self.embed(features).flatten(2).transpose(1, 2))  # [B, P, D]
        self.mean, covariance = moments.finish()
        covariance.diagonal(dim1=1, dim2=2).add_(RIDGE)
        for some in covariance.split(POSITIONS):
            some.copy_(whitening_matrix(some))
        self.whitening, self.count = covariance, moments.count
        return self

    def memory_in_words(self, features: Features, count: int) -> str:  # noqa: ARG002 - it does not grow with them
        _, dim, height, width = self.embed(features).shape
        patches = height * width
        return f"{patches} Gaussians of {dim} channels, {gigabytes(4 * patches * dim * dim)} of memory"

    def score_features(self, features: Features, size: Size) -> Prediction:
        return self._predict(self.score_grid(self.embed(features)), size)

    @torch.no_grad()
    def left_out_features(self, features: Features, numbers: Sequence[int], size: Size) -> Prediction:  # noqa: ARG002
        """As the base says; exact, without fitting again."""
        embedded = self.embed(features)  # [B, D, h, w]
        rows = embedded.flatten(2).transpose(1, 2)
        found = left_out_mahalanobis(rows, self.mean, self.whitening, self.count, ridge=RIDGE)
        return self._predict(found.reshape(len(embedded), *embedded.shape[-2:]), size)

    def _predict(self, patch_map: Tensor, size: Size) -> Prediction:
        """Of distances [B, h, w] of images of `size`."""
        maps = upsample_and_smooth(patch_map, size, sigma=self.config.sigma)
        return Prediction(maps.amax((1, 2)), maps, cell=cell_of(patch_map, size))

    def score_grid(self, embedded: Tensor) -> Tensor:
        """Distances [B, h, w] of patch vectors [B, D, h, w]."""
        if not self.mean.numel():
            raise ValueError("PaDiM has no Gaussians yet: fit the detector before it is asked")
        batch, _, height, width = embedded.shape
        if height * width != len(self.mean):
            raise ValueError(
                f"PaDiM was fitted on {len(self.mean)} positions, this image size gives {height} x {width}"
            )
        return mahalanobis(embedded.flatten(2).transpose(1, 2), self.mean, self.whitening).reshape(batch, height, width)

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *rest: Any) -> None:
        for name in ("channels", "mean", "whitening"):  # sizes depend on the data: take the saved ones'
            saved = state_dict.get(prefix + name)
            if saved is not None:
                setattr(self, name, saved.to(getattr(self, name).device))
        super()._load_from_state_dict(state_dict, prefix, *rest)
