"""All cases, in the same order and with the same numbers whenever they are made."""

from collections.abc import Callable, Iterator

import numpy as np

from tests.fuzz import detectors, lists, pictures, programs, recordings, records, structures, transfer
from tests.fuzz.oracle import Case

SEED = 21
READERS: tuple[Callable[[np.random.Generator], Iterator[Case]], ...] = (
    pictures.images, pictures.masks,
    lists.meta, lists.visa, lists.manifest, lists.layouts,
    recordings.sensors, recordings.audio, recordings.video, recordings.runs,
    structures.files, structures.handed, structures.tables, structures.caches,
    transfer.conditions, transfer.maps, transfer.matlab,
    records.cases,
)  # fmt: skip


def reader_cases() -> list[Case]:
    """What readers are handed; each generator draws from numbers of its own."""
    return [case for index, make in enumerate(READERS) for case in make(np.random.default_rng([SEED, index]))]


def quick_cases() -> list[Case]:
    """What programs and the detectors that train in a second or two are handed."""
    handed = detectors.cases(np.random.default_rng([SEED, 100]), detectors.QUICK)
    return [*programs.cheap(np.random.default_rng([SEED, 101])), *handed]


def long_cases() -> list[Case]:
    """What the other detectors are handed; programs over trained detectors, whole trainings, damaged checkpoints."""
    others = tuple(name for name in detectors.SYSTEMS if name not in detectors.QUICK)
    handed = detectors.cases(np.random.default_rng([SEED, 102]), others)
    again = records.of_systems(np.random.default_rng([SEED, 104]), detectors.QUICK)
    return [*programs.cases(np.random.default_rng([SEED, 103]), detectors.QUICK), *again, *handed]


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
