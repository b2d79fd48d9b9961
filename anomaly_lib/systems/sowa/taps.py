"""The frozen taps of images: from the feature store, or the pictures themselves where nothing can be stored."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from anomaly_lib.backbones.clip import ClipBackbone
from anomaly_lib.data import ImageTransform, Item
from anomaly_lib.data.base import load_pixels
from anomaly_lib.engine.log import progress
from anomaly_lib.features import FeatureSpec, FeatureStore, extract_tiles
from anomaly_lib.features.spec import ROW_DTYPES
from anomaly_lib.models.sowa.vision import PICTURES, create_tapped_clip
from anomaly_lib.ops.tiles import Tiles
from anomaly_lib.systems.sowa.options import Args


def frozen_clip(args: Args) -> ClipBackbone:
    """The frozen CLIP with the taps the adapters read."""
    return create_tapped_clip(
        args.backbone,
        feature_map_idx=args.feature_map_idx,
        weights=args.weights,
        image_size=Tiles.seen_size(args),
        download=args.download,
    )


class Taps:
    """The frozen taps of items, from the feature store: every image goes through CLIP once."""

    def __init__(self, clip: ClipBackbone, args: Args, notice: Callable[[str], None] = lambda _: None) -> None:
        self.clip, self.threads = clip, args.num_workers
        self.tiles = Tiles.asked(args, args.image_size if args.tile else clip.image_size)
        self.transform = ImageTransform(
            size=self.tiles.size,
            resize="pad" if args.keep_aspect else "stretch",
            mean=clip.mean,  # type: ignore[arg-type]
            std=clip.std,  # type: ignore[arg-type]
            interpolation=clip.interpolation,
        )
        spec = FeatureSpec(
            backbone=clip.name,
            weights=clip.weights_id,
            outputs=clip.outputs,
            transform=self.transform.describe() + self.tiles.words,
            image_size=clip.image_size,
            dtype=args.layers_dtype,
            precision=args.precision,
        )
        self.store = FeatureStore(spec, root=args.cache_dir, cache=args.cache, notice=notice)

    @property
    def device(self) -> torch.device:
        """Where the tower lies."""
        return next(self.clip.parameters()).device

    @property
    def row_bytes(self) -> int:
        """Bytes one image, or tile of one, takes in the store."""
        tokens = self.clip.grid[0] * self.clip.grid[1] * self.clip.width * (len(self.clip.outputs) - 1)
        return (tokens + self.clip.embed_dim) * ROW_DTYPES[self.store.spec.dtype].itemsize

    def fill(self, items: Sequence[Item]) -> list[str]:
        """Encode what is missing; the store's keys in the order of `items`, of each those of its tiles."""
        return extract_tiles(
            self.clip.encode,
            items,
            self.store,
            tiles=self.tiles,
            load=lambda item: self.transform(load_pixels(item)[0]),
            batch_size=8,
            device=self.device,
            threads=self.threads,
            track=progress,
        )

    def rows(self, keys: Sequence[str]) -> dict[str, Tensor]:
        """Stored taps [N, ...] on the tower's device."""
        return {name: value.to(self.device) for name, value in self.store.rows(keys).items()}

    def batches(self, keys: Sequence[str], size: int) -> Iterator[dict[str, Tensor]]:
        """`rows` in batches."""
        for start in range(0, len(keys), size):
            yield self.rows(keys[start : start + size])

    def mask(self, item: Item) -> Tensor:
        """Truth at the size of maps [H, W] bool; all False where none is known."""
        return self._truth(item, self.tiles.map_size)

    def tile_masks(self, item: Item) -> Tensor:
        """Truth of what the network sees, [tiles, h, w] bool."""
        return self.tiles.cut(self._truth(item, self.tiles.size)[None, None])[:, 0]

    def _truth(self, item: Item, size: tuple[int, int]) -> Tensor:
        mask = load_pixels(item)[1] if item.label else None
        return torch.zeros(size, dtype=torch.bool) if mask is None else self.transform.mask(mask, size)


class Pictures(Taps):
    """The transformed images themselves, for an encoder whose stream training changes: nothing of it can be stored."""

    def __init__(self, clip: ClipBackbone, args: Args, notice: Callable[[str], None] = lambda _: None) -> None:
        super().__init__(clip, replace(args, cache="off"), notice)
        self._items: dict[str, Item] = {}

    @property
    def row_bytes(self) -> int:
        return 0

    def fill(self, items: Sequence[Item]) -> list[str]:
        keys = [f"{item.path}" for item in items]
        self._items.update(zip(keys, items, strict=True))
        return keys

    def rows(self, keys: Sequence[str]) -> dict[str, Tensor]:
        pictures = [self.transform(load_pixels(self._items[key])[0]) for key in keys]
        return {PICTURES: torch.stack(pictures).to(self.device)}


def make_taps(args: Args, clip: ClipBackbone, notice: Callable[[str], None] = lambda _: None) -> Taps:
    """Where the model's frozen input comes from: stored taps, or the pictures themselves."""
    return (Pictures if args.vision == "residual" else Taps)(clip, args, notice)
