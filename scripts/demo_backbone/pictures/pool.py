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

from scripts.demo_backbone.pictures.pictures import PIECES, Drawing, draw
from scripts.demo_backbone.pictures.staged import draw_staged

SIZE, PATCH, MARGIN = 128, 8, 32
GRID = SIZE // PATCH  # patches a side
DRAWN = SIZE + MARGIN  # pictures are drawn larger: the camera then shifts, turns and cuts them to SIZE
VERSION = 4  # of the drawings: a pool of another version is drawn again
Pool = dict[str, NDArray[Any]]


def draw_pool(
    folder: Path,
    count: int,
    seed: int,
    *,
    staged: bool = True,
    workers: int = 1,
    report: Callable[[str], None] | None = None,
) -> Pool:
    """`count` products on disk, every second one `staged`.

    pictures [N, PIECES, S, S, 3], masks [N, S, S], attributes [N, 3], compared and posed [N].
    """
    pool = {
        "pictures": (np.uint8, (count, PIECES, DRAWN, DRAWN, 3)),
        "masks": (np.bool_, (count, DRAWN, DRAWN)),
        "attributes": (np.int64, (count, 3)),
        "compared": (np.bool_, (count,)),
        "posed": (np.bool_, (count,)),
    }
    folder.mkdir(parents=True, exist_ok=True)
    stem = f"pool{VERSION}_{count}_{seed}{'' if staged else '_plain'}"
    done = folder / f"{stem}.json"
    paths = {name: folder / f"{stem}_{name}.npy" for name in pool}
    if not done.is_file():
        arrays = {name: open_memmap(paths[name], "w+", dtype, shape) for name, (dtype, shape) in pool.items()}
        for index, one in enumerate(_drawings(count, seed, staged, workers)):
            arrays["pictures"][index] = one.pieces
            arrays["masks"][index] = one.mask
            arrays["attributes"][index] = one.material, one.object, one.defect
            arrays["compared"][index] = one.compared
            arrays["posed"][index] = one.posed
            if report is not None and index % 1000 == 999:
                report(f"drawn {index + 1}/{count} products")
        done.write_text(json.dumps({"count": count, "seed": seed, "size": DRAWN}), encoding="utf-8")
    return {name: np.load(path, mmap_mode="r") for name, path in paths.items()}


def _drawings(count: int, seed: int, staged: bool, workers: int) -> Iterable[Drawing]:
    """In order; every picture follows from (seed, index) alone, whatever the number of processes."""
    keys = [(seed, index) for index in range(count)]
    draw_one = partial(_draw_one, staged=staged)
    if workers <= 1:
        yield from map(draw_one, keys)
        return
    with ProcessPoolExecutor(workers, get_context("spawn")) as processes:
        yield from processes.map(draw_one, keys, chunksize=32)


def _draw_one(key: tuple[int, int], *, staged: bool) -> Drawing:
    return draw_staged(key, DRAWN) if staged and key[-1] % 2 else draw(key, DRAWN)
