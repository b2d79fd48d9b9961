"""Crystal descriptions: the published text normaliser, a built-in template describer, robocrystallographer."""

import re
from collections import Counter
from functools import cache
from math import gcd
from typing import Any

import numpy as np

from anomaly_lib.errors import UserError
from anomaly_lib.systems.crystal.data.characters import KEPT, REPLACED_BY
from anomaly_lib.systems.crystal.data.graph import CrystalGraph, GraphBuilder
from anomaly_lib.systems.crystal.data.structure import Crystal


@cache
def _bert_normalizer() -> Any:
    try:
        from tokenizers.normalizers import BertNormalizer
    except ImportError as error:
        raise UserError("the text normaliser needs tokenizers: pip install transformers") from error
    return BertNormalizer(lowercase=False, strip_accents=True, clean_text=True, handle_chinese_chars=True)


@cache
def _character_table() -> dict[str, str]:
    table = {character: character for character in map(chr, range(33, 127))} | {c: c for c in KEPT}
    for replacement, characters in REPLACED_BY.items():
        table |= dict.fromkeys(characters, replacement)
    return table


def normalize_text(text: str) -> str:
    """MatSciBERT's two steps per line: BERT clean-up with accents stripped, then one table look-up a character."""
    bert, table = _bert_normalizer(), _character_table()
    lines = (bert.normalize_str(line) for line in text.split("\n"))
    return "\n".join("".join(table.get(character, " ") for character in line) for line in lines)


# Sentence levels of robocrystallographer texts: the whole crystal, its polyhedra, single bonds
LEVELS = ("global", "semi-global", "local")
_LOCAL = re.compile(r"bond length|bond distance|bond angle|tilt angle|shorter|longer|There (?:are|is) .*(?:Å|A) ")
_SEMI_GLOBAL = re.compile(
    r"bonded|coordinat|geometry|octahedr|tetrahedr|polyhedr|cuboctahedr|-sharing|sheet|ribbon|cluster"
)
_GLOBAL = re.compile(r"crystalliz|space group|structured|dimensional|derived")


def keep_levels(text: str, levels: tuple[str, ...]) -> str:
    """Only the sentences of the wanted levels; global and semi-global sentences carry most of the signal."""
    wanted = [sentence for sentence in re.split(r"(?<=[a-zA-Z)\]0-9]\.)\s+", text) if _level(sentence) in levels]
    return " ".join(wanted)


def _level(sentence: str) -> str:
    if _GLOBAL.search(sentence):
        return "global"
    return "local" if _LOCAL.search(sentence) or not _SEMI_GLOBAL.search(sentence) else "semi-global"


def reduced_formula(symbols: list[str]) -> str:
    """Element counts over their greatest common divisor, in order of first appearance: SrTiO3."""
    counts = Counter(symbols)
    divisor = gcd(*counts.values())
    return "".join(f"{symbol}{n // divisor if n > divisor else ''}" for symbol, n in counts.items())


def _lattice_system(crystal: Crystal) -> str:
    lengths = np.linalg.norm(crystal.lattice, axis=1)
    unit = crystal.lattice / lengths[:, None]
    angles = np.degrees(np.arccos(np.clip([unit[1] @ unit[2], unit[0] @ unit[2], unit[0] @ unit[1]], -1, 1)))
    right = int((np.abs(angles - 90) < 0.1).sum())
    equal = len({round(float(length), 2) for length in lengths})
    if right == 3:
        return {1: "cubic", 2: "tetragonal", 3: "orthorhombic"}[equal]
    if right == 2 and equal <= 2 and np.abs(angles - 120).min() < 0.1:
        return "hexagonal"
    if equal == 1 and np.ptp(angles) < 0.1:
        return "rhombohedral"
    return "monoclinic" if right == 2 else "oblique"


def describe(crystal: Crystal, graph: CrystalGraph | None = None) -> str:
    """A plain description made from the structure alone: composition, cell, nearest-neighbour shells."""
    graph = graph if graph is not None else GraphBuilder()(crystal)
    symbols = crystal.symbols
    sentences = [
        f"{reduced_formula(symbols)} crystallizes in a {_lattice_system(crystal)} cell with {len(symbols)} "
        f"atom{'s' if len(symbols) > 1 else ''} and {crystal.volume / len(symbols):.1f} cubic angstroms per atom."
    ]
    length = np.linalg.norm(graph.vectors, axis=1)
    for atom, symbol in enumerate(symbols):
        around = np.flatnonzero(graph.target == atom)
        nearest = length[around].min()
        shell = around[length[around] < 1.1 * nearest]
        names = Counter(symbols[i] for i in graph.source[shell])
        listed = " and ".join(f"{n} {name}" for name, n in sorted(names.items()))
        sentences.append(f"{symbol}({atom + 1}) is bonded to {listed} atoms at {nearest:.2f} A.")
    return " ".join(dict.fromkeys(sentences))


def describe_with_robocrystallographer(crystal: Crystal) -> str:
    """One paragraph by robocrystallographer (1 to 6 seconds a crystal; run it once and keep the CSV)."""
    try:
        from pymatgen.core import Structure
        from robocrys import StructureCondenser, StructureDescriber
    except ImportError as error:
        raise UserError("install robocrystallographer: pip install 'anomaly_lib[describe]'") from error
    structure = Structure(crystal.lattice, crystal.symbols, crystal.frac_coords)
    structure.add_oxidation_state_by_guess()
    condensed = StructureCondenser().condense_structure(structure)
    text = StructureDescriber(describe_oxidation_states=False).describe(condensed)
    return re.sub(r"np\.int64\((-?\d+)\)", r"\1", text)  # numpy 2 leaks its type names into Miller indices
