"""CLIP's image feature of every small window of an image, as WinCLIP reads it."""

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from anomaly_lib.backbones.attention import run_block
from anomaly_lib.errors import UserError

TILE = 2048  # windows in one pass of the tower


def window_features(visual: Any, embedded: Tensor, grid: tuple[int, int], side: int) -> Tensor:
    """Image features [B, D, h - side + 1, w - side + 1] of all windows of side x side patches.

    `embedded` [B, 1 + h * w, C] are class token and patches with their positions, as the first block gets them. Each
    window passes the whole tower as the class token and its own patches, and as nothing else.
    """
    patches = embedded[:, 1:].mT.unflatten(2, grid)  # [B, C, h, w]
    windows = F.unfold(patches, side).unflatten(1, (patches.shape[1], side**2))  # [B, C, side^2, M]
    tokens = windows.permute(0, 3, 2, 1)  # [B, M, side^2, C]
    first = embedded[:, None, :1].expand(-1, tokens.shape[1], -1, -1)
    sequences = torch.cat([first, tokens], dim=2).flatten(0, 1)  # [B * M, 1 + side^2, C]
    # A graph is for any number of images, so it has no tiles.
    tiles = [sequences] if torch.compiler.is_compiling() else sequences.split(TILE)
    pooled = torch.cat([_pooled(visual, some) for some in tiles])
    return pooled.unflatten(0, tokens.shape[:2]).mT.unflatten(2, (grid[0] - side + 1, grid[1] - side + 1))


def _pooled(visual: Any, x: Tensor) -> Tensor:
    for block in visual.transformer.resblocks:
        x = run_block(block, x)
    return visual._pool(x)[0] @ visual.proj


def window_sides(outputs: Sequence[str], grid: tuple[int, int], owner: str) -> list[int]:
    """The sides of the windows among `outputs`; one that does not fit the grid is refused."""
    sides = [int(name.removeprefix("window.")) for name in outputs if name.startswith("window.")]
    for side in sides:
        if not 1 <= side <= min(grid):
            raise UserError(f"layers=window.{side}: {owner} has windows of 1 to {min(grid)} patches")
    return sides
