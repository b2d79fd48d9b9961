"""One door to every frozen encoder."""

from collections.abc import Callable, Sequence
from pathlib import Path

from anomaly_lib.backbones.base import FrozenBackbone, Layer

Maker = Callable[..., FrozenBackbone]


def _clip() -> Maker:
    from anomaly_lib.backbones.clip import create_clip

    return create_clip


# Families by prefix: "timm:vit_tiny_patch16_224". Values import their library only when called.
FAMILIES: dict[str, Callable[[], Maker]] = {"clip": _clip}


def create_backbone(
    name: str,
    *,
    weights: str | Path | None = None,
    layers: Sequence[Layer] | None = None,
    image_size: int | tuple[int, int] | None = None,
    download: bool = False,
) -> FrozenBackbone:
    """The frozen encoder ``name``, ready for ``encode``.

    ``layers`` lists what comes out: block numbers (``5`` -> ``"layer.5"``) and output names (``"pooled"``,
    ``"patch_tokens"``, ``"layer2"``); None means the encoder's usual outputs. ``weights`` is a file, a folder,
    ``"random"``, or None for the published ones (see `sources.resolve_weights`).
    """
    family, bare = family_of(name)
    return FAMILIES[family]()(bare, weights=weights, layers=layers, image_size=image_size, download=download)


def family_of(name: str) -> tuple[str, str]:
    """Split ``"family:name"``; CLIP needs no prefix."""
    head, colon, rest = name.partition(":")
    if colon and head in FAMILIES:
        return head, rest
    return "clip", name
