"""SOWA's meta.json: any data set as one list of images, masks and labels with paths relative to its root."""

import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from anomaly_lib.data.base import Item, check_splits, sort_items
from anomaly_lib.data.readers import existing_root
from anomaly_lib.errors import UserError
from anomaly_lib.files import check_name, read_json, write_json

KEYS = ("img_path", "mask_path", "cls_name", "specie_name", "anomaly")
FILE = "meta.json"


def read_meta(root: Path | str, *, classes: Iterable[str] | None = None) -> list[Item]:
    """Items of `<root>/meta.json` (`root` may name the file itself): {"train"|"test": {class: [{...}, ...]}}."""
    given = Path(root or "").expanduser()
    file = given if given.is_file() else existing_root(root, "meta") / FILE
    content = read_json(file)
    if not isinstance(content, dict) or not all(_is_part(part) for part in content.values()):
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
    check_splits(items, file)
    present = sorted({item.class_name for item in items})
    wanted = set(present if classes is None else classes)
    for name in sorted(wanted - set(present)):
        raise UserError(f"obj={name}: not in {file}; it has {', '.join(present)}")
    return sort_items(item for item in items if item.class_name in wanted)


def _is_part(part: Any) -> bool:
    return isinstance(part, dict) and all(isinstance(entries, list) for entries in part.values())


def _item(file: Path, entry: Any, where: str, split: str) -> Item:
    if not isinstance(entry, dict) or any(key not in entry for key in ("img_path", "cls_name", "anomaly")):
        raise UserError(f"{file}: {where} needs img_path, cls_name and anomaly")
    for key in ("img_path", "mask_path", "cls_name", "specie_name"):
        value, optional = entry.get(key), key in ("mask_path", "specie_name")
        if not (isinstance(value, str) or (optional and value is None)) or not (value or optional):
            raise UserError(f"{file}: {where}: {key} must be {'text' if optional else 'a text'}, got {value!r:.60}")
    if entry["anomaly"] not in (0, 1):
        raise UserError(f"{file}: {where}: anomaly must be 0 or 1, got {entry['anomaly']!r:.60}")
    label = int(entry["anomaly"])
    path = _existing(file, entry["img_path"], f"{where}: ")
    mask = _existing(file, entry["mask_path"], f"{where}: mask ") if label and entry.get("mask_path") else None
    species = entry.get("specie_name") or ("bad" if label else "good")
    return Item(path, label, entry["cls_name"], split, species, mask)


def _existing(file: Path, name: str, where: str) -> Path:
    check_name(name, f"{file}: {where}")
    path = file.parent / name
    if not path.is_file():
        raise UserError(f"{file}: {where}{path} does not exist")
    return path


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
