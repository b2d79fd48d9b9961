"""Perlin noise for whole batches at once.

Inside one lattice cell Perlin noise is a sum over four corners of fade(ty) fade(tx) (cos a * dy + sin a * dx): every
term is a row function times a column function. So a whole image is two small matrix products per component,
    noise = R' cos(a) C^T + R sin(a) C'^T,
R [H, lattice] holding the fade weights of the two lattice rows next to each pixel row and R' those weights times the
pixel's offset from them (C, C' likewise for columns). No loop over pixels, cells or images.
"""

import math

import torch
from torch import Tensor

MAX_EXPONENT = 5  # periods are 2^0 .. 2^5


def _axis_tables(size: int, padded: int, exponents: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Fade weights and weighted offsets for every period 2^k along one axis: two [exponents, size, lattice] tables."""
    lattice = 2 ** (exponents - 1) + 1
    weights = torch.zeros(exponents, size, lattice, device=device)
    offsets = torch.zeros(exponents, size, lattice, device=device)
    pixel = torch.arange(size, device=device)
    for exponent in range(exponents):
        place = pixel * (2**exponent / padded)
        cell = place.floor().long()
        t = place - cell
        fade = ((6 * t - 15) * t + 10) * t**3
        weights[exponent, pixel, cell] = 1 - fade
        weights[exponent, pixel, cell + 1] = fade
        offsets[exponent, pixel, cell] = (1 - fade) * t
        offsets[exponent, pixel, cell + 1] = fade * (t - 1)
    return weights, offsets


def next_power_of_two(size: int) -> int:
    return 1 << max(size - 1, 0).bit_length()


def max_exponent(size: int) -> int:
    """Largest k so that a lattice of period 2^k still has a pixel a cell."""
    return min(MAX_EXPONENT, int(math.log2(next_power_of_two(size))))


def perlin_noise(
    size: tuple[int, int],
    exponents: Tensor,
    *,
    angles: Tensor | None = None,
    generator: torch.Generator | None = None,
    amplitude: float = math.sqrt(2.0),
) -> Tensor:
    """[N, H, W] noise in about -1..1; `exponents` [N, 2] gives log2 of the periods along rows and columns.

    The lattice spans the next power of two of each side. `angles` [N, R, C] are the gradients' angles (the cosine goes
    with the row axis), drawn uniformly when not given; R = 2^k + 1 with k = `max_exponent` of the height, whatever the
    exponents are, and C likewise of the width: image n reads the first 2^exponents[n, 0] + 1 rows and
    2^exponents[n, 1] + 1 columns of its angles.
    """
    device = exponents.device
    top = max_exponent(size[0]), max_exponent(size[1])
    if int(exponents[:, 0].max()) > top[0] or int(exponents[:, 1].max()) > top[1]:
        raise ValueError(f"Perlin exponents above {top} leave no pixel in a cell of a {size[0]}x{size[1]} image")
    row_weights, row_offsets = _axis_tables(size[0], next_power_of_two(size[0]), top[0] + 1, device)
    column_weights, column_offsets = _axis_tables(size[1], next_power_of_two(size[1]), top[1] + 1, device)
    shape = (len(exponents), row_weights.shape[2], column_weights.shape[2])
    if angles is None:
        angles = 2 * math.pi * torch.rand(shape, generator=generator, device=device)
    elif angles.shape != shape:
        raise ValueError(f"angles {list(shape)} expected for images of {size[0]}x{size[1]}, got {list(angles.shape)}")
    rows, columns = exponents[:, 0], exponents[:, 1]
    along_rows = row_offsets[rows] @ angles.cos() @ column_weights[columns].mT  # [N, H, W]
    along_columns = row_weights[rows] @ angles.sin() @ column_offsets[columns].mT
    return (along_rows + along_columns) * amplitude


def random_perlin(size: tuple[int, int], count: int, *, generator: torch.Generator | None = None) -> Tensor:
    """[N, H, W] noise whose periods 2^k are drawn per image and axis, k uniform in 0..min(5, log2 of the side)."""
    draws = [torch.randint(0, max_exponent(side) + 1, (count,), generator=generator) for side in size]
    return perlin_noise(size, torch.stack(draws, dim=1), generator=generator)
