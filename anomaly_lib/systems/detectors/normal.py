"""The normal images of a run: which are learned from, and the decision that normal images not learned set."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from anomaly_lib.data.base import ImageDataset, Item
from anomaly_lib.data.splits import k_shot
from anomaly_lib.data.views import with_views
from anomaly_lib.detect.calibration import decision_from, decision_of_views, hold_out
from anomaly_lib.detect.decision import Decision
from anomaly_lib.engine.log import progress
from anomaly_lib.models.detectors.contract import FeatureDetector
from anomaly_lib.models.detectors.registry import entry_of
from anomaly_lib.ops.predictions import joined
from anomaly_lib.systems.detectors.data import image_transform, input_channels
from anomaly_lib.systems.detectors.inputs import Batch, Images, Inputs, images_of, score_all
from anomaly_lib.types import Prediction

FEW, FOLDS = 10, 5


@dataclass
class NormalImages:
    """The normal training images of one class; `learn` and `kept` are places in `data`."""

    data: ImageDataset
    learn: Tensor
    kept: Tensor
    channels: int
    remark: str = ""

    @classmethod
    def of(cls, items: list[Item], args: Any) -> "NormalImages":
        """`shot` of them or all. A detector that can leave one out learns them all; from others some are kept."""
        chosen = items if args.shot is None else k_shot(items, args.shot, seed=args.seed).items
        # Features that are kept are encoded once: an image that has been is not needed again.
        room = {"cache_bytes": 0} if getattr(args, "cache", "off") != "off" else {}
        data = ImageDataset(chosen, transform=image_transform(args), on_error=args.on_error, **room)
        everything, channels = torch.arange(len(data)), input_channels(args)
        entry = entry_of(args.model)
        if entry.leaves_out or entry.transductive:
            return cls(data, everything, everything[:0], channels)
        held = hold_out(len(data), args.calibration_share, seed=args.seed)
        return cls(data, held.learn, held.kept, channels, held.remark)

    def images(self, args: Any, places: Tensor) -> Images:
        """Those at some places."""
        return images_of(self.data, args, self.channels, places.tolist())

    @property
    def names(self) -> list[str]:
        """Paths of those kept from training."""
        return [path.as_posix() for path in self.paths(self.kept)]

    def paths(self, places: Tensor) -> list[Path]:
        """Where those at some places lie."""
        return [self.data.items[place].path for place in places.tolist()]


def decide(module: nn.Module, normal: NormalImages, args: Any, device: torch.device) -> Decision | None:
    """The decision of a detector that has learnt `normal`; None where nothing is left to decide by."""
    if isinstance(module, FeatureDetector) and module.least_images is not None:
        if len(normal.learn) < module.least_images:
            return view_decision(module, normal, args, device)
        learn = normal.images(args, normal.learn)
        scored, places = Inputs(module, learn, args, device, learnt=False), normal.paths(normal.learn)
        if len(normal.learn) < module.refitted_below:
            return refitted_decision(module, Inputs(module, learn, args, device, learnt=True), scored, places)
        return left_out_decision(module, scored, places)
    if not len(normal.kept):
        return None
    kept = Inputs(module, normal.images(args, normal.kept), args, device, learnt=False)
    found = score_all(kept, "normal scores")
    of = "normal images kept from training"
    return decision_from(found, args.false_alarms, of=of, places=normal.paths(normal.kept))


@torch.no_grad()
def left_out_decision(module: FeatureDetector, scored: Inputs, places: Sequence[Path]) -> Decision:
    """The decision of a fitted memory or Gaussian: each normal image judged by all the others."""
    size = scored.images.tiles.tile

    def judge(numbers: list[int], features: Batch) -> Prediction:
        assert not isinstance(features, Tensor)
        return module.left_out_features(features, numbers, size)

    found = [_peaks(one) for one in scored.judged(range(scored.count), judge, "normal scores")]
    of = "normal images, each left out of what is known"
    return decision_from(joined(found), scored.args.false_alarms, of=of, places=places)


def _peaks(found: Prediction) -> Prediction:
    """Of the maps their peaks alone, which is what a decision needs."""
    return found if found.map is None else replace(found, map=found.map.amax((1, 2), keepdim=True))


@torch.no_grad()
def refitted_decision(module: FeatureDetector, learnt: Inputs, scored: Inputs, places: Sequence[Path]) -> Decision:
    """The decision of a memory that judges a left-out image too harshly: each by one that is fitted to the others.

    Up to ten images one by one, more of them in five folds.
    """
    args, count, size = scored.args, scored.count, scored.images.tiles.tile
    folds = count if count <= FEW else FOLDS
    place = torch.arange(count) % folds
    found: dict[int, Prediction] = {}
    for fold in progress(range(folds), "normal scores"):
        others, mine = (place != fold).nonzero().flatten(), (place == fold).nonzero().flatten()
        twin = module.sibling(len(others) / count).eval().to(scored.device)
        twin.fit_features(batch for batch in learnt.whole(others.tolist()) if not isinstance(batch, Tensor))

        def judge(_: list[int], features: Batch, twin: FeatureDetector = twin) -> Prediction:
            assert not isinstance(features, Tensor)
            return twin.score_features(features, size)

        for number in mine.tolist():
            (one,) = scored.judged([number], judge, "")
            found[number] = _peaks(one)
    whole = joined([found[number] for number in range(count)])
    of = f"normal images, {'each' if folds == count else 'a fifth at a time'} judged by a memory of the others"
    return decision_from(whole, args.false_alarms, of=of, places=places)


def view_decision(module: nn.Module, normal: NormalImages, args: Any, device: torch.device) -> Decision:
    """The decision where there are too few images to leave one out: from mild views of them."""
    views = ImageDataset(with_views(normal.data.items, "mild"), transform=normal.data.transform)
    inputs = Inputs(module, images_of(views, args, normal.channels), args, device, learnt=False)
    one = "the one normal image" if len(normal.data) == 1 else f"the {len(normal.data)} normal images"
    return decision_of_views(score_all(inputs, "normal scores"), of=f"mild views of {one}")
