"""Selective scan (Mamba's recurrence) in plain PyTorch: a fused-memory scan with a hand-written backward.

    h_t = exp(delta_t A) * h_{t-1} + (delta_t u_t) B_t        y_t = <C_t, h_t> + D u_t

Autograd over a Python loop stores every [B, N, E] state and, when it indexes ``x[:, t]``, allocates a full tensor per
step in backward. Here forward keeps one state per chunk of about sqrt(L) steps; backward recomputes a chunk at a time,
so memory grows like sqrt(L) states and everything else is O(L) vectors.
"""

import functools
import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

BACKENDS = ("auto", "torch", "kernel")


@functools.cache
def kernel_available() -> bool:
    """True when mamba_ssm's CUDA scan imports: the wheel also installs where the kernel itself cannot run."""
    if not torch.cuda.is_available():
        return False
    try:
        from mamba_ssm.ops.selective_scan_interface import selective_scan_fn  # noqa: F401
    except (ImportError, RuntimeError, OSError):
        return False
    return True


def scan_backend(backend: str, device: torch.device) -> str:
    """Which scan runs: ``kernel`` (mamba_ssm, CUDA only) or ``torch``. An explicit ``kernel`` never falls back."""
    if backend not in BACKENDS:
        raise ValueError(f"scan backend {backend!r}: choose one of {', '.join(BACKENDS)}")
    usable = device.type == "cuda" and kernel_available()
    if backend == "kernel" and not usable:
        raise RuntimeError(
            "scan backend 'kernel' needs CUDA and mamba_ssm (pip install mamba-ssm); use 'auto' or 'torch'"
        )
    return "kernel" if backend != "torch" and usable else "torch"


def selective_scan(
    u: Tensor,  # [B, L, E]
    delta: Tensor,  # [B, L, E], before the softplus
    A: Tensor,  # [E, N], negative
    B: Tensor,  # [B, L, N]
    C: Tensor,  # [B, L, N]
    D: Tensor | None = None,  # [E]
    *,
    z: Tensor | None = None,  # [B, L, E] gate
    delta_bias: Tensor | None = None,  # [E]
    backend: str = "auto",
) -> Tensor:  # [B, L, E]
    """The scan with softplus(delta + bias), skip ``D u`` and gate ``silu(z)``, at least in float32; keeps the dtype."""
    if scan_backend(backend, u.device) == "kernel":
        return _kernel_scan(u, delta, A, B, C, D, z, delta_bias)
    wide = torch.promote_types(u.dtype, torch.float32)  # half precision loses the slow states: exp(delta A) near 1
    with torch.autocast(device_type=u.device.type, enabled=False):
        inputs = u.to(wide)
        step = F.softplus(delta.to(wide) if delta_bias is None else delta.to(wide) + delta_bias.to(wide))
        scan = doubling_scan if torch.compiler.is_exporting() else RecomputeScan.apply
        y = scan(
            (step * inputs).transpose(0, 1).contiguous(),  # time first: step t is one contiguous slice
            step.transpose(0, 1).contiguous(),
            A.to(wide).t().contiguous(),
            B.to(wide).transpose(0, 1).contiguous(),
            C.to(wide).transpose(0, 1).contiguous(),
        ).transpose(0, 1)
        if D is not None:
            y = y + inputs * D.to(wide)
        if z is not None:
            y = y * F.silu(z.to(wide))
    return y.to(u.dtype)


def doubling_scan(drive: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor) -> Tensor:
    """The scan in log2(L) steps instead of L, for graphs of one length: each step takes in what twice as many before
    have left. It holds all states at once. Inputs as of `RecomputeScan`."""
    decay = torch.exp(delta.unsqueeze(2) * A)  # [L, B, N, E]
    state = B.unsqueeze(3) * drive.unsqueeze(2)
    reach, length = 1, drive.shape[0]
    while reach < length:
        before = torch.zeros_like(state[:reach])
        state = state + decay * torch.cat([before, state[:-reach]])
        decay = decay * torch.cat([before, decay[:-reach]])
        reach *= 2
    return (C.unsqueeze(3) * state).sum(2)


def _kernel_scan(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    z: Tensor | None,
    delta_bias: Tensor | None,
) -> Tensor:
    from mamba_ssm.ops.selective_scan_interface import selective_scan_fn

    def channels_first(x: Tensor) -> Tensor:
        return x.transpose(1, 2).contiguous()

    y = selective_scan_fn(
        channels_first(u),
        channels_first(delta),
        A.float(),
        channels_first(B),
        channels_first(C),
        None if D is None else D.float(),
        z=None if z is None else channels_first(z),
        delta_bias=None if delta_bias is None else delta_bias.float(),
        delta_softplus=True,
    )
    return y.transpose(1, 2)


class RecomputeScan(torch.autograd.Function):
    """y_t = C_t h_t with h_t = exp(delta_t A) h_{t-1} + drive_t B_t; all inputs contiguous and time first.

    The state lies as [B, N, E] so that every broadcast runs along the contiguous E, and the rank-one updates are
    ``baddbmm_``, which on a CPU is several times faster than a broadcast ``addcmul_``.
    """

    @staticmethod
    def forward(ctx: Any, drive: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor) -> Tensor:
        # Shapes: drive and delta [L, B, E], A [N, E], B and C [L, B, N].
        length, batch, channels = drive.shape
        ctx.chunk = max(1, math.isqrt(length))
        state = drive.new_zeros(batch, A.shape[0], channels)
        decay = torch.empty_like(state)
        y = torch.empty_like(drive)
        keep = any(ctx.needs_input_grad)
        starts = []
        for t in range(length):
            if keep and t % ctx.chunk == 0:
                starts.append(state.clone())
            _advance(state, decay, drive[t], delta[t], A, B[t])
            y[t] = torch.bmm(C[t].unsqueeze(1), state).squeeze(1)
        ctx.save_for_backward(drive, delta, A, B, C, *starts)
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_y: Tensor) -> tuple[Tensor, ...]:
        drive, delta, A, B, C, *starts = ctx.saved_tensors
        grad_y = grad_y.contiguous()
        grads = [torch.empty_like(drive), torch.empty_like(delta), torch.empty_like(B), torch.empty_like(C)]
        grad_decay_sum = torch.zeros_like(starts[0])  # [B, N, E], summed over time; over the batch at the very end
        grad_state = torch.zeros_like(starts[0])
        states = starts[0].new_empty(ctx.chunk + 1, *starts[0].shape)
        decays = torch.empty_like(states)
        for number in reversed(range(len(starts))):
            first = number * ctx.chunk
            last = min(first + ctx.chunk, drive.shape[0])
            states[0] = starts[number]
            for k, t in enumerate(range(first, last)):
                states[k + 1] = states[k]
                _advance(states[k + 1], decays[k], drive[t], delta[t], A, B[t])
            for t in reversed(range(first, last)):
                k = t - first
                inputs = (drive[t], delta[t], A, B[t], C[t], grad_y[t])
                outputs = [grad[t] for grad in grads]
                _step_back(grad_state, grad_decay_sum, states[k], states[k + 1], decays[k], inputs, outputs)
        return grads[0], grads[1], grad_decay_sum.sum(0), grads[2], grads[3]


def _advance(state: Tensor, decay: Tensor, drive: Tensor, delta: Tensor, A: Tensor, B: Tensor) -> None:
    """state <- exp(delta A) state + B drive, in place; ``decay`` receives exp(delta A)."""
    torch.mul(delta.unsqueeze(1), A, out=decay)
    decay.exp_()
    state.mul_(decay).baddbmm_(B.unsqueeze(2), drive.unsqueeze(1))


def _step_back(
    grad_state: Tensor,  # [B, N, E] in: d/dh_t from later steps; out: d/dh_{t-1}
    grad_decay_sum: Tensor,  # [B, N, E] += delta_t d/d(delta_t A)
    before: Tensor,  # h_{t-1}; its memory is scratch afterwards
    after: Tensor,  # h_t; its memory is scratch afterwards
    decay: Tensor,
    inputs: tuple[Tensor, ...],
    outputs: list[Tensor],
) -> None:
    drive, delta, A, B, C, grad_y = inputs
    grad_drive, grad_delta, grad_B, grad_C = outputs
    grad_C.copy_(torch.bmm(after, grad_y.unsqueeze(2)).squeeze(2))
    grad_state.baddbmm_(C.unsqueeze(2), grad_y.unsqueeze(1))
    grad_B.copy_(torch.bmm(grad_state, drive.unsqueeze(2)).squeeze(2))
    grad_drive.copy_(torch.bmm(B.unsqueeze(1), grad_state).squeeze(1))
    grad_state.mul_(decay)  # d/dh_{t-1}
    torch.mul(grad_state, before, out=decay)  # d/d(delta_t A)
    torch.mul(decay, A, out=after)
    torch.sum(after, dim=1, out=grad_delta)
    torch.mul(decay, delta.unsqueeze(1), out=after)
    grad_decay_sum.add_(after)
