"""The same crystal written differently is the same graph and gets the same prediction."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from anomaly_lib.models.crystal import ALIGNN, CrystalFusionModel, batch_graphs
from anomaly_lib.systems.crystal.data.demo import demo_table
from anomaly_lib.systems.crystal.data.graph import CrystalGraph, GraphBuilder
from anomaly_lib.systems.crystal.data.structure import Crystal

CRYSTALS = [row.source for row in demo_table(count=12, seed=8).rows]
BUILD = GraphBuilder()
seeds = st.integers(0, 10_000)


def rotated(crystal: Crystal, rng: np.random.Generator) -> Crystal:
    turn, _ = np.linalg.qr(rng.normal(size=(3, 3)))
    return Crystal(crystal.lattice @ turn, crystal.frac_coords, crystal.numbers)


def shifted(crystal: Crystal, rng: np.random.Generator) -> Crystal:
    wrapped = (crystal.frac_coords + rng.uniform(-2, 2, 3)) % 1.0
    return Crystal(crystal.lattice, wrapped, crystal.numbers)


def reordered(crystal: Crystal, rng: np.random.Generator) -> Crystal:
    order = rng.permutation(len(crystal.numbers))
    return Crystal(crystal.lattice, crystal.frac_coords[order], crystal.numbers[order])


def other_cell(crystal: Crystal, rng: np.random.Generator) -> Crystal:
    """The same lattice with other vectors: a -> a + n b."""
    change = np.eye(3, dtype=int)
    i, j = rng.permutation(3)[:2]
    change[i, j] = int(rng.integers(-2, 3))
    return Crystal(change @ crystal.lattice, crystal.frac_coords @ np.linalg.inv(change), crystal.numbers)


def supercell(crystal: Crystal, rng: np.random.Generator) -> Crystal:
    times = np.ones(3, dtype=int)
    times[int(rng.integers(0, 3))] = int(rng.integers(2, 4))
    corners = np.stack(np.meshgrid(*[np.arange(n) for n in times], indexing="ij"), -1).reshape(-1, 3)
    frac = ((crystal.frac_coords[:, None] + corners) / times).reshape(-1, 3)
    return Crystal(crystal.lattice * times[:, None], frac, np.repeat(crystal.numbers, len(corners)))


SAME_SIZE = [rotated, shifted, reordered, other_cell]


def environments(graph: CrystalGraph) -> list[tuple[int, tuple[tuple[int, float], ...]]]:
    """Per atom: its element and the sorted (element, distance) of its neighbours."""
    found = []
    for atom, number in enumerate(graph.numbers):
        into = graph.target == atom
        lengths = np.round(np.linalg.norm(graph.vectors[into], axis=1), 2)
        around = zip(graph.numbers[graph.source[into]].tolist(), lengths.tolist(), strict=True)
        found.append((int(number), tuple(sorted(around))))
    return sorted(found)


@settings(deadline=None, max_examples=12)
@given(which=st.integers(0, len(CRYSTALS) - 1), change=st.sampled_from(SAME_SIZE), seed=seeds)
def test_graph_does_not_depend_on_how_the_cell_is_written(which: int, change, seed: int) -> None:
    rng = np.random.default_rng(seed)
    before, after = BUILD(CRYSTALS[which]), BUILD(change(CRYSTALS[which], rng))
    assert len(before.source) == len(after.source)
    assert [len(env) for _, env in environments(before)] == [len(env) for _, env in environments(after)]
    np.testing.assert_allclose(
        np.sort(np.linalg.norm(before.vectors, axis=1)), np.sort(np.linalg.norm(after.vectors, axis=1)), atol=1e-4
    )


@settings(deadline=None, max_examples=8)
@given(which=st.integers(0, len(CRYSTALS) - 1), seed=seeds)
def test_supercell_has_the_same_environments(which: int, seed: int) -> None:
    crystal = CRYSTALS[which]
    larger = supercell(crystal, np.random.default_rng(seed))
    copies = len(larger.numbers) // len(crystal.numbers)
    before, after = BUILD(crystal), BUILD(larger)
    assert len(after.source) == copies * len(before.source)
    degrees = np.bincount(before.target).repeat(copies)
    assert sorted(degrees.tolist()) == sorted(np.bincount(after.target).tolist())


@pytest.fixture(scope="module")
def model() -> ALIGNN:
    torch.manual_seed(0)
    net = ALIGNN(alignn_layers=2, gcn_layers=2, hidden_features=24).eval()
    for module in net.modules():
        if isinstance(module, torch.nn.BatchNorm1d):
            module.running_mean.normal_(0, 0.3)
            module.running_var.uniform_(0.5, 2.0)
    return net


@settings(deadline=None, max_examples=12)
@given(which=st.integers(0, len(CRYSTALS) - 1), change=st.sampled_from([*SAME_SIZE, supercell]), seed=seeds)
def test_prediction_does_not_depend_on_it_either(model: ALIGNN, which: int, change, seed: int) -> None:
    rng = np.random.default_rng(seed)
    with torch.no_grad():
        pair = model(batch_graphs([BUILD(CRYSTALS[which]), BUILD(change(CRYSTALS[which], rng))]))
    torch.testing.assert_close(pair[0], pair[1], rtol=1e-3, atol=1e-4)


def test_doubled_images_are_not_supercell_invariant() -> None:
    """The published graph of a cell and of its supercell differ: the reason why 'exact' is the default."""
    build = GraphBuilder(periodic_images="doubled")
    crystal = CRYSTALS[0]
    larger = supercell(crystal, np.random.default_rng(1))
    copies = len(larger.numbers) // len(crystal.numbers)
    assert len(build(larger).source) != copies * len(build(crystal).source)


@settings(deadline=None, max_examples=5)
@given(seed=seeds)
def test_batching_changes_nothing(seed: int) -> None:
    rng = np.random.default_rng(seed)
    chosen = [int(i) for i in rng.choice(len(CRYSTALS), 4, replace=False)]
    graphs = [BUILD(CRYSTALS[i]) for i in chosen]
    torch.manual_seed(seed)
    net = CrystalFusionModel(
        alignn_layers=2, gcn_layers=1, hidden_features=16, text_features=12, use_middle_fusion=True,
        middle_fusion_layers=[0, 1], use_fine_grained_attention=True, fine_grained_hidden_dim=16,
        fine_grained_num_heads=2, cross_modal_tokens=True,
    ).eval()  # fmt: skip
    words, mask = torch.randn(4, 5, 12), torch.arange(5) < torch.tensor([[5], [2], [3], [4]])
    with torch.no_grad():
        together = net(batch_graphs(graphs), words, mask).prediction
        alone = [net(batch_graphs([g]), words[i : i + 1], mask[i : i + 1]).prediction for i, g in enumerate(graphs)]
    torch.testing.assert_close(together, torch.cat(alone), rtol=1e-4, atol=1e-5)
