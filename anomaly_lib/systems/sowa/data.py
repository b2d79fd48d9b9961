"""SOWA's data: which classes train and which test, their images, support images, mosaics."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import numpy as np

from anomaly_lib.data import Item, class_names, k_shot, open_dataset
from anomaly_lib.data.base import load_pixels, readable_items
from anomaly_lib.data.demo.items import demo_items
from anomaly_lib.data.fingerprint import DataFingerprint, fingerprint_of_items
from anomaly_lib.data.images import list_images
from anomaly_lib.data.names import DEMO_CATEGORIES
from anomaly_lib.data.transforms import resize_image
from anomaly_lib.errors import UserError
from anomaly_lib.systems.sowa.options import Args


class TestData(NamedTuple):
    """Images to be tested on, and normal images of the same classes (the pool few-shot memories are drawn from)."""

    items: list[Item]
    normal: list[Item]
    skipped: list[dict[str, str]]
    judged: dict[str, list[Item]] | None = None  # normal images of each class that set the decision, where given


def open_train(args: Args) -> tuple[list[Item], list[dict[str, str]]]:
    """Images with masks to learn from: the TEST split of the training classes, because that is where masks are."""
    source = load_items(args.dataset, args.data_path, trained_classes(args), normal=0, fast=args.fast_dev_run)
    items, skipped = readable_items([item for item in source if item.split == "test"], args.on_error)
    unmasked = next((item for item in items if not item.has_truth), None)
    if unmasked is not None:
        raise UserError(f"{unmasked.path}: an anomaly without a mask teaches nothing; add it or leave its class out")
    return items, skipped


def open_test(
    dataset: str, root: str | None, classes: list[str], *, shot: int, on_error: str, fast: bool = False
) -> TestData:
    """Test images of `classes`, and the normal images that `shot` of each class are drawn from.

    `fast`: only a few of each class.
    """
    target = load_items(dataset, root, classes, normal=min(40, shot) if fast else 40 * (shot > 0), fast=fast)
    items, skipped = readable_items([item for item in target if item.split == "test"], on_error)
    normal = [item for item in target if item.split == "train" and item.label == 0]
    return TestData(shortened(items, 8) if fast else items, normal, skipped)


def open_normal(args: Args, test: TestData) -> dict[str, list[Item]] | None:
    """Images of --normal-data for each class that are no support images: FOLDER/CLASS/*, or FOLDER/* for one class."""
    if args.normal_data is None:
        return None
    root, classes = Path(args.normal_data), class_names(test.items)
    if not root.is_dir():
        raise UserError(f"normal_data={root}: no such folder")
    places = {name: root / name for name in classes if (root / name).is_dir()}
    if not places and len(classes) == 1:
        places = {classes[0]: root}
    if not places:
        raise UserError(f"normal_data={root}: holds no folder of a tested class ({', '.join(classes)})")
    support = support_items(test.normal, args.shot, args.seed) if args.shot else {}
    known = {item.path.resolve() for items in support.values() for item in items if item.image is None}
    normal: dict[str, list[Item]] = {}
    for name, place in places.items():
        paths = [path for path in list_images(place) if path.resolve() not in known]
        if not paths:
            raise UserError(f"normal_data={root}: no image in {place} that is not a support image")
        normal[name], skipped = readable_items([Item(path, 0, name, "normal") for path in paths], args.on_error)
        test.skipped.extend(skipped)
    return {name: items for name, items in normal.items() if items}


def shortened(items: list[Item], count: int) -> list[Item]:
    """Up to `count` images of each class, normal and anomalous ones by turns."""
    out = []
    for name in class_names(items):
        kinds = [[i for i in items if i.class_name == name and i.label == label] for label in (0, 1)]
        out += [kind[n] for n in range(count) for kind in kinds if n < len(kind)][:count]
    return out


def load_items(dataset: str, root: str | None, classes: list[str], *, normal: int, fast: bool) -> list[Item]:
    """The images of `classes`; of the built-in set only what is needed is drawn (`normal` training images)."""
    if dataset != "demo" or root:
        return open_dataset(dataset, root, classes=classes)
    if fast:
        return demo_items(categories=classes, train=normal, test_good=4, per_defect=1)
    return demo_items(categories=classes, train=normal)


def data_fingerprint(args: Args) -> DataFingerprint:
    """Which images a run trains and tests on; the built-in ones, known by their names, are not drawn for it."""
    facts: list[str] = []
    files: dict[str, Path] = {}
    trained = args.dataset, args.data_path
    for (dataset, root), classes in ((trained, trained_classes(args)), (tested_place(args), tested_classes(args))):
        if dataset == "demo" and not root:
            facts.append(f"built-in {' '.join(classes)}")
        else:
            found = fingerprint_of_items(open_dataset(dataset, root, classes=classes), root)
            facts += found.facts
            files |= found.files
    return DataFingerprint(tuple(facts), tuple(sorted(files.items())))


# -- classes -----------------------------------------------------------------------------------------------------------


def tested_place(args: Args) -> tuple[str, str | None]:
    """Layout and folder of what the run tests on."""
    if args.eval_data_path:
        return args.eval_dataset or args.dataset, args.eval_data_path
    return args.dataset, args.data_path


def names_of(dataset: str, root: str | None) -> list[str]:
    """Classes of a data set; those of the built-in one without drawing its images."""
    return list(DEMO_CATEGORIES) if dataset == "demo" and not root else class_names(open_dataset(dataset, root))


def trained_classes(args: Args) -> list[str]:
    """Classes to train on."""
    names = names_of(args.dataset, args.data_path)
    if args.eval_data_path:
        return known("train_classes", args.train_classes, names) or names
    return split_classes(args, names)[0]


def tested_classes(args: Args) -> list[str]:
    """Classes to test on."""
    names = names_of(*tested_place(args))
    if args.eval_data_path:
        return known("test_classes", args.test_classes, names) or names
    return split_classes(args, names)[1]


def known(option: str, wanted: list[str], names: Sequence[str]) -> list[str]:
    """`wanted`, all of which are among `names`."""
    unknown = sorted(set(wanted) - set(names))
    if unknown:
        raise UserError(f"{option}={' '.join(unknown)}: not in the data; there are {', '.join(names)}")
    return wanted


def split_classes(args: Args, names: Sequence[str]) -> tuple[list[str], list[str]]:
    """The classes `names` of one data set as (classes to train on, classes to test on)."""
    trained = known("train_classes", args.train_classes, names)
    tested = known("test_classes", args.test_classes, names)
    if not trained:
        # Data sets list their classes in kinds (textures, then objects): taking them by turns leaves every kind on
        # both sides.
        trained = [name for name in names if name not in tested] if tested else list(names[::2])
    tested = tested or [name for name in names if name not in trained]
    if not trained or not tested:
        raise UserError(
            f"{', '.join(names)}: no class left to train or test on; give train_classes= or eval_data_path="
        )
    return trained, tested


# -- images ------------------------------------------------------------------------------------------------------------


def support_items(normal: Sequence[Item], shot: int, seed: int) -> dict[str, list[Item]]:
    """k normal images of every class, drawn by seed."""
    return {
        name: k_shot([item for item in normal if item.class_name == name], shot, seed=seed).items
        for name in class_names(normal)
    }


def with_mosaics(items: Sequence[Item], rate: float, *, label: str, seed: int) -> list[Item]:
    """A share of the images replaced by 2x2 mosaics of random images of their class, masks stitched alike.

    The original keeps the label of the image that was replaced, whatever the mosaic shows; `label` "any" mends that.
    """
    generator = np.random.default_rng(seed)
    out = []
    for index, item in enumerate(items):
        if generator.random() >= rate:
            out.append(item)
            continue
        group = [other for other in items if other.class_name == item.class_name]
        parts = [group[i] for i in generator.integers(0, len(group), 4)]
        pixels = [load_pixels(part) for part in parts]
        size = (pixels[0][0].shape[0] // 2, pixels[0][0].shape[1] // 2)
        image = _stitch([resize_image(image, size, "bilinear") for image, _ in pixels])
        masks = [m if m is not None else np.zeros(i.shape[:2], dtype=bool) for i, m in pixels]
        mask = _stitch([_resize_mask(one, size) for one in masks])
        shown = max(part.label for part in parts) if label == "any" else item.label
        name = Path(f"{item.path}#mosaic{seed}-{index}")
        out.append(replace(item, path=name, image=image, mask=mask, mask_path=None, label=shown))
    return out


def _stitch(tiles: Sequence[np.ndarray]) -> np.ndarray:
    return np.concatenate([np.concatenate(tiles[:2], axis=1), np.concatenate(tiles[2:], axis=1)], axis=0)


def _resize_mask(mask: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    rows = np.arange(size[0]) * mask.shape[0] // size[0]
    columns = np.arange(size[1]) * mask.shape[1] // size[1]
    return mask[rows][:, columns]
