"""Cross-attention: the tokens of one modality read those of another."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn


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

    def _heads(self, tokens: Tensor) -> Tensor:
        batch, length, width = tokens.shape
        return tokens.view(batch, length, self.num_heads, width // self.num_heads).transpose(1, 2)  # [B, H, L, d]

    def forward(
        self, query: Tensor, memory: Tensor, *, memory_mask: Tensor | None = None, need_weights: bool = False
    ) -> tuple[Tensor, Tensor | None]:
        """`query` [B, Q, Dq], `memory` [B, K, Dm], `memory_mask` [B, K] (True counts) -> ([B, Q, Do], weights)."""
        q, k, v = self._heads(self.query(query)), self._heads(self.key(memory)), self._heads(self.value(memory))
        allowed = None if memory_mask is None else memory_mask[:, None, None, :].expand(-1, 1, q.shape[2], -1)
        dropout = self.dropout if self.training else 0.0
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
        merged = attended.transpose(1, 2).flatten(2)  # [B, Q, hidden]
        return self.output(merged), weights
