"""What the detectors expect of their inputs, said in one line where it is not so."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn


def check_images(images: Tensor, channels: Sequence[int] = (1, 3)) -> None:
    """Images must be floats [B, C, H, W] with one of the numbers of channels."""
    wanted = " or ".join(map(str, channels))
    if not isinstance(images, Tensor):
        raise ValueError(f"images [B, {wanted}, H, W] expected, got {type(images).__name__}")
    if images.ndim != 4 or images.shape[1] not in channels or not images.numel() or not images.is_floating_point():
        raise ValueError(f"float images [B, {wanted}, H, W] expected, got {images.dtype} {list(images.shape)}")


def check_shape(name: str, tensor: Tensor, wanted: Sequence[int]) -> None:
    if tuple(tensor.shape) != tuple(wanted):
        raise ValueError(f"{name} {list(wanted)} expected beside these images, got {list(tensor.shape)}")


def maps_of(found: Mapping[str, Tensor], layers: Sequence[str]) -> list[Tensor]:
    """The named outputs of a frozen network's features, as they are: [B, V, C, h, w]."""
    absent = [name for name in layers if name not in found]
    if absent:
        raise ValueError(f"layers={' '.join(absent)}: the extractor gives {', '.join(found) or 'nothing'}")
    return [found[name] for name in layers]


def maps_by_image(found: Mapping[str, Tensor], layers: Sequence[str]) -> list[Tensor]:
    """The same with the views as so many images: [B * V, C, h, w]."""
    return [maps.flatten(0, 1) for maps in maps_of(found, layers)]


def rows_for(how: str, extractor: torch.nn.Module) -> str:
    """What ``rows=auto`` means for a frozen network."""
    return how if how != "auto" else "unit" if getattr(extractor, "is_transformer", False) else "raw"


def take_saved_sizes(module: nn.Module, names: Sequence[str], saved: Mapping[str, Any], prefix: str) -> None:
    """Give the named buffers, whose sizes depend on what was learnt, the sizes of a saved state before it is loaded."""
    for name in names:
        if prefix + name in saved:
            setattr(module, name, saved[prefix + name].to(getattr(module, name).device))


def parameter_count(module: torch.nn.Module) -> str:
    """In words, for a repr."""
    trained = sum(p.numel() for p in module.parameters() if p.requires_grad)
    return f"{trained:,} parameters are trained"


def gigabytes(count: float) -> str:
    """A number of bytes in words."""
    return f"{count / 2**30:.2f} GiB"
