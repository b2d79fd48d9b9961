"""Greedy k-centre (farthest point) selection, exact and in blocks, and the projections that go before it."""

import math
from collections.abc import Callable, Iterable

import torch
from torch import Tensor

Progress = Callable[[int, int], None]
"""Called with (picked, wanted) now and then."""

ROW_TILE = 8192
PAIR_TILE = 65536


def projection_size(rows: int, epsilon: float = 0.9) -> int:
    """Johnson-Lindenstrauss: int(4 ln n / (eps^2 / 2 - eps^3 / 3)), 295 for n = 157,000 and eps = 0.9."""
    return int(4 * math.log(rows) / (epsilon**2 / 2 - epsilon**3 / 3))


def sparse_projection(dim: int, components: int, *, generator: torch.Generator | None = None) -> Tensor:
    """[dim, components] sparse random projection: density 1/sqrt(dim), non-zeros +-sqrt(sqrt(dim) / components)."""
    density = 1 / math.sqrt(dim)
    draw = torch.rand(dim, components, generator=generator)
    scale = math.sqrt(1 / density / components)
    return torch.where(draw < density / 2, -scale, torch.where(draw < density, scale, 0.0))


def _squared_to(points: Tensor, centre: Tensor) -> Tensor:
    return (points - centre).square_().sum(1)


class _Front:
    """Squared distance of every point to its nearest pick, exact in difference form; picked points hold -inf."""

    def __init__(self, points: Tensor, start: int) -> None:
        self.points = points
        # Products of centred rows round least; they only decide which exact distances are worth computing.
        self.centred = points - points.mean(0)
        self.norms = self.centred.square().sum(1)
        self.largest_norm = float(self.norms.max())
        # Bound on |product form - difference form|: (D + 8) roundings of terms below |x|^2 + |y|^2, twice for safety.
        self.rounding = 2 * (points.shape[1] + 8) * torch.finfo(points.dtype).eps / 2
        self.distance = _squared_to(points, points[start])
        self.distance[start] = -torch.inf

    def update(self, picks: Tensor) -> None:
        """Fold many new picks in: one product finds the pairs that may matter, those are computed exactly."""
        centres, centre_norms = self.centred[picks], self.norms[picks]
        for begin in range(0, len(self.points), ROW_TILE):
            rows = slice(begin, begin + ROW_TILE)
            product = torch.addmm(centre_norms, self.centred[rows], centres.T, alpha=-2)  # d^2 - |x|^2
            slack = self.rounding * (self.norms[rows] + self.largest_norm)
            limit = self.distance[rows] - self.norms[rows] + slack
            lowest = product.amin(1)
            active = (lowest < limit).nonzero().squeeze(1)
            if not len(active):
                continue
            bound = torch.minimum(limit, lowest + 2 * slack)[active]
            which, pick = (product[active] <= bound.unsqueeze(1)).nonzero(as_tuple=True)
            self._lower(active[which] + begin, picks[pick])
        self.distance[picks] = -torch.inf

    def _lower(self, targets: Tensor, centres: Tensor) -> None:
        for begin in range(0, len(targets), PAIR_TILE):
            target = targets[begin : begin + PAIR_TILE]
            exact = _squared_to(self.points[target], self.points[centres[begin : begin + PAIR_TILE]])
            self.distance.scatter_reduce_(0, target, exact, "amin")

    def block(self, size: int) -> tuple[Tensor, float, int]:
        """The `size` farthest points (ties: lowest index) in index order; the largest value outside and its index."""
        size = min(size, len(self.distance))
        if size == len(self.distance):
            return torch.arange(size, device=self.distance.device), -math.inf, 0
        values = self.distance.topk(size + 1).values
        last, outside_value = values[size - 1], values[size]
        inside = (self.distance > last).nonzero().squeeze(1)
        ties = (self.distance == last).nonzero().squeeze(1)
        room = size - len(inside)
        block = torch.cat([inside, ties[:room]]).sort().values
        outside = ties[room:] if outside_value == last else (self.distance == outside_value).nonzero().squeeze(1)
        return block, float(outside_value), int(outside[0])


def _greedy_inside(
    points: Tensor, distance: Tensor, block: Tensor, outside_value: float, outside_index: int, wanted: int
) -> list[int]:
    """Greedy picks within a block for as long as each is provably the pick over all points; places in the block."""
    index = block.tolist()
    places: list[int] = []
    while len(places) < wanted:
        place = int(distance.argmax())  # block is index-ascending: the first maximum is the lowest index
        value = float(distance[place])
        beaten = value < outside_value or (value == outside_value and index[place] > outside_index)
        if value == -math.inf or (places and beaten):
            break
        places.append(place)
        torch.minimum(distance, _squared_to(points, points[place]), out=distance)
        distance[place] = -torch.inf
    return places


def greedy_coreset(
    points: Tensor, count: int, *, start: int = 0, block_size: int = 512, progress: Progress | None = None
) -> Tensor:
    """Indices [count] of the greedy k-centre selection of `points` [n, d], in picking order, beginning with `start`.

    Each pick is the point farthest (Euclidean) from all picks before it; among equals the lowest index; a picked row is
    never picked again, so with fewer distinct rows than `count` the remaining picks are duplicates in index order.

    Exactly the plain loop's answer, in blocks: distances only shrink, so a stale one is an upper bound. While the
    farthest point of a block is no nearer than every (stale) distance outside, it is the farthest of all; hundreds of
    picks are made inside a block before all n rows are brought up to date with one matrix product. That product
    only names candidates: whatever lies within its rounding error is recomputed in difference form, so rounding and
    ties decide as in the plain loop. Memory O(n).
    """
    if not 0 < count <= len(points):
        raise ValueError(f"a coreset of {count} out of {len(points)} rows is not possible")
    if not points.is_floating_point() or points.dtype in (torch.float16, torch.bfloat16):
        points = points.float()
    picked = [start]
    front = _Front(points, start)
    while len(picked) < count:
        block, outside_value, outside_index = front.block(block_size)
        rows, distance = points[block].cpu(), front.distance[block].cpu()
        places = _greedy_inside(rows, distance, block, outside_value, outside_index, count - len(picked))
        new = block[torch.tensor(places, device=block.device)]
        picked += new.tolist()
        if len(picked) < count:
            front.update(new)
        if progress is not None:
            progress(len(picked), count)
    return torch.tensor(picked, device=points.device)


def coreset_of_chunks(
    chunks: Iterable[Tensor],
    *,
    count: int | None = None,
    ratio: float | None = None,
    select: Callable[[Tensor, int], Tensor] = greedy_coreset,
    oversample: float = 2.0,
) -> tuple[Tensor, Tensor]:
    """Coreset of a set that comes in pieces: its rows [m, d] and their places [m] in the whole sequence.

    `select(rows, m)` names m of the given rows. Each chunk is cut to `oversample` times its share, and what is left is
    selected from once more, so memory stays near one chunk plus oversample * m rows and the covering radius at most the
    sum of both levels' radii. A single chunk gives the plain coreset. Size: `count` rows, or int(ratio * rows).
    """
    if (count is None) == (ratio is None):
        raise ValueError("say the size of the coreset either as count or as ratio")
    kept: list[tuple[Tensor, Tensor]] = []
    total, waiting = 0, None
    for chunk in chunks:
        if waiting is not None:
            kept.append(_share(*waiting, count=count, ratio=ratio, select=select, oversample=oversample))
        waiting = (chunk, torch.arange(total, total + len(chunk), device=chunk.device))
        total += len(chunk)
    if waiting is None:
        raise ValueError("a coreset of no rows is not possible")
    if kept:
        kept.append(_share(*waiting, count=count, ratio=ratio, select=select, oversample=oversample))
        waiting = (torch.cat([rows for rows, _ in kept]), torch.cat([places for _, places in kept]))
    wanted = count if count is not None else int((ratio or 0) * total)
    rows, places = waiting
    if not 0 < wanted <= len(rows):
        raise ValueError(f"a coreset of {wanted} out of {total} patches is not possible")
    chosen = select(rows, wanted)
    return rows[chosen], places[chosen]


def _share(
    rows: Tensor,
    places: Tensor,
    *,
    count: int | None,
    ratio: float | None,
    select: Callable[[Tensor, int], Tensor],
    oversample: float,
) -> tuple[Tensor, Tensor]:
    wanted = count if count is not None else math.ceil((ratio or 0) * len(rows))
    wanted = math.ceil(oversample * wanted)
    if wanted >= len(rows):
        return rows, places
    chosen = select(rows, wanted)
    return rows[chosen], places[chosen]
