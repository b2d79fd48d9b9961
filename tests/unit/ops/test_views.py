"""Turned views against SciPy, the object by a singular value decomposition, and the mean of the largest."""

import numpy as np
import torch
from scipy import ndimage

from anomaly_lib.ops import first_component, foreground, generator_of, six_views, top_mean, turned, unit_rows


def test_a_turn_reads_between_pixels_and_reflects_at_edge_pixels():
    image = torch.rand(2, 9, 13, dtype=torch.float64)
    found = turned(image[None], [30.0])[0, 0]
    y, x = np.mgrid[:9, :13]
    cos, sin = np.cos(np.pi / 6), np.sin(np.pi / 6)
    # Counter-clockwise to the eye: (x, y) of the result comes from the point turned the other way, rows pointing down.
    source = [4 + sin * (x - 6) + cos * (y - 4), 6 + cos * (x - 6) - sin * (y - 4)]
    for channel in range(2):
        want = ndimage.map_coordinates(image[channel].numpy(), source, order=1, mode="mirror")
        np.testing.assert_allclose(found[channel].numpy(), want, atol=1e-12)
        black = ndimage.map_coordinates(image[channel].numpy(), source, order=1, mode="grid-constant")
        np.testing.assert_allclose(
            turned(image[None], [30.0], beyond="zeros")[0, 0, channel].numpy(), black, atol=1e-12
        )


def test_quarter_turns_move_pixels_only():
    image = torch.rand(3, 8, 8)
    for n, view in enumerate(turned(image[None], [0, 90, 180, 270])[0]):
        assert torch.equal(view, torch.rot90(image, n, dims=(-2, -1)))
    # A turn by almost 90 degrees lies beside the exact one: both have the same direction.
    assert (turned(image[None], [89.999])[0, 0] - torch.rot90(image, 1, dims=(-2, -1))).abs().max() < 1e-3
    views = six_views(image[None])[0]
    assert [torch.equal(a, b) for n, a in enumerate(views) for b in views[:n]] == [False] * 15
    assert torch.equal(views[4], image.flip(-2))
    assert torch.equal(views[5], image.flip(-1))


def test_draws_depend_on_content_and_seed():
    image = torch.rand(3, 5, 5)
    draw = torch.rand(3, generator=generator_of(image, 1))
    assert torch.equal(draw, torch.rand(3, generator=generator_of(image.clone(), 1)))
    assert not torch.equal(draw, torch.rand(3, generator=generator_of(image, 2)))
    assert not torch.equal(draw, torch.rand(3, generator=generator_of(1 - image, 1)))


def test_first_component_equals_a_singular_vector():
    for patches, width in ((30, 7), (7, 30)):
        rows = torch.randn(2, patches, width, dtype=torch.float64)
        for mine, one in zip(first_component(rows), rows, strict=True):
            left, values, _ = np.linalg.svd(one.numpy() - one.numpy().mean(0), full_matrices=False)
            theirs = torch.from_numpy(left[:, 0] * values[0])
            torch.testing.assert_close(mine * (mine @ theirs).sign(), theirs)


def test_the_object_is_in_the_middle_whatever_the_sign():
    torch.manual_seed(0)
    inside = torch.zeros(12, 12, dtype=torch.bool)
    inside[3:9, 3:9] = True
    direction = torch.randn(5)
    for sign in (1, -1):
        maps = 0.1 * torch.randn(1, 5, 12, 12) + sign * inside * direction[:, None, None]
        kept = foreground(maps, 0.3)[0]
        assert kept[2:10, 2:10].all()  # grown by one patch
        assert kept.sum() == 64


def test_top_mean_and_unit_rows():
    values = torch.tensor([[3.0, 1.0, 2.0, 4.0], [0.0, 0.0, 1.0, 0.0]])
    assert top_mean(values, 0.5).tolist() == [3.5, 0.5]
    assert top_mean(values, 0.01).tolist() == [4.0, 1.0]
    maps = torch.rand(2, 3, 4, 2, 5)
    assert torch.allclose(unit_rows(maps)[1, 2, 7], maps[1, 2, :, 1, 2] / maps[1, 2, :, 1, 2].norm())


def test_the_centre_is_empty_up_to_exactly_the_share():
    """20 x 25 patches, whose centre has 12 x 15 = 180: 62 are too few for 35 %, 63 are enough (0.35 * 180 < 63)."""
    for count in (62, 63):
        centre = torch.zeros(180)
        centre[:count] = 4.0
        grid = torch.zeros(20, 25)
        grid[4:16, 5:20] = centre.reshape(12, 15)
        grid[:2] = -2.0  # the other side of the component
        found = foreground(grid[None, None], 1.0, least=0.35)[0]
        assert bool(found[0, 0]) == (count == 62)
