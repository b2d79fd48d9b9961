"""A pool of drawn products on disk: drawn once, read through memory maps."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
from numpy.lib.format import open_memmap
from numpy.typing import NDArray

from anomaly_lib.data.procedural.pictures import PIECES, Drawing, draw

PATCH = 8  # pixels
MARGIN = 0.25  # of the side: pictures are drawn this much larger, the camera then shifts, turns and cuts them
VERSION = 3  # of the drawings: a pool of another version is drawn again
Pool = dict[str, NDArray[Any]]


def draw_pool(
    folder: Path, count: int, seed: int, size: int, *, workers: int = 1, report: Callable[[str], None] | None = None
) -> Pool:
    """`count` products on disk, for a camera of `size` px: pictures [N, PIECES, S, S, 3], masks [N, S, S],
    attributes [N, 3], compared [N]."""
    drawn = round(size * (1 + MARGIN))
    pool = {
        "pictures": (np.uint8, (count, PIECES, drawn, drawn, 3)),
        "masks": (np.bool_, (count, drawn, drawn)),
        "attributes": (np.int64, (count, 3)),
        "compared": (np.bool_, (count,)),
    }
    folder.mkdir(parents=True, exist_ok=True)
    stem = f"pool{VERSION}_{drawn}px_{count}_{seed}"
    done = folder / f"{stem}.json"
    paths = {name: folder / f"{stem}_{name}.npy" for name in pool}
    if not done.is_file():
        arrays = {name: open_memmap(paths[name], "w+", dtype, shape) for name, (dtype, shape) in pool.items()}
        for index, one in enumerate(_drawings(count, seed, drawn, workers)):
            arrays["pictures"][index] = one.pieces
            arrays["masks"][index] = one.mask
            arrays["attributes"][index] = one.material, one.object, one.defect
            arrays["compared"][index] = one.compared
            if report is not None and index % 1000 == 999:
                report(f"drawn {index + 1}/{count} products")
        done.write_text(json.dumps({"count": count, "seed": seed, "size": drawn}), encoding="utf-8")
    return {name: np.load(path, mmap_mode="r") for name, path in paths.items()}


def camera_size(pool: Pool) -> int:
    """Side in pixels of what the camera makes of a pool's pictures."""
    return round(pool["masks"].shape[-1] / (1 + MARGIN))


def _drawings(count: int, seed: int, drawn: int, workers: int) -> Iterable[Drawing]:
    """In order; every picture follows from (seed, index) alone, whatever the number of processes."""
    keys = [(seed, index) for index in range(count)]
    one = partial(draw, size=drawn)
    if workers <= 1:
        yield from map(one, keys)
        return
    with ProcessPoolExecutor(workers, get_context("spawn")) as processes:
        yield from processes.map(one, keys, chunksize=32)
