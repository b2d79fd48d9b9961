"""FiLM, cross-attention and gated middle fusion against written-out twins."""

import math

import pytest
import torch
from torch import nn

from anomaly_lib.fusion import CrossAttention, FiLM, GatedMiddleFusion, film


def test_film_broadcasts_over_tokens() -> None:
    x = torch.arange(12.0).view(2, 3, 2)
    out = film(x, torch.tensor([[2.0, 1.0], [1.0, 0.0]]), torch.tensor([[0.0, 1.0], [5.0, 7.0]]))
    expected = torch.stack(
        [
            x[0] * torch.tensor([2.0, 1.0]) + torch.tensor([0.0, 1.0]),
            x[1] * torch.tensor([1.0, 0.0]) + torch.tensor([5.0, 7.0]),
        ]
    )
    torch.testing.assert_close(out, expected)


def test_film_module_starts_as_identity_and_learns() -> None:
    layer = FiLM(condition_dim=4, channels=3)
    x, c = torch.randn(2, 5, 3), torch.randn(2, 4)
    assert torch.equal(layer(x, c), x)
    layer(x, c).square().sum().backward()
    assert layer.head.weight.grad.abs().sum() > 0


@pytest.mark.parametrize("masked", [False, True])
def test_cross_attention_equals_torch_multihead(masked: bool) -> None:
    ours = CrossAttention(query_dim=8, memory_dim=6, hidden_dim=8, num_heads=2).eval()
    theirs = nn.MultiheadAttention(8, 2, kdim=6, vdim=6, batch_first=True).eval()
    with torch.no_grad():
        theirs.q_proj_weight.copy_(ours.query.weight)
        theirs.k_proj_weight.copy_(ours.key.weight)
        theirs.v_proj_weight.copy_(ours.value.weight)
        theirs.in_proj_bias.copy_(torch.cat([ours.query.bias, ours.key.bias, ours.value.bias]))
        theirs.out_proj.weight.copy_(ours.output.weight)
        theirs.out_proj.bias.copy_(ours.output.bias)
    q, m = torch.randn(3, 4, 8), torch.randn(3, 5, 6)
    mask = torch.rand(3, 5) > 0.4 if masked else None
    if mask is not None:
        mask[:, 0] = True
    want, want_weights = theirs(q, m, m, key_padding_mask=None if mask is None else ~mask, average_attn_weights=False)
    got, no_weights = ours(q, m, memory_mask=mask)
    openly, weights = ours(q, m, memory_mask=mask, need_weights=True)
    assert no_weights is None
    torch.testing.assert_close(got, want, atol=1e-6, rtol=1e-5)
    torch.testing.assert_close(openly, want, atol=1e-6, rtol=1e-5)
    torch.testing.assert_close(weights, want_weights, atol=1e-6, rtol=1e-5)


def test_completely_masked_memory_reads_the_output_bias() -> None:
    layer = CrossAttention(query_dim=4, num_heads=2)
    q, m = torch.randn(2, 3, 4), torch.randn(2, 5, 4)
    mask = torch.tensor([[True] * 5, [False] * 5])
    for need in (False, True):
        out, _ = layer(q, m, memory_mask=mask, need_weights=need)
        torch.testing.assert_close(out[1], layer.output.bias.expand(3, 4))
        assert out[0].sub(layer.output.bias).abs().max() > 1e-3


def test_heads_must_divide() -> None:
    with pytest.raises(ValueError, match="multiple"):
        CrossAttention(query_dim=10, num_heads=3)


def _middle_twin(module: GatedMiddleFusion, x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
    state = module.state_dict()
    hidden = [max(0.0, float(v)) for v in state["text_transform.0.weight"] @ t + state["text_transform.0.bias"]]
    u = state["text_scale"] * (state["text_transform.3.weight"] @ torch.tensor(hidden) + state["text_transform.3.bias"])
    c = torch.cat([x, u])
    if "gate_norm.weight" in state:
        c = (c - c.mean()) / math.sqrt(float(c.var(correction=0)) + 1e-5) * state["gate_norm.weight"] + state[
            "gate_norm.bias"
        ]
    g = 1 / (1 + torch.exp(-(state["gate.0.weight"] @ c + state["gate.0.bias"])))
    y = x + g * u
    return (y - y.mean()) / math.sqrt(float(y.var(correction=0)) + 1e-5) * state["layer_norm.weight"] + state[
        "layer_norm.bias"
    ]


@pytest.mark.parametrize("gate_norm", [False, True])
def test_gated_middle_fusion_equals_its_formula(gate_norm: bool) -> None:
    module = GatedMiddleFusion(
        feature_dim=6,
        context_dim=3,
        middle_fusion_hidden_dim=4,
        middle_fusion_use_gate_norm=gate_norm,
        middle_fusion_use_learnable_scale=True,
        middle_fusion_initial_scale=2.5,
    ).eval()
    x, t, owner = torch.randn(5, 6), torch.randn(2, 3), torch.tensor([0, 0, 1, 1, 1])
    out, gate = module(x, t, owner)
    for row in range(5):
        torch.testing.assert_close(out[row], _middle_twin(module, x[row], t[owner[row]]), atol=1e-5, rtol=1e-5)
    assert gate.shape == x.shape
    assert ((gate > 0) & (gate < 1)).all()
    tokens = torch.stack([x[:2], x[2:4]])
    torch.testing.assert_close(module(tokens, t)[0].flatten(0, 1), module(x[:4], t, owner[:4])[0])


def test_published_parameter_names_and_count() -> None:
    module = GatedMiddleFusion(
        feature_dim=256,
        context_dim=64,
        middle_fusion_hidden_dim=128,
        middle_fusion_use_gate_norm=True,
        middle_fusion_use_learnable_scale=True,
    )
    assert sum(p.numel() for p in module.parameters()) == 174_209
    fixed = GatedMiddleFusion(feature_dim=8, context_dim=4, middle_fusion_hidden_dim=4, middle_fusion_initial_scale=9.0)
    assert float(fixed.text_scale) == 1.0
    assert "text_scale" in fixed.state_dict()
    assert "text_scale" not in dict(fixed.named_parameters())
