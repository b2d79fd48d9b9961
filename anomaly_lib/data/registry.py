"""Datasets by name."""

from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path

from anomaly_lib.data.base import Item
from anomaly_lib.data.demo.items import demo_items
from anomaly_lib.data.layouts import read_folders, read_visa
from anomaly_lib.data.meta import read_meta
from anomaly_lib.data.readers import read_mvtec
from anomaly_lib.errors import UserError


def open_demo(root: Path | str | None, *, classes: Iterable[str] | None = None) -> list[Item]:
    """The built-in data in memory; with a root, the files that `python -m anomaly_lib demo DIR` wrote there."""
    return demo_items(categories=classes) if not root else read_mvtec(root, classes=classes)


DATASETS: dict[str, Callable[..., list[Item]]] = {
    "mvtec": read_mvtec,
    "btad": read_mvtec,
    "demo": open_demo,
    "folder": read_folders,
    "hdmap": partial(read_mvtec, by_domain=True),
    "meta": read_meta,
    "visa": read_visa,
}


def open_dataset(name: str, root: Path | str | None, *, classes: Iterable[str] | None = None) -> list[Item]:
    """All items (train and test) of the dataset `name` at `root`, sorted; `classes` limits them."""
    if name not in DATASETS:
        raise UserError(f"dataset={name}: choose from {', '.join(sorted(DATASETS))}")
    return DATASETS[name](root, classes=classes)
