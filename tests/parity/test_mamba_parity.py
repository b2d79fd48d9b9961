"""Our Mamba against transformers' slow path with the same weights, forward and gradients."""

import pytest
import torch

from anomaly_lib.models.mamba import Mamba

mamba_hf = pytest.importorskip("transformers.models.mamba.modeling_mamba")
pytestmark = pytest.mark.parity


def test_equals_the_transformers_mixer() -> None:
    from transformers import MambaConfig

    ours = Mamba(d_model=32, d_state=8)
    theirs = mamba_hf.MambaMixer(MambaConfig(hidden_size=32, state_size=8, conv_kernel=4, expand=2), layer_idx=0)
    torch.nn.init.normal_(ours.A_log, std=0.5)
    ours.D.data.normal_()
    theirs.load_state_dict(ours.state_dict())
    tokens = torch.randn(3, 40, 32)
    a, b = tokens.clone().requires_grad_(), tokens.clone().requires_grad_()
    ya, yb = ours(a), theirs(b)
    torch.testing.assert_close(ya, yb, rtol=1e-5, atol=1e-5)
    ya.square().sum().backward()
    yb.square().sum().backward()
    torch.testing.assert_close(a.grad, b.grad, rtol=1e-5, atol=1e-5)
    for (name, p), (_, q) in zip(ours.named_parameters(), theirs.named_parameters(), strict=True):
        torch.testing.assert_close(p.grad, dict(theirs.named_parameters())[name].grad, rtol=1e-4, atol=1e-5, msg=name)
        assert q.grad is not None


@pytest.mark.parametrize("prefix", ["", "mixer."])
def test_loads_checkpoints_of_the_other_packages(prefix: str) -> None:
    source, target = Mamba(d_model=16), Mamba(d_model=16)
    target.load_external({prefix + k: v for k, v in source.state_dict().items()} | {"norm.weight": torch.ones(16)})
    x = torch.randn(2, 9, 16)
    assert torch.equal(source(x), target(x))
    with pytest.raises(ValueError, match="A_log"):
        target.load_external({"norm.weight": torch.ones(16)})


def test_golden_size_init_causality_and_autocast() -> None:
    mamba = Mamba(128)
    assert repr(mamba) == "Mamba(d_model=128, d_state=16, d_conv=4, expand=2)"
    with pytest.raises(ValueError, match=r"tokens: expected \[B, L, 128\], got \[2, 30, 64\]"):
        mamba(torch.zeros(2, 30, 64))
    assert sum(p.numel() for p in mamba.parameters()) == 116_480
    steps = torch.nn.functional.softplus(mamba.dt_proj.bias.detach())
    assert float(steps.min()) >= 1e-3 * 0.99
    assert float(steps.max()) <= 0.1 * 1.01
    torch.testing.assert_close(mamba.A_log.exp()[3], torch.arange(1.0, 17.0))
    x = torch.randn(2, 30, 128)
    changed = x.clone()
    changed[:, 20:] += 1
    before, after = mamba(x), mamba(changed)
    torch.testing.assert_close(before[:, :20], after[:, :20])
    assert not torch.allclose(before[:, 20:], after[:, 20:])
    with torch.autocast("cpu", dtype=torch.bfloat16):
        half = mamba(x)
    assert half.dtype == torch.bfloat16
    torch.testing.assert_close(half.float(), before, rtol=0.05, atol=0.02)
