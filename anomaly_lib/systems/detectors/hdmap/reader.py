"""HDMAP: vibration of a planetary gearbox as 31 x 95 maps, four domains, good against fault, no pixel truth.

Reads both generations on disk, ``{root}/domain_A/{train/good, test/good, test/fault}/000000.{png,tif,tiff}``: 8- and
16-bit PNG, and float32 TIFF whose values may exceed 1. A whole split is small (1000 maps are 12 MB), so it is decoded
once into one tensor and batches are slices of it.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from anomaly_lib.data.base import Item, readable_items
from anomaly_lib.data.fingerprint import DataFingerprint, relative_name
from anomaly_lib.data.images import list_images, read_image
from anomaly_lib.errors import UserError
from anomaly_lib.systems.detectors.hdmap.names import DOMAINS, RESIZE_METHODS, VALIDATION

NATIVE_SIZE = (31, 95)  # planet teeth x ring teeth
GROUPS = (("train", "good", 0), ("test", "good", 0), ("test", "fault", 1))


@dataclass(frozen=True)
class DomainSplit:
    """Maps [N, 1, H, W], labels [N] (1 = fault) and where they came from."""

    domain: str
    images: Tensor
    labels: Tensor
    paths: tuple[str, ...]
    skipped: tuple[dict[str, str], ...] = ()  # files that could not be read: path and reason

    def __len__(self) -> int:
        return len(self.labels)

    def named(self) -> Iterator[tuple[int, str]]:
        """(label, path) of every map."""
        return zip(self.labels.tolist(), self.paths, strict=True)

    def subset(self, index: Tensor) -> "DomainSplit":
        paths = tuple(self.paths[i] for i in index.tolist())
        return replace(self, images=self.images[index], labels=self.labels[index], paths=paths)

    def batches(self, size: int, *, order: Tensor | None = None) -> Iterator[tuple[Tensor, Tensor]]:
        """(images, labels), in `order` or as stored."""
        order = torch.arange(len(self)) if order is None else order
        for index in order.split(size):
            yield self.images[index], self.labels[index]


DemoMaps = Callable[[str, str], DomainSplit]
"""Domain, split -> synthetic maps in their native size."""


def check_domain(name: str) -> str:
    if name not in DOMAINS:
        raise UserError(f"unknown HDMAP domain {name!r}; there are {', '.join(DOMAINS)}")
    return name


def read_hdmap(root: Path | str, *, domains: Sequence[str] = DOMAINS) -> list[Item]:
    """Every map of the given domains; `root` is the folder that holds ``domain_*``."""
    items = []
    for domain in domains:
        folder = Path(root) / check_domain(domain)
        if not folder.is_dir():
            have = sorted(path.name for path in Path(root).glob("domain_*")) if Path(root).is_dir() else []
            raise UserError(f"{folder}: no such folder; {root} holds {', '.join(have) or 'no domain_* folders'}")
        for split, group, label in GROUPS:
            paths = list_images(folder / split / group)
            if not paths:
                raise UserError(f"{folder / split / group}: no .png, .tif or .tiff files")
            items += [Item(path, label, domain, split, group, domain=domain) for path in paths]
    return items


def decode(path: Path | str) -> np.ndarray:
    """One map [H, W] float32: PNG scaled to 0..1 whatever its depth, float TIFF as stored (not clipped)."""
    return grey_of(read_image(path))


def grey_of(picture: np.ndarray | Image.Image) -> np.ndarray:
    """[H, W] float32 of a decoded picture [H, W] or [H, W, 3]: uint8 scaled to 0..1, floats as they are."""
    pixels = np.asarray(picture)
    if pixels.ndim not in (2, 3):
        raise UserError(f"a map is [H, W] or [H, W, 3], got {list(pixels.shape)}")
    grey = (pixels if pixels.ndim == 2 else pixels[:, :, 0]).astype(np.float32)
    return grey / {"uint8": 255, "uint16": 65535}.get(pixels.dtype.name, 1)


def fit_to(images: Tensor, size: tuple[int, int] | None, method: str = "resize_bilinear", seed: int = 0) -> Tensor:
    """Bring maps [N, 1, H, W] to `size` (None keeps theirs).

    ``resize`` nearest, ``resize_bilinear`` smooth (train and test must agree, or the AUROC collapses);
    ``resize_aspect_padding`` keeps the aspect and pads black; ``black_padding`` and ``noise_padding`` do not resize but
    pad to the size, the latter with noise of each map's mean and a tenth of its deviation.
    """
    if method not in RESIZE_METHODS:
        raise UserError(f"resize_method={method}: unknown; there are {', '.join(RESIZE_METHODS)}")
    height, width = images.shape[-2:]
    if size is None or (height, width) == tuple(size):
        return images
    if method == "resize":
        return F.interpolate(images, size=size, mode="nearest")
    if method == "resize_bilinear":
        return F.interpolate(images, size=size, mode="bilinear", align_corners=False)
    if method == "resize_aspect_padding":
        scale = min(size[0] / height, size[1] / width)
        inner = max(1, round(height * scale)), max(1, round(width * scale))
        images = F.interpolate(images, size=inner, mode="bilinear", align_corners=False)
    return _centre_pad(images, size, noise=method == "noise_padding", seed=seed)


def _centre_pad(images: Tensor, size: tuple[int, int], *, noise: bool, seed: int) -> Tensor:
    """Put maps into the middle of a larger field; an odd remainder goes to the right and the bottom."""
    height, width = images.shape[-2:]
    if height > size[0] or width > size[1]:
        raise UserError(f"a {height}x{width} map cannot be padded to {size[0]}x{size[1]}; choose a larger image_size")
    field = images.new_zeros(len(images), 1, *size)
    if noise:
        generator = torch.Generator().manual_seed(seed)
        draw = torch.randn(field.shape, generator=generator)
        mean, std = images.mean((2, 3), keepdim=True), images.std((2, 3), keepdim=True)
        field = (mean + 0.1 * std * draw).clamp(min=0)
    top, left = (size[0] - height) // 2, (size[1] - width) // 2
    field[..., top : top + height, left : left + width] = images
    return field


def load_split(
    root: Path | str | None,
    domain: str,
    split: str,
    *,
    size: tuple[int, int] | None = None,
    resize_method: str = "resize_bilinear",
    on_error: str = "fail",
    demo: DemoMaps | None = None,
) -> DomainSplit:
    """One domain's train or test maps in one tensor; without a root, those that `demo` makes."""
    if root is None:
        if demo is None:
            raise UserError("give the folder that holds domain_A ... domain_D (data_path=)")
        data = demo(check_domain(domain), split)
        return replace(data, images=fit_to(data.images, size, resize_method))
    items = [item for item in read_hdmap(root, domains=[domain]) if item.split == split]
    items, skipped = readable_items(items, on_error)
    if not items:
        raise UserError(f"{root}: none of the maps of {domain}/{split} can be read; {skipped[0]['reason']}")
    decoded = [decode(item.path) for item in items]
    shapes = sorted({grey.shape for grey in decoded})
    if len(shapes) > 1:
        odd = next(item.path for item, grey in zip(items, decoded, strict=True) if grey.shape != decoded[0].shape)
        raise UserError(f"{odd}: its size differs from the other maps of {domain}/{split} ({shapes})")
    images = torch.from_numpy(np.stack(decoded)).unsqueeze(1)  # [N, 1, H, W]
    labels = torch.tensor([item.label for item in items])
    paths = tuple(str(item.path) for item in items)
    return DomainSplit(domain, fit_to(images, size, resize_method), labels, paths, tuple(skipped))


def stratified_halves(labels: Tensor, *, fraction: float, seed: int) -> tuple[Tensor, Tensor]:
    """Two disjoint index sets holding `fraction` and the rest of each class, in ascending order."""
    generator = torch.Generator().manual_seed(seed)
    first, second = [], []
    for value in labels.unique():
        members = (labels == value).nonzero().squeeze(1)
        members = members[torch.randperm(len(members), generator=generator)]
        cut = min(max(1, round(fraction * len(members))), max(len(members) - 1, 1))
        first.append(members[:cut])
        second.append(members[cut:])
    return torch.cat(first).sort().values, torch.cat(second).sort().values


def target_domains_of(source: str, targets: str | Sequence[str]) -> list[str]:
    """``"auto"`` is every domain but the source, in order; a name is a list of one."""
    if targets == "auto":
        return [domain for domain in DOMAINS if domain != source]
    return [targets] if isinstance(targets, str) else list(targets)


class MultiDomainHDMAPDataModule:
    """Train on one domain, validate on it, test on the others.

    ``validation_strategy="source_test"`` is the published protocol: the source's whole test split both selects the
    epoch and gives the source score, so labels leak into that score. ``"held_out"`` splits it in two stratified halves:
    one selects, only the other is reported (`source_data`).
    """

    def __init__(
        self,
        root: Path | str | None,
        *,
        source_domain: str = "domain_A",
        target_domains: str | Sequence[str] = "auto",
        validation_strategy: str = "source_test",
        train_batch_size: int = 32,
        eval_batch_size: int = 32,
        target_size: tuple[int, int] | None = None,
        resize_method: str = "resize_bilinear",
        seed: int = 0,
        on_error: str = "fail",
        demo: DemoMaps | None = None,
    ) -> None:
        self.root = None if root is None else Path(root)
        self.source_domain = check_domain(source_domain)
        self.target_domains = [check_domain(name) for name in target_domains_of(source_domain, target_domains)]
        if source_domain in self.target_domains:
            raise UserError(f"the source {source_domain} must not be among the targets {self.target_domains}")
        if validation_strategy not in VALIDATION:
            raise UserError(f"validation_strategy={validation_strategy}: choose {' or '.join(VALIDATION)}")
        self.train_batch_size = train_batch_size
        self.eval_batch_size = eval_batch_size
        self.seed = seed

        self._how: dict[str, Any] = {
            "size": target_size, "resize_method": resize_method, "on_error": on_error, "demo": demo,
        }  # fmt: skip
        self.train_data = self.load(source_domain, "train")
        self.val_data = self.source_data = self.load(source_domain, "test")
        if validation_strategy == "held_out":
            chosen, rest = stratified_halves(self.val_data.labels, fraction=0.5, seed=seed)
            self.val_data, self.source_data = self.val_data.subset(chosen), self.val_data.subset(rest)
        self.test_data = [self.load(domain, "test") for domain in self.target_domains]

    def load(self, domain: str, split: str) -> DomainSplit:
        """A split of any domain as this module reads them."""
        return load_split(self.root, domain, split, **self._how)

    @property
    def skipped(self) -> list[dict[str, str]]:
        """Files that could not be read."""
        return [one for data in (self.train_data, self.source_data, *self.test_data) for one in data.skipped]

    def fingerprint(self) -> DataFingerprint:
        """Which maps these are; drawn ones are known by their names."""
        parts = (self.train_data, self.val_data, self.source_data, *self.test_data)
        facts = [(one.domain, label, relative_name(path, self.root)) for one in parts for label, path in one.named()]
        files = [] if self.root is None else [path for one in parts for path in one.paths]
        return DataFingerprint.of(facts, files, self.root)

    def train_batches(self, epoch: int) -> Iterator[Tensor]:
        """Normal source maps in an order that follows from (seed, epoch) alone."""
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + epoch)
        order = torch.randperm(len(self.train_data), generator=generator)
        return (images for images, _ in self.train_data.batches(self.train_batch_size, order=order))

    def val_dataloader(self) -> Iterator[tuple[Tensor, Tensor]]:
        return self.val_data.batches(self.eval_batch_size)

    def target_data(self, name: str) -> DomainSplit:
        for data in self.test_data:
            if data.domain == name:
                return data
        raise UserError(f"{name} is not one of the target domains {', '.join(self.target_domains)}")

    def get_target_test_dataloader(self, name: str) -> Iterator[tuple[Tensor, Tensor]]:
        return self.target_data(name).batches(self.eval_batch_size)

    def test_dataloader(self) -> list[Iterator[tuple[Tensor, Tensor]]]:
        return [data.batches(self.eval_batch_size) for data in self.test_data]

    def get_all_target_test_dataloaders(self) -> dict[str, Iterator[tuple[Tensor, Tensor]]]:
        return dict(zip(self.target_domains, self.test_dataloader(), strict=True))


def save_map(path: Path, values: np.ndarray, kind: str) -> None:
    """Write a map [H, W]: ``tiff`` float32 as it is, ``16bit`` and ``8bit`` PNG of values 0..1 (clipped)."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if kind == "tiff":
        Image.fromarray(values.astype(np.float32)).save(path.with_suffix(".tiff"))
    elif kind == "16bit":
        Image.fromarray((values.clip(0, 1) * 65535).round().astype(np.uint16)).save(path.with_suffix(".png"))
    elif kind == "8bit":
        Image.fromarray((values.clip(0, 1) * 255).round().astype(np.uint8)).save(path.with_suffix(".png"))
    else:
        raise UserError(f"map format {kind!r} is unknown; there are tiff, 16bit, 8bit")
