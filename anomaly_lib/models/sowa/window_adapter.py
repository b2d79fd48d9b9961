"""SOWA's adapter: window attention through a frozen CLIP block's own projections, and the little trained around it."""

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from anomaly_lib.config import configure
from anomaly_lib.errors import UserError
from anomaly_lib.models.sowa.config import AdapterConfig
from anomaly_lib.ops.windows import window_partition, window_reverse

MAX_SCALE = math.log(100.0)


class WindowAttention(nn.Module):
    """Cosine attention inside windows [N, w*w, C] with the in- and out-projection of `attn` (frozen, by reference).

    As published: heads are cut anew (8 of 128, CLIP itself has 16 of 64), the in-projection's bias and CLIP's pre-norm
    are left out, the out-projection keeps its bias. `value_only` compares values with values instead of queries with
    keys. Trained: a temperature per head and the MLP behind the relative position bias (both as in Swin V2).
    Options: `AdapterConfig`.
    """

    coordinates: Tensor
    pair_index: Tensor

    def __init__(
        self, attn: nn.MultiheadAttention, config: AdapterConfig | None = None, *, window_size: int, **options: Any
    ) -> None:
        super().__init__()
        c = self.config = configure(AdapterConfig, config, options)
        if window_size < 2:
            raise UserError(f"window_size={window_size}: must be at least 2")
        if attn.embed_dim % c.num_heads:
            raise UserError(f"num_heads={c.num_heads}: does not divide the width {attn.embed_dim}")
        self.frozen = (attn,)  # in a tuple, so that it is neither a submodule nor in the state dict
        self.window_size = window_size
        self.proj_drop = nn.Dropout(c.drop)
        self.logit_scale = nn.Parameter(torch.full((c.num_heads, 1, 1), math.log(10.0)))
        self.cpb_mlp = nn.Sequential(nn.Linear(2, c.cpb_dim), nn.ReLU(), nn.Linear(c.cpb_dim, c.num_heads, bias=False))
        self.register_buffer("coordinates", log_offsets(window_size), persistent=False)
        self.register_buffer("pair_index", offset_index(window_size), persistent=False)

    def __repr__(self) -> str:
        c, width = self.config, self.frozen[0].embed_dim
        compared = "values with values" if c.value_only else "queries with keys"
        return (
            f"WindowAttention({self.window_size}x{self.window_size}, {c.num_heads} heads of {width // c.num_heads}, "
            f"{compared}, frozen projections)"
        )

    def position_bias(self) -> Tensor:
        """16 sigmoid(MLP(offset of key from query)): [heads, w*w, w*w], rows are queries."""
        table = self.cpb_mlp(self.coordinates)  # [(2w-1)^2, heads]
        return 16 * torch.sigmoid(table[self.pair_index]).permute(2, 0, 1)

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """x [B*windows, w*w, C]; mask [windows, w*w, w*w] added to the scores (shifted windows)."""
        query, key, value = self._projected(x)
        mixed = F.scaled_dot_product_attention(
            query, key, value, attn_mask=self._bias(mask, x), dropout_p=self.config.attn_drop * self.training, scale=1.0
        )
        return self.proj_drop(self.frozen[0].out_proj(mixed.transpose(1, 2).flatten(-2)))

    def weights(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """The attention weights [B*windows, heads, w*w, w*w], for figures."""
        query, key, _ = self._projected(x)
        return (query @ key.mT + self._bias(mask, x)).softmax(-1)

    def _projected(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        scale = self.logit_scale.clamp(max=MAX_SCALE).exp().to(x.dtype)
        weight, heads = self.frozen[0].in_proj_weight, self.config.num_heads  # no bias: see above
        if (
            self.config.value_only
        ):  # queries and keys are never read, so two thirds of the projection need not be computed
            value = F.linear(x, weight[-x.shape[-1] :]).unflatten(-1, (heads, -1)).transpose(1, 2)
            unit = F.normalize(value, dim=-1)
            return unit * scale, unit, value
        query, key, value = F.linear(x, weight).unflatten(-1, (3, heads, -1)).permute(2, 0, 3, 1, 4)
        return F.normalize(query, dim=-1) * scale, F.normalize(key, dim=-1), value  # each [N, heads, w*w, d]

    def _bias(self, mask: Tensor | None, x: Tensor) -> Tensor:
        bias = self.position_bias().to(x.dtype)  # [heads, w*w, w*w]
        if mask is None:
            return bias
        masked = bias + mask.to(x.dtype).unsqueeze(1)  # [windows, heads, w*w, w*w]
        return masked.repeat(x.shape[0] // mask.shape[0], 1, 1, 1)


def log_offsets(window: int) -> Tensor:
    """All offsets inside a window on Swin V2's log scale: [(2w-1)^2, 2] (row, column), largest magnitude log2(9)/3."""
    steps = torch.arange(1 - window, window, dtype=torch.float32) / (window - 1) * 8
    steps = steps.sign() * (steps.abs() + 1).log2() / 3
    return torch.cartesian_prod(steps, steps)


def offset_index(window: int) -> Tensor:
    """Which row of `log_offsets` belongs to (query, key): their positions' difference, [w*w, w*w]."""
    place = torch.cartesian_prod(torch.arange(window), torch.arange(window))  # [w*w, 2]
    offset = place[:, None] - place[None, :] + window - 1
    return offset[..., 0] * (2 * window - 1) + offset[..., 1]


class SwinTransformerBlock(nn.Module):
    """x + LN(window attention of x), then x + LN(MLP of that): post-norm, so zero norms make the block the identity."""

    mask: Tensor | None

    def __init__(
        self,
        attn: nn.MultiheadAttention,
        input_resolution: tuple[int, int],
        config: AdapterConfig | None = None,
        *,
        window_size: int,
        shift_size: int = 0,
        **options: Any,
    ) -> None:
        super().__init__()
        c = configure(AdapterConfig, config, options)
        if min(input_resolution) <= window_size:
            window_size, shift_size = min(input_resolution), 0
        if any(side % window_size for side in input_resolution):
            raise UserError(f"window_size={window_size}: does not divide the patch grid {input_resolution}")
        dim = attn.embed_dim
        self.input_resolution, self.window_size, self.shift_size = input_resolution, window_size, shift_size
        self.attn = WindowAttention(attn, c, window_size=window_size)
        self.norm1, self.norm2 = nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.mlp = Mlp(dim, hidden_features=c.hidden_features, drop=c.drop)
        self.drop_path = c.drop_path
        mask = shift_mask(input_resolution, window_size, shift_size) if shift_size else None
        self.register_buffer("mask", mask, persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """x [B, H*W, C] -> the same shape."""
        mixed = self._grid(self.attn(self._windows(x), self.mask))
        x = x + self._dropped(self.norm1(mixed))
        return x + self._dropped(self.norm2(self.mlp(x)))

    @torch.no_grad()
    def attention_received(self, x: Tensor) -> Tensor:
        """How much each token is looked at, mean over heads and queries, times their number (1 = evenly): [B, H*W]."""
        weights = self.attn.weights(self._windows(x), self.mask).mean(1).sum(1)  # [B*windows, w*w]
        return self._grid(weights.unsqueeze(-1)).squeeze(-1)

    def _windows(self, x: Tensor) -> Tensor:
        grid = x.unflatten(1, self.input_resolution)  # [B, H, W, C]
        if self.shift_size:
            grid = grid.roll((-self.shift_size, -self.shift_size), dims=(1, 2))
        return window_partition(grid, self.window_size).flatten(1, 2)

    def _grid(self, windows: Tensor) -> Tensor:
        side = self.window_size
        grid = window_reverse(windows.unflatten(1, (side, side)), self.input_resolution)
        if self.shift_size:
            grid = grid.roll((self.shift_size, self.shift_size), dims=(1, 2))
        return grid.flatten(1, 2)

    def _dropped(self, x: Tensor) -> Tensor:
        if not (self.training and self.drop_path):
            return x
        keep = torch.rand(x.shape[0], 1, 1, device=x.device, dtype=x.dtype) >= self.drop_path
        return x * keep / (1 - self.drop_path)


class Mlp(nn.Module):
    """Linear maps [..., dim] -> [..., dim] without bias, exact GELU between them; without hidden ones a single map."""

    def __init__(self, dim: int, *, hidden_features: Sequence[int] = (), drop: float = 0.0) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        widths = [dim, *hidden_features]
        for inner, outer in pairwise(widths):
            layers += [nn.Linear(inner, outer, bias=False), nn.GELU()]
            if drop:
                layers.append(nn.Dropout(drop))
        self.layers = nn.Sequential(*layers, nn.Linear(widths[-1], dim, bias=False))

    def forward(self, x: Tensor) -> Tensor:
        return self.layers(x)


def shift_mask(resolution: tuple[int, int], window: int, shift: int) -> Tensor:
    """-100 between tokens that only the cyclic shift made neighbours, else 0: [windows, w*w, w*w]."""
    bands = (slice(0, -window), slice(-window, -shift), slice(-shift, None))
    region = torch.zeros(1, *resolution, 1)
    for number, (rows, columns) in enumerate((r, c) for r in bands for c in bands):
        region[:, rows, columns] = number
    windows = window_partition(region, window).flatten(1)  # [windows, w*w]
    return (windows[:, :, None] != windows[:, None, :]) * -100.0


class BasicLayer(nn.Module):
    """The adapter of one stage: `depth` blocks, every second one with windows shifted by half.

        BasicLayer(clip.attention(5), (24, 24), window_size=12)(tokens)  # [B, 576, C] -> [B, 576, C]

    `attn` is the frozen attention of a CLIP block, `input_resolution` the patch grid (H, W). Options: `AdapterConfig`,
    of one stage.
    """

    def __init__(
        self,
        attn: nn.MultiheadAttention,
        input_resolution: tuple[int, int],
        config: AdapterConfig | None = None,
        **options: Any,
    ) -> None:
        super().__init__()
        c = self.config = configure(AdapterConfig, config, options).of_stage(0, 1)
        window = c.window_size[0] or max(2, min(input_resolution) // 2)
        self.blocks = nn.ModuleList(
            SwinTransformerBlock(
                attn, input_resolution, c, window_size=window, shift_size=window // 2 if index % 2 else 0
            )
            for index in range(c.depth[0])
        )

    def __repr__(self) -> str:
        first = self.blocks[0]
        assert isinstance(first, SwinTransformerBlock)
        rows, columns = first.input_resolution
        trained = sum(p.numel() for p in self.parameters())
        return (
            f"BasicLayer({len(self.blocks)} x {first.attn!r} on {rows}x{columns} patches, {trained:,} trained values)"
        )

    def forward(self, x: Tensor) -> Tensor:
        """Patch tokens [B, L, C] -> adapted patch tokens [B, L, C]."""
        for block in self.blocks:
            x = block(x)
        return x

    def attention_received(self, x: Tensor) -> Tensor:
        """`SwinTransformerBlock.attention_received` multiplied over the blocks: [B, L]."""
        received = torch.ones(x.shape[:2], device=x.device)
        for block in self.blocks:
            assert isinstance(block, SwinTransformerBlock)
            received, x = received * block.attention_received(x), block(x)
        return received


def soldier(attn: nn.MultiheadAttention, grid: tuple[int, int], config: AdapterConfig) -> BasicLayer:
    """Small windows, a quarter of the grid: fine texture."""
    return BasicLayer(attn, grid, windowed(config, max(2, min(grid) // 4), depth=1))


def officer(attn: nn.MultiheadAttention, grid: tuple[int, int], config: AdapterConfig) -> BasicLayer:
    """Windows of half the grid, then shifted ones: what lies further apart."""
    return BasicLayer(attn, grid, windowed(config, max(2, min(grid) // 2), depth=2))


def windowed(config: AdapterConfig, window_size: int, *, depth: int) -> AdapterConfig:
    """The options with other windows."""
    made = config.of_stage(0, 1)
    made.window_size, made.depth = [window_size], [depth]
    return made


def linear(attn: nn.MultiheadAttention, grid: tuple[int, int], config: AdapterConfig) -> Mlp:  # noqa: ARG001
    """A linear map of every patch by itself, or an MLP."""
    return Mlp(attn.embed_dim, hidden_features=config.hidden_features)


def nothing(attn: nn.MultiheadAttention, grid: tuple[int, int], config: AdapterConfig) -> nn.Identity:  # noqa: ARG001
    """The patches as CLIP has them."""
    return nn.Identity()


def share_parameters(source: nn.Module, target: nn.Module) -> nn.Module:
    """Let `target` use the trainable parameters of `source`; frozen references stay its own."""
    for name, parameter in source.named_parameters():
        owner, _, leaf = name.rpartition(".")
        setattr(target.get_submodule(owner), leaf, parameter)
    return target
