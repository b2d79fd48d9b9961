"""The frozen towers of a PromptAD run: every image is encoded once, by whatever run comes first."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from anomaly_lib.backbones import FrozenBackbone, create_backbone
from anomaly_lib.backbones.clip import ClipBackbone
from anomaly_lib.backbones.identity import weights_of
from anomaly_lib.data import ImageTransform, Item
from anomaly_lib.data.base import load_pixels
from anomaly_lib.data.transforms import stretch_transform
from anomaly_lib.engine.amp import autocast_for
from anomaly_lib.engine.log import progress
from anomaly_lib.errors import UserError
from anomaly_lib.features import FeatureSpec, FeatureStore, extract_tiles, tile_keys
from anomaly_lib.models.promptad.scores import ImageFeatures
from anomaly_lib.models.promptad.towers import TOKENS, FrozenTowers, taps_of
from anomaly_lib.ops.tiles import Tiles
from anomaly_lib.systems.promptad.options import Args

TOGETHER = 16  # images in one pass of a network


class Towers(FrozenTowers):
    """The frozen networks of a run's options, with transforms and feature stores. `say` hears of a full cache."""

    def __init__(self, args: Args, device: torch.device, say: Callable[[str], None] | None = None) -> None:
        self.args, self._say = args, say
        self._stores: dict[str, FeatureStore] = {}
        clip = make_clip(args)
        assert clip.image_size is not None
        self.tiles = Tiles.asked(args, args.image_size if args.tile else clip.image_size)
        if args.visual_backbone is None:
            super().__init__(clip, args)
        else:
            visual, taps = make_visual(args.visual_backbone, args)
            super().__init__(clip, args, visual=visual, visual_taps=taps)
        self.apply(lambda tensor: tensor.to(device))

    @property
    def weights(self) -> dict[str, str]:
        """Name -> weights of CLIP and, if there is one, of the memory's own network."""
        return weights_of(self.clip, self.visual)

    def run(self, net: FrozenBackbone, images: Tensor) -> dict[str, Tensor]:
        with autocast_for(self.device, self.args.precision):
            return super().run(net, images)

    def features(self, items: Sequence[Item], *, test: bool, together: int = TOGETHER) -> ImageFeatures:
        """Unit features of `items`, from the store where it has them; `test` images may have another colour order.

        Those of an image's tiles lie beside one another.
        """
        out = self._rows(self.clip, items, test, together)
        return self.unit(out, out if self.visual is None else self._rows(self.visual, items, test, together))

    def encode_seen(self, seen: Callable[[ImageTransform], Tensor]) -> ImageFeatures:
        """Unit features of images that `seen` answers as a network's own transform shows them, without the store."""

        def through(net: FrozenBackbone) -> dict[str, Tensor]:
            return self.run(net, self.tiles.cut(seen(self.transform(net, test=True))))

        out = through(self.clip)
        return self.unit(out, out if self.visual is None else through(self.visual))

    def transform(self, net: FrozenBackbone | None = None, *, test: bool) -> ImageTransform:
        """How images enter the network: stretched to its input, the original's 1024 px square perhaps in between.

        Images that are tiled are brought to ``image_size``, and it is their tiles that the network sees.
        """
        net = net or self.clip
        size = net.image_size if len(self.tiles) == 1 else self.tiles.size
        assert size is not None
        plain = stretch_transform(size, mean=net.mean, std=net.std, interpolation=net.interpolation)
        channels = self.args.test_color if test else "rgb"
        how = "pad" if self.args.keep_aspect else "stretch"
        return replace(plain, resize=how, first_resize=self.args.reader_resize or None, channels=channels)

    def cost(self, support: Sequence[Item], test: Sequence[Item]) -> str:
        """What is still to be encoded, in words."""
        nets = [self.clip] if self.visual is None else [self.clip, self.visual]
        missing = sum(
            len(self._store(net, seen_in_test).missing(key for item in items for key in tile_keys(item, self.tiles)))
            for net in nets
            for items, seen_in_test in ((support, False), (test, True))
        )
        names = " and ".join(net.name for net in nets)
        what = "images" if len(self.tiles) == 1 else f"tiles ({len(self.tiles)} an image)"
        return f"{missing} {what} to encode with {names}, {(len(support) + len(test)) * len(self.tiles)} in all"

    def _store(self, net: FrozenBackbone, test: bool) -> FeatureStore:
        spec = FeatureSpec(
            backbone=net.name,
            weights=net.weights_id,
            outputs=net.outputs,
            transform=self.transform(net, test=test).describe() + self.tiles.words,
            image_size=net.image_size or (),
            precision=self.args.precision,
        )
        if spec.key not in self._stores:
            store = FeatureStore(spec, root=self.args.cache_dir, cache=self.args.cache, notice=self._say)
            self._stores[spec.key] = store
        return self._stores[spec.key]

    def _rows(self, net: FrozenBackbone, items: Sequence[Item], test: bool, together: int) -> dict[str, Tensor]:
        transform, store = self.transform(net, test=test), self._store(net, test)
        keys = extract_tiles(
            net.encode, items, store, tiles=self.tiles, load=lambda item: transform(load_pixels(item)[0]),
            batch_size=together, device=self.device, threads=self.args.num_workers, track=progress,
        )  # fmt: skip
        return {name: value.to(self.device) for name, value in store.rows(keys).items()}


def make_clip(args: Args) -> ClipBackbone:
    """The CLIP of the options."""
    tagged = args.pretrained_dataset is not None and ":" not in args.backbone
    name = f"{args.backbone}:{args.pretrained_dataset}" if tagged else args.backbone
    clip = create_backbone(name, layers=TOKENS, **_settings(args, args.weights))
    if not isinstance(clip, ClipBackbone):
        raise UserError(f"backbone={name}: PromptAD needs a CLIP (a text tower); see visual_backbone= for others")
    return clip


def make_visual(name: str, args: Args) -> tuple[FrozenBackbone, list[str]]:
    """The network that feeds the memory, and its taps."""
    net = create_backbone(name, layers=[-1], **_settings(args, args.visual_weights))
    depth = int(net.outputs[0].rpartition(".")[2]) + 1  # the last block answers as "layer.<depth - 1>"
    taps = taps_of(net, depth, args)
    if isinstance(net, ClipBackbone):
        net.answer(taps)
        return net, taps
    return create_backbone(name, layers=taps, **_settings(args, args.visual_weights)), taps


def _settings(args: Args, weights: str | None) -> dict[str, Any]:
    sizes = Tiles.seen_size(args)
    size = None if not sizes else (sizes[0], sizes[-1])
    return {"weights": weights, "image_size": size, "download": args.download}
