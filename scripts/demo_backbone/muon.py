"""Muon for the matrices of a transformer, AdamW for everything else, in one optimiser with one state.

Muon (Jordan et al., 2024) replaces a matrix's momentum by the nearest matrix whose singular values are equal, so that
rare directions learn as fast as frequent ones. In float32: PyTorch's own runs in bfloat16, which most CPUs emulate.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn

NEWTON_SCHULZ = (3.4445, -4.7750, 2.0315)  # the quintic's coefficients, chosen for speed: values end in 0.7 .. 1.2


def orthogonalised(matrix: Tensor, steps: int = 5) -> Tensor:
    """U V^T, roughly, of U S V^T = `matrix` [..., m, n]."""
    a, b, c = NEWTON_SCHULZ
    tall = matrix.shape[-2] > matrix.shape[-1]
    x = matrix.mT if tall else matrix
    x = x / (torch.linalg.matrix_norm(x, keepdim=True) + 1e-7)
    for _ in range(steps):
        gram = x @ x.mT
        x = a * x + (b * gram + c * gram @ gram) @ x
    return x.mT if tall else x


class Muon(torch.optim.Optimizer):
    """Groups with ``muon=True`` hold matrices; their update has the size AdamW's would have (Liu et al., 2025)."""

    def __init__(
        self,
        groups: Iterable[dict[str, Any]],
        lr: float,
        *,
        momentum: float = 0.95,
        betas: tuple[float, float] = (0.9, 0.98),
        eps: float = 1e-8,
    ) -> None:
        defaults = {"momentum": momentum, "betas": betas, "eps": eps, "weight_decay": 0.0, "muon": False}
        super().__init__(list(groups), {"lr": lr} | defaults)

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        loss = closure() if closure is not None else None
        for group in self.param_groups:
            parameters = [p for p in group["params"] if p.grad is not None]
            torch._foreach_mul_(parameters, 1 - group["lr"] * group["weight_decay"])
            for parameter in parameters:
                assert parameter.grad is not None
                one = self._orthogonal if group["muon"] else self._adam
                update = one(self.state[parameter], parameter.grad, group)
                parameter.add_(update, alpha=-group["lr"])
        return loss

    @staticmethod
    def _orthogonal(state: dict[str, Any], gradient: Tensor, group: dict[str, Any]) -> Tensor:
        if not state:
            state["momentum"] = torch.zeros_like(gradient)
        velocity = state["momentum"].lerp_(gradient, 1 - group["momentum"])
        ahead = gradient.lerp(velocity, group["momentum"])  # Nesterov
        return orthogonalised(ahead) * (0.2 * max(gradient.shape) ** 0.5)

    @staticmethod
    def _adam(state: dict[str, Any], gradient: Tensor, group: dict[str, Any]) -> Tensor:
        if not state:
            state.update(step=0, mean=torch.zeros_like(gradient), square=torch.zeros_like(gradient))
        state["step"] += 1
        first, second = group["betas"]
        mean = state["mean"].lerp_(gradient, 1 - first)
        square = state["square"].mul_(second).addcmul_(gradient, gradient, value=1 - second)
        spread = (square / (1 - second ** state["step"])).sqrt_().add_(group["eps"])
        return mean / (1 - first ** state["step"]) / spread


def muon_groups(module: nn.Module, matrices: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """The matrices inside `matrices` (a part of `module`) by Muon; other matrices and vectors by AdamW."""
    hidden = {id(p) for p in matrices.parameters() if p.ndim == 2}
    rest = [p for p in module.parameters() if id(p) not in hidden]
    return [
        {"params": [p for p in matrices.parameters() if p.ndim == 2], "weight_decay": weight_decay, "muon": True},
        {"params": [p for p in rest if p.ndim > 1], "weight_decay": weight_decay},
        {"params": [p for p in rest if p.ndim <= 1]},
    ]
