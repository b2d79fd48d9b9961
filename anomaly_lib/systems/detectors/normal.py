"""The normal images of a run: which are learned from, and the decision that normal images not learned set."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from anomaly_lib.data.base import ImageDataset, Item
from anomaly_lib.data.views import with_views
from anomaly_lib.detect.calibration import decision_from, decision_of_views, hold_out
from anomaly_lib.detect.decision import Decision
from anomaly_lib.engine.log import progress
from anomaly_lib.models.detectors.configs import MEMORIES
from anomaly_lib.systems.detectors.build import score_batches
from anomaly_lib.systems.detectors.data import image_transform, input_channels, stack_images
from anomaly_lib.types import Prediction

LEAST = {"patchcore": 2, "padim": 3}  # images, for one of them to be left out
ImagesOf = Callable[[Tensor], Tensor]
"""Numbers [B] of normal training images -> those images [B, C, H, W]."""


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
        """A memory learns from all of them; of a trained network some are held out."""
        data = ImageDataset(items, transform=image_transform(args), on_error=args.on_error)
        everything, channels = torch.arange(len(data)), input_channels(args)
        if args.model in MEMORIES:
            return cls(data, everything, everything[:0], channels)
        held = hold_out(len(data), args.calibration_share, seed=args.seed)
        return cls(data, held.learn, held.kept, channels, held.remark)

    def __call__(self, index: Tensor) -> Tensor:
        """[B, C, H, W] of those to learn from."""
        return stack_images(self.data, self.learn[index], self.channels)

    @property
    def names(self) -> list[str]:
        """Paths of those kept from training."""
        return [self.data.items[place].path.as_posix() for place in self.kept.tolist()]


def decide(module: nn.Module, normal: NormalImages, args: Any, device: torch.device) -> Decision | None:
    """The decision of a fitted memory or trained network; None where a network has been trained on all images."""
    if args.model in MEMORIES:
        if len(normal.learn) < LEAST[args.model]:
            return view_decision(module, normal, args, device)
        return left_out_decision(module, args, device, len(normal.learn), normal)
    if not len(normal.kept):
        return None
    rows = progress(normal.kept.split(args.batch_size), "normal scores")
    found = score_batches(module, (stack_images(normal.data, some, normal.channels) for some in rows), device)
    return decision_from(found, args.false_alarms, of="normal images kept from training")


def left_out_decision(module: nn.Module, args: Any, device: torch.device, count: int, images_of: ImagesOf) -> Decision:
    """The decision of a fitted memory or Gaussian: every one of `count` normal images judged by all the others."""
    found: list[Prediction] = [
        module.left_out(images_of(index).to(device), index.tolist())  # type: ignore[operator]
        for index in progress(torch.arange(count).split(args.batch_size), "normal scores")
    ]
    maps = [one.map for one in found if one.map is not None]
    whole = Prediction(torch.cat([one.score for one in found]), torch.cat(maps))
    return decision_from(whole, args.false_alarms, of="normal images, each left out of what is known")


def view_decision(module: nn.Module, normal: NormalImages, args: Any, device: torch.device) -> Decision:
    """The decision where there are too few images to leave one out: from mild views of them."""
    views = ImageDataset(with_views(normal.data.items, "mild"), transform=normal.data.transform)
    rows = torch.arange(len(views)).split(args.batch_size)
    found = score_batches(module, (stack_images(views, some, normal.channels) for some in rows), device)
    one = "the one normal image" if len(normal.data) == 1 else f"the {len(normal.data)} normal images"
    return decision_of_views(found, of=f"mild views of {one}")
