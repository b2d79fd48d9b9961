"""The trainable parts of Causal-FiLM: sensor modulator (L1), process and result encoders (L2), decoder (L3)."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from anomaly_lib.models.mamba import Mamba

POOLS = ("mean", "max", "gem", "cls")
GEM_MODES = ("clamp", "signed", "softplus")
MODULATORS = ("mamba", "gru", "transformer", "none")
DECODERS = ("mlp", "bottleneck", "linear_attention")


def one_of(name: str, value: str, allowed: tuple[str, ...]) -> str:
    if value not in allowed:
        raise ValueError(f"{name} must be one of {', '.join(allowed)}, got {value!r}")
    return value


@dataclass(frozen=True)
class Branch:
    """One view of the image backbone: which layer (as the user counts layers) and how its tokens become one vector."""

    layer: int
    pool: str

    @property
    def name(self) -> str:
        return f"L{self.layer}.{self.pool}"

    @classmethod
    def parse(cls, text: str) -> "Branch":
        """``L21.gem`` or ``21.gem``."""
        layer, _, pool = text.strip().removeprefix("L").partition(".")
        if not layer.isdigit() or pool not in POOLS:
            raise ValueError(f"branch {text!r}: write LAYER.POOL, e.g. 21.gem; pools are {', '.join(POOLS)}")
        return cls(int(layer), pool)


class GeM(nn.Module):
    """Generalised mean over tokens, ``mean(x^p)^(1/p)`` with one learnable p >= 1: p=1 is the mean, p=inf the max.

    ViT tokens are signed and the published form clamps them at eps, which throws every negative activation away;
    ``signed`` keeps the sign outside the power, ``softplus`` makes the tokens positive first.
    """

    def __init__(self, *, p: float = 3.0, mode: str = "clamp", eps: float = 1e-6) -> None:
        super().__init__()
        self.p = nn.Parameter(torch.tensor(float(p)))
        self.mode = one_of("gem_mode", mode, GEM_MODES)
        self.eps = eps

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
    raise ValueError(f"pool {pool!r} is not one of mean, max, cls")


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
    """A sensor series [B, S, C] -> (gamma, beta) [B, 1, d] or [B, 2, d] (a pair a modality); identity at step 0."""

    def __init__(
        self,
        *,
        channels: int = 6,
        hidden: int = 128,
        d_model: int = 512,
        layers: int = 2,
        kind: str = "mamba",
        pairs: int = 1,
        scan_backend: str = "auto",
    ) -> None:
        super().__init__()
        self.kind = one_of("modulator", kind, MODULATORS)
        self.pairs = pairs
        self.d_model = d_model
        if kind == "none":
            return
        self.blocks: nn.Module
        self.embed = nn.Linear(channels, hidden)
        self.norm = nn.LayerNorm(hidden)
        self.head = nn.Linear(hidden, 2 * d_model * pairs)
        if kind == "mamba":
            self.blocks = nn.Sequential(*[MambaBlock(width=hidden, backend=scan_backend) for _ in range(layers)])
        elif kind == "transformer":
            layer = nn.TransformerEncoderLayer(hidden, 4, 2 * hidden, dropout=0.0, batch_first=True)
            self.blocks = nn.TransformerEncoder(layer, layers, enable_nested_tensor=False)
        else:
            self.gru = nn.GRU(hidden, hidden, num_layers=layers, batch_first=True)
        nn.init.xavier_uniform_(self.embed.weight)
        nn.init.zeros_(self.embed.bias)
        nn.init.zeros_(self.head.weight)
        nn.init.zeros_(self.head.bias)

    def forward(self, sensors: Tensor, present: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Gamma and beta [B, pairs, d]; a run without sensors is modulated by the identity."""
        batch = sensors.shape[0]
        if self.kind == "none":
            gamma = sensors.new_ones(batch, self.pairs, self.d_model)
            return gamma, torch.zeros_like(gamma)
        context = self._context(self.embed(sensors))  # [B, hidden]
        scale, beta = self.head(context).view(batch, self.pairs, 2 * self.d_model).chunk(2, dim=-1)
        if present is not None:
            known = present.view(-1, 1, 1).to(scale.dtype)
            scale, beta = scale * known, beta * known
        return scale + 1, beta

    def _context(self, x: Tensor) -> Tensor:
        if self.kind == "gru":
            return self.norm(self.gru(x)[1][-1])  # the last layer's final hidden state
        return self.norm(self.blocks(x))[:, -1]  # the last step has seen the whole series


class ProcessEncoder(nn.Module):
    """Video tokens ask audio tokens: a post-norm transformer decoder, mean over tokens, LayerNorm -> [B, d]."""

    def __init__(
        self,
        *,
        d_model: int = 512,
        heads: int = 4,
        layers: int = 2,
        feed_forward: int | None = None,
        dropout: float = 0.1,
    ) -> None:
        super().__init__()
        layer = nn.TransformerDecoderLayer(d_model, heads, feed_forward or 2 * d_model, dropout, batch_first=True)
        self.decoder = nn.TransformerDecoder(layer, layers)
        self.norm = nn.LayerNorm(d_model)

    def forward(self, video: Tensor, audio: Tensor, present: Tensor | None = None) -> Tensor:
        """`present` [B, 2] (video, audio). An absent modality is all-zero tokens *after* projection and modulation:
        attention to it is then its learned bias alone, the same for every sample, and never NaN as a full mask is."""
        if present is not None:
            video = video * present[:, 0].view(-1, 1, 1).to(video.dtype)
            audio = audio * present[:, 1].view(-1, 1, 1).to(audio.dtype)
        return self.norm(self.decoder(video, audio).mean(1))


class RobustResultEncoder(nn.Module):
    """Photos of the finished weld -> [B, d]: pool, normalise, gate several backbone layers, project, pool views."""

    def __init__(
        self,
        *,
        branches: tuple[Branch, ...],
        image_dim: int = 1280,
        d_model: int = 512,
        reduce: int | None = None,
        gate: bool = True,
        gate_activation: str = "silu",
        gem_p: float = 3.0,
        gem_mode: str = "clamp",
        view_pool: str = "max",
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        if not branches:
            raise ValueError("the result encoder needs at least one branch, e.g. 21.gem")
        for branch in branches:
            one_of("pool", branch.pool, POOLS)
        self.branches = branches
        self.view_pool = one_of("view_pool", view_pool, ("max", "mean"))
        self.gem = nn.ModuleDict(
            {str(i): GeM(p=gem_p, mode=gem_mode) for i, branch in enumerate(branches) if branch.pool == "gem"}
        )
        self.norms = nn.ModuleList([nn.LayerNorm(image_dim) for _ in branches])
        self.reduce = nn.ModuleList([nn.Linear(image_dim, reduce) for _ in branches]) if reduce else None
        width = (reduce or image_dim) * len(branches)
        self.gate: nn.Sequential | None = None
        if gate:
            squash = nn.SiLU() if one_of("gate_activation", gate_activation, ("silu", "relu")) == "silu" else nn.ReLU()
            self.gate = nn.Sequential(nn.Linear(width, width // 4), squash, nn.Linear(width // 4, width), nn.Sigmoid())
        # No norm or activation at the end: the size of Z_result carries information.
        self.project = nn.Sequential(
            nn.Linear(width, 512), nn.LayerNorm(512), nn.SiLU(), nn.Dropout(dropout), nn.Linear(512, d_model)
        )

    def forward(self, layers: list[Tensor], views: Tensor | None = None) -> Tensor:
        """One tensor [B, V, N, C] per branch (already pooled ones have N = 1); `views` [B, V] marks the real photos."""
        vectors = []
        for i, (branch, tokens) in enumerate(zip(self.branches, layers, strict=True)):
            pooled = self.gem[str(i)](tokens) if branch.pool == "gem" else pool_tokens(tokens, branch.pool)
            vector = self.norms[i](pooled.float())
            vectors.append(self.reduce[i](vector) if self.reduce is not None else vector)
        joined = torch.cat(vectors, dim=-1)  # [B, V, K * C]
        if self.gate is not None:
            joined = joined * self.gate(joined)
        return self._pool_views(self.project(joined), views)

    def _pool_views(self, z: Tensor, views: Tensor | None) -> Tensor:  # [B, V, d] -> [B, d]
        if views is None:
            return z.amax(1) if self.view_pool == "max" else z.mean(1)
        real = views.unsqueeze(-1)
        if self.view_pool == "mean":
            return (z * real).sum(1) / real.sum(1).clamp_min(1)
        pooled = z.masked_fill(~real, float("-inf")).amax(1)
        return torch.where(views.any(1, keepdim=True), pooled, torch.zeros_like(pooled))


class LinearAttentionBlock(nn.Module):
    """Pre-norm block with attention by the feature map elu + 1; on one token it is a gated linear layer."""

    def __init__(self, *, width: int, heads: int = 4) -> None:
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
    """Z_process -> predicted Z_result through a small, noisy map, so that it cannot generalise to defects."""

    def __init__(
        self,
        *,
        d_model: int = 512,
        kind: str = "mlp",
        activation: str = "relu",
        dropout: float = 0.2,
        dropout_position: str = "hidden",
    ) -> None:
        super().__init__()
        one_of("decoder", kind, DECODERS)
        one_of("dropout_position", dropout_position, ("hidden", "input"))
        act = nn.ReLU() if one_of("decoder_activation", activation, ("relu", "silu")) == "relu" else nn.SiLU()
        self.kind = kind
        self.noise = nn.Dropout(dropout if dropout_position == "input" or kind == "linear_attention" else 0.0)
        if kind == "linear_attention":
            self.net = nn.Sequential(*[LinearAttentionBlock(width=d_model) for _ in range(2)], nn.LayerNorm(d_model))
            return
        hidden = 64 if kind == "bottleneck" else d_model
        inside = dropout if dropout_position == "hidden" else 0.0
        self.net = nn.Sequential(
            nn.Linear(d_model, hidden), nn.LayerNorm(hidden), act, nn.Dropout(inside), nn.Linear(hidden, d_model)
        )

    def forward(self, z_process: Tensor) -> Tensor:  # [B, d] -> [B, d]
        noisy = self.noise(z_process)
        return self.net(noisy.unsqueeze(1)).squeeze(1) if self.kind == "linear_attention" else self.net(noisy)
