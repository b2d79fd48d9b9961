"""Cutting pictures into tiles that overlap, and putting maps of the tiles together without seams."""

from dataclasses import dataclass, replace
from functools import cached_property

import torch
from torch import Tensor

from anomaly_lib.types import Prediction

Size = tuple[int, int]


@dataclass(frozen=True)
class Tiles:
    """Where the tiles of pictures of one `size` lie: as few as cover it, evenly spread.

    Neighbours have about `overlap` pixels or more in common. A side that is not longer than a tile's is one tile.
    """

    size: Size
    tile: Size
    overlap: int = 0

    @classmethod
    def of(cls, size: Size, side: int = 0, overlap: int = 0) -> "Tiles":
        """Square tiles of `side` pixels (0 = the picture as a whole)."""
        height, width = size
        return cls(size, (min(side or height, height), min(side or width, width)), overlap)

    @cached_property
    def places(self) -> list[tuple[int, int]]:
        """Upper left corners, row by row."""
        rows, columns = (_starts(*axis, self.overlap) for axis in zip(self.size, self.tile, strict=True))
        return [(row, column) for row in rows for column in columns]

    def __len__(self) -> int:
        return len(self.places)

    def cut(self, images: Tensor) -> Tensor:
        """[B, C, H, W] -> [B * tiles, C, h, w], the tiles of a picture beside one another."""
        if len(self) == 1:
            return images
        height, width = self.tile
        pieces = [images[..., row : row + height, column : column + width] for row, column in self.places]
        return torch.stack(pieces, dim=1).flatten(0, 1)

    def put_together(self, maps: Tensor) -> Tensor:
        """Maps [B * tiles, h, w] -> [B, H, W]: where tiles overlap each fades into the other."""
        if len(self) == 1:
            return maps
        height, width = self.tile
        whole = maps.new_zeros(maps.shape[0] // len(self), *self.size)
        each = (maps * self.weight.to(maps)).unflatten(0, (-1, len(self)))
        for index, (row, column) in enumerate(self.places):
            whole[:, row : row + height, column : column + width] += each[:, index]
        return whole / self.total.to(maps)

    def joined(self, found: Prediction) -> Prediction:
        """What is said of tiles -> what is said of pictures: their maps together; the score of the worst tile."""
        if len(self) == 1:
            return found

        def worst(values: Tensor) -> Tensor:
            return values.unflatten(0, (-1, len(self))).amax(1)

        maps = None if found.map is None else self.put_together(found.map)
        branches = {name: worst(part) for name, part in found.parts.items() if part.ndim == 1}
        return replace(found, score=worst(found.score), map=maps, parts=branches)

    @cached_property
    def weight(self) -> Tensor:
        """[h, w]: 1 inside a tile, falling linearly to its edge over the overlap; never 0, for a picture's own edge."""
        rows, columns = (_ramp(side, self.overlap) for side in self.tile)
        return rows[:, None] * columns

    @cached_property
    def total(self) -> Tensor:
        """[H, W]: the sum of the weights of all tiles over each pixel."""
        total, (height, width) = torch.zeros(self.size), self.tile
        for row, column in self.places:
            total[row : row + height, column : column + width] += self.weight
        return total


def _starts(side: int, tile: int, overlap: int) -> list[int]:
    """Where the tiles of one axis begin."""
    if side <= tile:
        return [0]
    count = -(-(side - overlap) // (tile - overlap))
    return [round(place * (side - tile) / (count - 1)) for place in range(count)]


def _ramp(side: int, overlap: int) -> Tensor:
    """[side] weights of one axis of a tile."""
    reach = max(1, min(overlap, side // 2))
    from_edge = torch.arange(side).minimum(torch.arange(side).flip(0)) + 1.0
    return (from_edge / (reach + 1)).clamp(max=1)
