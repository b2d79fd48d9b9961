"""Nearest neighbour by bfloat16 products that are checked in float32: the exact answer, several times sooner.

On a CPU with matrix units a bfloat16 product takes a fifth of a float32 one. Its error is bounded (Cauchy-Schwarz on
what rounding removed from either side), so it can rule rows out: whatever may still be nearest is measured in float32.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from anomaly_lib.ops.distance import QUERY_TILE, exact_distances, nearest_neighbours

BANK_TILE = 4096
PAIR_TILE = 16384
MOST_CANDIDATES = 256  # a query on average; beyond, e.g. in a bank of equal rows, nothing is ruled out
UNIT = 2.0**-8  # twice the relative rounding of bfloat16


def half_products_are_fast() -> bool:
    """Whether this CPU multiplies bfloat16 matrices in hardware (AMX)."""
    ask = getattr(torch.cpu, "get_capabilities", None)  # since torch 2.10
    return ask is not None and bool(ask().get("amx_bf16", False))


@dataclass(frozen=True)
class HalfBank:
    """A bank's rows in bfloat16 about their mean, with |y|^2 / 2 as further columns, and how much rounding took."""

    centre: Tensor  # [D]
    rows: Tensor  # [M, D'] bfloat16, D' = D + 3 rounded up to a multiple of 32
    largest_norm: float
    largest_loss: float

    @classmethod
    def of(cls, bank: Tensor) -> "HalfBank":
        """From rows [M, D] float32."""
        centre = bank.mean(0)
        dim = bank.shape[1]
        rows = bank.new_zeros(len(bank), -(-(dim + 3) // 32) * 32, dtype=torch.bfloat16)
        norms, losses = [], []
        for begin in range(0, len(bank), BANK_TILE):
            part = bank[begin : begin + BANK_TILE] - centre
            half = part.square().sum(1) / 2
            norms.append((2 * half).sqrt().max())
            rows[begin : begin + BANK_TILE, :dim] = part
            losses.append((part - rows[begin : begin + BANK_TILE, :dim].float()).norm(dim=1).max())
            for column in range(dim, dim + 3):  # three bfloat16 hold a float32
                rows[begin : begin + BANK_TILE, column] = half
                half = half - half.bfloat16().float()
        return cls(centre, rows, float(torch.stack(norms).max()), float(torch.stack(losses).max()))


def nearest_by_half(queries: Tensor, bank: Tensor, half: HalfBank) -> tuple[Tensor, Tensor]:
    """Distances [N, 1] and rows [N, 1] of the nearest, as `nearest_neighbours` with k = 1 gives them."""
    parts = [_tile(queries[i : i + QUERY_TILE], bank, half) for i in range(0, len(queries), QUERY_TILE)]
    return torch.cat([distance for distance, _ in parts]), torch.cat([index for _, index in parts])


def _tile(queries: Tensor, bank: Tensor, half: HalfBank) -> tuple[Tensor, Tensor]:
    found = _candidates(queries, half)
    if found is None:
        return nearest_neighbours(queries, bank)
    which, row = found
    distance = torch.cat(
        [
            exact_distances(queries[which[i : i + PAIR_TILE]], bank, row[i : i + PAIR_TILE].unsqueeze(1)).squeeze(1)
            for i in range(0, len(row), PAIR_TILE)
        ]
    )
    nearest = distance.new_full((len(queries),), torch.inf).scatter_reduce_(0, which, distance, "amin")
    if not bool(nearest.isfinite().all()):  # a query that is not a number has no candidates
        return nearest_neighbours(queries, bank)
    wins = distance == nearest[which]
    index = row.new_full((len(queries),), len(bank)).scatter_reduce_(0, which[wins], row[wins], "amin")
    return nearest.unsqueeze(1), index.unsqueeze(1)


def _candidates(queries: Tensor, half: HalfBank) -> tuple[Tensor, Tensor] | None:
    """(query, row) pairs [K] among which every query's nearest row is; None when there are too many."""
    centred = queries - half.centre
    dim = queries.shape[1]
    short = centred.new_zeros(len(queries), half.rows.shape[1], dtype=torch.bfloat16)
    short[:, :dim] = centred
    short[:, dim : dim + 3] = -1
    size = short[:, :dim].float().norm(dim=1)
    # |x.y - xh.yh| <= |x - xh| |y| + |xh| |y - yh|; the last term bounds the rounding of float32 sums of D products.
    slack = (centred - short[:, :dim].float()).norm(dim=1) * half.largest_norm + size * half.largest_loss
    slack += (dim + 8) * 2.0**-23 * (size + half.largest_norm) * half.largest_norm
    best = torch.full_like(slack, -torch.inf)
    kept: list[tuple[Tensor, Tensor, Tensor]] = []
    count = 0
    for begin in range(0, len(half.rows), BANK_TILE):
        scores = short @ half.rows[begin : begin + BANK_TILE].T  # [N, tile] x.y - |y|^2 / 2, bfloat16
        largest = scores.amax(1).float()
        best = torch.maximum(best, largest)
        limit = _limit(best, slack)
        active = (largest >= limit).nonzero().squeeze(1)
        near = scores[active]
        place, row = (near >= limit[active].bfloat16().unsqueeze(1)).nonzero(as_tuple=True)
        count += len(row)
        if count > MOST_CANDIDATES * len(queries):
            return None
        kept.append((active[place], row + begin, near[place, row].float()))
    which, row, score = (torch.cat(parts) for parts in zip(*kept, strict=True))
    near_enough = score >= _limit(best, slack)[which]
    return which[near_enough], row[near_enough]


def _limit(best: Tensor, slack: Tensor) -> Tensor:
    """No row below this can be nearest: both scores compared may be off by `slack` and by their own rounding.

    The sixteenth more covers the rounding of scores further out than `best`, and of the limit itself.
    """
    return best - (2 + 1 / 16) * slack - 2 * UNIT * best.abs()
