"""Cross-attention: the tokens of one modality read those of another."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def _heads(tokens: Tensor, num_heads: int) -> Tensor:
    batch, length, width = tokens.shape
    return tokens.view(batch, length, num_heads, width // num_heads).transpose(1, 2)  # [B, H, L, d]


def multi_head_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    *,
    num_heads: int,
    memory_mask: Tensor | None = None,
    dropout: float = 0.0,
    need_weights: bool = False,
) -> tuple[Tensor, Tensor | None]:
    """Attention of projected `query` [B, Q, D] over `key`, `value` [B, K, D] -> ([B, Q, D], weights or None).

    Weights are [B, H, Q, K]. `memory_mask` [B, K]: True counts. A query whose memory is all masked reads 0, never NaN.
    """
    q, k, v = _heads(query, num_heads), _heads(key, num_heads), _heads(value, num_heads)
    allowed = None if memory_mask is None else memory_mask[:, None, None, :].expand(-1, 1, q.shape[2], -1)
    weights = None
    if need_weights:
        logits = q @ k.transpose(-2, -1) * q.shape[-1] ** -0.5  # [B, H, Q, K]
        if allowed is not None:
            logits = logits.masked_fill(~allowed, torch.finfo(logits.dtype).min)
        weights = logits.softmax(-1)
        if allowed is not None:
            weights = weights * allowed
        attended = F.dropout(weights, dropout) @ v
    else:
        attended = F.scaled_dot_product_attention(q, k, v, attn_mask=allowed, dropout_p=dropout)
        if allowed is not None:
            attended = torch.where(allowed.any(-1, keepdim=True), attended, 0.0)
    return attended.transpose(1, 2).flatten(2), weights  # [B, Q, D]


class CrossAttention(nn.Module):
    """Multi-head attention of `query` tokens over `memory` tokens of any widths, without residual or norm.

    The fused kernel serves the ordinary call; with ``need_weights`` the weights [B, heads, Q, K] are computed openly.
    A query whose memory is masked out completely reads 0, never NaN.
    """

    def __init__(
        self,
        *,
        query_dim: int,
        memory_dim: int | None = None,
        hidden_dim: int | None = None,
        output_dim: int | None = None,
        num_heads: int,
        dropout: float = 0.0,
        bias: bool = True,
    ) -> None:
        super().__init__()
        hidden = hidden_dim or query_dim
        memory = memory_dim or query_dim
        if hidden % num_heads:
            raise ValueError(f"hidden_dim {hidden} is not a multiple of num_heads {num_heads}")
        self.num_heads = num_heads
        self.dropout = dropout
        self.query = nn.Linear(query_dim, hidden, bias=bias)
        self.key = nn.Linear(memory, hidden, bias=bias)
        self.value = nn.Linear(memory, hidden, bias=bias)
        self.output = nn.Linear(hidden, output_dim or query_dim, bias=bias)

    def forward(
        self, query: Tensor, memory: Tensor, *, memory_mask: Tensor | None = None, need_weights: bool = False
    ) -> tuple[Tensor, Tensor | None]:
        """`query` [B, Q, Dq], `memory` [B, K, Dm], `memory_mask` [B, K] (True counts) -> ([B, Q, Do], weights)."""
        attended, weights = multi_head_attention(
            self.query(query),
            self.key(memory),
            self.value(memory),
            num_heads=self.num_heads,
            memory_mask=memory_mask,
            dropout=self.dropout if self.training else 0.0,
            need_weights=need_weights,
        )
        return self.output(attended), weights
