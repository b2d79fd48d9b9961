"""Cutting a feature grid into windows and putting it together again."""

import torch.nn.functional as F
from torch import Tensor


def as_pair(size: int | tuple[int, int]) -> tuple[int, int]:
    return (size, size) if isinstance(size, int) else (size[0], size[1])


def window_partition(grid: Tensor, window: int | tuple[int, int]) -> Tensor:
    """[B, H, W, C] -> [B * windows, h, w, C], row by row; a side that does not divide is zero-padded at its end."""
    height, width = as_pair(window)
    batch, rows, columns, channels = grid.shape
    bottom, right = -rows % height, -columns % width
    if bottom or right:
        grid = F.pad(grid, (0, 0, 0, right, 0, bottom))
    down, across = (rows + bottom) // height, (columns + right) // width
    grid = grid.reshape(batch, down, height, across, width, channels)
    return grid.transpose(2, 3).reshape(batch * down * across, height, width, channels)


def window_reverse(windows: Tensor, grid_size: tuple[int, int]) -> Tensor:
    """Inverse of `window_partition` for a grid of `grid_size`: [B * windows, h, w, C] -> [B, H, W, C], padding cut."""
    count, height, width, channels = windows.shape
    rows, columns = grid_size
    down, across = -(-rows // height), -(-columns // width)
    grid = windows.reshape(count // (down * across), down, across, height, width, channels)
    grid = grid.transpose(2, 3).reshape(-1, down * height, across * width, channels)
    return grid[:, :rows, :columns].contiguous()
