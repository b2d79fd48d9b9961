"""PromptAD's data: which images support a class, through which views they are seen, and the truth of test images."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from anomaly_lib.data import ImageTransform, Item, KShot, class_names, k_shot, open_dataset, select
from anomaly_lib.data.base import load_pixels, readable_items
from anomaly_lib.data.fingerprint import DataFingerprint, fingerprint_of_items
from anomaly_lib.data.splits import PROMPTAD_SHOTS
from anomaly_lib.errors import UserError
from anomaly_lib.systems.promptad.options import ALL, Args


@dataclass(frozen=True)
class TaskData:
    """What one (class, k) experiment sees."""

    class_name: str
    support: list[Item]
    test: list[Item]
    chosen: dict[str, Any]
    skipped: list[dict[str, str]]
    fingerprint: DataFingerprint


def open_task(args: Args) -> TaskData:
    """Read the data of obj= and choose its k support images (of every class with obj=all)."""
    items, skipped = _open(args)
    names = class_names(items)
    chosen = [_choose(select(items, split="train", class_name=name), args) for name in names]
    support = [item for kshot in chosen for item in kshot.items]
    described = chosen[0].describe() | {"paths": [item.path.as_posix() for item in support]}
    name = ALL if args.obj == ALL else names[0]
    data = fingerprint_of_items(items, args.data_path)
    return TaskData(name, support, select(items, split="test"), described, skipped, data)


def test_items(args: Args) -> list[Item]:
    """The test images of obj= alone."""
    return select(_open(args)[0], split="test")


def _open(args: Args) -> tuple[list[Item], list[dict[str, str]]]:
    wanted = None if args.obj in (None, ALL) else [args.obj]
    items, skipped = readable_items(open_dataset(args.dataset, args.data_path, classes=wanted), args.on_error)
    names = class_names(items)
    if len(names) > 1 and args.obj != ALL:
        raise UserError(f"give obj= one of {', '.join(names)} (or 'all' for one model of all classes)")
    return items, skipped


def _choose(train: Sequence[Item], args: Args) -> KShot:
    shots: str | None = None if args.shots in ("auto", "seed") else args.shots
    if args.shots == "auto":
        published = PROMPTAD_SHOTS.get(train[0].class_name, {}).get(args.shot)
        normal = sum(item.label == 0 for item in train)
        if args.dataset in ("mvtec", "visa") and published and max(published) < normal:
            shots = "promptad"
    return k_shot(train, args.shot, seed=args.seed, shots=shots)


def synthetic_anomalies(items: Sequence[Item], per_image: int, seed: int) -> list[Item]:
    """Support images with a patch of themselves pasted elsewhere, turned and re-lit: what --select val is judged on."""
    rng = np.random.default_rng(seed)
    made = []
    for item in items:
        pixels = load_pixels(item)[0]
        for number in range(per_image):
            image, mask = _cut_and_paste(pixels, rng)
            path = Path(f"{item.path}#synthetic{number}")
            made.append(replace(item, path=path, label=1, defect="synthetic", image=image, mask=mask, mask_path=None))
    return made


def _cut_and_paste(pixels: np.ndarray, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """One pasted rectangle between a scar (long, thin) and a block, 1 to 6 per cent of the image."""
    height, width = pixels.shape[:2]
    aspect = float(np.exp(rng.uniform(-1.8, 1.8)))
    side = np.sqrt(rng.uniform(0.01, 0.06) * height * width)
    h = int(np.clip(side * np.sqrt(aspect), 3, height // 2))
    w = int(np.clip(side / np.sqrt(aspect), 3, width // 2))
    y, x, to_y, to_x = (int(rng.integers(0, high)) for high in (height - h, width - w, height - h, width - w))
    patch = pixels[y : y + h, x : x + w].astype(np.float32)[:: rng.choice([-1, 1]), :: rng.choice([-1, 1])]
    top = 255.0 if pixels.dtype == np.uint8 else 1.0
    patch = np.clip((patch - patch.mean()) * rng.uniform(0.5, 1.5) + patch.mean() * rng.uniform(0.6, 1.4), 0, top)
    image, mask = pixels.copy(), np.zeros((height, width), dtype=bool)
    image[to_y : to_y + h, to_x : to_x + w] = patch.astype(pixels.dtype)
    mask[to_y : to_y + h, to_x : to_x + w] = True
    return image, mask


def truth_of(items: Sequence[Item], transform: ImageTransform, resolution: int) -> tuple[Tensor, Tensor | None]:
    """Labels [N] and masks [N, R, R], or None when an anomaly has no pixel truth."""
    labels = torch.tensor([item.label for item in items])
    if not all(item.has_truth for item in items):
        return labels, None
    masks = []
    for item in items:
        if item.label == 0:
            masks.append(torch.zeros(resolution, resolution, dtype=torch.bool))
            continue
        mask = load_pixels(item)[1]
        assert mask is not None
        masks.append(transform.mask(mask, resolution))
    return labels, torch.stack(masks)
