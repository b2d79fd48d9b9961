"""The frozen towers of a PromptAD run: every image is encoded once, by whatever run comes first."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from anomaly_lib.backbones import FrozenBackbone, create_backbone
from anomaly_lib.backbones.clip import ClipBackbone
from anomaly_lib.backbones.identity import weights_of
from anomaly_lib.data import ImageTransform, Item
from anomaly_lib.data.base import load_pixels
from anomaly_lib.engine.amp import autocast_for
from anomaly_lib.engine.log import progress
from anomaly_lib.errors import UserError
from anomaly_lib.features import FeatureSpec, FeatureStore, extract
from anomaly_lib.models.promptad.prompts import TextTower
from anomaly_lib.models.promptad.scores import ImageFeatures
from anomaly_lib.systems.promptad.options import Args

ENCODE_BATCH = 16


class Towers:
    """The frozen CLIP (and perhaps another encoder for the memory), with transforms and feature stores."""

    def __init__(self, args: Args, device: torch.device) -> None:
        self.args, self.device = args, device
        name = args.backbone
        if args.pretrained_dataset and ":" not in name:
            name = f"{name}:{args.pretrained_dataset}"
        self.clip, self.tap_names = _with_taps(name, args.weights, args, always=("pooled", "vv_tokens"))
        self.clip.to(device)
        self.visual: FrozenBackbone | None = None
        if args.visual_backbone:
            self.visual, self.tap_names = _with_taps(args.visual_backbone, args.visual_weights, args, always=())
            self.visual.to(device)
        self._stores: dict[str, FeatureStore] = {}

    @property
    def weights(self) -> dict[str, str]:
        """Name -> weights of CLIP and, if there is one, of the memory's own network."""
        return weights_of(self.clip, self.visual)

    @property
    def text(self) -> TextTower:
        """CLIP's text tower."""
        return self.clip.text  # type: ignore[return-value]

    @property
    def logit_scale(self) -> Tensor:
        """The stored log temperature."""
        return self.clip.logit_scale  # type: ignore[return-value]

    @property
    def memory_shape(self) -> list[tuple[int, int]]:
        """(patches of one image, channels) per tap."""
        net = self.visual or self.clip
        rows, columns = _grid(net)
        return [(rows * columns, net.width) for _ in self.tap_names]

    def features(
        self, items: Sequence[Item], *, test: bool, notice: Callable[[str], None] | None = None
    ) -> ImageFeatures:
        """Unit features of `items`, from the store where it has them; `test` images may have another colour order."""
        out = self._rows(self.clip, items, test, notice)
        taps = out if self.visual is None else self._rows(self.visual, items, test, notice)
        return self._unit(out, taps)

    def encode(self, images: Tensor) -> ImageFeatures:
        """Unit features of a batch of already transformed images."""
        if self.visual is not None:
            raise UserError("with --visual-backbone give pictures, not tensors: each network has its own transform")
        out = self._encode(self.clip, images)
        return self._unit(out, out)

    def encode_pictures(self, pictures: Sequence[Any]) -> ImageFeatures:
        """Unit features of decoded pictures (arrays [H, W, 3] or PIL images), without the store."""

        def through(net: FrozenBackbone) -> dict[str, Tensor]:
            transform = self.transform(net, test=True)
            return self._encode(net, torch.stack([transform(picture) for picture in pictures]))

        out = through(self.clip)
        return self._unit(out, out if self.visual is None else through(self.visual))

    def _encode(self, net: FrozenBackbone, images: Tensor) -> dict[str, Tensor]:
        with autocast_for(self.device, self.args.precision):
            return net.encode(images.to(self.device))

    def transform(self, net: FrozenBackbone | None = None, *, test: bool) -> ImageTransform:
        """How images enter the network: stretched to its input, or the original's square, resize and crop."""
        net = net or self.clip
        size = net.image_size
        assert size is not None
        first = self.args.reader_resize or None
        return ImageTransform(
            size=size[0] if first else size,
            resize="shorter" if first else "stretch",
            crop=size if first else None,
            mean=net.mean,  # type: ignore[arg-type]
            std=net.std,  # type: ignore[arg-type]
            interpolation=net.interpolation,
            first_resize=first,
            channels=str(self.args.test_color) if test else "rgb",
        )

    def _rows(
        self, net: FrozenBackbone, items: Sequence[Item], test: bool, notice: Callable[[str], None] | None
    ) -> dict[str, Tensor]:
        transform = self.transform(net, test=test)
        spec = FeatureSpec(
            backbone=net.name,
            weights=net.weights_id,
            outputs=net.outputs,
            transform=transform.describe(),
            image_size=net.image_size or (),
            precision=self.args.precision,
        )
        if spec.key not in self._stores:
            self._stores[spec.key] = FeatureStore(spec, root=self.args.cache_dir, cache=self.args.cache, notice=notice)
        store = self._stores[spec.key]
        keys = extract(
            net.encode, items, store, load=lambda item: transform(load_pixels(item)[0]), batch_size=ENCODE_BATCH,
            device=self.device, track=progress,
        )  # fmt: skip
        return {name: value.to(self.device) for name, value in store.rows(keys).items()}

    def _unit(self, out: dict[str, Tensor], taps: dict[str, Tensor]) -> ImageFeatures:
        rows = [F.normalize(_tokens(taps[name].float()), dim=-1) for name in self.tap_names]
        return ImageFeatures(
            taps=rows,
            grid=_grid(self.clip),
            tap_grid=_grid(self.visual or self.clip),
            pooled=F.normalize(out["pooled"].float(), dim=-1),
            tokens=F.normalize(out["vv_tokens"].float(), dim=-1),
        )


def _with_taps(
    name: str, weights: str | None, args: Args, *, always: Sequence[str]
) -> tuple[FrozenBackbone, list[str]]:
    """The encoder with the memory's taps: blocks 2 and 7 of 12, or the same relative depth elsewhere."""
    settings: dict[str, Any] = {"weights": weights, "image_size": args.image_size, "download": args.download}
    net = create_backbone(name, layers=[-1], **settings)
    if always and not isinstance(net, ClipBackbone):
        raise UserError(f"--backbone {name}: PromptAD needs a CLIP (a text tower); see --visual-backbone for others")
    depth = int(net.outputs[0].rpartition(".")[2]) + 1  # the last block answers as "layer.<depth - 1>"
    layers = args.memory_layers or sorted({max(0, round(share * depth) - 1) for share in (3 / 12, 8 / 12)})
    if max(layers) >= depth or min(layers) < -depth:
        raise UserError(f"--memory-layers: {name} has blocks 0..{depth - 1}, got {layers}")
    paper = args.memory_tap == "post_attn_next" and isinstance(net, ClipBackbone)
    taps = [f"{'next_attn' if paper else 'layer'}.{layer % depth}" for layer in layers]
    if isinstance(net, ClipBackbone):
        net.answer([*always, *taps])
        return net, taps
    return create_backbone(name, layers=[*always, *taps], **settings), taps


def _grid(net: FrozenBackbone) -> tuple[int, int]:
    if net.grid is None:
        raise UserError(f"backbone {net.name} has no patch grid; choose a vision transformer")
    return net.grid


def _tokens(tap: Tensor) -> Tensor:
    """[N, P, C] of patch tokens or of a feature map [N, C, h, w]."""
    return tap if tap.ndim == 3 else tap.flatten(2).mT
