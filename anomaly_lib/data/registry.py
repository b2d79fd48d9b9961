"""Datasets by name."""

from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path

from anomaly_lib.data.base import Item
from anomaly_lib.data.readers import read_mvtec
from anomaly_lib.errors import UserError

DATASETS: dict[str, Callable[..., list[Item]]] = {
    "mvtec": read_mvtec,
    "btad": read_mvtec,
    "hdmap": partial(read_mvtec, by_domain=True),
}


def open_dataset(name: str, root: Path | str | None, *, classes: Iterable[str] | None = None) -> list[Item]:
    """All items (train and test) of the dataset `name` at `root`, sorted; `classes` limits them."""
    if name not in DATASETS:
        raise UserError(f"--dataset {name}: unknown; known are {', '.join(sorted(DATASETS))}")
    return DATASETS[name](root, classes=classes)
