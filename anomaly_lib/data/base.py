"""What every reader yields: items (where an image lies and what it is) and the dataset that decodes them once."""

import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

import numpy as np
import torch
from torch.utils.data import Dataset

from anomaly_lib.data.images import read_image, read_mask
from anomaly_lib.data.transforms import ImageTransform
from anomaly_lib.errors import UserError
from anomaly_lib.files import check_name
from anomaly_lib.types import Sample

GIB = 1024**3


@dataclass(frozen=True, eq=False)
class Item:
    """One image of a dataset. `image` and `mask` hold in-memory data (demo items); otherwise the paths are read."""

    path: Path
    label: int  # 0 normal, 1 anomalous
    class_name: str
    split: str  # train | test
    defect: str = "good"
    mask_path: Path | None = None
    domain: str = ""
    image: np.ndarray | None = field(default=None, repr=False)  # [H, W, 3] uint8
    mask: np.ndarray | None = field(default=None, repr=False)  # [H, W] bool

    def __post_init__(self) -> None:
        check_name(self.path)

    @property
    def has_truth(self) -> bool:
        """Is the pixel truth known? Normal images are all background; an anomaly needs its mask."""
        return self.label == 0 or self.mask_path is not None or self.mask is not None

    def describe(self) -> str:
        """One JSON line without the pixels, for run.json and fingerprints."""
        plain = asdict(replace(self, image=None, mask=None))
        return json.dumps({k: str(v) for k, v in plain.items() if v is not None}, sort_keys=True)


def sort_items(items: Iterable[Item]) -> list[Item]:
    """Class, split, then path: the same order on every file system."""
    return sorted(items, key=lambda item: (item.class_name, item.split != "train", item.path.as_posix()))


def check_splits(items: Sequence[Item], table: Path) -> None:
    """Refuse a file that `table` lists twice: in both splits a detector would be tested on what it was fitted on.

    Links are followed: another name for the same file is the same file.
    """
    seen: dict[tuple[int, int], Item] = {}
    for item in items:
        stat = item.path.stat()
        other = seen.setdefault((stat.st_dev, stat.st_ino), item)
        if other is not item:
            where = "in both splits" if other.split != item.split else f"twice in {item.split}"
            same = "" if other.path == item.path else f" (the same file as {other.path})"
            raise UserError(f"{table}: {item.path}{same} is listed {where}; keep one of the two")


def class_names(items: Iterable[Item]) -> list[str]:
    return sorted({item.class_name for item in items})


def select(
    items: Iterable[Item],
    *,
    split: str | None = None,
    class_name: str | None = None,
    label: int | None = None,
    domain: str | None = None,
) -> list[Item]:
    """The items that match every given field, in their order; none left is the user's mistake."""
    items = list(items)
    wanted = {"split": split, "class_name": class_name, "label": label, "domain": domain}
    wanted = {name: value for name, value in wanted.items() if value is not None}
    chosen = [item for item in items if all(getattr(item, name) == value for name, value in wanted.items())]
    if not chosen:
        asked = ", ".join(f"{name}={value}" for name, value in wanted.items())
        raise UserError(f"no images with {asked}; the data has the classes {', '.join(class_names(items)) or '(none)'}")
    return chosen


def load_pixels(item: Item) -> tuple[np.ndarray, np.ndarray | None]:
    """Image [H, W, 3] (uint8, or float32 for 16-bit and float files) and truth mask [H, W] bool (None: unknown)."""
    image = item.image if item.image is not None else read_image(item.path)
    if item.mask is not None:
        mask: np.ndarray | None = item.mask
    elif item.mask_path is not None:
        mask = read_mask(item.mask_path)
    elif item.label == 0:
        mask = np.zeros(image.shape[:2], dtype=bool)
    else:
        mask = None
    if mask is not None and mask.shape != image.shape[:2]:
        (h, w), (mask_h, mask_w) = image.shape[:2], mask.shape
        raise UserError(
            f"{item.mask_path or item.path}: mask is {mask_w}x{mask_h} but its image is {w}x{h}; fix or remove the mask"
        )
    return image, mask


class ImageDataset(Dataset[Sample]):
    """Decoded, transformed samples; each file is decoded once while the cache has room.

    The cache fills up to `cache_bytes` and then stays as it is: epochs scan all items, and under a scan an evicting
    cache that is one item too small never hits. With `on_error="skip"` unreadable items are dropped at construction
    and listed in `skipped`.
    """

    def __init__(
        self,
        items: Sequence[Item],
        *,
        transform: ImageTransform,
        mask_size: int | tuple[int, int] | None = None,
        cache_bytes: int = GIB,
        on_error: str = "fail",
    ) -> None:
        if not items:
            raise UserError("the dataset is empty: check data_path= and obj=")
        if on_error not in ("fail", "skip"):
            raise UserError(f"on_error={on_error}: choose from fail, skip")
        self.items = list(items)
        self.transform = transform
        self.mask_size = mask_size
        self.cache_bytes = cache_bytes
        self.skipped: list[dict[str, str]] = []
        self._cache: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}
        self._cached_bytes = 0
        if on_error == "skip":
            self._drop_unreadable()

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, index: int) -> Sample:
        if not -len(self) <= index < len(self):
            raise IndexError(index)
        index %= len(self)
        item = self.items[index]
        image, mask = self._tensors(index)
        return {
            "image": image,  # [3, H, W] float32
            "label": item.label,
            "mask": mask,  # [H', W'] bool
            "has_mask": item.has_truth,
            "class_name": item.class_name,
            "defect": item.defect,
            "path": str(item.path),
        }

    def _tensors(self, index: int) -> tuple[torch.Tensor, torch.Tensor]:
        if index in self._cache:
            image, mask = self._cache[index]
            return image.clone(), mask.clone()  # a caller that augments in place must not change the next epoch
        pixels, truth = load_pixels(self.items[index])
        if truth is None:
            truth = np.zeros(pixels.shape[:2], dtype=bool)
        image = self.transform(pixels)
        mask = self.transform.mask(truth, self.mask_size)
        size = image.numel() * image.element_size() + mask.numel()
        if self._cached_bytes + size <= self.cache_bytes:
            self._cache[index] = (image.clone(), mask.clone())
            self._cached_bytes += size
        return image, mask

    def _drop_unreadable(self) -> None:
        kept: list[Item] = []
        kept_cache: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}
        for index, item in enumerate(self.items):
            try:
                self._tensors(index)
            except UserError as error:
                self.skipped.append({"path": str(item.path), "reason": str(error)})
                continue
            if index in self._cache:
                kept_cache[len(kept)] = self._cache[index]
            kept.append(item)
        if not kept:
            raise UserError(f"none of the {len(self.items)} images can be read; the first: {self.skipped[0]['reason']}")
        self.items, self._cache = kept, kept_cache


def readable_items(items: list[Item], on_error: str) -> tuple[list[Item], list[dict[str, str]]]:
    """With ``on_error="skip"`` every file is opened once, and those that cannot be are left out and listed."""
    if on_error != "skip":
        return items, []
    kept, skipped = [], []
    for item in items:
        try:
            load_pixels(item)
            kept.append(item)
        except UserError as error:
            skipped.append({"path": str(item.path), "reason": str(error)})
    return kept, skipped
