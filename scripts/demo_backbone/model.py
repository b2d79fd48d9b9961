"""The demo CLIP in open_clip's own modules, how it starts, and its encoding of pictures and texts with gradients."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from anomaly_lib.backbones.attention import feed_forward, merge_heads, project_qkv
from anomaly_lib.backbones.clip import CLIP_MEAN, CLIP_STD
from anomaly_lib.backbones.clip_text import ClipText
from anomaly_lib.backbones.tokenizer import WordTokenizer
from scripts.demo_backbone.pictures import captions
from scripts.demo_backbone.pictures.pool import GRID, PATCH, SIZE

MODEL: dict[str, Any] = {
    "embed_dim": 128,
    "vision_cfg": {"image_size": SIZE, "patch_size": PATCH, "width": 128, "layers": 5, "head_width": 32},
    "text_cfg": {"context_length": 77, "width": 64, "heads": 1, "layers": 2},
}


def build() -> tuple[Any, ClipText, WordTokenizer]:
    """open_clip's own CLIP with a word-level vocabulary, image tower started at what every picture has in common."""
    from open_clip.model import CLIP

    tokenizer = WordTokenizer(captions.grammar_words())
    clip = CLIP(**{**MODEL, "text_cfg": {**MODEL["text_cfg"], "vocab_size": tokenizer.vocab_size}})
    start_image_tower(clip.visual)
    return clip, ClipText(clip, tokenizer), tokenizer


@torch.no_grad()
def start_image_tower(visual: Any) -> None:
    """Patches begin as cosine waves of brightness and colour, places as sines, attention as a comparison.

    Learned from noise these take more steps than there is time for on two cores.
    """
    width, _, patch, _ = visual.conv1.weight.shape
    visual.conv1.weight.copy_(cosine_patches(width, patch))
    table = sine_places(width, GRID)
    visual.positional_embedding.copy_(torch.cat([torch.zeros(1, width), table]) * 0.5)
    for block in visual.transformer.resblocks:
        start_attention(block.attn)


def start_attention(attn: nn.MultiheadAttention) -> None:
    """Each patch looks at patches like it, near it first, and takes their average off itself.

    Q^T K = 0.7 (Z + 1) and O V = 0.4 (Z - 1) with noise Z, as in trained transformers (Trockman and Kolter, 2023).
    """
    width, heads = attn.embed_dim, attn.num_heads
    size = width // heads

    def factors(noise: float, unit: float) -> tuple[Tensor, Tensor]:
        target = noise * torch.randn(width, width) / math.sqrt(width) + unit * torch.eye(width)
        left, strength, right = torch.linalg.svd(target)
        return left * strength.sqrt(), right.mT * strength.sqrt()  # left @ right.mT is the target

    pairs = [factors(0.7, 0.7) for _ in range(heads)]
    query, key = (torch.cat([pair[side][:, :size].mT for pair in pairs]) for side in (0, 1))  # [width, width]
    out, value = factors(0.4, -0.4)
    attn.in_proj_weight.copy_(torch.cat([query, key, value.mT]))
    attn.out_proj.weight.copy_(out)


def cosine_patches(count: int, patch: int) -> Tensor:
    """[count, 3, patch, patch]: half of them brightness, the rest two colour differences, low frequencies first.

    Amplitudes rise with the frequency, as those of pictures fall with it.
    """
    steps = (torch.arange(patch) + 0.5) / patch
    waves = torch.cos(math.pi * torch.arange(patch)[:, None] * steps)  # [frequency, pixel]
    waves = waves / waves.norm(dim=1, keepdim=True)
    order = sorted(((u, v) for u in range(patch) for v in range(patch)), key=lambda f: (f[0] + f[1], f))
    colours = torch.tensor([[1.0, 1.0, 1.0], [1.0, -1.0, 0.0], [0.5, 0.5, -1.0]])
    colours = colours / colours.norm(dim=1, keepdim=True)
    counts = (count - 2 * (count // 4), count // 4, count // 4)
    rows = []
    for colour, many in zip(colours, counts, strict=True):
        for u, v in (order * (many // len(order) + 1))[:many]:
            rows.append((0.3 + 0.5 * (u + v)) * colour[:, None, None] * torch.outer(waves[u], waves[v]))
    return torch.stack(rows)


def sine_places(width: int, grid: int) -> Tensor:
    """[grid * grid, width] sines and cosines of row and column."""
    rates = 1 / (10 * grid) ** (torch.arange(width // 4) / (width // 4)) * math.pi
    angles = torch.arange(grid)[:, None] * rates  # [grid, width / 4]
    axis = torch.cat([angles.sin(), angles.cos()], 1)
    rows, columns = axis[:, None].expand(grid, grid, -1), axis[None].expand(grid, grid, -1)
    return torch.cat([rows, columns], -1).flatten(0, 1)


def attend(attn: nn.MultiheadAttention, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """As `backbones.attention.attend`, spelled out: on a CPU the fused kernel's backward takes longer."""
    weights = ((q * q.shape[-1] ** -0.5) @ k.transpose(-1, -2)).softmax(-1)
    return attn.out_proj(merge_heads(weights.to(v.dtype) @ v))


def encode_windows(
    clip: Any, images: Tensor, offsets: Tensor, *, value_value: bool, taps: tuple[int, ...] = ()
) -> dict[str, Tensor]:
    """Projected, normalised image and patch features of windows [B, 3, s, s] in [0, 1]; patch rows after blocks `taps`.

    `offsets` [B, 2] in patches: a window knows where in the picture it is.
    """
    visual = clip.visual
    centre, spread = (torch.tensor(values).view(3, 1, 1) for values in (CLIP_MEAN, CLIP_STD))
    x = visual.conv1((images - centre) / spread)  # [B, C, h, w]
    height, width = x.shape[-2:]
    rows = (offsets[:, :1] + torch.arange(height))[:, :, None] * GRID  # [B, h, 1]
    places = (rows + (offsets[:, 1:] + torch.arange(width))[:, None, :]).flatten(1)  # [B, N]
    table = visual.positional_embedding
    start = (visual.class_embedding + table[0]).expand(len(x), 1, -1)
    x = x.flatten(2).transpose(1, 2) + table[1:][places].to(x.dtype)
    x = visual.ln_pre(torch.cat([start.to(x.dtype), x], 1))
    summed, out = x, {}
    for index, block in enumerate(visual.transformer.resblocks):
        q, k, v = project_qkv(block.attn, block.ln_1(x))
        x = x + attend(block.attn, q, k, v)
        if value_value:
            summed = summed + attend(block.attn, v, v, v)
        x = feed_forward(block, x)
        if index in taps:
            out[f"layer.{index}"] = x[:, 1:]

    def joint(tokens: Tensor) -> Tensor:
        return F.normalize((visual.ln_post(tokens) @ visual.proj).float(), dim=-1)

    out |= {"pooled": joint(x[:, 0]), "patches": joint(x[:, 1:])}
    return out | ({"vv": joint(summed[:, 1:])} if value_value else {})


def encode_text(text: ClipText, texts: list[str]) -> Tensor:
    """Normalised features; differentiable, equal texts once."""
    distinct = list(dict.fromkeys(texts))
    ids = text.tokenize(distinct)
    features = F.normalize(text.encode(text.embed(ids), text.end_of_text(ids)).float(), dim=-1)
    position = {one: row for row, one in enumerate(distinct)}
    return features[[position[one] for one in texts]]
