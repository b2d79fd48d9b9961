"""The scan against a loop written as the formula, its gradients against autograd, its stability and its memory."""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from anomaly_lib.ops.selective_scan import RecomputeScan, doubling_scan, scan_backend, selective_scan


def loop_scan(u, delta, A, B, C, D, z, bias) -> Tensor:
    """The recurrence read off the paper, one step and one new tensor at a time."""
    step = F.softplus(delta + bias)
    state = torch.zeros(u.shape[0], u.shape[2], A.shape[1], dtype=u.dtype)
    outputs = []
    for t in range(u.shape[1]):
        state = torch.exp(step[:, t, :, None] * A) * state + (step[:, t] * u[:, t])[..., None] * B[:, t, None, :]
        outputs.append((state * C[:, t, None, :]).sum(-1) + D * u[:, t])
    return torch.stack(outputs, 1) * F.silu(z)


def inputs(batch: int, length: int, channels: int, states: int, dtype: torch.dtype = torch.float64) -> list[Tensor]:
    g = torch.Generator().manual_seed(batch + 10 * length)
    shapes = [(batch, length, channels), (batch, length, channels), (channels, states)]
    shapes += [(batch, length, states)] * 2 + [(channels,), (batch, length, channels), (channels,)]
    tensors = [torch.randn(shape, generator=g, dtype=dtype) for shape in shapes]
    tensors[2] = -tensors[2].abs() - 0.1
    return [t.requires_grad_() for t in tensors]


def call(args: list[Tensor]) -> Tensor:
    u, delta, A, B, C, D, z, bias = args
    return selective_scan(u, delta, A, B, C, D, z=z, delta_bias=bias)


@settings(deadline=None, max_examples=12)
@given(st.integers(1, 3), st.integers(1, 19), st.integers(1, 5), st.integers(1, 4))
def test_equals_the_loop_forward_and_backward(batch: int, length: int, channels: int, states: int) -> None:
    args = inputs(batch, length, channels, states)
    ours, twin = call(args), loop_scan(*args)
    torch.testing.assert_close(ours, twin, rtol=1e-9, atol=1e-10)
    weight = torch.linspace(-1, 1, ours.numel(), dtype=torch.float64).view_as(ours)
    for a, b in zip(
        torch.autograd.grad((ours * weight).sum(), args), torch.autograd.grad((twin * weight).sum(), args), strict=True
    ):
        torch.testing.assert_close(a, b, rtol=1e-8, atol=1e-9)


def test_float32_is_within_1e_5_of_the_loop() -> None:
    args = inputs(4, 128, 16, 16, torch.float32)
    ours, twin = call(args), loop_scan(*args)
    torch.testing.assert_close(ours, twin, rtol=1e-5, atol=1e-5)
    for a, b in zip(torch.autograd.grad(ours.sum(), args), torch.autograd.grad(twin.sum(), args), strict=True):
        torch.testing.assert_close(a / b.abs().max(), b / b.abs().max(), rtol=1e-5, atol=1e-5)


def test_gradcheck_of_the_custom_function() -> None:
    shapes = [(5, 2, 3), (5, 2, 3), (2, 3), (5, 2, 2), (5, 2, 2)]
    args = [torch.randn(s, dtype=torch.float64).abs().requires_grad_() for s in shapes]
    assert torch.autograd.gradcheck(RecomputeScan.apply, args)


@pytest.mark.parametrize("length", [1, 2, 7, 128])
def test_the_scan_of_exported_graphs_is_the_same(length: int) -> None:
    u, delta, A, B, C, *_ = (one.detach() for one in inputs(2, length, 5, 3))
    step = F.softplus(delta).transpose(0, 1)
    given = (u.transpose(0, 1) * step, step, A.t(), B.transpose(0, 1), C.transpose(0, 1))
    torch.testing.assert_close(doubling_scan(*given), RecomputeScan.apply(*(one.contiguous() for one in given)))


def test_extreme_steps_stay_finite() -> None:
    """A log-space scan overflows here: exp(-cumsum(delta A)) passes 1e38 after a few steps."""
    args = [t.detach() for t in inputs(2, 512, 8, 16, torch.float32)]
    args[1] = args[1] * 40
    args[2] = args[2] * 20
    args = [t.requires_grad_() for t in args]
    y = call(args)
    assert y.isfinite().all()
    assert all(g.isfinite().all() for g in torch.autograd.grad(y.square().mean(), args))


def test_bfloat16_inputs_are_scanned_in_float32() -> None:
    args = [t.detach() for t in inputs(2, 64, 8, 4, torch.float32)]
    rounded = [t.bfloat16() for t in args]
    exact = call([t.float() for t in rounded])
    ours = call(rounded)
    assert ours.dtype == torch.bfloat16
    assert torch.equal(ours, exact.bfloat16())  # rounded once, at the end


def test_backward_keeps_square_root_many_states() -> None:
    state_elements = 2 * 4 * 8  # B N E
    saved: dict[int, int] = {}
    for length in (64, 1024):
        args = inputs(2, length, 8, 4, torch.float32)
        tally: list[int] = []
        with torch.autograd.graph.saved_tensors_hooks(
            lambda t, tally=tally: (tally.append(t.numel()), t)[1], lambda t: t
        ):
            call(args)
        saved[length] = sum(n for n in tally if n == state_elements) // state_elements
    assert saved[64] <= 9
    assert saved[1024] <= 33


def test_asking_for_the_kernel_never_falls_back_silently() -> None:
    with pytest.raises(RuntimeError, match="mamba_ssm"):
        scan_backend("kernel", torch.device("cpu"))
    assert scan_backend("auto", torch.device("cpu")) == "torch"
    with pytest.raises(ValueError, match="auto, torch, kernel"):
        scan_backend("cuda", torch.device("cpu"))
