"""What a detector on a frozen network offers: it is fitted on features and scores features, never pixels.

So that a network is run once over every image, whatever is tried on what it says: the caller may take the features
from a store. A detector derived from `FeatureDetector` supplies `fit_features` and `score_features`; one that can judge
a normal image by all the others also supplies `left_out_features` and says in `least_images` from how many images on.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from anomaly_lib.models.detectors.shapes import check_images
from anomaly_lib.types import Prediction

Features = Mapping[str, Tensor]
"""What a frozen network says of B images in V views: {output: maps [B, V, C, h, w] or pooled vectors [B, V, C]}."""
VIEWS = ("support_views", "query_views")
Size = tuple[int, int]
"""Height and width of an image and of its anomaly map."""


class FeatureDetector(nn.Module):
    """Images [B, 3, H, W] -> scores [B] and maps [B, H, W] by way of a frozen `extractor`."""

    config: Any
    extractor: nn.Module  # images [N, 3, H, W] with values 0..1 -> {output: [N, C, h, w] or [N, C]}
    least_images: ClassVar[int | None] = None  # from how many normal images on one can be left out; None: it cannot
    refitted_below: ClassVar[int] = 0  # images: with fewer, one is left out by fitting a `sibling` to the others
    transductive: ClassVar[bool] = False  # a score depends on the other images scored with it
    progress: Callable[[int, int], None] | None = None  # told (done, total) by what takes long after the encoding

    def support_views(self, images: Tensor) -> Tensor:
        """[B, 3, H, W] -> [B, V, 3, H, W]: the views of normal images that are learnt.

        An image has the same views whatever stands beside it in the batch, so that their features can be kept.
        """
        return images.unsqueeze(1)

    def query_views(self, images: Tensor) -> Tensor:
        """[B, 3, H, W] -> [B, V, 3, H, W]: the views of images that are scored."""
        return images.unsqueeze(1)

    def fit_features(self, batches: Iterable[Features]) -> "FeatureDetector":
        """Learn normal images from their features, batch by batch; answers itself."""
        raise NotImplementedError

    def score_features(self, features: Features, size: Size) -> Prediction:
        """Scores [B] and maps [B, *size] of images whose features are known."""
        raise NotImplementedError

    def left_out_features(self, features: Features, numbers: Sequence[int], size: Size) -> Prediction:
        """Scores [B] and maps [B, *size] of images of the fit (in their query views), each as if it had not been among
        them. `numbers`: the place of each image in the fit.
        """
        raise NotImplementedError

    def sibling(self, share: float) -> "FeatureDetector":  # noqa: ARG002 - of those whose size depends on it
        """A detector like this one that has learnt nothing yet, for `share` of the images that this one has learnt."""
        return type(self)(self.config, extractor=self.extractor)

    def memory_in_words(self, features: Features, count: int) -> str | None:  # noqa: ARG002 - of those that need much
        """What `count` images take when they are learnt, judged by the features of one; None: nothing worth saying."""
        return None

    @property
    def view_names(self) -> tuple[str, str]:
        """What `support_views` and `query_views` make, in words, e.g. "8 rotations"; "" = the images as they are.

        Kept features are found again by these words, so they must name every option that changes a view.
        """
        if any(getattr(type(self), name) is not getattr(FeatureDetector, name) for name in VIEWS):
            raise NotImplementedError(f"{type(self).__name__} makes views of its own: say in view_names which")
        return "", ""

    # -- from images ------------------------------------------------------------------------------------------------

    @torch.no_grad()
    def features_of(self, images: Tensor, views: Callable[[Tensor], Tensor]) -> Features:
        """The features of images [B, 3, H, W] in `views`, encoded in one batch."""
        check_images(images)
        seen = views(images)  # [B, V, 3, H, W]
        return {name: x.unflatten(0, seen.shape[:2]) for name, x in self.extractor(seen.flatten(0, 1)).items()}

    @torch.no_grad()
    def fit(self, batches: Iterable[Tensor]) -> "FeatureDetector":
        """`fit_features` of batches of normal images [B, 3, H, W]."""
        return self.fit_features(self.features_of(images, self.support_views) for images in batches)

    @torch.no_grad()
    def left_out(self, images: Tensor, numbers: Sequence[int]) -> Prediction:
        """`left_out_features` of images [B, 3, H, W] of the fit."""
        features = self.features_of(images, self.query_views)
        return self.left_out_features(features, numbers, (images.shape[-2], images.shape[-1]))

    def forward(self, images: Tensor) -> Prediction:
        """`score_features` of images [B, 3, H, W]."""
        features = self.features_of(images, self.query_views)
        return self.score_features(features, (images.shape[-2], images.shape[-1]))
