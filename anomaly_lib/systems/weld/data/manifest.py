"""The Intel robotic welding layout: a manifest of runs, each with a video, a sound, a sensor table and five photos.

<root>/manifest.csv   CATEGORY, SUBDIRS, SPLIT, ...      <root>/<SUBDIRS>/{*.avi, *.flac, *.csv, images/*.jpg}
"""

import random
from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from anomaly_lib.errors import UserError
from anomaly_lib.files import check_name, csv_records
from anomaly_lib.systems.weld.data.folder import find_recordings

CLASSES = (
    "good", "excessive_convexity", "undercut", "lack_of_fusion", "porosity_w_excessive_penetration", "porosity",
    "spatter", "burnthrough", "excessive_penetration", "crater_cracks", "warping", "overlap",
)  # fmt: skip
MODALITIES = ("video", "images", "audio", "sensors")  # the order of `present`
SYNONYMS = {"good_weld": "good", "burn_through": "burnthrough", "crater_crack": "crater_cracks"}
SPLITS = ("train", "val", "test")


@dataclass(frozen=True, eq=False)
class RawRun:
    """One weld as recorded; None or empty where a modality is missing."""

    video: np.ndarray | None = None  # [T, H, W] uint8 grey
    audio: np.ndarray | None = None  # [samples] float32 at 16 kHz
    sensors: np.ndarray | None = None  # [T, C] float32
    sensors_by_name: bool = True  # its columns were found by their names, not by their positions
    photos: tuple[np.ndarray, ...] = ()  # [H, W, 3] uint8 each
    masks: tuple[np.ndarray, ...] = ()  # [H, W] bool each, demo data only


@dataclass(frozen=True, eq=False)
class WeldRun:
    """One row of the manifest. `render(parts)` makes demo runs without files."""

    run_id: str
    class_name: str
    split: str
    folder: Path
    group: str = ""  # the configuration: plate, joint, date
    facts: dict[str, str] = field(default_factory=dict)  # the row; of a drawn run whatever decides its pixels
    render: Callable[[Sequence[str]], RawRun] | None = None

    @property
    def class_label(self) -> int:
        return CLASSES.index(self.class_name)

    @property
    def label(self) -> int:
        return int(self.class_label != 0)


def class_of(text: str) -> str:
    """``Porosity_w_Excessive_Penetration`` or ``porosity_w-excessive penetration`` -> the name in CLASSES."""
    name = text.strip().lower().replace("-", "_").replace(" ", "_")
    return SYNONYMS.get(name, name)


def read_manifest(root: Path | str, *, seed: int = 42, on_error: str = "fail") -> list[WeldRun]:
    """The runs of `root`, sorted by id.

    Needs manifest.csv (CATEGORY, SUBDIRS, SPLIT) or runs.csv (run_id, label, optional split and configuration); without
    either nothing is guessed from folder names. Runs without a split get one by `assign_splits`, whole configurations
    at a time. Runs whose folder is gone or empty stop here; with `on_error` "skip" they stay among the runs, for the
    reader of the runs to leave them out and list them.
    """
    check_name(root)
    root = Path(root)
    table = next((root / name for name in ("manifest.csv", "runs.csv") if (root / name).is_file()), None)
    if table is None:
        raise UserError(
            f"{root}: no manifest.csv here; write one (python -m anomaly_lib demo --system weld DIR shows how)"
        )
    rows = csv_records(table, called=lambda title: title.strip().lower())
    runs = [_run_of({k: v.strip() for k, v in row.items()}, root, table, line) for line, row in rows]
    _check_names(runs, table)
    lost = [reason for run in runs if (reason := _lost(run))]
    if len(lost) == len(runs):
        raise UserError(f"{table}: none of its {len(runs)} run folders exists under {root} and holds a recording")
    if lost and on_error != "skip":
        raise UserError(f"{table}: {len(lost)} of {len(runs)} runs are not there ({_first(lost)}), {BRING_BACK}")
    blank = [run.run_id for run in runs if not run.split]
    if blank and len(blank) < len(runs):
        raise UserError(f"{table}: {len(blank)} of {len(runs)} runs have no SPLIT ({_first(blank)}); give all or none")
    return sorted(assign_splits(runs, seed=seed) if blank else runs, key=lambda run: run.run_id)


BRING_BACK = "bring them back, or give on_error=skip"


def _lost(run: WeldRun) -> str:
    """Why a run has no recordings; empty where it has some."""
    try:
        find_recordings(run.folder)
    except UserError as error:
        return str(error)
    return ""


def _first(texts: Sequence[str], count: int = 5) -> str:
    return f"{', '.join(texts[:count])}{', ...' if len(texts) > count else ''}"


def _check_names(runs: Sequence[WeldRun], table: Path) -> None:
    """Refuse a run that is listed twice, and two runs of one name: one would be taken for the other."""
    seen: dict[str, WeldRun] = {}
    for run in runs:
        other = seen.setdefault(run.run_id, run)
        if other is run:
            continue
        if other.split != run.split and other.folder == run.folder:
            splits = " and ".join(one.split.upper() or "no split" for one in (other, run))
            raise UserError(f"{table}: run {run.run_id} is listed in {splits}; keep one of the two")
        also = "twice" if other.folder == run.folder else f"for {other.folder} and {run.folder}"
        raise UserError(f"{table}: run {run.run_id} is listed {also}; every run needs a name of its own")


def _run_of(row: dict[str, str], root: Path, table: Path, line: int) -> WeldRun:
    category = class_of(row.get("category") or row.get("label") or "")
    where = row.get("subdirs") or row.get("run_id") or ""
    if category not in CLASSES:
        raise UserError(f"{table}:{line}: unknown category {category!r}; known are {', '.join(CLASSES)}")
    if not Path(where).name:
        raise UserError(f"{table}:{line}: neither SUBDIRS nor run_id names a folder")
    check_name(where, f"{table}:{line}: ")
    folder = root / where
    if not folder.is_dir() and (root / "runs" / where).is_dir():
        folder = root / "runs" / where
    split = row.get("split", "").lower()
    if split and split not in SPLITS:
        raise UserError(f"{table}:{line}: SPLIT must be TRAIN, VAL or TEST, got {split!r}")
    group = row.get("directory") or row.get("configuration") or str(Path(where).parent)
    return WeldRun(Path(where).name, category, split, folder, group, row)


def assign_splits(
    runs: Sequence[WeldRun], *, seed: int = 42, train_ratio: float = 0.6, supervised: bool = False
) -> list[WeldRun]:
    """New splits, whole configurations together; the rest is halved into VAL and TEST per class.

    Unsupervised: only good welds train. Supervised: every class does, in proportion. Runs of one configuration differ
    less than configurations do, so splitting inside one would leak.
    """
    out: list[WeldRun] = []
    for name in sorted({run.class_name for run in runs}):
        groups = defaultdict(list)
        for run in runs:
            if run.class_name == name:
                groups[run.group or run.run_id].append(run)
        keys = sorted(groups)
        random.Random(f"{seed} {name}").shuffle(keys)
        total = sum(map(len, groups.values()))
        wanted = train_ratio * total if supervised or name == "good" else 0.0
        counts: Counter[str] = Counter()
        for key in keys:
            size = len(groups[key])
            if counts["train"] + size / 2 <= wanted:
                split = "train"
            else:
                split = "val" if counts["val"] <= counts["test"] else "test"
            counts[split] += size
            out += [replace(run, split=split) for run in groups[key]]
    return sorted(out, key=lambda run: run.run_id)


def select_runs(runs: Sequence[WeldRun], split: str, *, normal_only: bool = False) -> list[WeldRun]:
    chosen = [run for run in runs if run.split == split and (run.label == 0 or not normal_only)]
    if not chosen:
        kind = "normal runs" if normal_only else "runs"
        raise UserError(f"no {kind} in the {split} split: check the SPLIT and CATEGORY columns of manifest.csv")
    return chosen
