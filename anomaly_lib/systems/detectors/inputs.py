"""What a detector reads of images: the features of its frozen network, each encoded once and kept, or the pictures."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import Any

import torch
from torch import Tensor, nn

from anomaly_lib.data.base import ImageDataset
from anomaly_lib.engine import distributed
from anomaly_lib.engine.amp import autocast_for
from anomaly_lib.engine.log import progress
from anomaly_lib.features import FeatureSpec, FeatureStore, extract, tile_keys
from anomaly_lib.models.detectors.contract import FeatureDetector, Features
from anomaly_lib.ops.predictions import gathered, joined
from anomaly_lib.ops.tiles import Tiles
from anomaly_lib.systems.detectors.data import image_transform, stack_images, tiles_of
from anomaly_lib.types import Prediction

Batch = Features | Tensor
KEPT_CUT = 2  # images whose tiles are held: one's are asked for one after the other


@dataclass
class Images:
    """What a network sees, by number: images, or their tiles, those of an image beside one another."""

    read: Callable[[Sequence[int]], Tensor]  # some of them as [B, C, H, W] with values 0..1
    keys: Sequence[str]  # of each, for the store
    seen_as: str  # what was done to them, in words
    tiles: Tiles

    def __len__(self) -> int:
        return len(self.keys)


def images_of(data: ImageDataset, args: Any, channels: int, places: Sequence[int] | None = None) -> Images:
    """Those of a data set, or those at some places of it."""
    places, tiles = range(len(data)) if places is None else places, tiles_of(args)
    keys = [key for place in places for key in tile_keys(data.items[place], tiles)]
    seen_as = image_transform(args).describe() + tiles.words
    if len(tiles) == 1:
        return Images(lambda index: stack_images(data, [places[i] for i in index], channels), keys, seen_as, tiles)

    @lru_cache(maxsize=KEPT_CUT)
    def cut(image: int) -> Tensor:
        return tiles.cut(stack_images(data, [places[image]], channels))

    return Images(
        read=lambda index: torch.stack([cut(i // len(tiles))[i % len(tiles)] for i in index]),
        keys=keys,
        seen_as=seen_as,
        tiles=tiles,
    )


class Inputs:
    """Batches of what `module` reads of some images: with a store where it reads a frozen network.

    The store is filled by the first batch asked for. Without one (``cache=off``, a network that has no name) each batch
    is encoded when it is asked for, and again when it is asked for again.
    """

    def __init__(
        self, module: nn.Module, images: Images, args: Any, device: torch.device, *, learnt: bool,
        say: Callable[[str], None] = lambda _: None,
    ) -> None:  # fmt: skip
        self.module, self.images, self.args, self.device = module, images, args, device
        self.learnt = learnt  # in the views of normal images that are learnt, or in those that are scored
        self.store: FeatureStore | None = None
        net: Any = getattr(getattr(module, "extractor", None), "net", None)
        if isinstance(module, FeatureDetector) and hasattr(net, "weights_id") and args.cache != "off":
            spec = FeatureSpec(
                backbone=net.name,
                weights=net.weights_id,
                outputs=net.outputs,
                transform=images.seen_as,
                image_size=images.tiles.tile,
                views=module.view_names[0 if learnt else 1],
                precision=args.precision,
            )
            self.store = FeatureStore(spec, root=args.cache_dir, cache=args.cache, notice=say)

    def __len__(self) -> int:
        return len(self.images)

    @property
    def count(self) -> int:
        """How many images there are, whole ones."""
        return len(self.images) // len(self.images.tiles)

    def batch(self, index: Sequence[int]) -> Batch:
        """Features [B, V, ...] of some images, or the images [B, C, H, W], on the device."""
        if self.store is None:
            images = self.images.read(index).to(self.device)
            return self._encode(images) if isinstance(self.module, FeatureDetector) else images
        rows = self.store.rows([self.keys[i] for i in index])
        return {name: x.to(self.device) for name, x in rows.items()}

    def whole(self, index: Sequence[int], title: str = "") -> Iterator[Batch]:
        """Some whole images, in batches; of features the tiles of an image are so many views of it."""
        if self.store is not None:
            self.keys  # noqa: B018 - encodes what is missing, with a bar of its own
        count = len(self.images.tiles)
        steps = torch.tensor(index).split(max(1, self.args.batch_size // count))
        for some in progress(steps, title) if title else steps:
            pieces = [self.batch(numbers) for numbers in self._pieces(some.tolist())]
            yield pieces[0] if count == 1 else _as_views(pieces, count)

    def judged(
        self, index: Sequence[int], judge: Callable[[list[int], Batch], Prediction], title: str, size: int | None = None
    ) -> Iterator[Prediction]:
        """What `judge` says of some images, on the CPU: it is given the images' numbers and a batch of them.

        Of tiled images it is given tiles, each with its image's number; what it says of them is put together.
        """
        if self.store is not None:
            self.keys  # noqa: B018 - encodes what is missing, with a bar of its own
        tiles = self.images.tiles
        steps = torch.tensor(index).split(max(1, (size or self.args.batch_size) // len(tiles)))
        for some in progress(steps, title) if title else steps:
            found = [
                on_cpu(judge([number // len(tiles) for number in numbers], self.batch(numbers)))
                for numbers in self._pieces(some.tolist(), size)
            ]
            yield tiles.joined(joined(found))

    def _pieces(self, index: list[int], size: int | None = None) -> Iterator[list[int]]:
        """The numbers of what the network sees of some images, no more than a batch at a time."""
        count, size = len(self.images.tiles), size or self.args.batch_size
        numbers = [image * count + tile for image in index for tile in range(count)]
        return (numbers[start : start + size] for start in range(0, len(numbers), size))

    @cached_property
    def keys(self) -> list[str]:
        """The store's key of each image, when all of them have been encoded."""
        store = self.store
        assert store is not None
        ranks = (distributed.rank(), distributed.world_size()) if store.on_disk else (0, 1)
        keys = extract(
            self._encode,
            range(len(self)),
            store,
            load=lambda i: self.images.read([i])[0],
            key=lambda i: self.images.keys[i],
            batch_size=self.args.batch_size,
            device=self.device,
            threads=max(1, self.args.num_workers),  # the next images are decoded while these are encoded
            share=ranks,
            track=progress,
        )
        distributed.barrier()
        store.refresh()
        return keys

    def _encode(self, images: Tensor) -> Features:
        assert isinstance(self.module, FeatureDetector)
        return encoded(self.module, images, self.args.precision, learnt=self.learnt)

    def blank(self) -> Features:
        """Features of one image or tile, right in their shapes alone; the network runs where the store is empty."""
        layout = None if self.store is None else self.store.layout
        if layout is None:
            return self._encode(torch.zeros(1, 3, *self.images.tiles.tile, device=self.device))
        return {field.name: torch.zeros(1, *field.shape, device=self.device) for field in layout.fields}

    def cost(self) -> str:
        """What is still to be encoded, in words."""
        missing = len(self) if self.store is None else len(self.store.missing(self.images.keys))
        what = "images" if len(self.images.tiles) == 1 else f"tiles of {self.count} images"
        return f"{missing} of {len(self)} {what} to encode with {self.args.backbone}"


def _as_views(pieces: Sequence[Batch], tiles: int) -> Batch:
    """Features [images * tiles, V, ...] in pieces -> [images, V * tiles, ...]; pictures stay tiles."""
    if isinstance(pieces[0], Tensor):
        return torch.cat([piece for piece in pieces if isinstance(piece, Tensor)])
    names = list(pieces[0])
    whole = {name: torch.cat([piece[name] for piece in pieces if not isinstance(piece, Tensor)]) for name in names}
    return {name: x.unflatten(0, (-1, tiles)).transpose(1, 2).flatten(1, 2) for name, x in whole.items()}


def encoded(module: FeatureDetector, images: Tensor, precision: str, *, learnt: bool = False) -> Features:
    """Features of images [B, 3, H, W] in the views that are learnt or scored, in float32 whatever it ran in."""
    with autocast_for(images.device, precision):
        features = module.features_of(images, module.support_views if learnt else module.query_views)
    # Contiguous, as rows of the store are: sums over other strides may end in other last bits.
    return {name: x.float().contiguous() for name, x in features.items()}


@torch.no_grad()
def score_all(inputs: Inputs, title: str, size: int | None = None) -> Prediction:
    """Scores [N], maps [N, H, W] and the scores of branches of all images, on the CPU."""
    module = inputs.module.eval()
    if getattr(module, "transductive", False):
        size = len(inputs)

    def judge(_: list[int], batch: Batch) -> Prediction:
        if isinstance(batch, Tensor):
            return module(batch)  # type: ignore[no-any-return]
        return module.score_features(batch, inputs.images.tiles.tile)  # type: ignore[operator, no-any-return]

    return gathered(inputs.judged(range(inputs.count), judge, title, size), inputs.count)


@torch.no_grad()
def score_images(module: nn.Module, images: Tensor, args: Any, device: torch.device) -> Prediction:
    """Scores and maps of images [B, C, H, W] whose features are not kept, on the CPU."""
    module, tiles = module.eval(), tiles_of(args)
    seen = tiles.cut(images)
    # A graph is for any number of images: it has no batches.
    whole = len(tiles) == 1 or torch.compiler.is_compiling()
    pieces = [seen] if whole else seen.split(args.batch_size)
    return tiles.joined(joined([_score(module, piece.to(device), args) for piece in pieces]))


def _score(module: nn.Module, images: Tensor, args: Any) -> Prediction:
    if isinstance(module, FeatureDetector):
        features = encoded(module, images, args.precision)
        return on_cpu(module.score_features(features, (images.shape[-2], images.shape[-1])))
    return on_cpu(module(images))


def on_cpu(prediction: Prediction) -> Prediction:
    """Score, map and the scores of branches as float32 on the CPU; other parts are left behind."""
    branches = {name: part.float().cpu() for name, part in prediction.parts.items() if part.ndim == 1}
    maps = None if prediction.map is None else prediction.map.float().cpu()
    return Prediction(prediction.score.float().cpu(), maps, branches, cell=prediction.cell)
