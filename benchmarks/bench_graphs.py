"""How many crystals a second become neighbour graphs here, against jarvis-tools on the same cells in the same run?

The reference part is what its pipeline does before DGL: `nearest_neighbor_edges` and `build_undirected_edgedata`
(importing them needs a module called dgl, which they do not use; an empty one stands in for it).
Rates are per second of wall clock and per second that this process has a core, which also holds on a busy machine.
    python benchmarks/bench_graphs.py [--crystals FILE.jsonl.gz] [--count 200] [--output graphs.json]
"""

import statistics
import sys
import tempfile
import time
import types
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Optional

import numpy as np
import torch
from harness import BenchmarkArgs, finish, machine, measure

from anomaly_lib.command_line import command
from anomaly_lib.config import arg
from anomaly_lib.models.crystal.graph_batch import batch_graphs
from anomaly_lib.systems.crystal.data.demo import demo_table
from anomaly_lib.systems.crystal.data.graph import CrystalGraph, GraphBuilder
from anomaly_lib.systems.crystal.data.settings import PAPER_GRAPHS, GraphSettings
from anomaly_lib.systems.crystal.data.store import cached_graphs
from anomaly_lib.systems.crystal.data.structure import Crystal, crystal_from_record, read_jsonl


@dataclass
class Args(BenchmarkArgs):
    """Crystal graphs."""

    crystals: Optional[str] = arg(None, "JARVIS JSON lines; None = the built-in demo crystals", type=str)
    count: int = arg(200, "crystals", at_least=1)


TIE_FREE = ("JVASP-10", "JVASP-676", "JVASP-14014", "JVASP-98224")


def reference_edges(crystal: Crystal) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """jarvis-tools: source, target, vectors."""
    from jarvis.core.atoms import Atoms
    from jarvis.core.graphs import build_undirected_edgedata, nearest_neighbor_edges

    atoms = Atoms(lattice_mat=crystal.lattice, coords=crystal.frac_coords, elements=crystal.symbols, cartesian=False)
    edges = nearest_neighbor_edges(atoms=atoms, cutoff=8, max_neighbors=12, id="", use_canonize=True)
    edges = edges[0] if isinstance(edges, tuple) else edges
    source, target, vectors = build_undirected_edgedata(atoms, edges)[:3]
    return np.asarray(source), np.asarray(target), np.asarray(vectors)


Edges = tuple[np.ndarray, np.ndarray, np.ndarray]


def same_edges(one: Edges, other: Edges, tolerance: float = 2e-3) -> bool:
    """The same multiset of directed edges; vectors are compared within `tolerance` Angstrom."""
    if len(one[0]) != len(other[0]):
        return False
    for source, target in set(zip(one[0].tolist(), one[1].tolist(), strict=True)):
        a, b = (edges[2][(edges[0] == source) & (edges[1] == target)] for edges in (one, other))
        if len(a) != len(b):
            return False
        close = np.linalg.norm(a[:, None] - b[None], axis=-1) < tolerance
        if not (close.sum(1) == [(np.linalg.norm(a - row, axis=-1) < tolerance).sum() for row in a]).all():
            return False
    return True


def load(path: str | None, count: int) -> list[Crystal]:
    if path is None:
        return [row.source for row in demo_table(count=count).rows if isinstance(row.source, Crystal)]
    rows = read_jsonl(Path(path))
    chosen = [row for row in rows if row["id"] in TIE_FREE]
    chosen += [row for row in rows if row["id"] not in TIE_FREE][: max(0, count - len(chosen))]
    return [crystal_from_record(row) for row in chosen]


def core_seconds(work: Callable[[], object], repeats: int) -> float:
    """Median time this (single-threaded) process needs on a core, whatever else the machine does."""
    found = []
    for _ in range(repeats):
        start = time.process_time()
        work()
        found.append(time.process_time() - start)
    return statistics.median(found)


def bench(args: Args) -> None:
    """Measure, print, write."""
    torch.set_num_threads(1)
    stand_in = types.ModuleType("dgl")
    stand_in.DGLGraph = object  # type: ignore[attr-defined]
    sys.modules.setdefault("dgl", stand_in)
    crystals = load(args.crystals, args.count)

    def build(settings: GraphSettings) -> list[CrystalGraph]:
        builder = GraphBuilder(settings)
        return [builder(crystal) for crystal in crystals]

    work: dict[str, Callable[[], Any]] = {
        "jarvis-tools": lambda: [reference_edges(crystal) for crystal in crystals],
        "here, paper": lambda: build(GraphSettings(**PAPER_GRAPHS)),
        "here, clean": lambda: build(GraphSettings()),
    }
    measured = {name: measure(one, repeats=args.repeats) for name, one in work.items()}
    theirs, paper, clean = measured.values()
    batched = measure(lambda: batch_graphs(clean.value), repeats=args.repeats)
    with tempfile.TemporaryDirectory() as folder:
        cached_graphs(crystals, GraphSettings(), cache_dir=Path(folder))
        opened = measure(lambda: cached_graphs(crystals, GraphSettings(), cache_dir=Path(folder)), repeats=args.repeats)
    equal = [
        same_edges(want, (have.source, have.target, have.vectors))
        for want, have in zip(theirs.value, paper.value, strict=True)
    ]
    named = [(c.name, same) for c, same in zip(crystals, equal, strict=True) if c.name in TIE_FREE]
    rates = {name: len(crystals) / m.seconds for name, m in measured.items()}
    per_core = {name: len(crystals) / core_seconds(one, args.repeats) for name, one in work.items()}
    report = {
        **machine("vesin", "jarvis-tools"),
        "crystals": len(crystals),
        "crystals_per_second": rates,
        "ratio": rates["here, paper"] / rates["jarvis-tools"],
        "crystals_per_core_second": per_core,
        "ratio_per_core_second": per_core["here, paper"] / per_core["jarvis-tools"],
        "line_graphs_per_second": len(crystals) / batched.seconds,
        "cached_file_open_seconds": opened.seconds,
        "equal_edge_sets": sum(equal),
        "tie_free_equal": dict(named),
    }
    for name, rate in rates.items():
        print(f"{name:>14}: {rate:8.0f} crystals/s, {per_core[name]:8.0f} a second of one core")
    print(f"ratio {report['ratio']:.1f}; line graphs {report['line_graphs_per_second']:.0f} crystals/s")
    print(f"equal edge sets: {sum(equal)} of {len(equal)}; tie-free structures: {dict(named)}")
    finish(report, args.output)


def main(argv: Sequence[str] | None = None) -> int:
    return command(Args, bench, argv, prog="bench_graphs.py", description=__doc__ or "")


if __name__ == "__main__":
    sys.exit(main())
