"""Options of the crystal data: which rows, how they are split, how a structure becomes a graph; imports no torch."""

from dataclasses import asdict, dataclass
from typing import Any, Optional

from anomaly_lib.config import Options, Switch, arg
from anomaly_lib.errors import OptionError

READS_GRAPHS = {"modality": ("both", "graph")}
DATASETS = ("jarvis", "mp", "class", "toy")
ALIASES = {
    "formation_energy": "formation_energy_peratom",
    "fe": "formation_energy_peratom",
    "total_energy": "optb88vdw_total_energy",
    "opt_bandgap": "optb88vdw_bandgap",
    "bandgap_mbj": "mbj_bandgap",
    "bulk_modulus": "bulk_modulus_kv",
    "shear_modulus": "shear_modulus_gv",
}


def property_name(name: str) -> str:
    """The folder name behind an everyday property name; unknown names are used as they are."""
    return ALIASES.get(name, name)


@dataclass
class SplitSettings(Options):
    """How the crystals are split."""

    train_ratio: float = arg(0.8, "share of the crystals to train on", at_least=0, at_most=1)
    val_ratio: float = arg(0.1, "share to validate on", at_least=0, at_most=1)
    test_ratio: float = arg(0.1, "share to test on", at_least=0, at_most=1)
    n_train: Optional[int] = arg(None, "how many to train on; None = by ratio", type=int, at_least=1)
    n_val: Optional[int] = arg(None, "how many to validate on; None = by ratio", type=int, at_least=1)
    n_test: Optional[int] = arg(None, "how many to test on; None = by ratio", type=int, at_least=1)
    split_seed: int = arg(
        123, "seed of the random split (the published program always uses 123)", at_least=0, needs={"split_file": None}
    )

    def check(self) -> None:
        parts = ((self.train_ratio, self.n_train), (self.val_ratio, self.n_val), (self.test_ratio, self.n_test))
        if sum(ratio for ratio, count in parts if count is None) > 1 + 1e-6:
            raise OptionError("train_ratio=, val_ratio= and test_ratio= add up to more than 1")


@dataclass
class GraphSettings(Options):
    """How a crystal becomes a graph. A model is only right on the graphs it was trained on."""

    max_neighbors: int = arg(12, "neighbours of an atom; whole shells are kept", at_least=1, needs=READS_GRAPHS)
    graph_tolerance: float = arg(
        1e-3,
        "Angstrom within which distances are one shell; 0 = decided by rounding, as published",
        at_least=0,
        needs=READS_GRAPHS,
    )
    periodic_images: str = arg(
        "exact",
        "bonds of an atom to its own image: exact (a larger cell gives the same result) or doubled, as published",
        choices=["exact", "doubled"],
        needs=READS_GRAPHS,
    )
    use_canonize: Switch = arg(
        True,
        "a bond found from both ends is one bond; False lists it twice, as older analysis scripts do",
        needs=READS_GRAPHS,
    )

    def graph_options(self) -> dict[str, Any]:
        """What decides the edges, whatever else a derived class holds."""
        return {name: value for name, value in asdict(self).items() if name in GraphSettings.__dataclass_fields__}


PAPER_GRAPHS = {"graph_tolerance": 0.0, "periodic_images": "doubled"}
"""Values of `GraphSettings` that reproduce the published graphs."""
