"""ALIGNN and the fusion model: sizes, twins, gradients."""

import copy
import dataclasses

import pytest
import torch
from torch import nn

from anomaly_lib.errors import UserError
from anomaly_lib.fusion import GatedMiddleFusion
from anomaly_lib.models.crystal.alignn import ALIGNN, EdgeGatedGraphConv
from anomaly_lib.models.crystal.fusion import CrystalFusionConfig, CrystalFusionModel, TextRegressor
from anomaly_lib.models.crystal.graph_batch import GraphBatch, batch_graphs
from anomaly_lib.systems.crystal.data.demo import demo_table
from anomaly_lib.systems.crystal.data.graph import GraphBuilder

SMALL = CrystalFusionConfig(
    alignn_layers=2, gcn_layers=2, hidden_features=16, text_features=10, middle_layers=(1,), fine_grained_hidden_dim=16,
    fine_grained_num_heads=2, cross_modal_hidden_dim=16,
)  # fmt: skip


@pytest.fixture(scope="module")
def graph() -> GraphBatch:
    build = GraphBuilder()
    return batch_graphs([build(row.source) for row in demo_table(count=5, seed=2).rows])


def test_published_sizes() -> None:
    """Parameter counts measured on the published program."""
    plain = CrystalFusionConfig(cross_modal=False)
    middle = dataclasses.replace(plain, middle_layers=(2,), middle_gate_norm=True, middle_learnable_scale=True)
    published = {
        4_109_057: plain,
        4_117_635: dataclasses.replace(plain, late_fusion="gated"),
        4_232_001: dataclasses.replace(plain, late_fusion="bilinear"),
        4_125_956: dataclasses.replace(plain, late_fusion="adaptive"),
        4_119_425: dataclasses.replace(plain, late_fusion="tucker"),
        4_283_266: middle,
        4_316_293: dataclasses.replace(middle, middle_improved=True),
        4_590_467: dataclasses.replace(middle, middle_layers=(2, 3), cross_modal=True),
        5_164_673: CrystalFusionConfig(fine_grained=True),
    }
    with torch.device("meta"):  # sizes without numbers
        for size, config in published.items():
            assert sum(p.numel() for p in CrystalFusionModel(config).parameters()) == size, config
        parts = (
            ALIGNN(),
            GatedMiddleFusion(
                feature_dim=256, context_dim=64, hidden_dim=128, use_gate_norm=True, learnable_scale=True
            ),
        )
    assert [sum(p.numel() for p in part.parameters()) for part in parts] == [4_026_753, 174_209]


def test_published_names() -> None:
    keys = set(CrystalFusionModel(dataclasses.replace(SMALL, middle_gate_norm=True, fine_grained=True)).state_dict())
    assert {
        "atom_embedding.layer.0.weight", "edge_embedding.0.centers", "angle_embedding.2.layer.1.running_var",
        "alignn_layers.1.edge_update.dst_update.bias", "gcn_layers.0.bn_edges.num_batches_tracked",
        "middle_fusion_modules.layer_1.text_scale", "middle_fusion_modules.layer_1.text_transform.3.weight",
        "middle_fusion_modules.layer_1.gate_norm.weight", "middle_fusion_modules.layer_1.gate.0.bias",
        "cross_modal_attention.g2t_query.weight", "fine_grained_attention.token_output.weight",
        "graph_projection.layer_norm.weight", "text_projection.fc.bias", "fc1.weight", "fc.bias",
    } <= keys  # fmt: skip


def test_convolution_equals_the_formula(graph: GraphBatch) -> None:
    conv = EdgeGatedGraphConv(6).eval()
    x, e = torch.randn(len(graph.numbers), 6), torch.randn(len(graph.source), 6)
    with torch.no_grad():
        new_x, new_e = conv(x, e, graph.source, graph.target)
        for v in range(3):
            into = (graph.target == v).nonzero().flatten().tolist()
            m = torch.stack(
                [conv.src_gate(x[graph.source[i]]) + conv.dst_gate(x[v]) + conv.edge_gate(e[i]) for i in into]
            )
            values = torch.stack([conv.dst_update(x[graph.source[i]]) for i in into])
            h = (m.sigmoid() * values).sum(0) / (m.sigmoid().sum(0) + 1e-6)
            normed = conv.bn_nodes((conv.src_update(x[v]) + h).unsqueeze(0))[0]
            torch.testing.assert_close(new_x[v], x[v] + nn.functional.silu(normed))
            torch.testing.assert_close(new_e[into], e[into] + nn.functional.silu(conv.bn_edges(m)))


@pytest.mark.parametrize("late", ["concat", "gated", "bilinear", "adaptive", "tucker"])
def test_every_used_parameter_learns(graph: GraphBatch, late: str) -> None:
    torch.manual_seed(1)
    config = dataclasses.replace(
        SMALL, late_fusion=late, middle_improved=late == "gated", middle_learnable_scale=True, middle_gate_norm=True,
        middle_norm_per_half=True, fine_grained=True, cross_modal_tokens=True, learned_elements=True,
    )  # fmt: skip
    model = CrystalFusionModel(config).train()
    out = model(graph, torch.randn(5, 4, 10), torch.ones(5, 4, dtype=torch.bool))
    out.prediction.square().sum().backward()
    silent = {name for name, p in model.named_parameters() if p.grad is None}
    # edge features nobody reads after the last layer of each stack, and the token side of the fine-grained attention
    unread = ("alignn_layers.1.edge_update.bn_edges", "gcn_layers.1.bn_edges", "fine_grained_attention.t2a",
              "fine_grained_attention.token_output", "fine_grained_attention.layer_norm_token")  # fmt: skip
    assert {name for name in silent if not name.startswith(unread)} == set()
    assert float(model.middle_fusion_modules["layer_1"].text_scale.grad.abs()) > 0


def test_text_reaches_only_its_own_crystal(graph: GraphBatch) -> None:
    torch.manual_seed(3)
    model = CrystalFusionModel(SMALL).eval()
    text = torch.randn(5, 10)
    other = text.clone()
    other[2] += 1.0
    with torch.no_grad():
        before, after = model(graph, text), model(graph, other)
    changed = (before.prediction - after.prediction).abs() > 1e-7
    assert changed.tolist() == [False, False, True, False, False]
    assert before.gates["layer_1"].shape == (len(graph.numbers), 16)


def test_single_token_attention_ignores_query_and_key(graph: GraphBatch) -> None:
    """As published one key means weight 1: query and key maps change nothing. With tokens they do."""
    text = torch.randn(5, 3, 10)
    for tokens in (False, True):
        torch.manual_seed(5)
        model = CrystalFusionModel(dataclasses.replace(SMALL, cross_modal_tokens=tokens)).eval()
        with torch.no_grad():
            before = model(graph, text).prediction
            for name in ("g2t_query", "g2t_key", "t2g_query", "t2g_key"):
                getattr(model.cross_modal_attention, name).weight.normal_(0, 3)
            after = model(graph, text).prediction
        assert torch.allclose(before, after, atol=1e-6) != tokens


def test_padding_is_not_read(graph: GraphBatch) -> None:
    torch.manual_seed(6)
    model = CrystalFusionModel(dataclasses.replace(SMALL, fine_grained=True, cross_modal_tokens=True)).eval()
    words, mask = torch.randn(5, 6, 10), torch.arange(6) < torch.tensor([[2], [6], [3], [4], [5]])
    garbage = torch.where(mask.unsqueeze(-1), words, torch.full_like(words, 99.0))
    with torch.no_grad():
        torch.testing.assert_close(model(graph, words, mask).prediction, model(graph, garbage, mask).prediction)


def test_text_only_model_and_layer_check() -> None:
    model = TextRegressor(text_features=10).eval()
    words = torch.randn(3, 4, 10)
    torch.testing.assert_close(model(words), model(words[:, 0]))
    with pytest.raises(UserError, match="layer 4"):
        dataclasses.replace(SMALL, alignn_layers=4, middle_layers=(4,))


def test_half_precision_stays_close(graph: GraphBatch) -> None:
    torch.manual_seed(7)
    model = CrystalFusionModel(SMALL).eval()
    text = torch.randn(5, 10)
    with torch.no_grad():
        want = model(graph, text).prediction
        with torch.autocast("cpu", torch.bfloat16):
            have = model(graph, text).prediction
    torch.testing.assert_close(have.float(), want, rtol=0.1, atol=0.05)


@pytest.mark.slow
def test_compiled_network_computes_the_same() -> None:
    """--compile: traced with the in-place gated sums, for batches of different sizes, gradients included."""
    build = GraphBuilder()
    graphs = [build(row.source) for row in demo_table(count=20, seed=6).rows]
    plain = CrystalFusionModel(SMALL).eval()
    compiled = copy.deepcopy(plain)
    compiled.compile(dynamic=True, backend="eager")  # what is traced is the question, not the code made from it
    for part in (graphs[:12], graphs[12:]):
        batch, text = batch_graphs(part), torch.randn(len(part), 10)
        want, have = plain(batch, text).prediction, compiled(batch, text).prediction
        torch.testing.assert_close(have, want)
        for network, prediction in ((plain, want), (compiled, have)):
            network.zero_grad()
            prediction.square().sum().backward()
        for (name, one), other in zip(plain.named_parameters(), compiled.parameters(), strict=True):
            assert (one.grad is None) == (other.grad is None), name
            if one.grad is not None:
                torch.testing.assert_close(other.grad, one.grad, msg=name)
    assert list(compiled.state_dict()) == list(plain.state_dict())
