"""From a crystal to its k-nearest-neighbour multigraph, reproducibly.

The edge set of the published code depends on rounding: the shell of the 12th neighbour is cut with an exact ``<=``.
Here a whole shell is kept when it lies within ``graph_tolerance`` of the k-th distance, so a rotated, shifted,
re-ordered or enlarged cell gives the same graph.

Neighbours come from vesin: BSD-3, no dependencies, several thousand cells a second. matscipy is as fast but LGPL and
needs ASE; ASE's own list and jarvis-tools are more than ten times slower (docs/manual/crystal.md: the measurement).
"""

from dataclasses import dataclass
from typing import Any

import numpy as np

from anomaly_lib.config import configure
from anomaly_lib.errors import UserError
from anomaly_lib.models.crystal.elements import clip_atomic_numbers
from anomaly_lib.systems.crystal.data.settings import GraphSettings
from anomaly_lib.systems.crystal.data.structure import Crystal


@dataclass(frozen=True)
class CrystalGraph:
    """A directed multigraph, symmetric by construction; edges sorted by target, then source."""

    numbers: np.ndarray  # [N] uint8 atomic numbers
    source: np.ndarray  # [E] int32
    target: np.ndarray  # [E] int32
    vectors: np.ndarray  # [E, 3] float32, from source to target in Angstrom


class GraphBuilder:
    """Turns crystals into graphs: ``GraphBuilder(settings)(crystal)``, or options of `GraphSettings` instead of one.

    Keeps its neighbour lists because creating one costs more than a small cell.
    """

    MIN_DISTANCE = 0.15  # Angstrom: below this two sites are one atom

    def __init__(self, settings: GraphSettings | None = None, **options: Any) -> None:
        self.settings = configure(GraphSettings, settings, options)
        self._lists: dict[float, Any] = {}

    def __call__(self, crystal: Crystal) -> CrystalGraph:
        first, second, image = self._nearest(crystal)
        if np.abs(image).max() >= 500:  # `_bonds` numbers them by thousands
            raise UserError(f"{crystal.name or 'crystal'}: a bond crosses 500 cells; reduce this very oblique cell")
        first, second, image = self._bonds(first, second, image)
        frac = crystal.frac_coords
        vectors = (frac[second] + image - frac[first]) @ crystal.lattice  # [bonds, 3]
        source = np.concatenate([first, second])
        target = np.concatenate([second, first])
        vectors = np.concatenate([vectors, -vectors])
        order = np.lexsort((source, target))
        return CrystalGraph(
            numbers=clip_atomic_numbers(crystal.numbers).astype(np.uint8),
            source=source[order].astype(np.int32),
            target=target[order].astype(np.int32),
            vectors=vectors[order].astype(np.float32),
        )

    def _pairs(self, crystal: Crystal, positions: np.ndarray, radius: float) -> tuple[np.ndarray, ...]:
        if radius not in self._lists:
            import vesin

            self._lists[radius] = vesin.NeighborList(cutoff=radius, full_list=True)
        found = self._lists[radius].compute(points=positions, box=crystal.lattice, periodic=True, quantities="ijSd")
        if found[3].size and found[3].min() <= self.MIN_DISTANCE:
            first, second = (int(part[found[3].argmin()]) for part in found[:2])
            raise UserError(
                f"{crystal.name or 'crystal'}: atoms {first} and {second} are {found[3].min():.2g} Angstrom apart: one "
                "atom that is listed twice, or another unit?"
            )
        return tuple(map(np.asarray, found))

    def _nearest(self, crystal: Crystal) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """All (i, j, image) up to the whole shell of the k-th neighbour of i."""
        k, atoms = self.settings.max_neighbors, len(crystal.numbers)
        positions = crystal.frac_coords @ crystal.lattice
        # The radius only has to be large enough (it cannot change the answer): start where 2 k neighbours are expected.
        expected = (1.5 * k * crystal.volume / (np.pi * atoms)) ** (1 / 3)
        radius = float(np.ceil(2 * expected) / 2)  # half-Angstrom steps, so that neighbour lists are re-used
        while True:
            i, j, image, distance = self._pairs(crystal, positions, radius)
            counts = np.bincount(i, minlength=atoms)
            if counts.min() >= k:
                order = np.lexsort((distance, i))
                i, j, image, distance = i[order], j[order], image[order], distance[order]
                kth = distance[np.cumsum(counts) - counts + k - 1] + self.settings.graph_tolerance  # [A]
                if kth.max() < radius:  # otherwise a member of the last shell may lie outside
                    keep = distance <= kth[i]
                    return i[keep].astype(np.int64), j[keep].astype(np.int64), image[keep].astype(np.int64)
            radius = float(np.ceil(2 * 1.3 * radius) / 2)
            if radius > 1e3:
                raise UserError(
                    f"{crystal.name or 'crystal'}: an atom has fewer than {k} neighbours within 1000 Angstrom"
                )

    def _bonds(self, i: np.ndarray, j: np.ndarray, image: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Each bond once, smaller index first; the sign of a self-image is settled unless both signs are wanted."""
        if not self.settings.use_canonize:
            return i, j, image
        lexical = image[:, 0] * 10**6 + image[:, 1] * 10**3 + image[:, 2]
        swap = i > j
        if self.settings.periodic_images == "exact":
            swap |= (i == j) & (lexical < 0)
        first, second = np.where(swap, j, i), np.where(swap, i, j)
        image = np.where(swap[:, None], -image, image)
        lexical = np.where(swap, -lexical, lexical)
        atoms = int(second.max()) + 1
        key = (first * atoms + second) * 2 * 10**9 + lexical
        _, one = np.unique(key, return_index=True)
        return first[one], second[one], image[one]
