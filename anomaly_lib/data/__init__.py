"""Readers that yield items, the dataset that decodes them once, transforms, few-shot splits and demo data."""

from typing import TYPE_CHECKING

from anomaly_lib.lazy import lazy_names

if TYPE_CHECKING:
    from anomaly_lib.data.base import ImageDataset, Item, class_names, load_pixels, select, sort_items
    from anomaly_lib.data.demo.items import demo_items, write_demo
    from anomaly_lib.data.meta import read_meta, write_meta
    from anomaly_lib.data.registry import DATASETS, open_dataset
    from anomaly_lib.data.splits import KShot, k_shot
    from anomaly_lib.data.transforms import ImageTransform, clip_transform, imagenet_transform, stretch_transform

__getattr__, __dir__ = lazy_names(
    __name__,
    {
        "DATASETS": "registry",
        "ImageDataset": "base",
        "ImageTransform": "transforms",
        "Item": "base",
        "KShot": "splits",
        "class_names": "base",
        "clip_transform": "transforms",
        "demo_items": "demo.items",
        "imagenet_transform": "transforms",
        "k_shot": "splits",
        "load_pixels": "base",
        "open_dataset": "registry",
        "read_meta": "meta",
        "select": "base",
        "sort_items": "base",
        "stretch_transform": "transforms",
        "write_demo": "demo.items",
        "write_meta": "meta",
    },
)
