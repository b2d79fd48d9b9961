"""Folder layouts to items. Listings are sorted, so positions mean the same on every file system."""

from collections.abc import Iterable
from pathlib import Path

from anomaly_lib.data.base import Item, sort_items
from anomaly_lib.data.images import IMAGE_SUFFIXES, list_images
from anomaly_lib.errors import UserError
from anomaly_lib.files import check_name

NORMAL_NAMES = ("good", "ok", "normal")


def existing_root(root: Path | str | None, dataset: str) -> Path:
    if root is None or str(root) == "":
        raise UserError(f"dataset={dataset}: give data_path= (or dataset=demo, which needs none)")
    check_name(root)
    path = Path(root).expanduser()
    if not path.is_dir():
        raise UserError(f"data_path={path}: no such folder")
    return path


def class_folders(root: Path, classes: Iterable[str] | None, marker: str) -> list[Path]:
    """Folders of the wanted classes. A root that is itself one class (it holds `marker`) is taken as that class."""
    if (root / marker).is_dir():
        found = {root.resolve().name: root}
    else:
        found = {path.name: path for path in sorted(root.iterdir()) if (path / marker).is_dir()}
    if not found:
        raise UserError(
            f"data_path={root}: no class folder with a {marker}/ folder inside; check the layout or dataset="
        )
    wanted = list(found) if classes is None else list(classes)
    for name in wanted:
        if name not in found:
            raise UserError(f"obj={name}: not in {root}; it has {', '.join(found)}")
    return [found[name] for name in wanted]


def find_mask(folder: Path, image: Path, suffixes: tuple[str, ...] = ("_mask", "")) -> Path | None:
    """The truth of `image` in `folder`: `<stem>_mask.*` or `<stem>.*` with any image suffix; None if there is none."""
    for ending in suffixes:
        for suffix in sorted(IMAGE_SUFFIXES, key=lambda s: (s != image.suffix.lower(), s)):
            for spelling in (suffix, suffix.upper()):
                candidate = folder / f"{image.stem}{ending}{spelling}"
                if candidate.is_file():
                    return candidate
    return None


def read_mvtec(root: Path | str, *, classes: Iterable[str] | None = None, by_domain: bool = False) -> list[Item]:
    """`<class>/train/good`, `<class>/test/<defect>`, `<class>/ground_truth/<defect>/<stem>_mask.png`.

    BTAD is the same layout with `ok` for normal images and masks named like their images. With `by_domain` the class
    folder is also the domain (HDMAP's `domain_A` ...). A defect folder without ground truth gives items without masks.
    """
    items = []
    for folder in class_folders(existing_root(root, "mvtec"), classes, "train"):
        domain = folder.resolve().name if by_domain else ""
        for split in ("train", "test"):
            items += _read_split(folder, split, domain)
    return sort_items(items)


def _read_split(folder: Path, split: str, domain: str) -> list[Item]:
    name, items = folder.resolve().name, []
    if not (folder / split).is_dir():
        raise UserError(f"{folder / split}: no such folder; a class needs {split}/")
    for group in sorted(path for path in (folder / split).iterdir() if path.is_dir()):
        normal = group.name.lower() in NORMAL_NAMES
        truth = folder / "ground_truth" / group.name
        if split == "train" and not normal:
            raise UserError(f"{group}: the training split holds normal images only ({', '.join(NORMAL_NAMES)})")
        for path in list_images(group):
            mask = None if normal or not truth.is_dir() else find_mask(truth, path)
            if not normal and truth.is_dir() and mask is None:
                raise UserError(f"{path}: no mask {path.stem}_mask.png in {truth}")
            items.append(Item(path, int(not normal), name, split, "good" if normal else group.name, mask, domain))
    if not items:
        raise UserError(f"{folder / split}: no images found")
    return items
