"""The folder layouts of the published program: CIF files beside a description.csv, one folder a property."""

import math
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

from anomaly_lib.config import configure
from anomaly_lib.errors import UserError
from anomaly_lib.files import check_name, csv_rows, read_json
from anomaly_lib.systems.crystal.data.settings import DATASETS, SplitSettings, property_name
from anomaly_lib.systems.crystal.data.store import Source

_MP = {  # property: (folder, where the CIFs are, csv, target field, transform)
    "formation_energy": ("mp_2018_new", ".", "mat_text.csv", 2, None),
    "band_gap": ("mp_2018_new", ".", "mat_text.csv", 3, None),
    "bulk": ("mp_2018_small", "cif", "description.csv", 3, math.log10),
    "shear": ("mp_2018_small", "cif", "description.csv", 2, math.log10),
}  # fmt: skip
_MP |= {"bulk_modulus": _MP["bulk"], "shear_modulus": _MP["shear"], "formation_energy_peratom": _MP["formation_energy"]}


@dataclass(frozen=True)
class CrystalRow:
    """One crystal of a data set: where its structure is, what it is to predict, what is written about it."""

    id: str
    target: float
    text: str
    source: Source


@dataclass
class CrystalTable:
    """The rows of a data set and what was left out of it."""

    rows: list[CrystalRow]
    folder: Path | None = None
    without_target: list[str] = field(default_factory=list)
    without_structure: list[str] = field(default_factory=list)
    duplicates: list[str] = field(default_factory=list)

    def report(self) -> str:
        """One line a person wants to see before training."""
        parts = [f"{len(self.rows)} crystals"]
        for count, what in (
            (len(self.without_target), "rows without a target left out"),
            (len(self.without_structure), "rows without a structure file left out"),
            (len(self.duplicates), "repeated ids left out"),
        ):
            parts += [f"{count} {what}"] if count else []
        return ", ".join(parts)


@dataclass(frozen=True)
class _Layout:
    csv: Path
    structures: Path
    columns: int
    target: int
    text: int
    transform: Callable[[float], float] | None = None


def _layout(root: Path, dataset: str, prop: str) -> _Layout:
    if dataset == "mp":
        if prop not in _MP:
            raise UserError(f"property={prop}: the mp layout has {', '.join(sorted(_MP))}")
        folder, structures, table, target, transform = _MP[prop]
        base = root / folder
        return _Layout(base / table, base / structures, 6, target, 4, transform)
    if dataset == "toy":
        return _Layout(root / "toy" / "description.csv", root / "toy" / "cif", 5, 2, 3)
    if dataset not in DATASETS:
        raise UserError(f"dataset={dataset}: there are {', '.join(DATASETS)}")
    base = root / dataset / (property_name(prop) if dataset == "jarvis" else prop)
    if not base.is_dir():
        known = sorted(p.name for p in base.parent.iterdir() if p.is_dir()) if base.parent.is_dir() else []
        hint = f"it has {', '.join(known)}" if known else f"expected {dataset}/<property>/ below data_path={root}"
        raise UserError(f"property={prop}: no folder {base}; {hint}")
    if dataset == "class":
        return _Layout(base / "description.csv", base / "cif", 3, 1, 2)
    return _Layout(base / "description.csv", base / "cif", 5, 2, 3)


def _target(text: str, layout: _Layout, where: str) -> float:
    """The target of a row; NaN when it is missing, or not positive where a logarithm is to be taken."""
    try:
        value = float(text)
    except ValueError:
        if text.strip().lower() not in ("", "na", "nan", "none", "null"):
            raise UserError(f"{where}: target {text!r} is not a number") from None
        return math.nan
    if layout.transform is not None:
        return layout.transform(value) if value > 0 else math.nan
    return value if math.isfinite(value) else math.nan


def structure_file(folder: Path, name: str) -> Path | None:
    """The structure called `name` in `folder`, of any format; None if there is none."""
    for suffix in (".cif", ".vasp", ".extxyz", ".json"):
        if (folder / f"{name}{suffix}").is_file():
            return folder / f"{name}{suffix}"
    return None


def read_table(root: Path, dataset: str, prop: str, *, on_error: str = "fail") -> CrystalTable:
    """All usable rows below `root`. Missing structures stop here unless `on_error` is "skip"."""
    check_name(root / prop)
    layout = _layout(root, dataset, prop)
    if not layout.csv.exists():
        raise UserError(f"{layout.csv}: no such file; it must list id, target and description of every crystal")
    table = CrystalTable([], folder=layout.csv.parent)
    seen: set[str] = set()
    for line, fields_ in islice(csv_rows(layout.csv), 1, None):
        where = f"{layout.csv}, line {line}"
        if len(fields_) != layout.columns:
            raise UserError(f"{where}: expected {layout.columns} fields, found {len(fields_)} (quote the text)")
        name, target = fields_[0].strip(), _target(fields_[layout.target], layout, where)
        path = structure_file(layout.structures, name)
        if math.isnan(target):
            table.without_target.append(name)
        elif name in seen:
            table.duplicates.append(name)
        elif path is None:
            table.without_structure.append(name)
        else:
            seen.add(name)
            table.rows.append(CrystalRow(name, target, fields_[layout.text], path))
    missing = table.without_structure
    if missing and on_error != "skip":
        raise UserError(
            f"{layout.structures}: {len(missing)} structure files of {layout.csv.name} are missing "
            f"(first: {', '.join(missing[:5])}); add them or use on_error=skip"
        )
    if not table.rows:
        raise UserError(f"{layout.csv}: no row with a target and a structure file")
    return table


@dataclass(frozen=True)
class Split:
    """Positions of the rows of each part."""

    train: list[int]
    val: list[int]
    test: list[int]


def random_split(size: int, settings: SplitSettings | None = None, **options: Any) -> Split:
    """The published split: positions shuffled in place; train from the front, test from the back, val before test.

    ``random_split(900, settings)`` or ``random_split(900, train_ratio=0.5, ...)``, the options of `SplitSettings`.
    """
    s = configure(SplitSettings, settings, options)
    train, val, test = (
        int(ratio * size) if count is None else count
        for ratio, count in ((s.train_ratio, s.n_train), (s.val_ratio, s.n_val), (s.test_ratio, s.n_test))
    )
    if min(train, val, test) < 1 or train + val + test > size:
        raise UserError(
            f"{size} crystals cannot be split into {train} train, {val} validation and {test} test; "
            "change n_train=, n_val=, n_test= or the ratios"
        )
    order = list(range(size))
    random.Random(s.split_seed).shuffle(order)
    return Split(order[:train], order[size - val - test : size - test], order[size - test :])


def split_from_file(path: Path, rows: Sequence[CrystalRow]) -> Split:
    """A split given as {"train": [ids], "val": [...], "test": [...]}; ids that were left out are ignored."""
    parts = read_json(path)
    try:
        wanted = [set(map(str, parts[name])) for name in ("train", "val", "test")]
    except (KeyError, TypeError) as error:
        raise UserError(f"{path}: not a split file with train, val and test lists ({error})") from None
    found = [[i for i, row in enumerate(rows) if row.id in ids] for ids in wanted]
    if not all(found):
        raise UserError(f"{path}: a part of this split has no crystal in the data")
    if (wanted[0] & wanted[1]) | (wanted[0] & wanted[2]) | (wanted[1] & wanted[2]):
        raise UserError(f"{path}: an id stands in two parts of the split")
    return Split(*found)
