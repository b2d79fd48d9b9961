"""What a detector reads of images: the features of its frozen network, each encoded once and kept, or the pictures."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn

from anomaly_lib.data.base import ImageDataset
from anomaly_lib.engine import distributed
from anomaly_lib.engine.amp import autocast_for
from anomaly_lib.engine.log import progress
from anomaly_lib.features import FeatureSpec, FeatureStore, extract, item_key
from anomaly_lib.models.detectors.contract import FeatureDetector, Features
from anomaly_lib.ops.predictions import joined
from anomaly_lib.systems.detectors.data import image_transform, stack_images
from anomaly_lib.types import Prediction

Batch = Features | Tensor


@dataclass
class Images:
    """Images by number. `read` answers some of them as [B, C, H, W] with values 0..1."""

    read: Callable[[Sequence[int]], Tensor]
    keys: Sequence[str]  # of each image, for the store
    seen_as: str  # what was done to them, in words

    def __len__(self) -> int:
        return len(self.keys)


def images_of(data: ImageDataset, args: Any, channels: int, places: Sequence[int] | None = None) -> Images:
    """Those of a data set, or those at some places of it."""
    places = range(len(data)) if places is None else places
    return Images(
        read=lambda index: stack_images(data, [places[i] for i in index], channels),
        keys=[item_key(data.items[place]) for place in places],
        seen_as=image_transform(args).describe(),
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
                image_size=tuple(args.image_size),
                views=module.view_names[0 if learnt else 1],
                precision=args.precision,
            )
            self.store = FeatureStore(spec, root=args.cache_dir, cache=args.cache, notice=say)

    def __len__(self) -> int:
        return len(self.images)

    def batch(self, index: Sequence[int]) -> Batch:
        """Features [B, V, ...] of some images, or the images [B, C, H, W], on the device."""
        if self.store is None:
            images = self.images.read(index).to(self.device)
            return self._encode(images) if isinstance(self.module, FeatureDetector) else images
        rows = self.store.rows([self.keys[i] for i in index])
        return {name: x.to(self.device) for name, x in rows.items()}

    def features(self, index: Sequence[int]) -> Iterator[Features]:
        """The features of some images, in batches."""
        for start in range(0, len(index), self.args.batch_size):
            batch = self.batch(index[start : start + self.args.batch_size])
            assert not isinstance(batch, Tensor)
            yield batch

    def batches(self, title: str, size: int | None = None) -> Iterator[tuple[list[int], Batch]]:
        """All images in order: (their numbers, `batch` of them)."""
        if self.store is not None:
            self.keys  # noqa: B018 - encodes what is missing, with a bar of its own
        for rows in progress(torch.arange(len(self)).split(size or self.args.batch_size), title):
            yield rows.tolist(), self.batch(rows.tolist())

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
        """Features of one image, right in their shapes alone; the network runs only where the store holds nothing."""
        layout = None if self.store is None else self.store.layout
        if layout is None:
            height, width = self.args.image_size
            return self._encode(torch.zeros(1, 3, height, width, device=self.device))
        return {field.name: torch.zeros(1, *field.shape, device=self.device) for field in layout.fields}

    def cost(self) -> str:
        """What is still to be encoded, in words."""
        missing = len(self) if self.store is None else len(self.store.missing(self.images.keys))
        return f"{missing} of {len(self)} images to encode with {self.args.backbone}"


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
    height_width = inputs.args.image_size[0], inputs.args.image_size[1]
    if getattr(module, "transductive", False):
        size = len(inputs)
    found = []
    for _, batch in inputs.batches(title, size):
        one = module(batch) if isinstance(batch, Tensor) else module.score_features(batch, height_width)  # type: ignore[operator]
        found.append(on_cpu(one))
    return joined(found)


@torch.no_grad()
def score_images(module: nn.Module, images: Tensor, args: Any, device: torch.device) -> Prediction:
    """Scores and maps of images [B, C, H, W] whose features are not kept, on the CPU."""
    module, images = module.eval(), images.to(device)
    if isinstance(module, FeatureDetector):
        features = encoded(module, images, args.precision)
        return on_cpu(module.score_features(features, (images.shape[-2], images.shape[-1])))
    return on_cpu(module(images))


def on_cpu(prediction: Prediction) -> Prediction:
    """Score, map and the scores of branches as float32 on the CPU; other parts are left behind."""
    branches = {name: part.float().cpu() for name, part in prediction.parts.items() if part.ndim == 1}
    maps = None if prediction.map is None else prediction.map.float().cpu()
    return Prediction(prediction.score.float().cpu(), maps, branches, cell=prediction.cell)
