"""Likeness of patches to those of other images near the same place."""

import torch
import torch.nn.functional as F
from torch import Tensor


def best_nearby(query: Tensor, bank: Tensor, radius: int, *, tile: int = 16) -> Tensor:
    """Largest product of each vector of query [C, h, w] with the vectors of `bank` [K, h * w, C] that lie at most
    `radius` rows and columns away -> [h, w].

    One product reads every bank vector once, with all query vectors around it: h * w * (2 radius + 1)^2 * tile numbers.
    """
    width = 2 * radius + 1
    around = F.unfold(query.unsqueeze(0), width, padding=radius)[0]  # [C * width^2, P]: at each place, those around it
    around = around.unflatten(0, (len(query), width**2)).permute(2, 1, 0)  # [P, width^2, C]
    best = query.new_full(around.shape[:2], -torch.inf)
    for some in bank.split(tile):
        best = torch.maximum(best, (around @ some.permute(1, 2, 0)).amax(2))  # [P, width^2]
    rows, columns = query.shape[-2:]
    grids = best.T.reshape(width**2, rows, columns)  # at the place of the bank's vector
    # Offset (i, j) compared place p with the query's vector at p + (i, j) - radius: put each result to that vector.
    grids = F.pad(grids, (radius,) * 4, value=-torch.inf).unflatten(0, (width, width))
    moved = [
        grids[i, j, width - 1 - i : width - 1 - i + rows, width - 1 - j : width - 1 - j + columns]
        for i in range(width)
        for j in range(width)
    ]
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
    return (2 - 2 * likeness).clamp_min(0).sqrt()
