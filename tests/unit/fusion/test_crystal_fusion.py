"""Middle, cross-modal and late fusion against their formulas written openly."""

import pytest
import torch
from torch import nn

from anomaly_lib.errors import UserError
from anomaly_lib.fusion import (
    LATE_FUSIONS,
    CrossModalAttention,
    FineGrainedAttention,
    GatedMiddleFusion,
    ImprovedMiddleFusion,
    late_fusion_by_name,
)


def test_norm_per_half_removes_the_scale_of_each_half() -> None:
    module = GatedMiddleFusion(
        feature_dim=6, context_dim=4, middle_fusion_use_gate_norm=True, middle_fusion_norm_per_half=True
    ).eval()
    joint = GatedMiddleFusion(feature_dim=6, context_dim=4, middle_fusion_use_gate_norm=True).eval()
    x, u = torch.randn(9, 6) * 30, torch.randn(9, 6) * 0.1
    halves = module.gate_input(x, u).chunk(2, -1)
    for half in halves:
        torch.testing.assert_close(half.norm(dim=1), torch.full((9,), 6**0.5), rtol=1e-2, atol=0)
    torch.testing.assert_close(module.gate_input(x, u * 50), module.gate_input(x, u), rtol=1e-2, atol=1e-2)
    node, text = joint.gate_input(x, u).chunk(2, -1)
    assert float((node.std(1).mean() / text.std(1).mean()).detach()) > 20  # one norm over both halves keeps their ratio


def test_improved_module_by_hand() -> None:
    torch.manual_seed(0)
    module = ImprovedMiddleFusion(
        feature_dim=6, context_dim=4, middle_fusion_hidden_dim=5, middle_fusion_use_learnable_scale=True,
        middle_fusion_initial_scale=3.0, middle_fusion_initial_node_scale=0.7,
    ).eval()  # fmt: skip
    x, t, owner = torch.randn(5, 6), torch.randn(2, 4), torch.tensor([0, 0, 1, 1, 1])
    with torch.no_grad():
        module.importance_modulation.fill_(1.5)
        fused, gate = module(x, t, owner)
        for row in range(5):
            u = 3.0 * module.text_transform(t[owner[row]])
            g = torch.sigmoid(module.gate[0](torch.cat([x[row], u])))
            g = g * (1 + 1.5 * module.importance_net(x[row]))
            torch.testing.assert_close(gate[row], g)
            torch.testing.assert_close(fused[row], module.layer_norm(0.7 * x[row] + g * u))
    plain = ImprovedMiddleFusion(
        feature_dim=6, context_dim=4, middle_fusion_use_residual_scaling=False, middle_fusion_use_dynamic_gating=False
    )
    assert "node_scale" not in dict(plain.named_parameters())
    assert plain.importance_net is None


def test_one_key_attention_is_a_linear_map() -> None:
    module = CrossModalAttention(graph_dim=8, text_dim=6, cross_modal_hidden_dim=8, cross_modal_num_heads=2).eval()
    h, t = torch.randn(3, 8), torch.randn(3, 6)
    graph, text = module(h, t)
    torch.testing.assert_close(graph, module.layer_norm_graph(h + module.graph_output(module.g2t_value(t))))
    torch.testing.assert_close(text, module.layer_norm_text(t + module.text_output(module.t2g_value(h))))
    graph.square().sum().backward()
    assert module.g2t_query.weight.grad is None or float(module.g2t_query.weight.grad.abs().max()) < 1e-6
    single = CrossModalAttention(graph_dim=8, text_dim=6, cross_modal_attention_type="unidirectional")
    assert torch.equal(single(h, t)[1], t)


def test_token_attention_by_loops() -> None:
    module = CrossModalAttention(graph_dim=4, text_dim=4, cross_modal_hidden_dim=6, cross_modal_num_heads=2).eval()
    h, t = torch.randn(1, 4), torch.randn(1, 4)
    words, mask = torch.randn(1, 3, 4), torch.tensor([[True, True, False]])
    with torch.no_grad():
        have, _ = module(h, t, text_memory=(words, mask))
        q, k, v = module.g2t_query(h[0]), module.g2t_key(words[0, :2]), module.g2t_value(words[0, :2])
        read = torch.cat([
            torch.softmax(k[:, s] @ q[s] / 3**0.5, 0) @ v[:, s] for s in (slice(0, 3), slice(3, 6))
        ])  # fmt: skip
        torch.testing.assert_close(have[0], module.layer_norm_graph(h[0] + module.graph_output(read)))


def test_atoms_and_words_attend_both_ways() -> None:
    module = FineGrainedAttention(node_dim=6, token_dim=10, fine_grained_hidden_dim=8, fine_grained_num_heads=2).eval()
    nodes, tokens = torch.randn(2, 3, 6), torch.randn(2, 4, 10)
    words, atoms = torch.tensor([[1, 1, 0, 0], [1, 1, 1, 1]]).bool(), torch.tensor([[1, 1, 1], [1, 0, 0]]).bool()
    _, weights = module(nodes, tokens, token_mask=words, need_weights=True)
    torch.testing.assert_close(weights.sum(-1), torch.ones(2, 2, 3))
    assert float(weights[0, :, :, 2:].abs().max()) == 0
    read, weights = module.read_atoms(nodes, tokens, node_mask=atoms)
    assert read.shape == tokens.shape
    torch.testing.assert_close(weights[1, :, :, 0], torch.ones(2, 4))


def test_late_fusions_by_hand() -> None:
    torch.manual_seed(2)
    g, t = torch.randn(3, 8), torch.randn(3, 8)

    def built(name: str) -> nn.Module:
        return late_fusion_by_name(name, dim=8, output_dim=6, rank=4, dropout=0.1).eval()

    with torch.no_grad():
        m = built("gated")
        a, b = m.gate_graph(g), m.gate_text(t)
        want = m.fusion_transform(a / (a + b) * m.graph_transform(g) + b / (a + b) * m.text_transform(t))
        torch.testing.assert_close(m(g, t), want)
        m = built("bilinear")
        want = m.layer_norm(sum(
            (g @ m.graph_proj.weight[6 * r : 6 * r + 6].T) * (t @ m.text_proj.weight[6 * r : 6 * r + 6].T)
            for r in range(4)
        ))  # fmt: skip
        torch.testing.assert_close(m(g, t), want)
        m = built("adaptive")
        a, b = m.graph_align(g), m.text_align(t)
        w, gate = m.fusion_selector(torch.cat([a, b], 1)), m.gate_net(torch.cat([a, b], 1))
        mixed = w[:, :1] * (a + b) + w[:, 1:2] * a * b + w[:, 2:] * (gate * a + (1 - gate) * b)
        torch.testing.assert_close(m(g, t), m.layer_norm(mixed))
        m = built("tucker")
        outer = torch.stack(
            [torch.outer(x, y).flatten() for x, y in zip(m.graph_factor(g), m.text_factor(t), strict=True)]
        )
        torch.testing.assert_close(m(g, t), m.layer_norm(m.core_factor(outer)))
    assert set(LATE_FUSIONS) == {"gated", "bilinear", "adaptive", "tucker"}
    with pytest.raises(UserError, match="concat, gated"):
        built("sum")
