"""A pool of drawn pairs on disk: drawn once, read through memory maps."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
from numpy.lib.format import open_memmap
from numpy.typing import NDArray

from anomaly_lib.data.procedural.pictures import Drawing, draw

SIZE, PATCH, MARGIN = 128, 8, 16
GRID = SIZE // PATCH  # patches a side
DRAWN = SIZE + MARGIN  # pictures are drawn larger and cut to SIZE at random
Pool = dict[str, NDArray[Any]]


def draw_pool(
    folder: Path, count: int, seed: int, *, workers: int = 1, report: Callable[[str], None] | None = None
) -> Pool:
    """`count` clean/damaged pairs on disk: pictures [N, 2, S, S, 3], masks [N, S, S], attributes [N, 3]."""
    pool = {
        "pictures": (np.uint8, (count, 2, DRAWN, DRAWN, 3)),
        "masks": (np.bool_, (count, DRAWN, DRAWN)),
        "attributes": (np.int64, (count, 3)),
    }
    folder.mkdir(parents=True, exist_ok=True)
    done = folder / f"pool_{count}_{seed}.json"
    paths = {name: folder / f"pool_{count}_{seed}_{name}.npy" for name in pool}
    if not done.is_file():
        arrays = {name: open_memmap(paths[name], "w+", dtype, shape) for name, (dtype, shape) in pool.items()}
        for index, one in enumerate(_drawings(count, seed, workers)):
            arrays["pictures"][index] = one.clean, one.damaged
            arrays["masks"][index] = one.mask
            arrays["attributes"][index] = one.material, one.object, one.defect
            if report is not None and index % 2000 == 1999:
                report(f"drawn {index + 1}/{count} pairs")
        done.write_text(json.dumps({"count": count, "seed": seed, "size": DRAWN}), encoding="utf-8")
    return {name: np.load(path, mmap_mode="r") for name, path in paths.items()}


def _drawings(count: int, seed: int, workers: int) -> Iterable[Drawing]:
    """In order; every picture follows from (seed, index) alone, whatever the number of processes."""
    keys = [(seed, index) for index in range(count)]
    if workers <= 1:
        yield from map(_draw_one, keys)
        return
    with ProcessPoolExecutor(workers, get_context("spawn")) as processes:
        yield from processes.map(_draw_one, keys, chunksize=32)


def _draw_one(key: tuple[int, int]) -> Drawing:
    return draw(np.random.default_rng(key), DRAWN)
