"""The trainable parts of Causal-FiLM: sensor modulator (L1), process and result encoders (L2), decoder (L3)."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from anomaly_lib.config import configure
from anomaly_lib.errors import UserError
from anomaly_lib.models.mamba import Mamba
from anomaly_lib.models.weld.config import ATTENTION_HEADS, SENSOR_CHANNELS, CausalFiLMConfig, parse_branches

IMAGE_DIM = 1280  # token width of DINOv3 ViT-H/16+
BOTTLENECK = 64  # width of the narrow decoder
ACTIVATIONS: dict[str, type[nn.Module]] = {"relu": nn.ReLU, "silu": nn.SiLU}


class GeM(nn.Module):
    """Generalised mean over tokens, ``mean(x^p)^(1/p)`` with one learnable p >= 1: p=1 is the mean, p=inf the max.

    ViT tokens are signed and the published form clamps them at eps, which throws every negative activation away;
    ``signed`` keeps the sign outside the power, ``softplus`` makes the tokens positive first.
    """

    def __init__(
        self, *, p: float = CausalFiLMConfig.gem_p, mode: str = CausalFiLMConfig.gem_mode, eps: float = 1e-6
    ) -> None:
        super().__init__()
        self.p = nn.Parameter(torch.tensor(float(p)))
        self.mode, self.eps = mode, eps

    def extra_repr(self) -> str:
        return f"p={float(self.p.detach()):.3g}, mode={self.mode!r}"

    def forward(self, tokens: Tensor) -> Tensor:  # [..., N, C] -> [..., C]
        p = self.p.float().clamp_min(1.0)
        tokens = tokens.float()  # x^6 leaves half precision quickly
        if self.mode == "signed":
            mean = (tokens.sign() * tokens.abs().clamp_min(self.eps).pow(p)).mean(-2)
            return mean.sign() * mean.abs().clamp_min(self.eps).pow(1 / p)
        positive = F.softplus(tokens) if self.mode == "softplus" else tokens
        return positive.clamp_min(self.eps).pow(p).mean(-2).pow(1 / p)


def pool_tokens(tokens: Tensor, pool: str) -> Tensor:  # [..., N, C] -> [..., C]
    """The pools without parameters."""
    if pool == "mean":
        return tokens.mean(-2)
    if pool == "max":
        return tokens.amax(-2)
    if pool == "cls":
        return tokens[..., 0, :]
    raise UserError(f"pool={pool}: is not one of mean, max, cls")


def projector(input_dim: int, d_model: int, *, dropout: float = 0.0) -> nn.Sequential:
    """Linear -> LayerNorm -> GELU -> Linear, from a backbone's width to d_model."""
    return nn.Sequential(
        nn.Linear(input_dim, 512), nn.LayerNorm(512), nn.GELU(), nn.Dropout(dropout), nn.Linear(512, d_model)
    )


class MambaBlock(nn.Module):
    """``x + Mamba(LayerNorm(x))``."""

    def __init__(self, *, width: int, backend: str) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.mamba = Mamba(d_model=width, backend=backend)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.mamba(self.norm(x))


class SensorModulator(nn.Module):
    """A sensor series [B, S, C] -> (gamma, beta) [B, 1, d] or, with `split_film`, [B, 2, d]; identity at step 0.

    ``SensorModulator(config)`` or ``SensorModulator(d_model=..., sensor_hidden=..., modulator="gru")``.
    """

    def __init__(
        self, config: CausalFiLMConfig | None = None, *, sensor_channels: int = SENSOR_CHANNELS, **options: Any
    ) -> None:
        super().__init__()
        c = self.config = configure(CausalFiLMConfig, config, options)
        self.pairs = 2 if c.split_film else 1
        if c.modulator == "none":
            return
        hidden = c.sensor_hidden
        self.blocks: nn.Module
        self.embed = nn.Linear(sensor_channels, hidden)
        self.norm = nn.LayerNorm(hidden)
        self.head = nn.Linear(hidden, 2 * c.d_model * self.pairs)
        if c.modulator == "mamba":
            blocks = [MambaBlock(width=hidden, backend=c.scan_backend) for _ in range(c.sensor_layers)]
            self.blocks = nn.Sequential(*blocks)
        elif c.modulator == "transformer":
            layer = nn.TransformerEncoderLayer(hidden, ATTENTION_HEADS, 2 * hidden, dropout=0.0, batch_first=True)
            self.blocks = nn.TransformerEncoder(layer, c.sensor_layers, enable_nested_tensor=False)
        else:
            self.gru = nn.GRU(hidden, hidden, num_layers=c.sensor_layers, batch_first=True)
        nn.init.xavier_uniform_(self.embed.weight)
        nn.init.zeros_(self.embed.bias)
        nn.init.zeros_(self.head.weight)
        nn.init.zeros_(self.head.bias)

    def forward(
        self, sensors: Tensor, present: Tensor | None = None, join: Callable[[Tensor], Tensor] | None = None
    ) -> tuple[Tensor, Tensor]:
        """Gamma and beta [B, pairs, d]; where `present` [B] is False the run has no sensors: the identity.

        `join` changes the embedded steps [B, S, hidden] before the series is read.
        """
        batch, d = sensors.shape[0], self.config.d_model
        if self.config.modulator == "none":
            gamma = sensors.new_ones(batch, self.pairs, d)
            return gamma, torch.zeros_like(gamma)
        steps = self.embed(sensors)
        context = self._context(steps if join is None else join(steps))  # [B, hidden]
        scale, beta = self.head(context).view(batch, self.pairs, 2 * d).chunk(2, dim=-1)
        if present is not None:
            known = present.view(-1, 1, 1).to(scale.dtype)
            scale, beta = scale * known, beta * known
        return scale + 1, beta

    def _context(self, x: Tensor) -> Tensor:
        if self.config.modulator == "gru":
            return self.norm(self.gru(x)[1][-1])  # the last layer's final hidden state
        return self.norm(self.blocks(x))[:, -1]  # the last step has seen the whole series


class ProcessEncoder(nn.Module):
    """Video tokens [B, Tv, d] ask audio tokens [B, Ta, d]: a post-norm transformer decoder, mean over tokens,
    LayerNorm -> [B, d]."""

    def __init__(self, config: CausalFiLMConfig | None = None, **options: Any) -> None:
        super().__init__()
        c = self.config = configure(CausalFiLMConfig, config, options)
        layer = nn.TransformerDecoderLayer(
            c.d_model, c.process_heads, 2 * c.d_model, c.process_dropout, batch_first=True
        )
        self.decoder = nn.TransformerDecoder(layer, c.process_layers)
        self.norm = nn.LayerNorm(c.d_model)

    def forward(self, video: Tensor, audio: Tensor, present: Tensor | None = None) -> Tensor:
        """`present` [B, 2] (video, audio). An absent modality is all-zero tokens *after* projection and modulation:
        attention to it is then its learned bias alone, the same for every sample, and never NaN as a full mask is."""
        video, audio = self._silenced(video, audio, present)
        return self.norm(self.decoder(video, audio).mean(1))

    def attention(self, video: Tensor, audio: Tensor, present: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Where the last layer looks, summing to one: at video tokens [B, Tv] and at audio tokens [B, Ta] (means over
        heads and over the video tokens that ask)."""
        video, audio = self._silenced(video, audio, present)
        *before, last = self.decoder.layers
        for layer in before:
            video = layer(video, audio)
        attended, seen = last.self_attn(video, video, video, need_weights=True)
        asking = last.norm1(video + attended)
        _, heard = last.multihead_attn(asking, audio, audio, need_weights=True)
        return seen.mean(1), heard.mean(1)

    @staticmethod
    def _silenced(video: Tensor, audio: Tensor, present: Tensor | None) -> tuple[Tensor, Tensor]:
        if present is not None:
            video = video * present[:, 0].view(-1, 1, 1).to(video.dtype)
            audio = audio * present[:, 1].view(-1, 1, 1).to(audio.dtype)
        return video, audio


class RobustResultEncoder(nn.Module):
    """Photos of the finished weld -> [B, d]: pool, normalise, gate several backbone layers, project, pool views.

    Takes one tensor of tokens [B, V, N, C] for each branch (V views of a weld, N tokens of C channels; already pooled
    ones have N = 1). ``RobustResultEncoder(branches="10.gem,21.gem", image_dim=1280)``.
    """

    def __init__(self, config: CausalFiLMConfig | None = None, *, image_dim: int = IMAGE_DIM, **options: Any) -> None:
        super().__init__()
        c = self.config = configure(CausalFiLMConfig, config, options)
        self.branches, self.image_dim = parse_branches(c.branches), image_dim
        gems = [str(i) for i, branch in enumerate(self.branches) if branch.pool == "gem"]
        self.gem = nn.ModuleDict({i: GeM(p=c.gem_p, mode=c.gem_mode) for i in gems})
        self.norms = nn.ModuleList([nn.LayerNorm(image_dim) for _ in self.branches])
        self.reduce = nn.ModuleList([nn.Linear(image_dim, c.reduce) for _ in self.branches]) if c.reduce else None
        width = (c.reduce or image_dim) * len(self.branches)
        self.gate: nn.Sequential | None = None
        if c.gate:
            squash = ACTIVATIONS[c.gate_activation]()
            self.gate = nn.Sequential(nn.Linear(width, width // 4), squash, nn.Linear(width // 4, width), nn.Sigmoid())
        # No norm or activation at the end: the size of Z_result carries information.
        self.project = nn.Sequential(nn.Linear(width, 512), nn.LayerNorm(512), nn.SiLU(), nn.Linear(512, c.d_model))

    def extra_repr(self) -> str:
        return f"branches={[branch.name for branch in self.branches]}, view_pool={self.config.view_pool!r}"

    def forward(self, layers: Sequence[Tensor], views: Tensor | None = None) -> Tensor:
        """One tensor [B, V, N, C] per branch; `views` [B, V] marks the real photos. Answers [B, d]."""
        return self._pool_views(self.encode_views(layers, views), views)

    def view_shares(self, layers: Sequence[Tensor], views: Tensor | None = None) -> Tensor:
        """[B, V], summing to one: the share of the result's channels that each photo decides."""
        z = self.encode_views(layers, views)
        real = torch.ones(z.shape[:2], dtype=torch.bool, device=z.device) if views is None else views
        if self.config.view_pool == "mean":
            return real.float() / real.sum(1, keepdim=True).clamp_min(1)
        winner = z.masked_fill(~real.unsqueeze(-1), float("-inf")).argmax(1)  # [B, d]
        return F.one_hot(winner, z.shape[1]).float().mean(1) * real.any(1, keepdim=True)

    def encode_views(self, layers: Sequence[Tensor], views: Tensor | None = None) -> Tensor:
        """The encoding [B, V, d] of every photo."""
        self._check(layers, views)
        vectors = []
        for i, (branch, tokens) in enumerate(zip(self.branches, layers, strict=True)):
            pooled = self.gem[str(i)](tokens) if branch.pool == "gem" else pool_tokens(tokens, branch.pool)
            vector = self.norms[i](pooled.float())
            vectors.append(self.reduce[i](vector) if self.reduce is not None else vector)
        joined = torch.cat(vectors, dim=-1)  # [B, V, K * C]
        if self.gate is not None:
            joined = joined * self.gate(joined)
        return self.project(joined)  # type: ignore[no-any-return]

    def _check(self, layers: Sequence[Tensor], views: Tensor | None) -> None:
        if isinstance(layers, Tensor) or len(layers) != len(self.branches):
            names = ", ".join(branch.name for branch in self.branches)
            raise UserError(f"expected a list of {len(self.branches)} tensors of tokens, one a branch ({names})")
        for branch, tokens in zip(self.branches, layers, strict=True):
            if tokens.ndim != 4 or tokens.shape[-1] != self.image_dim:
                raise UserError(
                    f"branch {branch.name}: expected tokens [batch, views, tokens, {self.image_dim}], got "
                    f"{list(tokens.shape)}; one photo a weld is tokens.unsqueeze(1)"
                )
        if views is not None and views.shape != layers[0].shape[:2]:
            raise UserError(f"views: expected [batch, views] = {list(layers[0].shape[:2])}, got {list(views.shape)}")

    def _pool_views(self, z: Tensor, views: Tensor | None) -> Tensor:  # [B, V, d] -> [B, d]
        pool = self.config.view_pool
        if views is None:
            return z.amax(1) if pool == "max" else z.mean(1)
        real = views.unsqueeze(-1)
        if pool == "mean":
            return (z * real).sum(1) / real.sum(1).clamp_min(1)
        pooled = z.masked_fill(~real, float("-inf")).amax(1)
        return torch.where(views.any(1, keepdim=True), pooled, torch.zeros_like(pooled))


class LinearAttentionBlock(nn.Module):
    """Pre-norm block with attention by the feature map elu + 1; on one token it is a gated linear layer."""

    def __init__(self, *, width: int, heads: int = ATTENTION_HEADS) -> None:
        super().__init__()
        self.heads = heads
        self.norm = nn.LayerNorm(width)
        self.qkv = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)
        self.mlp = nn.Sequential(
            nn.LayerNorm(width), nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, width)
        )

    def forward(self, x: Tensor) -> Tensor:  # [B, N, d]
        q, k, v = self.qkv(self.norm(x)).unflatten(-1, (3, self.heads, -1)).unbind(2)  # [B, N, H, d/H]
        q, k = F.elu(q) + 1, F.elu(k) + 1
        summary = torch.einsum("bnhi,bnhj->bhij", k, v)
        weight = torch.einsum("bnhi,bhi->bnh", q, k.sum(1)).unsqueeze(-1)
        attended = torch.einsum("bnhi,bhij->bnhj", q, summary) / weight.clamp_min(1e-6)
        x = x + self.out(attended.flatten(2))
        return x + self.mlp(x)


class AntiGenDecoder(nn.Module):
    """Z_process [B, d] -> predicted Z_result [B, d] through a small, noisy map, so that it cannot generalise to
    defects."""

    def __init__(self, config: CausalFiLMConfig | None = None, **options: Any) -> None:
        super().__init__()
        c = self.config = configure(CausalFiLMConfig, config, options)
        at_input = c.decoder_dropout_position == "input"
        self.noise = nn.Dropout(c.decoder_dropout if at_input or c.decoder == "linear_attention" else 0.0)
        if c.decoder == "linear_attention":
            blocks = [LinearAttentionBlock(width=c.d_model) for _ in range(2)]
            self.net = nn.Sequential(*blocks, nn.LayerNorm(c.d_model))
            return
        hidden = BOTTLENECK if c.decoder == "bottleneck" else c.d_model
        self.net = nn.Sequential(
            nn.Linear(c.d_model, hidden),
            nn.LayerNorm(hidden),
            ACTIVATIONS[c.decoder_activation](),
            nn.Dropout(0.0 if at_input else c.decoder_dropout),
            nn.Linear(hidden, c.d_model),
        )

    def forward(self, z_process: Tensor) -> Tensor:  # [B, d] -> [B, d]
        noisy = self.noise(z_process)
        return self.net(noisy.unsqueeze(1)).squeeze(1) if self.config.decoder == "linear_attention" else self.net(noisy)
