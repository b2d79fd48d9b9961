"""Grad-CAM on any layer: convolution maps [B, C, H, W] or transformer tokens [B, N, C]."""

import math
from collections.abc import Callable
from contextlib import ExitStack

import torch
from torch import Tensor, nn


def grad_cam(
    layer: nn.Module,
    forward: Callable[[], Tensor],
    *,
    grid: tuple[int, int] | None = None,
    skip_tokens: int = 0,
) -> Tensor:
    """Relevance [B, h, w] in [0, 1] of `layer`'s output for the summed result of `forward()`.

    relevance = relu(sum_c mean(dy/dA_c) A_c). Tokens lose their first `skip_tokens` (class and registers) and take
    the form of `grid` (square if None). Works on a frozen model: its parameters need no gradient.
    """
    kept: list[Tensor] = []

    def remember(_module: nn.Module, _inputs: object, output: Tensor) -> Tensor:
        output = output if output.requires_grad else output.detach().requires_grad_()
        kept.append(output)
        return output

    with ExitStack() as stack:
        stack.callback(layer.register_forward_hook(remember).remove)
        stack.enter_context(torch.enable_grad())
        score = forward()
    if not kept:
        raise ValueError("the layer did not run in this forward pass")
    (gradient,) = torch.autograd.grad(score.sum(), kept[-1])
    activation = kept[-1].detach()
    if activation.ndim == 3:
        activation, gradient = activation[:, skip_tokens:], gradient[:, skip_tokens:]
        side = math.isqrt(activation.shape[1])
        grid = grid or (side, side)
        activation, gradient = (x.transpose(1, 2).unflatten(2, grid) for x in (activation, gradient))
    relevance = (gradient.mean((2, 3), keepdim=True) * activation).sum(1).clamp_min(0)  # [B, h, w]
    return relevance / relevance.amax((1, 2), keepdim=True).clamp_min(1e-12)
