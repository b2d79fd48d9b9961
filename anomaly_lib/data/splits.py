"""Which k normal images a few-shot run may see: by seed, by published position lists, or by file stem."""

import random
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from anomaly_lib.data.base import Item
from anomaly_lib.errors import UserError

# PromptAD's `seeds_mvtec` / `seeds_visa` lists: positions in the (here: sorted) train/good listing, for k = 1, 2, 4.
_CABLE_LIKE = {1: (131,), 2: (101, 48), 4: (29, 45, 192, 218)}
_BOTTLE_LIKE = {1: (131,), 2: (101, 48), 4: (29, 45, 192, 127)}
_CARPET_LIKE = {1: (263,), 2: (203, 97), 4: (58, 90, 255, 154)}
_CANDLE_LIKE = {1: (266,), 2: (894, 195), 4: (315, 290, 591, 157)}
_CASHEW_LIKE = {1: (133,), 2: (447, 97), 4: (157, 145, 295, 78)}
PROMPTAD_SHOTS: dict[str, dict[int, tuple[int, ...]]] = {
    **dict.fromkeys(("cable", "capsule", "leather", "metal_nut", "tile", "wood", "zipper"), _CABLE_LIKE),
    **dict.fromkeys(("bottle", "transistor"), _BOTTLE_LIKE),
    **dict.fromkeys(("carpet", "grid", "pill", "screw"), _CARPET_LIKE),
    "hazelnut": {1: (263,), 2: (203, 97), 4: (58, 90, 384, 255)},
    "toothbrush": {1: (32,), 2: (25, 12), 4: (7, 11, 48, 54)},
    **dict.fromkeys(("candle", "macaroni1", "macaroni2", "pcb1", "pcb2", "pcb3", "pcb4"), _CANDLE_LIKE),
    "capsules": {1: (266,), 2: (195, 388), 4: (315, 290, 157, 271)},
    **dict.fromkeys(("cashew", "chewinggum", "fryum", "pipe_fryum"), _CASHEW_LIKE),
}


@dataclass(frozen=True, eq=False)
class KShot:
    """The chosen support images and how they were chosen; `describe()` goes into the run."""

    items: list[Item]
    how: str

    def describe(self) -> dict[str, Any]:
        return {"k": len(self.items), "how": self.how, "paths": [item.path.as_posix() for item in self.items]}


def k_shot(
    train: Sequence[Item], k: int, *, seed: int = 111, shots: Path | str | None = None, experiment: int = 0
) -> KShot:
    """Choose k normal training images of ONE class.

    shots: None draws by seed (the order of the listing is irrelevant: it is sorted first); `promptad` takes the
    published positions; a file, or a folder with `<class>/selected_samples_per_run.txt`, is read by `read_shot_list`.
    """
    normal = sorted((item for item in train if item.label == 0), key=lambda item: item.path.as_posix())
    names = sorted({item.class_name for item in normal})
    if len(names) != 1:
        raise UserError(f"k-shot selection needs the images of one class, got {', '.join(names) or 'none'}")
    if not 1 <= k <= len(normal):
        raise UserError(f"shot={k}: {names[0]} has {len(normal)} normal training images; use 1 to {len(normal)}")
    if shots is None:
        # random.Random.sample is stable across platforms and Python versions >= 3.
        return KShot(
            sorted(random.Random(seed).sample(normal, k), key=lambda item: item.path.as_posix()), f"seed {seed}"
        )
    if str(shots) == "promptad":
        table = PROMPTAD_SHOTS.get(names[0], {})
        if k not in table:
            raise UserError(
                f"shots=promptad: no published list for {names[0]} with k={k}; leave shots= out to draw by seed"
            )
        return KShot([_at(normal, position, "promptad") for position in table[k]], "promptad positions")
    path = Path(shots)
    path = path / names[0] / "selected_samples_per_run.txt" if path.is_dir() else path
    return KShot(_from_list(normal, path, k, experiment), f"{path.name} {names[0]} k={k} experiment={experiment}")


def read_shot_list(path: Path) -> tuple[dict[int, list[str]], dict[tuple[int, int], list[str]]]:
    """Both published formats: `#4: 029 045 192 218` (k: positions) and `0-4: stem stem ...` (experiment-k: stems)."""
    if not path.is_file():
        raise UserError(f"shots={path}: no such list")
    positions: dict[int, list[str]] = {}
    stems: dict[tuple[int, int], list[str]] = {}
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
        if not line.strip():
            continue
        match = re.fullmatch(r"\s*(?:#(\d+)|(\d+)-(\d+))\s*:\s*(.*)", line)
        if match is None:
            raise UserError(f"{path}:{number}: expected '#k: positions' or 'experiment-k: stems', got {line.strip()!r}")
        values = match[4].split()
        if match[1]:
            positions[int(match[1])] = values
        else:
            stems[int(match[2]), int(match[3])] = values
    return positions, stems


def _from_list(normal: list[Item], path: Path, k: int, experiment: int) -> list[Item]:
    positions, stems = read_shot_list(path)
    if k in positions:
        if not all(value.isdigit() for value in positions[k]):
            raise UserError(f"{path}: the line #{k} must hold positions (numbers)")
        chosen = [_at(normal, int(value), str(path)) for value in positions[k]]
    elif (experiment, k) in stems:
        by_stem = {item.path.stem: item for item in normal}
        missing = [stem for stem in stems[experiment, k] if stem not in by_stem]
        if missing:
            raise UserError(f"{path}: no training image named {missing[0]!r} in {normal[0].path.parent}")
        chosen = [by_stem[stem] for stem in stems[experiment, k]]
    else:
        known = [f"k={n}" for n in positions] + [f"experiment {e} k={n}" for e, n in stems]
        raise UserError(f"{path}: no line for k={k} (experiment {experiment}); it has {', '.join(known) or 'none'}")
    if len({item.path for item in chosen}) != k:
        raise UserError(
            f"{path}: the line for k={k} names {len(chosen)} images ({len({i.path for i in chosen})} different)"
        )
    return chosen


def _at(normal: list[Item], position: int, source: str) -> Item:
    if position >= len(normal):
        raise UserError(
            f"shots={source}: position {position}, but {normal[0].class_name} has {len(normal)} training images"
        )
    return normal[position]
