"""Distances between many vectors in bounded memory: nearest neighbours and Mahalanobis."""

import torch
from torch import Tensor

QUERY_TILE = 1024
BANK_TILE = 2048  # with 1024 queries a tile of scores is 8 MiB: read again before it leaves the cache


def half_squared_norms(rows: Tensor) -> Tensor:
    """|y|^2 / 2 of every row: what a search needs to know of a bank beforehand."""
    return rows.float().square().sum(1) / 2


def exact_distances(queries: Tensor, bank: Tensor, indices: Tensor) -> Tensor:
    """|query - bank[index]| in difference form (0 to itself): [N, D], [M, D], [N, k] -> [N, k]."""
    difference = bank[indices].float() - queries.float().unsqueeze(1)  # [N, k, D]
    return difference.square_().sum(2).sqrt_()


def nearest_neighbours(
    queries: Tensor,
    bank: Tensor,
    k: int = 1,
    *,
    half_norms: Tensor | None = None,
    apart: tuple[Tensor, Tensor] | None = None,
    query_tile: int = QUERY_TILE,
    bank_tile: int = BANK_TILE,
) -> tuple[Tensor, Tensor]:
    """Euclidean distances [N, k], nearest first, and their bank rows [N, k].

    The smallest |x - y| has the largest x.y - |y|^2 / 2, which one fused product gives; tiles over queries and bank
    keep a running top-k, and only the winners' distances are worked out (in difference form).
    Memory: query_tile x bank_tile. `apart`: owners [N] of the queries and [M] of the rows; rows of a query's own owner
    do not count (each query must have k others).
    """
    if k < 1 or k > len(bank):
        raise ValueError(f"k must lie in 1..{len(bank)} (the number of bank rows), got {k}")
    if half_norms is None:
        half_norms = half_squared_norms(bank)
    if torch.compiler.is_compiling():  # a graph is for any number of queries
        return _nearest(queries.float(), bank, k, half_norms, bank_tile, apart)
    distances = torch.empty(len(queries), k, device=queries.device)
    indices = torch.empty(len(queries), k, dtype=torch.long, device=queries.device)
    for start in range(0, len(queries), query_tile):
        rows = slice(start, start + query_tile)
        mine = None if apart is None else (apart[0][rows], apart[1])
        distances[rows], indices[rows] = _nearest(queries[rows].float(), bank, k, half_norms, bank_tile, mine)
    return distances, indices


def _nearest(
    queries: Tensor, bank: Tensor, k: int, half_norms: Tensor, bank_tile: int, apart: tuple[Tensor, Tensor] | None
) -> tuple[Tensor, Tensor]:
    """`nearest_neighbours` of one tile of queries."""
    winners = _running_top(queries, bank, k, half_norms, bank_tile, apart)
    found = exact_distances(queries, bank, winners)
    if k == 1:
        return found, winners
    found, order = found.sort(dim=1, stable=True)  # equal to rounding in the product, different in the distance
    return found, winners.gather(1, order)


def _running_top(
    queries: Tensor, bank: Tensor, k: int, half_norms: Tensor, bank_tile: int, apart: tuple[Tensor, Tensor] | None
) -> Tensor:
    """Indices [N, k] of the largest x.y - |y|^2 / 2, bank read in tiles."""
    best: Tensor | None = None
    winners = torch.zeros(queries.shape[0], k, dtype=torch.long, device=queries.device)
    for start in range(0, len(bank), bank_tile):
        stop = min(start + bank_tile, len(bank))
        scores = torch.addmm(-half_norms[start:stop], queries, bank[start:stop].to(queries.dtype).T)  # [N, tile]
        if apart is not None:
            scores.masked_fill_(apart[0].unsqueeze(1) == apart[1][start:stop], -torch.inf)
        if k == 1:
            values, places = scores.max(dim=1, keepdim=True)
        else:
            values, places = scores.topk(min(k, stop - start), dim=1)
        places = places + start
        if best is None:
            best, winners = values, places
            continue
        merged = torch.cat([best, values], dim=1)
        best, chosen = merged.topk(min(k, merged.shape[1]), dim=1)
        winners = torch.cat([winners, places], dim=1).gather(1, chosen)
    return winners


def whitening_matrix(covariance: Tensor) -> Tensor:
    """W [..., D, D] with W W^T = covariance^-1: the inverse Cholesky factor, transposed; nothing is inverted twice."""
    factor = torch.linalg.cholesky(covariance)
    identity = torch.eye(factor.shape[-1], dtype=factor.dtype, device=factor.device).expand_as(factor)
    return torch.linalg.solve_triangular(factor, identity, upper=False).mT.contiguous()


def mahalanobis(rows: Tensor, mean: Tensor, whitening: Tensor) -> Tensor:
    """sqrt((x - mean)^T S^-1 (x - mean)) = |(x - mean) W|, one Gaussian a position, W from `whitening_matrix`.

    rows [B, P, D], mean [P, D], whitening [P, D, D] -> [B, P]: one batched product that reads W once for all B images.
    """
    centred = (rows - mean).transpose(0, 1)  # [P, B, D]
    return (centred @ whitening).square().sum(2).sqrt().T
