"""Crystals and the files they come in: CIF, POSCAR, extxyz (through ASE) and JARVIS JSON."""

import gzip
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np

from anomaly_lib.errors import UserError, reason_of
from anomaly_lib.files import check_file, read_json
from anomaly_lib.models.crystal.elements import SYMBOLS, atomic_number, clip_atomic_numbers

_ASE_FORMATS = {".cif": "cif", ".vasp": "vasp", ".poscar": "vasp", ".extxyz": "extxyz", ".xyz": "extxyz"}
READ_SUFFIXES = (*_ASE_FORMATS, ".json")
LONGEST = 1e4  # Angstrom from one end of a cell to the other


@dataclass(frozen=True)
class Crystal:
    """A periodic cell. Rows of ``lattice`` are the cell vectors in Angstrom; fractional coordinates are not wrapped."""

    lattice: np.ndarray  # [3, 3] float64
    frac_coords: np.ndarray  # [A, 3] float64
    numbers: np.ndarray  # [A] int64
    name: str = ""

    def __post_init__(self) -> None:
        where = f"{self.name or 'crystal'}: "
        if self.lattice.shape != (3, 3) or not np.isfinite(self.lattice).all():
            raise UserError(f"{where}the lattice must be 3x3 finite numbers")
        if len(self.numbers) == 0:
            raise UserError(f"{where}has no atoms")
        if self.frac_coords.shape != (len(self.numbers), 3) or not np.isfinite(self.frac_coords).all():
            shape = "x".join(map(str, self.frac_coords.shape))
            raise UserError(f"{where}needs three finite coordinates for each of {len(self.numbers)} atoms, has {shape}")
        if max(np.abs(self.lattice).max(), np.abs(self.frac_coords @ self.lattice).max()) > LONGEST:
            raise UserError(f"{where}reaches farther than {LONGEST:g} Angstrom; is another unit meant?")
        if self.volume < 1e-3:
            raise UserError(f"{where}the cell vectors do not span a volume")
        if self.numbers.min() < 1:
            raise UserError(f"{where}an atom is of no element")

    @property
    def volume(self) -> float:
        """Cell volume in cubic Angstrom."""
        return float(abs(np.linalg.det(self.lattice)))

    @property
    def symbols(self) -> list[str]:
        """Element symbol of each atom."""
        return [SYMBOLS[z - 1] for z in clip_atomic_numbers(self.numbers)]


def make_crystal(lattice: Any, frac_coords: Any, elements: list[str], name: str = "") -> Crystal:
    """A crystal from plain lists and element symbols."""
    try:
        numbers = np.array([atomic_number(symbol) for symbol in elements], dtype=np.int64)
    except UserError as error:
        raise UserError(f"{name or 'crystal'}: {error}") from None
    try:
        cell, places = (np.asarray(values, dtype=np.float64) for values in (lattice, frac_coords))
    except (TypeError, ValueError, OverflowError) as error:
        raise UserError(f"{name or 'crystal'}: lattice and coordinates must be numbers ({reason_of(error)})") from None
    return Crystal(lattice=cell, frac_coords=places, numbers=numbers, name=name)


def read_crystal(path: Path) -> Crystal:
    """One structure from one file; the format follows from the suffix (POSCAR files may have none)."""
    path = Path(path)
    check_file(path, "structure file")
    if path.suffix.lower() == ".json":
        return _read_json(path)
    if path.suffix.lower() in _ASE_FORMATS:
        return _read_with_ase(path, _ASE_FORMATS[path.suffix.lower()])
    if path.name.upper().startswith(("POSCAR", "CONTCAR")):
        return _read_with_ase(path, "vasp")
    raise UserError(f"{path}: unknown structure format (known: {', '.join(READ_SUFFIXES)} and POSCAR*)")


def _read_json(path: Path) -> Crystal:
    record = read_json(path)
    if not isinstance(record, dict):
        raise UserError(f"{path}: not a JARVIS structure (expected one object with lattice, coordinates and elements)")
    return crystal_from_record(record, name=str(path))


def _read_with_ase(path: Path, file_format: str) -> Crystal:
    import ase.io

    try:
        atoms = cast(Any, ase.io.read(path, index=0, format=file_format, do_not_split_by_at_sign=True))
        places = atoms.get_scaled_positions(wrap=False) if all(atoms.pbc) else None
    except Exception as error:  # noqa: BLE001  (parsers of damaged files raise many kinds)
        reason = f"{type(error).__name__}: {reason_of(error)}"
        raise UserError(f"{path}: not a readable {file_format} file ({reason})") from None
    if places is None:
        raise UserError(f"{path}: no periodic cell in all three directions")
    for site, species in (atoms.info.get("occupancy") or {}).items():
        if len(species) > 1 or any(abs(float(share) - 1.0) > 1e-3 for share in species.values()):
            raise UserError(
                f"{path}: site {site} is partially occupied {species}; use an ordered cell of this structure"
            )
    return Crystal(
        lattice=np.asarray(atoms.cell, dtype=np.float64),
        frac_coords=places,
        numbers=np.asarray(atoms.numbers, dtype=np.int64),
        name=str(path),
    )


def crystal_from_record(record: dict[str, Any], name: str = "") -> Crystal:
    """A crystal from JARVIS JSON: ``lattice|lattice_mat``, ``frac_coords|coords`` (+ ``cartesian``), ``elements``."""
    record = record.get("atoms", record)
    try:
        lattice = np.asarray(record["lattice_mat"] if "lattice_mat" in record else record["lattice"], dtype=np.float64)
        coords = np.asarray(record["coords"] if "coords" in record else record["frac_coords"], dtype=np.float64)
        elements = [element.strip() for element in record["elements"]]
        if record.get("cartesian", False):
            coords = coords @ np.linalg.inv(lattice)
    except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as error:  # also of a singular lattice
        reason = f"{type(error).__name__}: {reason_of(error)}"
        raise UserError(f"{name or 'JSON record'}: not a JARVIS structure ({reason})") from None
    return make_crystal(lattice, coords, elements, name=name or str(record.get("id", "")))


def read_jsonl(path: Path) -> list[dict[str, Any]]:
    """Rows of a .jsonl or .jsonl.gz file."""
    opener = gzip.open if path.suffix == ".gz" else open
    with opener(path, "rt", encoding="utf-8") as lines:
        return [json.loads(line) for line in lines if line.strip()]


def write_cif(path: Path, crystal: Crystal) -> None:
    """A plain P1 CIF with lattice parameters, as pymatgen and VESTA read it."""
    lengths = np.linalg.norm(crystal.lattice, axis=1)
    unit = crystal.lattice / lengths[:, None]
    angles = [float(np.degrees(np.arccos(np.clip(unit[i] @ unit[j], -1, 1)))) for i, j in ((1, 2), (0, 2), (0, 1))]
    lines = [
        f"data_{Path(crystal.name).stem.replace(' ', '_') or 'crystal'}",
        "_symmetry_space_group_name_H-M 'P 1'",
        "_symmetry_Int_Tables_number 1",
    ]
    lines += [f"_cell_length_{axis} {length:.8f}" for axis, length in zip("abc", lengths, strict=True)]
    lines += [f"_cell_angle_{axis} {angle:.8f}" for axis, angle in zip(("alpha", "beta", "gamma"), angles, strict=True)]
    lines += [
        "loop_",
        " _symmetry_equiv_pos_as_xyz",
        " 'x, y, z'",
        "loop_",
        " _atom_site_type_symbol",
        " _atom_site_label",
    ]
    lines += [f" _atom_site_fract_{axis}" for axis in "xyz"] + [" _atom_site_occupancy"]
    for index, (symbol, position) in enumerate(zip(crystal.symbols, crystal.frac_coords, strict=True)):
        lines.append(f" {symbol} {symbol}{index} " + " ".join(f"{x:.8f}" for x in position) + " 1")
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
