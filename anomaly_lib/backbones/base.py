"""What every frozen encoder of this library looks like from outside."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from anomaly_lib.errors import UserError

Layer = int | str
"""A block number (``5``, ``-1`` for the last; answered as ``"layer.5"``) or an output name like ``"pooled"``."""

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


class FrozenBackbone(nn.Module):
    """A frozen encoder: one pass over a batch answers every tensor named in ``outputs``, and nothing else.

    Tokens are ``[B, P, C]`` patch rows in row-major grid order (class and register tokens left out), feature maps of
    convolutional networks ``[B, C, H, W]``, pooled vectors ``[B, D]``. The pass stops after the last thing asked for.
    Parameters never require a gradient and the module stays in eval mode whatever its parent does. Precision is the
    caller's: wrap ``encode`` in an autocast block.
    """

    def __init__(
        self,
        *,
        name: str,
        outputs: Sequence[str],
        weights_id: str,
        image_size: tuple[int, int] | None,
        embed_dim: int,
        width: int,
        patch_size: int | None = None,
        mean: tuple[float, ...] = IMAGENET_MEAN,
        std: tuple[float, ...] = IMAGENET_STD,
        interpolation: str = "bicubic",
    ) -> None:
        super().__init__()
        self.name = name
        self.outputs = tuple(outputs)
        self.weights_id = weights_id
        self.image_size = image_size
        self.embed_dim = embed_dim
        self.width = width
        self.patch_size = patch_size
        self.mean = mean
        self.std = std
        self.interpolation = interpolation

    @property
    def is_random(self) -> bool:
        """True for a network without learned weights; every result made with one is marked so."""
        return self.weights_id == "random"

    @property
    def grid(self) -> tuple[int, int] | None:
        """Patches along height and width, or None for a network without a fixed patch size."""
        if self.image_size is None or self.patch_size is None:
            return None
        return self.image_size[0] // self.patch_size, self.image_size[1] // self.patch_size

    def dim_of(self, output: str) -> int:
        """Channels of one output."""
        joint = output in ("pooled", "patch_tokens", "vv_tokens") or output.startswith("window.")
        return self.embed_dim if joint else self.width

    def freeze(self) -> "FrozenBackbone":
        """Switch off gradients and training mode; constructors call it last."""
        self.requires_grad_(False)
        return self.eval()

    def train(self, mode: bool = True) -> "FrozenBackbone":  # noqa: ARG002 - nn.Module's signature
        """Stay in eval mode: a frozen encoder has no training behaviour."""
        return super().train(False)

    @torch.no_grad()
    def encode(self, batch: Tensor) -> dict[str, Tensor]:
        """The named outputs of one pass over ``batch``."""
        found = self._encode(batch)
        return {name: found[name] for name in self.outputs}

    def forward(self, batch: Tensor) -> dict[str, Tensor]:
        """Same as `encode`."""
        return self.encode(batch)

    def _encode(self, batch: Tensor) -> dict[str, Tensor]:
        raise NotImplementedError


LARGEST_SIDE = 8192  # pixels: beyond it one picture's activations alone take tens of gigabytes


def check_image_size(size: int | Sequence[int], patch: int, owner: str) -> None:
    """Refuse an input size that holds no patch of the network, or that no memory would hold."""
    sides = [size] if isinstance(size, int) else list(size)
    if min(sides) < patch or max(sides) > LARGEST_SIDE:
        shown = " ".join(map(str, dict.fromkeys(sides)))
        raise UserError(f"image_size={shown}: {owner} takes sides from {patch} (one patch) to {LARGEST_SIDE} pixels")


def output_names(
    layers: Sequence[Layer] | None, *, depth: int, named: Sequence[str], default: Sequence[str], owner: str
) -> tuple[str, ...]:
    """Turn what a caller asked for into output names, in the caller's order and without repeats.

    Integers count blocks from 0 (negative from the end) and become ``layer.N``; ``named`` lists the other outputs the
    encoder has, where ``"x.*"`` stands for ``x.0`` .. ``x.<depth-1>``.
    """
    if layers is None:
        return tuple(default)
    patterns = {"layer.*", *named} if depth else set(named)
    indexed = {pattern[:-1] for pattern in patterns if pattern.endswith(".*")}
    names: list[str] = []
    for layer in layers:
        if isinstance(layer, str) and layer.lstrip("-").isdigit():
            layer = int(layer)
        stem, number = ("layer.", layer) if isinstance(layer, int) else _split(layer)
        if number is not None and stem in indexed:
            if not -depth <= number < depth:
                raise UserError(f"{owner} has blocks 0..{depth - 1}; layer {layer} is not one of them")
            names.append(f"{stem}{number % depth}")
        elif isinstance(layer, str) and layer in patterns:
            names.append(layer)
        else:
            known = ", ".join(sorted(pattern.replace("*", "N") for pattern in patterns))
            blocks = f"block numbers 0..{depth - 1} or: " if depth else ""
            raise UserError(f"{owner} has no output {layer!r}; choose {blocks}{known}")
    return tuple(dict.fromkeys(names))


def _split(name: str) -> tuple[str, int | None]:
    stem, dot, number = name.rpartition(".")
    if dot and number.lstrip("-").isdigit():
        return stem + dot, int(number)
    return name, None


def last_block(outputs: Sequence[str], *, depth: int, final: Sequence[str]) -> int:
    """Index of the last block that must run for ``outputs``; ``final`` are those that need the whole network."""
    last = -1
    for name in outputs:
        stem, number = _split(name)
        if number is None and name in final:
            return depth - 1
        if number is not None:
            # "next_attn.N" is a state inside block N + 1.
            last = max(last, min(number + (stem == "next_attn."), depth - 1))
    return last
