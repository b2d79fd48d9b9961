"""Cutting pictures into tiles that overlap, and putting maps of the tiles together without seams."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from anomaly_lib.types import Prediction

Size = tuple[int, int]
MAP_SIDE = 512  # longer side of the maps that are kept of tiled pictures, whose patches are larger than a pixel of it


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

    @classmethod
    def asked(cls, args: Any, size: Sequence[int]) -> "Tiles":
        """Those that options ask for (`tile`, `overlap`) of pictures of a size; one, where nothing is tiled."""
        side, overlap = getattr(args, "tile", 0), getattr(args, "overlap", None)
        return cls.of((size[0], size[-1]), side, side // 4 if overlap is None else overlap)

    @classmethod
    def seen_size(cls, args: Any) -> Any:
        """What a network is built for: a tile where options ask for tiles, else a whole picture."""
        return cls.asked(args, args.image_size).tile if args.tile else args.image_size

    @cached_property
    def places(self) -> list[tuple[int, int]]:
        """Upper left corners, row by row."""
        rows, columns = (_starts(*axis, self.overlap) for axis in zip(self.size, self.tile, strict=True))
        return [(row, column) for row in rows for column in columns]

    def __len__(self) -> int:
        return len(self.places)

    @property
    def words(self) -> str:
        """What is done to pictures, for the description of a transform; nothing where there is one tile."""
        return "" if len(self) == 1 else f", tiles of {' x '.join(map(str, self.tile))}"

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

    @property
    def map_size(self) -> Size:
        """Of the maps that are kept of pictures: those of large ones, which are tiled, are smaller than they."""
        share = min(1.0, MAP_SIDE / max(self.size)) if len(self) > 1 else 1.0
        return round(self.size[0] * share), round(self.size[1] * share)

    def joined(self, found: Prediction, size: Size | None = None) -> Prediction:
        """What is said of tiles -> what is said of pictures: the score of the worst tile, the tiles' maps together.

        The maps are put together at the pictures' size and kept at `size` (or `map_size`), each value the mean over the
        area it stands for.
        """
        if len(self) == 1:
            return found
        size = size or self.map_size
        rows, columns = (_means(*axis) for axis in zip(self.size, size, strict=True))

        def worst(values: Tensor) -> Tensor:
            return values.unflatten(0, (-1, len(self))).amax(1)

        def whole(maps: Tensor) -> Tensor:
            put = self.put_together(maps)
            return put if size == self.size else rows.to(maps) @ put @ columns.to(maps).T

        kinds = {1: worst, 3: whole}
        parts = {name: kinds[part.ndim](part) for name, part in found.parts.items() if part.ndim in kinds}
        cell = found.cell and found.cell * (size[0] * size[1]) / (self.size[0] * self.size[1])
        maps = None if found.map is None else whole(found.map)
        return replace(found, score=worst(found.score), map=maps, parts=parts, cell=cell)

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


def _means(source: int, target: int) -> Tensor:
    """[target, source]: every row the mean over its share of an axis, whole pixels and parts of them."""
    edges = torch.arange(target + 1, dtype=torch.float64) * (source / target)
    first = torch.arange(source, dtype=torch.float64)
    covered = torch.minimum(edges[1:, None], first + 1) - torch.maximum(edges[:-1, None], first)
    return (covered.clamp(min=0) * (target / source)).float()
