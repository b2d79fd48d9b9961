"""MuSc (Li et al., ICLR 2024): unlabelled test images score one another; no normal image is needed."""

from collections.abc import Iterable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from anomaly_lib.config import configure
from anomaly_lib.models.detectors.configs import summary_of
from anomaly_lib.models.detectors.contract import FeatureDetector, Features, Size
from anomaly_lib.models.detectors.family_configs import SUMMARY, MuScConfig
from anomaly_lib.models.detectors.shapes import maps_of
from anomaly_lib.ops import cell_of, nearest_in_each, neighbourhood_mean, unit_rows, upsample_and_smooth
from anomaly_lib.types import Prediction


class MuSc(FeatureDetector):
    """Images [N, 3, H, W] -> scores [N] and maps [N, H, W]: distance of each patch to the images it is most like.

    ``MuSc(extractor=net)(images)``. `extractor`, frozen: images -> {"pooled": [N, D], output: [N, C, h, w]}.
    **Transductive**: a score depends on the other images of the call, so give all test images at once, at least two.
    Nothing is learnt. What is rare among them counts as anomalous.
    """

    transductive = True

    def __init__(self, config: MuScConfig | None = None, *, extractor: nn.Module, **options: Any) -> None:
        super().__init__()
        self.config = configure(MuScConfig, config, options)
        self.extractor = extractor

    def __repr__(self) -> str:
        return summary_of("MuSc", MuScConfig, self.config, ["transductive: scores images by one another"])

    def fit_features(self, batches: Iterable[Features]) -> "MuSc":  # noqa: ARG002 - the contract's signature
        """Nothing: normal images are not used, and not encoded."""
        return self

    @torch.no_grad()
    def score_features(self, features: Features, size: Size) -> Prediction:
        """Scores [N] and maps [N, *size] of all images at once."""
        outputs = [name for name in self.config.layers if name != SUMMARY]
        maps = [x[:, 0] for x in maps_of(features, outputs)]
        if len(maps[0]) < 2:
            raise ValueError("MuSc scores images by one another: give all test images at once, at least two")
        rounds = [(x, window) for window in self.config.windows for x in maps]
        patches = torch.zeros(len(maps[0]), maps[0].shape[-2] * maps[0].shape[-1], device=maps[0].device)  # [N, P]
        for done, (x, window) in enumerate(rounds, start=1):
            patches += self.mutual_scores(x, window) / len(rounds)
            if self.progress is not None:
                self.progress(done, len(rounds))
        grid = patches.unflatten(1, maps[0].shape[-2:])
        drawn = upsample_and_smooth(grid, size, sigma=self.config.sigma, align_corners=True)
        score = drawn.flatten(1).amax(1)
        if 0 not in self.config.rescore:
            score = averaged_over_similar(score, maps_of(features, [SUMMARY])[0][:, 0], self.config.rescore)
        return Prediction(score, drawn, cell=cell_of(grid, size))

    def mutual_scores(self, maps: Tensor, window: int) -> Tensor:
        """Scores [N, P] by one output's maps [N, C, h, w]: distances to the nearest patch of each other image, averaged
        over the images that are most alike there."""
        rows = unit_rows(neighbourhood_mean(F.layer_norm(maps, maps.shape[1:]), window))
        distances = nearest_in_each(rows)  # [N, P, N]
        wanted = max(1, int((len(maps) - 1) * self.config.nearest_share))
        return distances.topk(wanted, dim=2, largest=False).values.mean(2)


def averaged_over_similar(scores: Tensor, summaries: Tensor, numbers: Iterable[int]) -> Tensor:
    """Scores [N], moved to 0..1, averaged over the k most similar images for each k in `numbers`, then over those.

    Similarity is the cosine of summaries [N, D] and the weight in the average; an image is similar to itself, too.
    """
    scaled = (scores - scores.min()) / (scores.max() - scores.min()).clamp_min(torch.finfo(scores.dtype).tiny)
    unit = F.normalize(summaries, dim=-1)
    likeness, others = (unit @ unit.T).sort(dim=1, descending=True)  # [N, N]
    found = []
    for k in numbers:
        weights = likeness[:, :k]
        found.append((weights * scaled[others[:, :k]]).sum(1) / weights.sum(1))
    return torch.stack(found).mean(0)
