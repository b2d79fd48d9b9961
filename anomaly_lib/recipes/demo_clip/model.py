"""The demo CLIP in open_clip's own modules, and its encoding of windows and texts with gradients."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from anomaly_lib.backbones.attention import feed_forward, merge_heads, project_qkv
from anomaly_lib.backbones.clip import CLIP_MEAN, CLIP_STD
from anomaly_lib.backbones.clip_text import ClipText
from anomaly_lib.backbones.tokenizer import WordTokenizer
from anomaly_lib.data.procedural import captions
from anomaly_lib.data.procedural.pool import GRID, PATCH, SIZE

MODEL: dict[str, Any] = {
    "embed_dim": 128,
    "vision_cfg": {"image_size": SIZE, "patch_size": PATCH, "width": 192, "layers": 5, "head_width": 64},
    "text_cfg": {"context_length": 77, "width": 64, "heads": 1, "layers": 2},
}


def build() -> tuple[Any, ClipText, WordTokenizer]:
    """open_clip's own CLIP with a word-level vocabulary."""
    from open_clip.model import CLIP

    tokenizer = WordTokenizer(captions.grammar_words())
    clip = CLIP(**{**MODEL, "text_cfg": {**MODEL["text_cfg"], "vocab_size": tokenizer.vocab_size}})
    return clip, ClipText(clip, tokenizer), tokenizer


def attend(attn: nn.MultiheadAttention, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """As `backbones.attention.attend`, spelled out: on a CPU the fused kernel's backward takes four times as long."""
    weights = ((q * q.shape[-1] ** -0.5) @ k.transpose(-1, -2)).softmax(-1)
    return attn.out_proj(merge_heads(weights.to(v.dtype) @ v))


def encode_windows(clip: Any, images: Tensor, offsets: Tensor, *, value_value: bool) -> dict[str, Tensor]:
    """Projected, normalised image feature and patch features of windows that know where in the picture they are."""
    visual = clip.visual
    centre, spread = (torch.tensor(values).view(3, 1, 1) for values in (CLIP_MEAN, CLIP_STD))
    x = visual.conv1((images - centre) / spread)  # [B, C, h, w]
    height, width = x.shape[-2:]
    x = x.flatten(2).transpose(1, 2)
    rows = (offsets[:, :1] + torch.arange(height))[:, :, None] * GRID  # [B, h, 1]
    places = (rows + (offsets[:, 1:] + torch.arange(width))[:, None, :]).flatten(1)  # [B, h * w]
    table = visual.positional_embedding
    start = (visual.class_embedding + table[0]).expand(len(x), 1, -1)
    x = visual.ln_pre(torch.cat([start.to(x.dtype), x + table[1:][places].to(x.dtype)], 1))
    summed = x
    for block in visual.transformer.resblocks:
        q, k, v = project_qkv(block.attn, block.ln_1(x))
        x = x + attend(block.attn, q, k, v)
        if value_value:
            summed = summed + attend(block.attn, v, v, v)
        x = feed_forward(block, x)

    def joint(tokens: Tensor) -> Tensor:
        return F.normalize((visual.ln_post(tokens) @ visual.proj).float(), dim=-1)

    out = {"pooled": joint(x[:, 0]), "patches": joint(x[:, 1:])}
    return out | ({"vv": joint(summed[:, 1:])} if value_value else {})


def encode_text(text: ClipText, texts: list[str]) -> Tensor:
    """Normalised features; differentiable, equal texts once."""
    distinct = list(dict.fromkeys(texts))
    ids = text.tokenize(distinct)
    features = F.normalize(text.encode(text.embed(ids), text.end_of_text(ids)).float(), dim=-1)
    position = {one: row for row, one in enumerate(distinct)}
    return features[[position[one] for one in texts]]
