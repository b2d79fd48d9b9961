"""The two memory-bound steps of an edge-gated graph convolution, each as one autograd function.

Written openly (the twins in the tests), both steps create half a dozen tensors the size of the largest edge list and
keep most of them for the backward pass. Here the edge list is walked in blocks that fit the processor's cache, only
what cannot be recomputed cheaply is kept, and gradients are accumulated on the way back. On accelerators one block is
everything.
"""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

# N nodes, E directed edges u -> v, C channels
EPSILON = 1e-6
_BLOCK_ELEMENTS = 1 << 18  # 1 MiB of float32: block and its temporaries stay in the second-level cache


def _blocks(values: Tensor) -> Iterator[slice]:
    rows = len(values)
    step = rows if values.is_cuda else max(1, _BLOCK_ELEMENTS // max(1, values.shape[1]))
    for start in range(0, rows, max(step, 1)):
        yield slice(start, start + step)


def _accumulator(like: Tensor) -> torch.dtype:
    return torch.float32 if like.dtype in (torch.float16, torch.bfloat16) else like.dtype


class _GatedMessages(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, send: Tensor, receive: Tensor, value: Tensor, edge: Tensor, source: Tensor, target: Tensor
    ) -> tuple[Tensor, Tensor]:
        wide = _accumulator(edge)
        weighted = torch.zeros(value.shape, dtype=wide, device=value.device)  # [N, C]
        total = torch.zeros_like(weighted)
        for rows in _blocks(edge):
            u, v = source[rows], target[rows]
            message = (
                edge[rows].add_(send.index_select(0, u)).add_(receive.index_select(0, v))
            )  # in place: `edge` becomes m
            gate = message.to(wide).sigmoid()
            total.index_add_(0, v, gate)
            weighted.index_add_(0, v, gate.mul_(value.index_select(0, u)))
        mean = weighted.div_(total.add_(EPSILON))
        ctx.mark_dirty(edge)
        ctx.save_for_backward(edge, value, mean, total, source, target)
        ctx.set_materialize_grads(False)
        return edge, mean.to(edge.dtype)

    @staticmethod
    def backward(ctx: Any, d_message: Tensor | None, d_mean: Tensor | None) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        message, value, mean, total, source, target = ctx.saved_tensors
        wide = total.dtype
        d_mean = torch.zeros_like(mean) if d_mean is None else d_mean.to(wide)
        d_weighted = d_mean / total  # [N, C]
        d_total = -d_weighted * mean  # [N, C]
        d_send, d_receive, d_value = (torch.zeros_like(mean) for _ in range(3))
        d_edge = torch.empty_like(message)
        for rows in _blocks(message):
            u, v = source[rows], target[rows]
            gate = message[rows].to(wide).sigmoid()
            d_out = d_weighted.index_select(0, v)
            d_value.index_add_(0, u, d_out * gate)
            d_gate = d_out.mul_(value.index_select(0, u)).add_(d_total.index_select(0, v))
            d_row = d_gate.mul_(gate).mul_(1 - gate)
            if d_message is not None:
                d_row += d_message[rows]
            d_send.index_add_(0, u, d_row)
            d_receive.index_add_(0, v, d_row)
            d_edge[rows] = d_row
        return d_send.to(value.dtype), d_receive.to(value.dtype), d_value.to(value.dtype), d_edge, None, None


def gated_messages(
    send: Tensor, receive: Tensor, value: Tensor, edge: Tensor, source: Tensor, target: Tensor
) -> tuple[Tensor, Tensor]:
    """Messages m_uv = send_u + receive_v + edge_uv [E, C] and their gated mean at every node [N, C].

    mean_v = sum_u sigmoid(m_uv) value_u / (sum_u sigmoid(m_uv) + 1e-6), element-wise; 0 where nothing arrives.
    `edge` must be a fresh tensor: it is overwritten by m. (torch.compile gets the open formula, which it fuses itself.)
    """
    if torch.compiler.is_compiling():
        message = send[source] + receive[target] + edge
        gate, nothing = message.to(_accumulator(edge)).sigmoid(), torch.zeros_like(value, dtype=_accumulator(edge))
        weighted, total = (nothing.index_add(0, target, part) for part in (gate * value[source], gate))
        return message, (weighted / (total + EPSILON)).to(edge.dtype)
    return _GatedMessages.apply(send, receive, value, edge, source, target)


class _BatchNormSiLU(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        residual: Tensor | None,
        weight: Tensor,
        bias: Tensor,
        mean: Tensor,
        inverse_std: Tensor,
        batch_statistics: bool,
    ) -> Tensor:
        scale = weight * inverse_std
        shift = bias - mean * scale
        out = torch.empty(x.shape, dtype=scale.dtype if residual is None else residual.dtype, device=x.device)
        for rows in _blocks(x):
            y = torch.nn.functional.silu(torch.addcmul(shift, x[rows].to(scale.dtype), scale), inplace=True)
            out[rows] = y if residual is None else y.add_(residual[rows])
        ctx.save_for_backward(x, weight, bias, mean, inverse_std)
        ctx.batch_statistics, ctx.has_residual = batch_statistics, residual is not None
        return out

    @staticmethod
    def backward(ctx: Any, d_out: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        x, weight, bias, mean, inverse_std = ctx.saved_tensors
        scale = weight * inverse_std
        shift = bias - mean * scale
        d_x = torch.empty_like(x)
        d_weight, d_bias = torch.zeros_like(weight), torch.zeros_like(bias)
        for rows in _blocks(x):
            block = x[rows].to(scale.dtype)
            d_y = torch.ops.aten.silu_backward(d_out[rows].to(scale.dtype), torch.addcmul(shift, block, scale))
            d_bias += d_y.sum(0)
            d_weight += (d_y * block).sum(0)
            d_x[rows] = d_y.mul_(scale)
        d_weight = (d_weight - mean * d_bias) * inverse_std
        if ctx.batch_statistics:  # the mean and the variance depend on x as well
            slope = scale * inverse_std * d_weight / len(x)  # [C]
            offset = scale * d_bias / len(x) - slope * mean
            for rows in _blocks(x):
                d_x[rows] -= torch.addcmul(offset, x[rows].to(scale.dtype), slope)
        return d_x, d_out if ctx.has_residual else None, d_weight, d_bias, None, None, None


def column_statistics(x: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and biased variance of the columns of ``x`` [E, C] in one pass over memory (pairwise merging of blocks)."""
    wide = _accumulator(x)
    count, mean, spread = 0, torch.zeros(x.shape[1], dtype=wide, device=x.device), None
    for rows in _blocks(x):
        block = x[rows].to(wide)
        size = len(block)
        block_mean = block.sum(0) / size  # two sums are several times faster than var_mean over rows
        block_spread = (block - block_mean).square_().sum(0)
        delta = block_mean - mean
        mean = mean + delta * (size / (count + size))
        merged = block_spread + delta.square() * (count * size / (count + size))
        spread = merged if spread is None else spread + merged
        count += size
    if spread is None:
        raise ValueError("batch statistics need at least one row")
    return mean, spread / count


def batch_norm_silu(x: Tensor, norm: torch.nn.BatchNorm1d, residual: Tensor | None = None) -> Tensor:
    """``residual + SiLU(norm(x))`` for the rows of ``x`` [E, C]; updates the running statistics like ``norm``."""
    assert isinstance(norm.running_mean, Tensor)
    assert isinstance(norm.running_var, Tensor)
    if norm.training and len(x) > 0:
        with torch.no_grad():
            mean, variance = column_statistics(x)
            momentum = norm.momentum if norm.momentum is not None else 0.1
            assert isinstance(norm.num_batches_tracked, Tensor)
            norm.running_mean.lerp_(mean.to(norm.running_mean.dtype), momentum)
            unbiased = variance * (len(x) / max(len(x) - 1, 1))
            norm.running_var.lerp_(unbiased.to(norm.running_var.dtype), momentum)
            norm.num_batches_tracked += 1
    else:
        mean, variance = norm.running_mean, norm.running_var
    inverse_std = (variance + norm.eps).rsqrt()
    return _BatchNormSiLU.apply(x, residual, norm.weight, norm.bias, mean, inverse_std, norm.training)
