"""Built-in crystals: common prototypes, an analytic target, and texts that know something the structure does not.

The target is the sum of two parts of equal weight. One is a function of the structure (electronegativity difference,
bond length, density), the other of how the sample was made, which only the text says. A graph-only model cannot explain
the second part, a text-only model hardly the first: fusion has to do both.
"""

import csv
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from anomaly_lib.systems.crystal.data.dataset import CrystalRow, CrystalTable
from anomaly_lib.systems.crystal.data.structure import Crystal, make_crystal, write_cif
from anomaly_lib.systems.crystal.data.text import reduced_formula

# element: (radius in Angstrom, Pauling electronegativity)
CATIONS = {
    "Li": (0.9, 0.98), "Na": (1.16, 0.93), "K": (1.52, 0.82), "Mg": (0.86, 1.31), "Ca": (1.14, 1.0), "Sr": (1.32, 0.95),
    "Ba": (1.49, 0.89), "Ti": (0.8, 1.54), "V": (0.78, 1.63), "Mn": (0.83, 1.55), "Fe": (0.78, 1.83),
    "Ni": (0.83, 1.91), "Zn": (0.88, 1.65), "Ag": (1.29, 1.93), "Cd": (1.09, 1.69), "La": (1.17, 1.1),
}  # fmt: skip
ANIONS = {
    "O": (1.26, 3.44), "S": (1.70, 2.58), "Se": (1.84, 2.55), "Te": (2.07, 2.1), "F": (1.19, 3.98), "Cl": (1.67, 3.16),
    "Br": (1.82, 2.96), "I": (2.06, 2.66), "N": (1.32, 3.04), "C": (1.2, 2.55),
}  # fmt: skip
# How a sample was made and what that adds to its target. Nothing of it can be read from the structure.
TREATMENTS = {
    "slowly cooled in the furnace": -1.0,
    "annealed under argon": -0.3,
    "quenched in water": 0.4,
    "pressed at 5 GPa": 1.0,
}
DEFECTS = {"a low": -0.6, "a moderate": 0.0, "a high": 0.6}
COUNT = 320
PROPERTIES = ("formation_energy_peratom", "bulk_modulus_kv", "hse_bandgap-2")
_FCC = [[0.0, 0.5, 0.5], [0.5, 0.0, 0.5], [0.5, 0.5, 0.0]]
_CUBE = [[1.0, 0, 0], [0, 1.0, 0], [0, 0, 1.0]]


@dataclass(frozen=True)
class _Prototype:
    """Cell and sites for a bond length of 1; "M" is the cation, "X" the anion."""

    cell: list[list[float]]
    edge: float  # cell edge in bond lengths
    sites: list[tuple[str, tuple[float, float, float]]]


_PROTOTYPES = {
    "rock salt": _Prototype(_FCC, 2.0, [("M", (0, 0, 0)), ("X", (0.5, 0.5, 0.5))]),
    "cesium chloride": _Prototype(_CUBE, 2 / 3**0.5, [("M", (0, 0, 0)), ("X", (0.5, 0.5, 0.5))]),
    "zinc blende": _Prototype(_FCC, 4 / 3**0.5, [("M", (0, 0, 0)), ("X", (0.25, 0.25, 0.25))]),
    "fluorite": _Prototype(_FCC, 4 / 3**0.5, [("M", (0, 0, 0)), ("X", (0.25, 0.25, 0.25)), ("X", (0.75, 0.75, 0.75))]),
    "antifluorite": _Prototype(
        _FCC, 4 / 3**0.5, [("M", (0.25, 0.25, 0.25)), ("M", (0.75, 0.75, 0.75)), ("X", (0, 0, 0))]
    ),
}


def _crystal(rng: np.random.Generator, name: str) -> tuple[Crystal, str, float]:
    """A strained prototype, what it is called, and the structural part of the target (about unit variance)."""
    prototype_name = str(rng.choice(list(_PROTOTYPES)))
    prototype = _PROTOTYPES[prototype_name]
    cation, anion = str(rng.choice(list(CATIONS))), str(rng.choice(list(ANIONS)))
    bond = (CATIONS[cation][0] + ANIONS[anion][0]) * float(rng.uniform(0.94, 1.06))
    strain = np.eye(3) + np.diag(rng.normal(0, 0.015, 3))
    lattice = np.array(prototype.cell) * prototype.edge * bond @ strain
    elements = [cation if site == "M" else anion for site, _ in prototype.sites]
    crystal = make_crystal(lattice, [position for _, position in prototype.sites], elements, name=name)
    polarity = ANIONS[anion][1] - CATIONS[cation][1]  # 0.2 to 3.2
    structural = -1.1 * (polarity - 1.5) + 1.6 * (bond - 2.7) + 0.3 * np.cos(np.pi * crystal.volume / 40)
    return crystal, prototype_name, float(structural)


def demo_table(*, count: int = COUNT, seed: int = 0, prop: str = PROPERTIES[0]) -> CrystalTable:
    """The demo data set in memory."""
    scale, offset = {"bulk_modulus_kv": (40.0, 120.0), "hse_bandgap-2": (0.8, 3.0)}.get(prop, (1.0, -1.0))
    rng = np.random.default_rng([seed, 20])
    rows = []
    for index in range(count):
        crystal, prototype, structural = _crystal(rng, f"demo-{index:04d}")
        treatment, defects = str(rng.choice(list(TREATMENTS))), str(rng.choice(list(DEFECTS)))
        value = structural + TREATMENTS[treatment] + DEFECTS[defects] + float(rng.normal(0, 0.05))
        text = (
            f"The compound is {prototype} structured. The sample was {treatment} and has {defects} concentration of "
            f"vacancies."
        )
        rows.append(CrystalRow(crystal.name, offset + scale * value, text, crystal))
    return CrystalTable(rows)


def write_crystal_demo(folder: Path, *, count: int = COUNT, seed: int = 0) -> None:
    """The demo data set as files: <folder>/jarvis/<property>/cif/*.cif and description.csv, three properties."""
    for prop in PROPERTIES:
        base = Path(folder) / "jarvis" / prop
        (base / "cif").mkdir(parents=True, exist_ok=True)
        rows = demo_table(count=count, seed=seed, prop=prop).rows
        with open(base / "description.csv", "w", newline="", encoding="utf-8") as stream:
            writer = csv.writer(stream)
            writer.writerow(["Id", "Composition", "prop", "Description", "File_Name"])
            for row in rows:
                assert isinstance(row.source, Crystal)
                write_cif(base / "cif" / f"{row.id}.cif", row.source)
                formula = reduced_formula(row.source.symbols)
                writer.writerow([row.id, formula, f"{row.target:.6f}", row.text, f"{row.id}.cif"])
