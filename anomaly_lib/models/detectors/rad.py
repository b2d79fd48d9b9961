"""RAD ("Is Training Necessary for Anomaly Detection?", 2026): similar images first, then patches nearby."""

from collections.abc import Iterable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from anomaly_lib.config import configure
from anomaly_lib.models.detectors.configs import summary_of
from anomaly_lib.models.detectors.contract import FeatureDetector, Features, Size
from anomaly_lib.models.detectors.family_configs import SUMMARY, RadConfig
from anomaly_lib.models.detectors.shapes import maps_of, take_saved_sizes
from anomaly_lib.ops import best_nearby, cell_of, top_mean, unit_rows, upsample_and_smooth
from anomaly_lib.types import Prediction


class Rad(FeatureDetector):
    """Images [B, 3, H, W] -> scores [B] and maps [B, H, W]: 1 - cos to the nearest patch near the same place.

    ``Rad(extractor=net).fit(batches)``. `extractor`, frozen: images -> {"pooled": [B, D], output: [B, C, h, w]}. Every
    normal image is kept. A patch is compared with those of the `nearest_images` with the most similar pooled vector
    that lie at most `radius` rows and columns away; the mean over the outputs is its score.
    """

    least_images = 2
    summaries: Tensor

    def __init__(self, config: RadConfig | None = None, *, extractor: nn.Module, **options: Any) -> None:
        super().__init__()
        self.config = configure(RadConfig, config, options)
        self.extractor = extractor
        self.outputs = [name for name in self.config.layers if name != SUMMARY]
        self.names = [f"patches{n}" for n, _ in enumerate(self.outputs, start=1)]
        for name in ("summaries", *self.names):  # [N, D] and, for each output, [P, N, C]; all at length 1
            self.register_buffer(name, torch.empty(0))

    def __repr__(self) -> str:
        return summary_of("Rad", RadConfig, self.config, [f"{len(self.summaries)} normal images"])

    @property
    def patches(self) -> list[Tensor]:
        """The unit rows [P, N, C] of each output: those of one place beside one another, as the search reads them."""
        return [getattr(self, name) for name in self.names]

    @torch.no_grad()
    def fit_features(self, batches: Iterable[Features]) -> "Rad":
        """Keep the summary and the patches of normal images."""
        held: list[list[Tensor]] = [[] for _ in ("summaries", *self.names)]
        for features in batches:
            kept = [self._summaries(features), *(unit_rows(maps).transpose(0, 1) for maps in self._maps(features))]
            for some, rows in zip(held, kept, strict=True):
                some.append(rows)
        if not held[0]:
            raise ValueError("no normal images to learn from")
        for name, some in zip(("summaries", *self.names), held, strict=True):
            setattr(self, name, torch.cat(some, dim=-2))
        return self

    @torch.no_grad()
    def score_features(self, features: Features, size: Size) -> Prediction:
        """Scores [B] and maps [B, *size] of images whose features are known."""
        return self._judge(features, size, self._likeness(features))

    @torch.no_grad()
    def left_out_features(self, features: Features, numbers: Sequence[int], size: Size) -> Prediction:
        """The same of images of the fit, each compared with the others alone. Exact."""
        likeness = self._likeness(features)
        own = torch.tensor(list(numbers), device=likeness.device)[:, None]
        return self._judge(features, size, likeness.scatter(1, own, -torch.inf))

    def memory_in_words(self, features: Features, count: int) -> str:
        """What `count` images take when they are learnt, judged by the features of one."""
        size = sum(maps[0].numel() for maps in self._maps(features))
        return f"all patches of {count} images, {4 * count * size / 2**30:.2f} GiB of memory"

    def _summaries(self, features: Features) -> Tensor:
        """[B, D] at length 1."""
        return F.normalize(maps_of(features, [SUMMARY])[0][:, 0], dim=-1)

    def _likeness(self, features: Features) -> Tensor:
        """Cosine [B, N] to each normal image."""
        if not len(self.summaries):
            raise ValueError("RAD knows no image yet: fit the detector before it is asked")
        return self._summaries(features) @ self.summaries.T

    def _maps(self, features: Features) -> list[Tensor]:
        """[B, C, h, w] of each output."""
        return [maps[:, 0] for maps in maps_of(features, self.outputs)]

    def _judge(self, features: Features, size: Size, likeness: Tensor) -> Prediction:
        """`likeness` [B, N] to the normal images; where it is -inf an image does not count."""
        grids = []
        chosen = likeness.topk(min(self.config.nearest_images, likeness.shape[1]), dim=1)
        # One that is left out may be chosen where the others are too few.
        near = torch.zeros_like(likeness, dtype=torch.bool).scatter(1, chosen.indices, chosen.values > -torch.inf)
        for maps, patches in zip(self._maps(features), self.patches, strict=True):
            if maps.shape[-2] * maps.shape[-1] != len(patches):
                raise ValueError(f"RAD was fitted on {len(patches)} positions, this image has {list(maps.shape[-2:])}")
            best = best_nearby(F.normalize(maps, dim=1), patches, near, self.config.radius)
            grids.append((1 - best).clamp_min(0))  # [B, h, w]
        grid = torch.stack(grids).mean(0)
        drawn = upsample_and_smooth(grid, size, sigma=self.config.sigma)
        return Prediction(top_mean(drawn.flatten(1), self.config.top_share), drawn, cell=cell_of(grid, size))

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *rest: Any) -> None:
        take_saved_sizes(self, ("summaries", *self.names), state_dict, prefix)
        super()._load_from_state_dict(state_dict, prefix, *rest)
