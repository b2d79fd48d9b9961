"""SOWA's meta.json: any data set as one list of images, masks and labels with paths relative to its root."""

import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from anomaly_lib.data.base import Item, sort_items
from anomaly_lib.data.readers import existing_root
from anomaly_lib.errors import UserError
from anomaly_lib.files import read_json, write_json

KEYS = ("img_path", "mask_path", "cls_name", "specie_name", "anomaly")
FILE = "meta.json"


def read_meta(root: Path | str, *, classes: Iterable[str] | None = None) -> list[Item]:
    """Items of `<root>/meta.json` (`root` may name the file itself): {"train"|"test": {class: [{...}, ...]}}."""
    given = Path(root or "").expanduser()
    file = given if given.is_file() else existing_root(root, "meta") / FILE
    content = read_json(file)
    if not isinstance(content, dict) or not all(isinstance(part, dict) for part in content.values()):
        raise UserError(f'{file}: expected {{"train": {{class: [...]}}, "test": {{class: [...]}}}}')
    parts = {split.lower(): part for split, part in content.items()}  # the DAGM script writes Train and Test
    if "test" not in parts or not set(parts) <= {"train", "test"}:
        raise UserError(f'{file}: needs the keys "train" and "test", has {", ".join(content) or "none"}')
    items = [
        _item(file, entry, f"{split}/{name}[{index}]", split)
        for split, part in parts.items()
        for name, entries in part.items()
        for index, entry in enumerate(entries)
    ]
    present = sorted({item.class_name for item in items})
    wanted = set(present if classes is None else classes)
    for name in sorted(wanted - set(present)):
        raise UserError(f"obj={name}: not in {file}; it has {', '.join(present)}")
    return sort_items(item for item in items if item.class_name in wanted)


def _item(file: Path, entry: Any, where: str, split: str) -> Item:
    if not isinstance(entry, dict) or any(key not in entry for key in ("img_path", "cls_name", "anomaly")):
        raise UserError(f"{file}: {where} needs img_path, cls_name and anomaly")
    if entry["anomaly"] not in (0, 1):
        raise UserError(f"{file}: {where}: anomaly must be 0 or 1, got {entry['anomaly']!r}")
    path, mask = file.parent / entry["img_path"], entry.get("mask_path") or None
    if not path.is_file():
        raise UserError(f"{file}: {where}: {path} does not exist")
    label = int(entry["anomaly"])
    mask_path = file.parent / mask if mask and label else None
    if mask_path is not None and not mask_path.is_file():
        raise UserError(f"{file}: {where}: mask {mask_path} does not exist")
    species = entry.get("specie_name") or ("bad" if label else "good")
    return Item(path, label, str(entry["cls_name"]), split, species, mask_path)


def write_meta(items: Sequence[Item], root: Path | str) -> Path:
    """Write `<root>/meta.json` for items whose files lie below `root`; SOWA's own reader accepts it."""
    root = Path(root)
    content: dict[str, dict[str, list[dict[str, Any]]]] = {"train": {}, "test": {}}
    for item in sort_items(items):
        entry = dict(zip(KEYS, _values(item, root), strict=True))
        content[item.split].setdefault(item.class_name, []).append(entry)
    write_json(root / FILE, content)
    return root / FILE


def _values(item: Item, root: Path) -> tuple[str, str, str, str, int]:
    image = _relative(item.path, root)
    mask = _relative(item.mask_path, root) if item.mask_path is not None else ""
    return image, mask, item.class_name, item.defect, item.label


def _relative(path: Path, root: Path) -> str:
    relative = os.path.relpath(path, root).replace(os.sep, "/")
    if relative.startswith("../"):
        raise UserError(f"{path}: lies outside {root}; meta.json holds paths relative to its folder")
    return relative
