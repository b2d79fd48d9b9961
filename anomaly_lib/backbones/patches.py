"""Which values of its input each patch token of a transformers encoder stands for."""

from dataclasses import dataclass
from math import prod
from typing import Any

import torch
from torch import Tensor

from anomaly_lib.backbones.base import FrozenBackbone
from anomaly_lib.errors import UserError


@dataclass(frozen=True)
class PatchGrid:
    """Clips [N, T, C, H, W] cut into cells of `size` (frames, rows, columns), in the order of the encoder's tokens.

    An image is a clip of one frame, a spectrum one of one channel with frequency as rows. The cells are as far apart
    as the tokens and do not overlap, also where the encoder's patches do (AST reads 16 x 16 values every 10 or 14):
    each value belongs to one cell at most. What is left at the far edges belongs to none.
    """

    size: tuple[int, int, int]
    patch: tuple[int, int, int]  # what a token reads, from the first value of its cell on

    @classmethod
    def of(cls, backbone: FrozenBackbone) -> "PatchGrid":
        """That of an encoder of images, video or spectra."""
        family = getattr(backbone, "family", None)
        if family not in ("dinov2", "dinov3", "vjepa2", "ast"):
            raise UserError(f"{backbone.name}: its patches are not known: choose V-JEPA 2, DINOv2, DINOv3 or AST")
        net: Any = backbone.net
        config = net.config
        side = int(config.patch_size)
        if family == "ast":
            return cls((1, int(config.frequency_stride), int(config.time_stride)), (1, side, side))
        return cls(*[(int(config.tubelet_size) if family == "vjepa2" else 1, side, side)] * 2)

    def cells(self, clips: Tensor) -> tuple[int, int, int]:
        """How many cells of the clips [N, T, C, H, W] along time, height and width."""
        length, _, *sides = clips.shape[1:]
        frames, height, width = (
            (whole - read) // step + 1
            for whole, step, read in zip((length, *sides), self._steps(length), self._reads(length), strict=True)
        )
        return frames, height, width

    def cut(self, clips: Tensor) -> Tensor:
        """The values of each cell [N, P, V]: frame by frame, channel by channel, row by row."""
        (t, h, w), (frames, rows, columns) = self._steps(clips.shape[1]), self.cells(clips)
        whole = clips[:, : t * frames, :, : h * rows, : w * columns]
        parts = whole.unflatten(4, (columns, w)).unflatten(3, (rows, h)).unflatten(1, (frames, t))
        return parts.permute(0, 1, 4, 6, 2, 3, 5, 7).flatten(1, 3).flatten(2)  # [N, frames, rows, columns, t, C, h, w]

    def values(self, frames: int, channels: int) -> int:
        """How many values a cell of clips of so many frames and channels has."""
        return prod(self._steps(frames)) * channels

    def spread(self, chosen: Tensor, clips: Tensor) -> Tensor:
        """Which values of `clips` lie in the cells `chosen` [N, P]: [N, T, 1, H, W]."""
        found = chosen.unflatten(1, self.cells(clips))
        for axis, step in enumerate(self._steps(clips.shape[1]), start=1):
            found = found.repeat_interleave(step, axis)
        answer = torch.zeros(clips[:, :, :1].shape, dtype=torch.bool, device=clips.device)
        answer[:, : found.shape[1], 0, : found.shape[2], : found.shape[3]] = found
        return answer

    def _steps(self, length: int) -> tuple[int, int, int]:
        return min(self.size[0], length), *self.size[1:]  # V-JEPA 2 doubles a single frame

    def _reads(self, length: int) -> tuple[int, int, int]:
        return min(self.patch[0], length), *self.patch[1:]
