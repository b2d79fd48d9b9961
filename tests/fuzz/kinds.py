"""All cases, in the same order and with the same numbers whenever they are made."""

from collections.abc import Callable, Iterator

import numpy as np

from tests.fuzz import lists, pictures, recordings, structures, transfer
from tests.fuzz.oracle import Case

SEED = 21
READERS: tuple[Callable[[np.random.Generator], Iterator[Case]], ...] = (
    pictures.images, pictures.masks,
    lists.meta, lists.visa, lists.manifest, lists.layouts,
    recordings.sensors, recordings.audio, recordings.video, recordings.runs,
    structures.files, structures.handed, structures.tables, structures.caches,
    transfer.conditions, transfer.maps, transfer.matlab,
)  # fmt: skip


def reader_cases() -> list[Case]:
    """What readers are handed; each generator draws from numbers of its own."""
    return [case for index, make in enumerate(READERS) for case in make(np.random.default_rng([SEED, index]))]


def share(cases: list[Case], count: int) -> list[Case]:
    """About `count` of the cases: the same part of each (kind, expectation), evenly spaced."""
    strata: dict[tuple[str, str], list[Case]] = {}
    for case in cases:
        strata.setdefault((case.kind, case.expect), []).append(case)
    part = count / len(cases)
    chosen = []
    for some in strata.values():
        number = max(1, round(part * len(some)))
        chosen += [some[place * len(some) // number] for place in range(number)]
    return chosen
