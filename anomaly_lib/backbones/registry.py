"""One door to every frozen encoder."""

from collections.abc import Callable, Sequence
from pathlib import Path

from anomaly_lib.backbones.base import FrozenBackbone, Layer
from anomaly_lib.backbones.clip import create_clip
from anomaly_lib.backbones.huggingface import create_huggingface
from anomaly_lib.backbones.huggingface_names import KNOWN
from anomaly_lib.backbones.timm_nets import create_timm
from anomaly_lib.backbones.torchvision_nets import NETS, create_torchvision

# A name may say its family ("timm:resnet18"); without one, torchvision and transformers names come first, then CLIP.
FAMILIES: dict[str, Callable[..., FrozenBackbone]] = {
    "clip": create_clip,
    "huggingface": create_huggingface,
    "timm": create_timm,
    "torchvision": create_torchvision,
}


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
    family, bare = split_family(name)
    return FAMILIES[family](bare, weights=weights, layers=layers, image_size=image_size, download=download)


def split_family(name: str) -> tuple[str, str]:
    """``"timm:resnet18"`` -> ("timm", "resnet18"); names without a family find theirs."""
    head, colon, rest = name.partition(":")
    if colon and head in FAMILIES:
        return head, rest
    if name in NETS:
        return "torchvision", name
    return ("huggingface" if name in KNOWN else "clip"), name


def list_backbones() -> list[str]:
    """Names that need no family; any timm network is ``timm:NAME``, any CLIP of open_clip goes by its own name."""
    from anomaly_lib.backbones.clip import DEFAULT_TAGS, DEMO

    return sorted({DEMO, *DEFAULT_TAGS, *NETS, *KNOWN, "timm:NAME"})
