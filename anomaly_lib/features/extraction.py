"""Fill a store: the one place where a frozen encoder is run over a data set."""

import hashlib
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from functools import lru_cache
from itertools import islice
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from anomaly_lib.errors import UserError
from anomaly_lib.features.spec import ROW_DTYPES, item_key
from anomaly_lib.features.store import FeatureStore
from anomaly_lib.ops.tiles import Tiles

T = TypeVar("T")
KEPT_CUT = 2  # images whose tiles are held: one's are asked for one after the other
Track = Callable[[Sequence[int], str], Iterable[int]]
"""Progress bar: (items, title) -> the same items; `engine.log.progress` fits."""


def extract(
    encode: Callable[[Any], Mapping[str, Tensor]],
    items: Sequence[T],
    store: FeatureStore,
    *,
    load: Callable[[T], Any],
    batch_size: int = 16,
    key: Callable[[T], str] = item_key,
    collate: Callable[[list[Any]], Any] = torch.stack,
    device: torch.device | str = "cpu",
    threads: int = 0,
    share: tuple[int, int] = (0, 1),
    track: Track | None = None,
) -> list[str]:
    """Encode what the store lacks (damaged rows included) and return the key of every item, in order.

    `load(item)` gives what `collate` joins to a batch; `encode(batch)` answers named tensors [B, ...]. Runs without
    gradients, in eval mode and in the spec's precision; what gets damaged later `store.rows` encodes again. `threads`
    > 0 loads ahead. `share=(rank, ranks)` encodes only this process's part of the items: fill from every rank, then
    `store.refresh()` after a barrier.
    """
    if isinstance(encode, nn.Module):
        encode.eval()
    store.begin()
    keys = [key(item) for item in items]
    where: dict[str, int] = {}
    for index, one in enumerate(keys):
        where.setdefault(one, index)

    def again(index: int) -> Mapping[str, Tensor]:
        if key(items[index]) != keys[index]:
            raise UserError(f"{items[index]}: changed while its features are in use; run the command again")
        return _encode(encode, collate([load(items[index])]), store, device)

    store.remember(where, again)
    # Shared out before looking what is missing: other ranks are writing already.
    mine = list(where)[share[0] :: share[1]]
    wanted = [where[one] for one in store.missing(mine, verify=True)]
    store.plan(len(wanted))
    if store.busy():
        wanted.reverse()  # another process is filling the same store from the front: meet it half way
    tracked: Iterable[int] = wanted if track is None or not wanted else track(wanted, f"encode {store.spec.backbone}")
    fresh = (index for index in tracked if keys[index] not in store)  # another process may have been faster
    planned = store.layout is not None
    for batch, loaded in _loaded(_batches(fresh, batch_size), lambda index: load(items[index]), threads):
        absent = set(store.missing([keys[index] for index in batch]))  # or while these were loaded
        todo = [(keys[index], one) for index, one in zip(batch, loaded, strict=True) if keys[index] in absent]
        if todo:
            store.put([name for name, _ in todo], _encode(encode, collate([one for _, one in todo]), store, device))
        if not planned:
            store.plan(len(store.missing(keys[index] for index in wanted)))
            planned = True
    store.close()
    return keys


def extract_tiles(
    encode: Callable[[Any], Mapping[str, Tensor]],
    items: Sequence[Any],
    store: FeatureStore,
    *,
    tiles: Tiles,
    load: Callable[[Any], Tensor],
    **more: Any,
) -> list[str]:
    """The same of every tile of the images that `load` gives, [3, H, W]: the keys of an image's tiles beside another.

    An image that is one tile has the key of the item, as in `extract`.
    """
    if len(tiles) == 1:
        return extract(encode, items, store, load=load, **more)

    @lru_cache(maxsize=KEPT_CUT)
    def cut(place: int) -> Tensor:
        return tiles.cut(load(items[place])[None])

    return extract(
        encode,
        [divmod(number, len(tiles)) for number in range(len(items) * len(tiles))],
        store,
        load=lambda at: cut(at[0])[at[1]],
        key=lambda at: tile_keys(items[at[0]], tiles)[at[1]],
        **more,
    )


def tile_keys(item: Any, tiles: Tiles) -> list[str]:
    """The store's keys of the tiles of an image."""
    key = item_key(item)
    if len(tiles) == 1:
        return [key]
    return [hashlib.sha256(f"{key} {row} {column}".encode()).hexdigest() for row, column in tiles.places]


def _batches(indices: Iterable[int], size: int) -> Iterator[list[int]]:
    remaining = iter(indices)
    while batch := list(islice(remaining, size)):
        yield batch


def _encode(
    encode: Callable[[Any], Mapping[str, Tensor]], batch: Any, store: FeatureStore, device: torch.device | str
) -> Mapping[str, Tensor]:
    device, dtype = torch.device(device), ROW_DTYPES[store.spec.precision]
    if isinstance(batch, Tensor):
        batch = batch.to(device, non_blocking=True)
    with torch.no_grad(), nullcontext() if dtype == torch.float32 else torch.autocast(device.type, dtype):
        answer = encode(batch)
    return {name: answer[name] for name in store.spec.outputs}


def _loaded(
    batches: Iterable[list[int]], load: Callable[[int], Any], threads: int
) -> Iterator[tuple[list[int], list[Any]]]:
    """(batch, what was loaded for it); with threads two batches are read ahead of the encoder."""
    if threads <= 0:
        for batch in batches:
            yield batch, [load(index) for index in batch]
        return
    pool = ThreadPoolExecutor(threads)
    try:
        ahead: deque[tuple[list[int], list[Any]]] = deque()
        for batch in batches:
            ahead.append((batch, [pool.submit(load, index) for index in batch]))
            if len(ahead) > 2:
                first, futures = ahead.popleft()
                yield first, [future.result() for future in futures]
        while ahead:
            first, futures = ahead.popleft()
            yield first, [future.result() for future in futures]
    finally:
        pool.shutdown(cancel_futures=True)  # one that is stopped does not read on
