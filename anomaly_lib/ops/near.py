"""Likeness of patches to those of other images near the same place."""

import torch
import torch.nn.functional as F
from torch import Tensor


def best_nearby(queries: Tensor, bank: Tensor, allowed: Tensor, radius: int, *, tile: int = 64) -> Tensor:
    """Largest product of each vector of queries [B, C, h, w] with vectors of `bank` [h * w, N, C] (N at every place)
    that lie at most `radius` rows and columns away and are `allowed` [B, N] -> [B, h, w].

    One product reads every bank vector once, with all query vectors around it, and nothing is copied out of the bank:
    cheaper than picking the allowed ones first unless they are very few. It holds h * w * B * (2 radius + 1)^2 * tile
    numbers.
    """
    batch, _, rows, columns = queries.shape
    width = 2 * radius + 1
    places = F.pad(queries, (radius,) * 4).permute(2, 3, 0, 1).contiguous()  # [h + 2 radius, w + 2 radius, B, C]
    offsets = [(i, j) for i in range(width) for j in range(width)]
    around = torch.stack([places[i : i + rows, j : j + columns] for i, j in offsets], dim=3)  # [h, w, B, width^2, C]
    around = around.flatten(0, 1).flatten(1, 2)  # [P, B * width^2, C]: at each place, those around it
    best = queries.new_full((len(around), batch, width**2), -torch.inf)
    for some, fits in zip(bank.split(tile, dim=1), allowed.split(tile, dim=1), strict=True):
        products = (around @ some.mT).unflatten(1, best.shape[1:])  # [P, B, width^2, tile]
        best = torch.maximum(best, products.masked_fill(~fits[:, None], -torch.inf).amax(3))
    grids = best.permute(1, 2, 0).unflatten(2, (rows, columns))  # at the place of the bank's vector
    # Offset (i, j) compared place p with the query's vector at p + (i, j) - radius: put each result to that vector.
    grids = F.pad(grids, (radius,) * 4, value=-torch.inf).unflatten(1, (width, width))
    last = width - 1
    moved = [grids[:, i, j, last - i : last - i + rows, last - j : last - j + columns] for i, j in offsets]
    return torch.stack(moved).amax(0)


def nearest_in_each(rows: Tensor, *, most: int = 1 << 26) -> Tensor:
    """For each patch of N images of unit rows [N, P, C] its distance to the nearest patch of every image, [N, P, N].

    Infinite to the image itself. Each pair of images is multiplied once, for both directions; at most about `most`
    products are held at a time.
    """
    count, patches, _ = rows.shape
    likeness = rows.new_full((count, patches, count), -torch.inf)
    step = max(1, most // patches**2)
    for one in range(count):
        for start in range(one + 1, count, step):
            others = rows[start : start + step]
            products = (rows[one] @ others.flatten(0, 1).T).unflatten(1, others.shape[:2])  # [P, k, P]
            likeness[one, :, start : start + step] = products.amax(2)
            likeness[start : start + step, :, one] = products.amax(0)
    return likeness.mul_(-2).add_(2).clamp_min_(0).sqrt_()
