"""The images of one class as these detectors see them."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from anomaly_lib.data.base import ImageDataset, Item, class_names
from anomaly_lib.data.fingerprint import DataFingerprint, files_below
from anomaly_lib.data.names import DEMO_CATEGORIES
from anomaly_lib.data.registry import open_dataset
from anomaly_lib.data.transforms import ImageTransform
from anomaly_lib.errors import UserError
from anomaly_lib.ops.tiles import Tiles


def open_class(dataset: str, data_path: str | None, obj: str | None) -> tuple[str, list[Item]]:
    """The class asked for and its images; without a name the only class there is, or the demo's first."""
    if obj is None and dataset == "demo" and data_path is None:
        obj = DEMO_CATEGORIES[0]
    items = open_dataset(dataset, data_path, classes=None if obj is None else [obj])
    names = class_names(items)
    if len(names) > 1:
        raise UserError(f"give obj=, one of the classes {', '.join(names)}")
    return names[0], items


def with_textures(data: DataFingerprint, args: Any) -> DataFingerprint:
    """The data together with the pictures that damage is drawn from, where there are any."""
    if getattr(args, "textures", None) is None:
        return data
    more = DataFingerprint.of(["textures"], files_below(args.textures), args.textures)
    return DataFingerprint(data.facts + more.facts, tuple(sorted({**dict(data.files), **dict(more.files)}.items())))


def image_transform(args: Any) -> ImageTransform:
    """All of the image at the detector's size, values 0..1; the backbone's statistics are applied in FrozenFeatures."""
    height, width = args.image_size
    how = "pad" if getattr(args, "keep_aspect", False) else "stretch"
    return ImageTransform(
        size=(height, width), resize=how, interpolation="bilinear", mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0)
    )


def tiles_of(args: Any) -> Tiles:
    """The tiles that the network sees of an image at the detector's size; one, where nothing is tiled."""
    return Tiles.asked(args, args.image_size)


def input_channels(args: Any) -> int:
    """Channels of the detector's input: three, where it has no option for it."""
    return int(getattr(args, "channels", 3))


def with_channels(images: Tensor, channels: int) -> Tensor:
    """[B, C, H, W] with another number of channels: their mean, or one repeated (costs no memory until it is used)."""
    if images.shape[1] == channels:
        return images
    return images.mean(1, keepdim=True) if channels == 1 else images.expand(-1, channels, -1, -1)


def stack_images(data: ImageDataset, index: Tensor | Sequence[int], channels: int = 3) -> Tensor:
    """[B, C, H, W] of some samples."""
    return with_channels(torch.stack([data[int(i)]["image"] for i in index]), channels)
