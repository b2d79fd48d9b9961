"""Pre-norm transformer blocks of open_clip, run by hand so that one pass can feed several readers."""

from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn


def split_heads(x: Tensor, heads: int) -> Tensor:
    """[B, L, C] -> [B, heads, L, C / heads]."""
    return x.unflatten(-1, (heads, -1)).transpose(1, 2)


def merge_heads(x: Tensor) -> Tensor:
    """[B, heads, L, d] -> [B, L, heads * d]."""
    return x.transpose(1, 2).flatten(-2)


def project_qkv(attn: nn.MultiheadAttention, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Queries, keys and values of ``x`` [B, L, C], each [B, heads, L, d], from one matrix product."""
    q, k, v = F.linear(x, attn.in_proj_weight, attn.in_proj_bias).chunk(3, dim=-1)
    return split_heads(q, attn.num_heads), split_heads(k, attn.num_heads), split_heads(v, attn.num_heads)


def attend(
    attn: nn.MultiheadAttention, q: Tensor, k: Tensor, v: Tensor, *, causal: bool = False, seen: Tensor | None = None
) -> Tensor:
    """softmax(q k^T / sqrt(d)) v, heads merged, through the output projection -> [B, L, C]. ``seen`` masks keys."""
    return attn.out_proj(merge_heads(F.scaled_dot_product_attention(q, k, v, attn_mask=seen, is_causal=causal)))


def feed_forward(block: Any, x: Tensor) -> Tensor:
    """The second half of a block: x + MLP(LN(x))."""
    return x + block.ls_2(block.mlp(block.ln_2(x)))


def run_block(block: Any, x: Tensor, *, causal: bool = False, seen: Tensor | None = None) -> Tensor:
    """One pre-norm block on ``x`` [B, L, C]."""
    q, k, v = project_qkv(block.attn, block.ln_1(x))
    return feed_forward(block, x + block.ls_1(attend(block.attn, q, k, v, causal=causal, seen=seen)))
