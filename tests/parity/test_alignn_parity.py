"""Crystals, graphs and networks beside jarvis-tools and alignn themselves. Skipped where these are absent.

Both name DGL in their imports. What is compared is their own code: neighbours, edges and features of jarvis-tools are
plain NumPy, and alignn's networks ask of a graph only what `Graph` below has.
"""

import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import anomaly_lib
from anomaly_lib.models.crystal import batch_graphs
from anomaly_lib.models.crystal.elements import atom_feature_table
from anomaly_lib.ops.graph import bond_cosine, line_graph
from anomaly_lib.systems.crystal.data.demo import demo_table
from anomaly_lib.systems.crystal.data.graph import GraphBuilder
from anomaly_lib.systems.crystal.data.settings import PAPER_GRAPHS
from anomaly_lib.systems.crystal.data.structure import Crystal

pytest.importorskip("jarvis", reason="jarvis-tools is not installed (pip install jarvis-tools)")
pytestmark = [pytest.mark.parity, pytest.mark.slow]
CRYSTALS: list[Crystal] = [row.source for row in demo_table(count=6, seed=3).rows]  # type: ignore[misc]


@pytest.fixture(autouse=True)
def _no_dgl(monkeypatch: pytest.MonkeyPatch) -> None:
    """Their modules can be imported; the annotations in them find the names they ask for."""
    if "dgl" not in sys.modules:
        stand_in = ModuleType("dgl")
        stand_in.DGLGraph = object  # type: ignore[attr-defined]
        monkeypatch.setitem(sys.modules, "dgl", stand_in)


def their_edges(crystal: Crystal, *, use_canonize: bool) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    from jarvis.core.atoms import Atoms
    from jarvis.core.graphs import build_undirected_edgedata, nearest_neighbor_edges

    atoms = Atoms(lattice_mat=crystal.lattice, coords=crystal.frac_coords, elements=crystal.symbols, cartesian=False)
    edges = nearest_neighbor_edges(atoms=atoms, cutoff=8, max_neighbors=12, use_canonize=use_canonize)
    return tuple(part.numpy() for part in build_undirected_edgedata(atoms, edges))  # type: ignore[return-value]


def in_order(source: np.ndarray, target: np.ndarray, vectors: np.ndarray) -> np.ndarray:
    """[E, 5], sorted."""
    rows = np.column_stack([target, source, vectors.round(3) + 0.0])
    return rows[np.lexsort(rows.T[::-1])]


@pytest.mark.parametrize("use_canonize", [True, False])
def test_graphs_equal_those_of_jarvis_tools(use_canonize: bool) -> None:
    build, same = GraphBuilder(**PAPER_GRAPHS, use_canonize=use_canonize), 0
    for crystal in CRYSTALS:
        ours, theirs = build(crystal), their_edges(crystal, use_canonize=use_canonize)
        # Neighbours at exactly the distance of the twelfth are kept or not as the last bit falls, in both programs.
        if len(ours.source) == len(theirs[0]):
            np.testing.assert_allclose(in_order(ours.source, ours.target, ours.vectors), in_order(*theirs), atol=2e-3)
            same += 1
    assert same >= 4


def test_atom_features_equal_those_of_jarvis_tools() -> None:
    from jarvis.core.specie import get_node_attributes

    table = atom_feature_table()
    for crystal in CRYSTALS:
        for symbol, number in zip(crystal.symbols, crystal.numbers, strict=True):
            assert table[number - 1].tolist() == list(get_node_attributes(symbol, atom_features="cgcnn"))


class Graph:
    """What alignn asks of a DGL graph: features of nodes and edges, and sums over the edges into a node."""

    device = torch.device("cpu")

    def __init__(self, source: Tensor, target: Tensor, nodes: dict[str, Tensor], edges: dict[str, Tensor]) -> None:
        self.source, self.target, self.ndata, self.edata = source, target, dict(nodes), dict(edges)

    def local_var(self) -> "Graph":
        return Graph(self.source, self.target, self.ndata, self.edata)

    def num_nodes(self) -> int:
        return len(next(iter(self.ndata.values())))

    def apply_edges(self, how: Callable[["Graph"], None]) -> None:
        how(self)

    def update_all(self, message: Callable[["Graph"], Tensor], name: str) -> None:
        found = message(self)
        rows = len(next(iter(self.ndata.values())))
        self.ndata[name] = found.new_zeros(rows, found.shape[1]).index_add_(0, self.target, found)


def add(a: str, b: str, name: str) -> Callable[[Graph], None]:
    return lambda g: g.edata.update({name: g.ndata[a][g.source] + g.ndata[b][g.target]})


FUNCTIONS = SimpleNamespace(
    u_add_v=add,
    u_mul_e=lambda a, e, _: lambda g: g.ndata[a][g.source] * g.edata[e],
    copy_e=lambda e, _: lambda g: g.edata[e],
    sum=lambda _, name: name,
)


def their_graphs(crystal: Crystal) -> tuple[Graph, Graph, None]:
    """The graph and line graph of one crystal, with the edges that our network sees."""
    batch = batch_graphs([GraphBuilder(**PAPER_GRAPHS)(crystal)], keep_self_links=False)
    leader, follower = line_graph(batch.source, batch.target, len(batch.numbers), keep_self_links=False)
    atoms = torch.from_numpy(atom_feature_table())[batch.numbers - 1]
    cosines = bond_cosine(batch.vectors, leader, follower)
    lines = Graph(leader, follower, {"r": batch.vectors}, {"h": cosines})
    return Graph(batch.source, batch.target, {"atom_features": atoms}, {"r": batch.vectors}), lines, None


@pytest.mark.parametrize("kind", ["alignn", "alignn_atomwise"])
def test_networks_of_alignn(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With batch norm and with layer norm: the file that alignn's own training would leave, and what it predicts."""
    module: Any = pytest.importorskip(f"alignn.models.{kind}")
    monkeypatch.setattr(module, "fn", FUNCTIONS)
    monkeypatch.setattr(module, "AvgPooling", lambda: lambda g, x: x.mean(0, keepdim=True))
    monkeypatch.setattr(module, "dgl", SimpleNamespace(unbatch=lambda g: [g]))
    sizes = {"alignn_layers": 2, "gcn_layers": 2, "hidden_features": 16, "embedding_features": 8}
    more = {"calculate_gradient": False, "lg_on_fly": False, "use_penalty": False, "energy_mult_natoms": False}
    layer = kind == "alignn_atomwise"
    config = (module.ALIGNNAtomWiseConfig if layer else module.ALIGNNConfig)(
        name=kind, atom_input_features=92, **sizes, **(more if layer else {})
    )
    torch.manual_seed(0)
    net = (module.ALIGNNAtomWise if layer else module.ALIGNN)(config)
    for name, value in net.state_dict().items():
        if value.is_floating_point() and not name.endswith("centers"):
            value.copy_(torch.rand_like(value) + 0.5 if name.endswith("running_var") else 0.6 * torch.randn_like(value))
    torch.save({"model": net.state_dict(), "epoch": 3}, tmp_path / "best_model.pt")
    net.eval()
    detector = anomaly_lib.load(tmp_path / "best_model.pt")
    assert detector.args.graph_norm == ("layer" if layer else "batch")
    found = detector.predict(CRYSTALS).score
    with torch.no_grad():
        want = [net(their_graphs(crystal)) for crystal in CRYSTALS]
    want = torch.stack([(one["out"] if layer else one).reshape(()) for one in want])
    assert want.std() > 1e-2
    torch.testing.assert_close(found, want, rtol=1e-4, atol=1e-5 * float(want.abs().max()))
