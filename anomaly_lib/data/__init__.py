"""Readers that yield items, the dataset that decodes them once, transforms, few-shot splits and demo data."""

from anomaly_lib.data.base import ImageDataset, Item, class_names, load_pixels, select, sort_items
from anomaly_lib.data.demo.items import demo_items, write_demo
from anomaly_lib.data.meta import read_meta, write_meta
from anomaly_lib.data.registry import DATASETS, open_dataset
from anomaly_lib.data.splits import KShot, k_shot
from anomaly_lib.data.transforms import ImageTransform, clip_transform, imagenet_transform, stretch_transform

__all__ = [
    "DATASETS",
    "ImageDataset",
    "ImageTransform",
    "Item",
    "KShot",
    "class_names",
    "clip_transform",
    "demo_items",
    "imagenet_transform",
    "k_shot",
    "load_pixels",
    "open_dataset",
    "read_meta",
    "select",
    "sort_items",
    "stretch_transform",
    "write_demo",
    "write_meta",
]
