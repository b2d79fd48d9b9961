"""VisA's split file, plain good/bad folders, and lists of images."""

import random
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

from anomaly_lib.data.base import Item, check_splits, sort_items
from anomaly_lib.data.images import list_images
from anomaly_lib.data.readers import NORMAL_NAMES, existing_root, find_mask, read_mvtec
from anomaly_lib.errors import UserError
from anomaly_lib.files import check_name, csv_records

MASK_FOLDERS = ("ground_truth", "masks", "mask", "gt")
VISA_COLUMNS = ("object", "split", "label", "image", "mask")
LIST_COLUMNS = ("path", "truth")


def read_visa(root: Path | str, *, classes: Iterable[str] | None = None) -> list[Item]:
    """VisA as downloaded (`split_csv/1cls.csv` beside the class folders) or as prepared in the one-class layout."""
    root = existing_root(root, "visa")
    table = root / "split_csv" / "1cls.csv"
    if not table.is_file():
        return read_mvtec(root / "1cls" if (root / "1cls").is_dir() else root, classes=classes)
    items = [_visa_item(root, table, line, row) for line, row in csv_records(table, needs=VISA_COLUMNS)]
    check_splits(items, table)
    return _only_classes(items, classes, root)


def _visa_item(root: Path, table: Path, line: int, row: dict[str, str]) -> Item:
    if row["split"] not in ("train", "test") or row["label"] not in ("normal", "anomaly"):
        raise UserError(f"{table}:{line}: expected split train|test and label normal|anomaly, got {row}")
    for name in (row["image"], row["mask"]):
        check_name(name, f"{table}:{line}: ")
    path, mask = root / row["image"], root / row["mask"] if row["mask"] else None
    for file in (path, mask):
        if file is not None and not file.is_file():
            raise UserError(f"{table}:{line}: {file} does not exist; unpack VisA beside split_csv/")
    label = int(row["label"] == "anomaly")
    return Item(path, label, row["object"], row["split"], "bad" if label else "good", mask)


def _only_classes(items: list[Item], classes: Iterable[str] | None, root: Path) -> list[Item]:
    present = sorted({item.class_name for item in items})
    wanted = set(present if classes is None else classes)
    for name in sorted(wanted - set(present)):
        raise UserError(f"obj={name}: not in {root}; it has {', '.join(present)}")
    return sort_items(item for item in items if item.class_name in wanted)


def read_folders(
    root: Path | str, *, classes: Iterable[str] | None = None, train_share: float = 0.7, seed: int = 0
) -> list[Item]:
    """Your own images: `good/` and `bad/` (or one folder a defect), in the root or in class folders; or a folder of
    nothing but images, all of which are good; or a CSV file that lists them (`read_list`).

    Where a class has `train/` and `test/`, these folders lie below them and are its splits; elsewhere `train_share` of
    the good images, drawn by `seed`, become the training split and everything else is test. Masks are optional:
    `ground_truth/<defect>/<stem>[_mask].png` or `masks/<stem>.png` in the class folder.
    """
    if is_list(root):
        return _only_classes(_drawn(read_list(root), root, train_share, seed), classes, Path(root))
    root = existing_root(root, "folder")
    own = _is_class(root) or _all_good(root)
    found = {root.resolve().name: root} if own else {p.name: p for p in sorted(root.iterdir()) if p.is_dir()}
    found = {name: path for name, path in found.items() if own or _is_class(path)}
    if not found:
        names = "/, ".join(NORMAL_NAMES)
        there = ", ".join(sorted(f"{path.name}/" for path in root.iterdir() if path.is_dir())[:5])
        raise UserError(
            f"data_path={root}: found no {names}/ folder with normal images, nor images and nothing else"
            + (f"; it holds {there}" if there else "")
        )
    items = [item for name, path in found.items() for item in _read_class(path, name, train_share, seed)]
    return _only_classes(items, classes, root)


def is_list(root: Path | str | None) -> bool:
    """Does it name a CSV file of images rather than their folder?"""
    return Path(root or "").suffix.lower() == ".csv"


def read_list(table: Path | str) -> list[Item]:
    """Images that a CSV file lists, as `anomaly_lib serve` writes it: path (relative to the file) and truth, good|bad.

    Other columns are no matter. All are test items of one class, which is called as the file.
    """
    table = Path(table).expanduser()
    items = []
    for line, row in csv_records(table, needs=LIST_COLUMNS):
        check_name(row["path"], f"{table}, line {line}: ")
        path, truth = table.parent / row["path"], row["truth"].lower()
        if truth not in ("bad", *NORMAL_NAMES):
            raise UserError(f"{table}, line {line}: truth is good or bad, not {row['truth']!r:.60}")
        if not path.is_file():
            raise UserError(f"{table}, line {line}: {path} does not exist")
        items.append(Item(path, int(truth == "bad"), table.stem, "test", "bad" if truth == "bad" else "good"))
    return sort_items(items)


def _normal_folder(folder: Path) -> Path | None:
    return next((place for name in NORMAL_NAMES if (place := _inner(folder, name)).is_dir()), None)


def _inner(folder: Path, name: str) -> Path:
    """The folder of this name in `folder`, which may be written in capitals too."""
    place = folder / name
    if place.is_dir() or not folder.is_dir():
        return place
    return next((path for path in sorted(folder.iterdir()) if path.name.lower() == name and path.is_dir()), place)


def _has_splits(folder: Path) -> bool:
    return _normal_folder(_inner(folder, "train")) is not None and _inner(folder, "test").is_dir()


def _all_good(folder: Path) -> bool:
    """Does it hold images and no folder, so that nothing says what they are?"""
    return bool(list_images(folder)) and not any(
        path.is_dir() and not path.name.startswith(".") for path in folder.iterdir()
    )


def _is_class(folder: Path) -> bool:
    return _normal_folder(folder) is not None or _has_splits(folder)


def _read_class(folder: Path, name: str, train_share: float, seed: int) -> list[Item]:
    if _has_splits(folder):
        train, test = (_read_groups(_inner(folder, split), folder, name) for split in ("train", "test"))
        if wrong := next((item for item in train if item.label), None):
            raise UserError(f"{wrong.path.parent}: train/ holds normal images only ({', '.join(NORMAL_NAMES)})")
        return [replace(item, split="train") for item in train] + test
    flat = _all_good(folder)
    items = (
        [Item(path, 0, name, "test") for path in list_images(folder)] if flat else _read_groups(folder, folder, name)
    )
    return _drawn(items, _normal_folder(folder) or folder, train_share, seed)


def _drawn(items: list[Item], where: Path | str, train_share: float, seed: int) -> list[Item]:
    """Test items, of whose normal ones `train_share` become the training split."""
    normal = [item.path for item in items if not item.label]
    if len(normal) < 2:
        raise UserError(f"{where}: {len(normal)} normal images; at least one to train and one to test are needed")
    count = min(len(normal) - 1, max(1, round(train_share * len(normal))))
    drawn = set(random.Random(seed).sample(normal, count))
    return [replace(item, split="train") if item.path in drawn else item for item in items]


def _read_groups(groups: Path, folder: Path, name: str) -> list[Item]:
    """The images of the normal folder and of the defect folders in `groups`, as test items of the class in `folder`."""
    normal = _normal_folder(groups)
    items = [Item(path, 0, name, "test") for path in (list_images(normal) if normal else [])]
    for group in sorted(path for path in groups.iterdir() if path.is_dir()):
        if group == normal or group.name.lower() in MASK_FOLDERS:
            continue
        truths = [_inner(folder, masks) / inner for masks in MASK_FOLDERS for inner in (group.name, ".")]
        for path in list_images(group):
            masks = (find_mask(truth, path) for truth in truths if truth.is_dir())
            items.append(Item(path, 1, name, "test", group.name, next((m for m in masks if m is not None), None)))
    return items
