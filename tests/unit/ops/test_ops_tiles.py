"""Tiles cover a picture, and what is said of them is put together without seams."""

import pytest
import torch

from anomaly_lib.ops.tiles import Tiles
from anomaly_lib.types import Prediction


@pytest.mark.parametrize(
    ("size", "side", "overlap", "count"),
    [
        ((2048, 2048), 640, 128, 16),
        ((64, 100), 64, 16, 2),
        ((64, 64), 0, 0, 1),
        ((50, 60), 64, 8, 1),
        ((65, 64), 64, 8, 2),
    ],
)
def test_tiles_cover_the_picture(size: tuple[int, int], side: int, overlap: int, count: int) -> None:
    tiles = Tiles.of(size, side, overlap)
    assert len(tiles) == count
    seen = torch.zeros(size)
    for row, column in tiles.places:
        assert row + tiles.tile[0] <= size[0]
        assert column + tiles.tile[1] <= size[1]
        seen[row : row + tiles.tile[0], column : column + tiles.tile[1]] += 1
    assert seen.min() == 1


def test_cut_and_put_together_is_the_picture() -> None:
    tiles = Tiles.of((70, 90), 32, 8)
    images = torch.rand(3, 2, 70, 90)
    pieces = tiles.cut(images)
    assert pieces.shape == (3 * len(tiles), 2, 32, 32)
    torch.testing.assert_close(pieces[len(tiles) + 1], images[1, :, :32, tiles.places[1][1] :][..., :32])
    torch.testing.assert_close(tiles.put_together(pieces[:, 0]), images[:, 0])


def test_a_step_between_tiles_becomes_a_slope() -> None:
    """Two tiles that disagree by 1: no neighbouring pixels differ by more than the overlap allows."""
    tiles = Tiles.of((32, 48), 32, 16)
    whole = tiles.put_together(torch.stack([torch.zeros(32, 32), torch.ones(32, 32)]))[0]
    assert whole[:, 0].max() == 0
    assert whole[:, -1].min() == 1
    assert (whole[:, 1:] - whole[:, :-1]).abs().max() < 2 / 16


def test_the_worst_tile_gives_the_score() -> None:
    tiles = Tiles.of((32, 48), 32, 16)
    found = Prediction(torch.tensor([1.0, 5.0, 3.0, 2.0]), torch.rand(4, 32, 32), {"words": torch.arange(4.0)})
    joined = tiles.joined(found)
    assert joined.score.tolist() == [5.0, 3.0]
    assert joined.map.shape == (2, 32, 48)
    assert joined.parts["words"].tolist() == [1.0, 3.0]
    one = Tiles.of((32, 48))
    assert one.joined(found) is found


def test_maps_that_are_kept_smaller_are_means() -> None:
    tiles = Tiles.of((90, 60), 40, 10)
    pieces = torch.rand(2 * len(tiles), *tiles.tile)
    found = Prediction(
        torch.arange(2.0 * len(tiles)), pieces, {"part": pieces, "number": torch.ones(2 * len(tiles))}, cell=27.0
    )
    whole, small = tiles.joined(found), tiles.joined(found, (30, 24))
    assert whole.map.shape == (2, 90, 60)
    assert small.map.shape == (2, 30, 24)
    torch.testing.assert_close(small.map.mean((1, 2)), whole.map.mean((1, 2)))
    first = whole.map[..., :2].sum(-1) + whole.map[..., 2] / 2
    torch.testing.assert_close(small.map[:, :, 0], first.unflatten(1, (30, 3)).mean(2) / 2.5)
    torch.testing.assert_close(small.parts["part"], small.map)
    assert small.parts["number"].tolist() == [1, 1]
    assert small.score.tolist() == whole.score.tolist() == [len(tiles) - 1, 2 * len(tiles) - 1]
    assert (whole.cell, small.cell) == (27.0, 27.0 * (30 * 24) / (90 * 60))


def test_maps_of_large_pictures_are_kept_small() -> None:
    """A board of 2048 pixels takes a sixteenth; what is not tiled keeps its size."""
    assert Tiles.of((2048, 2048), 640, 128).map_size == (512, 512)
    assert Tiles.of((2048, 1024), 640, 128).map_size == (512, 256)
    assert Tiles.of((400, 300), 256, 64).map_size == (400, 300)
    assert Tiles.of((2048, 2048)).map_size == (2048, 2048)
