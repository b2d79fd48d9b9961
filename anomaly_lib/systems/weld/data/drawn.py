"""Further training runs: good ones with a defect drawn into their photos, labelled as what it imitates."""

from collections.abc import Sequence
from dataclasses import replace
from functools import partial

import numpy as np

from anomaly_lib.features import file_key
from anomaly_lib.systems.weld.data.defects import damage_photo
from anomaly_lib.systems.weld.data.manifest import RawRun, WeldRun
from anomaly_lib.systems.weld.data.media import photo_bytes
from anomaly_lib.systems.weld.data.runs import load_raw
from anomaly_lib.systems.weld.options import WeldSettings

IMITATED = {"crack": "crater_cracks", "pits": "porosity", "spatter": "spatter", "hole": "burnthrough"}
"""What is drawn -> the class that looks like it; of a scratch and a rubbed-off bead there is none."""


def drawn_defects(good: Sequence[WeldRun], settings: WeldSettings, *, each: int, seed: int) -> list[WeldRun]:
    """`each` runs of every kind in `IMITATED`: the process of a random good run, its photos damaged."""
    rng, out = np.random.default_rng(seed), []
    for kind, class_name in IMITATED.items():
        for number in range(each):
            source, own = good[int(rng.integers(len(good)))], int(rng.integers(2**31))
            files = {} if source.render is not None else {"files": file_key(source.folder)}
            out.append(
                replace(
                    source,
                    run_id=f"{source.run_id}+{kind}{number}",
                    class_name=class_name,
                    facts={**source.facts, **files, "drawn": f"{kind} {own}"},  # whatever decides its pixels
                    render=partial(_damaged, source, settings, kind, own),
                )
            )
    return out


def _damaged(source: WeldRun, settings: WeldSettings, kind: str, seed: int, parts: Sequence[str]) -> RawRun:
    """The recordings of `source` with a defect in each photo, which is first brought to the size the model sees."""
    raw, rng = load_raw(source, settings, parts), np.random.default_rng(seed)
    side = max(settings.photo_size)
    pairs = [damage_photo(rng, photo_bytes(photo, (side, side)), kind) for photo in raw.photos]
    return replace(raw, photos=tuple(photo for photo, _ in pairs), masks=tuple(mask for _, mask in pairs))
