"""ALIGNN and the fusion model: sizes, twins, gradients."""

import copy
import dataclasses

import pytest
import torch
from torch import nn

from anomaly_lib.errors import UserError
from anomaly_lib.fusion import GatedMiddleFusion
from anomaly_lib.models.crystal import (
    ALIGNN,
    ALIGNNConfig,
    CrossModalAttention,
    CrystalFusionConfig,
    CrystalFusionModel,
    EdgeGatedGraphConv,
    GraphBatch,
    MiddleFusionModule,
    TextRegressor,
    batch_graphs,
)
from anomaly_lib.systems.crystal.data.demo import demo_table
from anomaly_lib.systems.crystal.data.graph import GraphBuilder

SMALL = CrystalFusionConfig(
    alignn_layers=2, gcn_layers=2, hidden_features=16, use_middle_fusion=True, middle_fusion_layers=[1],
    fine_grained_hidden_dim=16, fine_grained_num_heads=2, cross_modal_hidden_dim=16,
)  # fmt: skip


def small(**changes: object) -> CrystalFusionModel:
    return CrystalFusionModel(dataclasses.replace(SMALL, **changes), text_features=10)


@pytest.fixture(scope="module")
def graph() -> GraphBatch:
    build = GraphBuilder()
    return batch_graphs([build(row.source) for row in demo_table(count=5, seed=2).rows])


def test_published_sizes() -> None:
    """Parameter counts measured on the published program."""
    plain = CrystalFusionConfig(use_cross_modal=False)
    middle = dataclasses.replace(
        plain, use_middle_fusion=True, middle_fusion_use_gate_norm=True, middle_fusion_use_learnable_scale=True
    )
    published = {
        4_109_057: plain,
        4_117_635: dataclasses.replace(plain, late_fusion_type="gated"),
        4_232_001: dataclasses.replace(plain, late_fusion_type="bilinear"),
        4_125_956: dataclasses.replace(plain, late_fusion_type="adaptive"),
        4_119_425: dataclasses.replace(plain, late_fusion_type="tucker"),
        4_283_266: middle,
        4_316_293: dataclasses.replace(middle, use_improved_middle_fusion=True),
        4_590_467: dataclasses.replace(middle, middle_fusion_layers=[2, 3], use_cross_modal=True),
        5_164_673: CrystalFusionConfig(use_fine_grained_attention=True),
    }
    with torch.device("meta"):  # sizes without numbers
        for size, config in published.items():
            assert sum(p.numel() for p in CrystalFusionModel(config).parameters()) == size, config
        parts = (
            ALIGNN(),
            GatedMiddleFusion(
                feature_dim=256,
                context_dim=64,
                middle_fusion_use_gate_norm=True,
                middle_fusion_use_learnable_scale=True,
            ),
        )
    assert [sum(p.numel() for p in part.parameters()) for part in parts] == [4_026_753, 174_209]


def test_published_names() -> None:
    keys = set(small(middle_fusion_use_gate_norm=True, use_fine_grained_attention=True).state_dict())
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
    model = small(
        late_fusion_type=late, use_improved_middle_fusion=late == "gated", middle_fusion_use_learnable_scale=True,
        middle_fusion_use_gate_norm=True, middle_fusion_norm_per_half=True, use_fine_grained_attention=True,
        cross_modal_tokens=True, learned_elements=True,
    ).train()  # fmt: skip
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
    model = small().eval()
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
        model = small(cross_modal_tokens=tokens).eval()
        with torch.no_grad():
            before = model(graph, text).prediction
            for name in ("g2t_query", "g2t_key", "t2g_query", "t2g_key"):
                getattr(model.cross_modal_attention, name).weight.normal_(0, 3)
            after = model(graph, text).prediction
        assert torch.allclose(before, after, atol=1e-6) != tokens


def test_padding_is_not_read(graph: GraphBatch) -> None:
    torch.manual_seed(6)
    model = small(use_fine_grained_attention=True, cross_modal_tokens=True).eval()
    words, mask = torch.randn(5, 6, 10), torch.arange(6) < torch.tensor([[2], [6], [3], [4], [5]])
    garbage = torch.where(mask.unsqueeze(-1), words, torch.full_like(words, 99.0))
    with torch.no_grad():
        torch.testing.assert_close(model(graph, words, mask).prediction, model(graph, garbage, mask).prediction)


def test_text_only_model_and_layer_check() -> None:
    model = TextRegressor(text_features=10).eval()
    words = torch.randn(3, 4, 10)
    torch.testing.assert_close(model(words), model(words[:, 0]))
    with pytest.raises(UserError, match="layer 4"):
        dataclasses.replace(SMALL, alignn_layers=4, middle_fusion_layers=[4])


def test_half_precision_stays_close(graph: GraphBatch) -> None:
    torch.manual_seed(7)
    model = small().eval()
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
    plain = small().eval()
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


def test_a_configuration_and_keywords_make_the_same_network() -> None:
    """A default is written once: in the config, which the option class of the system inherits and hands on."""
    from anomaly_lib.systems.crystal.options import Args

    torch.manual_seed(0)
    one = ALIGNN(hidden_features=16, gcn_layers=1)
    torch.manual_seed(0)
    other = ALIGNN(ALIGNNConfig(hidden_features=16, gcn_layers=1))
    torch.manual_seed(0)
    options = Args(data_path="dataset", hidden_features=16, gcn_layers=1)
    third = ALIGNN(options)
    for name, value in one.state_dict().items():
        assert torch.equal(value, other.state_dict()[name])
        assert torch.equal(value, third.state_dict()[name])
    assert third.config is options
    with torch.device("meta"):
        published = CrystalFusionModel(Args(data_path="dataset"))
        assert sum(p.numel() for p in published.parameters()) == sum(
            p.numel() for p in CrystalFusionModel().parameters()
        )
    with pytest.raises(ValueError, match="not both"):
        ALIGNN(options, hidden_features=16)
    with pytest.raises(ValueError, match=r"hidden_features=0: must be at least 8"):
        ALIGNN(hidden_features=0)
    with pytest.raises(ValueError, match=r"has no option 'hidden'; did you mean"):
        ALIGNN(hidden=16)
    with pytest.raises(ValueError, match=r"cross_modal_hidden_dim=10: is not a multiple of cross_modal_num_heads=4"):
        CrystalFusionModel(cross_modal_hidden_dim=10)


def test_networks_say_what_they_are() -> None:
    assert repr(ALIGNN(hidden_features=16)) == "ALIGNN(4 + 4 layers, 16 channels, 28,833 parameters)"
    model = small(use_fine_grained_attention=True, cross_modal_tokens=True)
    size = f"{sum(p.numel() for p in model.parameters()):,}"
    assert repr(model) == (
        "CrystalFusionModel(2 + 2 layers, 16 channels, text 10, middle fusion at layer_1, fine-grained attention, "
        f"cross-modal attention over tokens, late fusion concat, {size} parameters)"
    )
    assert repr(MiddleFusionModule(feature_dim=8, context_dim=4)) == (
        "GatedMiddleFusion([N, 8] + context 4, text_scale 1)"
    )
    assert repr(CrossModalAttention(graph_dim=8, text_dim=6)) == "CrossModalAttention(graph 8 <-> text 6, 4 heads)"


def test_wrong_inputs_are_named(graph: GraphBatch) -> None:
    model = small().eval()
    for text, said in (
        (torch.zeros(5, 9), r"text: expected \[5, 10\] or \[5, L, 10\], got \[5, 9\]"),
        (torch.zeros(4, 10), r"got \[4, 10\]"),
        (torch.zeros(10), r"got \[10\]"),
    ):
        with pytest.raises(UserError, match=said):
            model(graph, text)
    for network in (model, ALIGNN(hidden_features=8)):
        with pytest.raises(UserError, match=r"graph: expected a GraphBatch .*, got list"):
            network(*([[graph], torch.zeros(5, 10)] if network is model else [[graph]]))
