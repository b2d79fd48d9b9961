"""From options to a detector's module, and what a checkpoint holds of it."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from anomaly_lib.data.images import IMAGE_SUFFIXES, read_image
from anomaly_lib.data.synthesis import textures_of
from anomaly_lib.errors import UserError
from anomaly_lib.models.detectors.registry import entry_of
from anomaly_lib.systems.detectors.data import image_transform, input_channels, tiles_of

FROZEN = "extractor."


class FrozenFeatures(nn.Module):
    """Images 0..1 with one or three channels -> the backbone's maps; the backbone's own normalisation happens here.

    A transformer's patch rows [B, P, C] become maps [B, C, h, w], so that its blocks serve like a ResNet's stages.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, net: nn.Module, *, mean: Sequence[float], std: Sequence[float]) -> None:
        super().__init__()
        self.net = net
        self.is_transformer = getattr(net, "patch_size", None) is not None
        self.register_buffer("mean", torch.tensor(mean).view(-1, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(std).view(-1, 1, 1), persistent=False)

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        found = self.net((images - self.mean) / self.std)  # one channel becomes three by broadcasting
        return {name: x.transpose(1, 2).unflatten(2, self.net.grid) if x.ndim == 3 else x for name, x in found.items()}


def make_extractor(args: Any) -> FrozenFeatures:
    """The frozen network with its normalisation."""
    from anomaly_lib.backbones import create_backbone

    height, width = tiles_of(args).tile
    backbone = create_backbone(
        args.backbone, weights=args.weights, layers=args.layers, image_size=(height, width), download=args.download
    )
    return FrozenFeatures(backbone, mean=backbone.mean, std=backbone.std)


def build(args: Any, device: torch.device) -> nn.Module:
    """The module that ``args.model`` names, made from the options as they are; not fitted or trained yet."""
    entry = entry_of(args.model)
    make = entry.load()
    module: nn.Module = make(args, extractor=make_extractor(args)) if entry.frozen else make(args)
    if getattr(args, "textures", None):
        module.textures = read_textures(args.textures, args)  # type: ignore[assignment]
    return module.eval().to(device)


def read_textures(folder: str, args: Any) -> Tensor:
    """Every image below `folder` at the size of a tile, decoded once."""
    paths = sorted(p for p in Path(folder).rglob("*") if p.suffix.lower() in IMAGE_SUFFIXES)
    if not paths:
        raise UserError(f"textures={folder}: no images below it")
    transform = image_transform(args)
    stack = textures_of([transform(read_image(path)) for path in paths], tiles_of(args).tile)
    return stack.mean(1, keepdim=True) if input_channels(args) == 1 else stack


class TrainedPart:
    """What a checkpoint of a detector holds: everything but the frozen backbone."""

    def __init__(self, module: nn.Module) -> None:
        self.module = module

    def state_dict(self) -> dict[str, Tensor]:
        return {n: t for n, t in self.module.state_dict().items() if not n.startswith(FROZEN)}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        missing, unexpected = self.module.load_state_dict(state, strict=False)
        missing = [name for name in missing if not name.startswith(FROZEN)]
        if missing or unexpected:
            raise ValueError(f"parts that are missing or too many: {', '.join([*missing, *unexpected][:3])}")
