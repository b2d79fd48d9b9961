"""V4 of the weld system: four modalities, cross-attention fusion, contrastive feature, class and anomaly score."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from anomaly_lib.config import configure
from anomaly_lib.errors import UserError
from anomaly_lib.fusion import CrossAttention
from anomaly_lib.models.weld.config import SENSOR_CHANNELS
from anomaly_lib.models.weld.quad_config import ALIASES, FREEZE_POLICIES, MODALITIES, QuadConfig, heads_of
from anomaly_lib.models.weld.temporal_aligner import TemporalAligners
from anomaly_lib.models.weld.token_scale import TokenScale


def sinusoidal_positions(length: int, dim: int) -> Tensor:
    """[length, dim] with sin on even and cos on odd channels, wave lengths from 2 pi to 10000 * 2 pi."""
    rates = torch.exp(torch.arange(0, dim, 2) * (-math.log(10000.0) / dim))
    angles = torch.arange(length)[:, None] * rates  # [length, dim / 2]
    return torch.stack([angles.sin(), angles.cos()], dim=-1).flatten(1)[:, :dim]


class SensorEncoder(nn.Module):
    """Sensor series [B, S, channels] -> tokens [B, ceil(S / sensor_stride), sensor_dim]: linear, positions,
    transformer, norm. Has no pre-training, so it always learns.

    ``SensorEncoder(config)`` or ``SensorEncoder(sensor_dim=64, ...)``, the options of `QuadConfig`.
    """

    def __init__(
        self,
        config: QuadConfig | None = None,
        *,
        channels: int = SENSOR_CHANNELS,
        max_length: int = 512,
        **options: Any,
    ) -> None:
        super().__init__()
        c = self.config = configure(QuadConfig, config, options)
        self.embed = nn.Linear(channels, c.sensor_dim)
        self.register_buffer("positions", sinusoidal_positions(max_length, c.sensor_dim), persistent=False)
        self.positions: Tensor
        heads = heads_of(c.sensor_dim)
        layer = nn.TransformerEncoderLayer(c.sensor_dim, heads, 4 * c.sensor_dim, c.dropout, batch_first=True)
        self.blocks = nn.TransformerEncoder(layer, c.sensor_layers, enable_nested_tensor=False)
        self.norm = nn.LayerNorm(c.sensor_dim)

    def __repr__(self) -> str:
        c = self.config
        return (
            f"SensorEncoder([B, S, {self.embed.in_features}] -> [B, S / {c.sensor_stride}, {c.sensor_dim}], "
            f"{c.sensor_layers} blocks)"
        )

    def forward(self, series: Tensor, *, causal: bool = False) -> Tensor:
        """`causal`: no token sees a later step than its own (with strides, than the last of its steps)."""
        if series.shape[1] > len(self.positions):
            raise UserError(f"a sensor series of {series.shape[1]} steps exceeds the {len(self.positions)} positions")
        x = self.embed(series) + self.positions[: series.shape[1]]
        stride = self.config.sensor_stride
        if stride > 1:  # mean over each stride, the last one may be shorter
            x = F.avg_pool1d(x.transpose(1, 2), stride, ceil_mode=True).transpose(1, 2)
        mask = nn.Transformer.generate_square_subsequent_mask(x.shape[1], device=x.device) if causal else None
        return self.norm(self.blocks(x, mask=mask, is_causal=causal))


class CrossAttentionFusion(nn.Module):
    """Learned queries read each modality in turn; what they read is flattened and mixed into one vector [B, D].

    Per modality m: LayerNorm(q + Attention(q, P_m x_m, P_m x_m)). An absent modality leaves q alone (or q plus a
    learned vector), so that no subset of modalities gives NaN. `dims`: width of each modality's tokens by name;
    options as in `QuadConfig`: ``CrossAttentionFusion({"video": 1024, "audio": 768}, hidden_dim=256)``.
    """

    def __init__(self, dims: Mapping[str, int], config: QuadConfig | None = None, **options: Any) -> None:
        super().__init__()
        c = configure(QuadConfig, config, options)
        self.dims, self.names = dict(dims), tuple(dims)
        hidden_dim, tokens, heads = c.hidden_dim, c.fusion_tokens, heads_of(c.hidden_dim)
        self.queries = nn.Parameter(nn.init.trunc_normal_(torch.empty(tokens, hidden_dim), std=0.02))
        self.project = nn.ModuleDict({name: nn.Linear(dim, hidden_dim) for name, dim in dims.items()})
        self.attend = nn.ModuleDict(
            {name: CrossAttention(query_dim=hidden_dim, num_heads=heads, dropout=c.dropout) for name in dims}
        )
        self.norm = nn.ModuleDict({name: nn.LayerNorm(hidden_dim) for name in dims})
        self.absent = nn.ParameterDict(
            {name: nn.Parameter(torch.zeros(hidden_dim)) for name in dims} if c.missing == "embedding" else {}
        )
        self.mix = nn.Sequential(
            nn.Linear(len(dims) * tokens * hidden_dim, 2 * hidden_dim),
            nn.LayerNorm(2 * hidden_dim),
            nn.GELU(),
            nn.Dropout(c.dropout),
            nn.Linear(2 * hidden_dim, hidden_dim),
        )
        self.output = nn.Linear(hidden_dim, hidden_dim)

    def __repr__(self) -> str:
        queries, width = self.queries.shape
        return f"CrossAttentionFusion({queries} queries read {_spell(self.dims)} -> [B, {width}])"

    def forward(
        self,
        tokens: Mapping[str, Tensor],
        *,
        masks: Mapping[str, Tensor] | None = None,
        present: Tensor | None = None,
        need_weights: bool = False,
        keepdim: bool = False,
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """`tokens` name -> [B, L, D_m], `masks` name -> [B, L] (True counts), `present` [B, M] in the order of `names`.

        Returns the fused vector [B, D] ([B, 1, D] with `keepdim`) and attention [B, Q, L] averaged over heads by name.
        """
        batch = next(iter(tokens.values())).shape[0]
        queries = self.queries.expand(batch, -1, -1)  # [B, Q, D]
        read, attention = [], {}
        for index, name in enumerate(self.names):
            here = torch.ones(batch, dtype=torch.bool, device=queries.device)
            if present is not None:
                here = present[:, index].bool()
            if name not in tokens:
                here = torch.zeros_like(here)
            mask = None if masks is None else masks.get(name)
            if mask is not None:
                here = here & mask.any(1)
            x = queries
            if name in tokens:
                memory = self.project[name](torch.nan_to_num(tokens[name]))  # [B, L, D]; absent rows may hold anything
                attended, weights = self.attend[name](queries, memory, memory_mask=mask, need_weights=need_weights)
                x = queries + torch.where(here[:, None, None], attended, 0.0)
                if weights is not None:
                    attention[name] = torch.where(here[:, None, None], weights.mean(1), 0.0)
            if name in self.absent:
                x = x + (~here)[:, None, None] * self.absent[name]
            read.append(self.norm[name](x))
        fused = self.output(self.mix(torch.cat(read, dim=1).flatten(1)))
        return (fused.unsqueeze(1) if keepdim else fused), attention


class QuadModal(nn.Module):
    """V4: tokens of the frozen encoders in, a unit feature, class logits and an anomaly score out.

    In: `video` [B, Lv, video_dim], `images` [B, views, image_dim], `audio` [B, La, audio_dim], `sensors`
    [B, S, sensor_channels], each of them optional; `present` [B, 4] bool in the order of `MODALITIES`;
    `<modality>_mask` [B, L] bool. Out: `features` [B, D] of length 1, `logits` [B, classes], `anomaly_score` [B] and
    `embedding` [B, D], the fused vector.

    ``QuadModal(config)`` or ``QuadModal(hidden_dim=64, ...)``, the options of `QuadConfig`; the widths are those of
    the encoders' tokens (default: V-JEPA 2 ViT-L, DINOv2-base, AST). `score_sigmoid`: the anomaly score is a
    probability instead of a logit. For `align`: `video_steps`, how many times the video tokens stand for, and
    `audio_rows`, `audio_prefix`, frequencies and class tokens of the sound.
    """

    def __init__(
        self,
        config: QuadConfig | None = None,
        *,
        video_dim: int = 1024,
        image_dim: int = 768,
        audio_dim: int = 768,
        sensor_channels: int = SENSOR_CHANNELS,
        num_classes: int = 12,
        score_sigmoid: bool = False,
        video_steps: int = 4,
        audio_rows: int = 12,
        audio_prefix: int = 2,
        **options: Any,
    ) -> None:
        super().__init__()
        c = self.config = configure(QuadConfig, config, options)
        self.widths = {"video": video_dim, "images": image_dim, "audio": audio_dim, "sensors": sensor_channels}
        self.sensor = SensorEncoder(c, channels=sensor_channels)
        self.fusion = CrossAttentionFusion({**self.widths, "sensors": c.sensor_dim}, c)
        self.scale = nn.ModuleDict({name: TokenScale() for name in ("video", "images", "audio")})
        self.norm = nn.LayerNorm(c.hidden_dim)
        self.projection = nn.Sequential(
            nn.Linear(c.hidden_dim, c.hidden_dim), nn.ReLU(), nn.Linear(c.hidden_dim, c.hidden_dim)
        )
        self.classifier = _head(c.hidden_dim, num_classes, c.classifier_layers)
        self.score, self.score_sigmoid = nn.Linear(c.hidden_dim, 1), score_sigmoid
        clocks = {"video": {"steps": video_steps}, "audio": {"rows": audio_rows, "prefix": audio_prefix}}
        read = {name: self.widths[name] for name in (clocks if c.align else ())}
        self.align = TemporalAligners(c.sensor_dim, read, clocks, heads=heads_of(c.sensor_dim))

    def __repr__(self) -> str:
        count = sum(parameter.numel() for parameter in self.parameters())
        return f"QuadModal({_spell(self.widths)} -> [B, {self.config.hidden_dim}], {count:,} parameters)"

    def forward(self, batch: Mapping[str, Tensor], *, need_weights: bool = False) -> dict[str, Tensor]:
        """The four answers by name; with `need_weights` also `attention.<modality>` [B, Q, L], mean over heads."""
        batch = check_quad_batch(batch, self.widths)
        tokens = {name: scale(batch[name]) for name, scale in self.scale.items() if name in batch}
        if "sensors" in batch:
            tokens["sensors"] = self._sensor_tokens(batch["sensors"])
        masks = {name: batch[f"{name}_mask"] for name in tokens if f"{name}_mask" in batch}
        present = self._drop_modalities(batch.get("present"), next(iter(tokens.values())))
        if self.align and "sensors" in tokens:
            tokens["sensors"] = self.align(tokens["sensors"], tokens, masks=masks, present=present)
        fused, attention = self.fusion(tokens, masks=masks, present=present, need_weights=need_weights)
        out = self.heads(F.normalize(self.norm(fused), dim=-1))
        return out | {f"attention.{name}": weights for name, weights in attention.items()}

    def heads(self, embedding: Tensor) -> dict[str, Tensor]:
        """Everything that is read off the fused unit vector [B, D]; mixed vectors may be given, too."""
        score = self.score(embedding).squeeze(1)
        return {
            "embedding": embedding,
            "features": F.normalize(self.projection(embedding), dim=-1),
            "logits": self.classifier(embedding),
            "anomaly_score": score.sigmoid() if self.score_sigmoid else score,
        }

    def _sensor_tokens(self, series: Tensor) -> Tensor:
        series = torch.nan_to_num(series)
        if self.config.activation_checkpointing and self.training:
            return checkpoint(self.sensor, series, use_reentrant=False)  # type: ignore[no-any-return]
        return self.sensor(series)  # type: ignore[no-any-return]

    def _drop_modalities(self, present: Tensor | None, like: Tensor) -> Tensor | None:
        """Training only: each present modality vanishes with probability p, but never the last one of a sample."""
        rate = self.config.modality_dropout
        if not self.training or rate == 0:
            return present
        shape = (like.shape[0], len(MODALITIES))
        known = torch.ones(shape, dtype=torch.bool, device=like.device) if present is None else present.bool()
        kept = known & (torch.rand(shape, device=like.device) >= rate)
        return torch.where(kept.any(1, keepdim=True), kept, known)


def _head(dim: int, classes: int, layers: int) -> nn.Module:
    if layers == 1:
        return nn.Linear(dim, classes)
    return nn.Sequential(nn.Linear(dim, dim), nn.ReLU(), nn.Linear(dim, classes))


def _spell(widths: Mapping[str, int]) -> str:
    return ", ".join(f"{name} {width}" for name, width in widths.items())


def check_quad_batch(batch: Mapping[str, Tensor], widths: Mapping[str, int]) -> dict[str, Tensor]:
    """The batch under our names, ranks and widths checked: one clear line instead of a broadcasting surprise.

    `widths`: last dimension of each modality by name.
    """
    named = {ALIASES.get(name, name): value for name, value in batch.items()}
    sizes = []
    for name, width in widths.items():
        if name not in named:
            continue
        shape = named[name].shape
        if len(shape) != 3 or shape[2] != width:
            raise UserError(f"{name}: expected [batch, tokens, {width}], got {list(shape)}")
        sizes.append(shape[0])
    if not sizes:
        raise UserError(f"a batch needs at least one of {', '.join(MODALITIES)}")
    if "present" in named and named["present"].shape[1:] != (len(MODALITIES),):
        raise UserError(f"present: expected [batch, {len(MODALITIES)}], got {list(named['present'].shape)}")
    beside = [named[key].shape[0] for key in ("present", "label") if key in named]
    if any(size != sizes[0] for size in sizes + beside):  # an exporter's sizes can be compared, not hashed
        raise UserError(f"the modalities of this batch have different batch sizes: {sorted(set(sizes + beside))}")
    return named


def freeze(model: QuadModal, policy: str, *, unfreeze: Sequence[str] = ()) -> list[str]:
    """Freeze by policy and return the names that still learn; the sensor encoder always does.

    none: all learn; sensor: the sensor encoder and the heads; heads: likewise but the fusion's queries and mixer too.
    `unfreeze` lists name prefixes to open again ("fusion.project").
    """
    if policy not in FREEZE_POLICIES:
        raise UserError(f"unknown freeze policy {policy!r}; choose from {', '.join(FREEZE_POLICIES)}")
    closed = {"none": (), "sensor": ("fusion.",), "heads": ("fusion.project", "fusion.attend")}[policy]
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(not name.startswith(closed) or name.startswith(tuple(unfreeze)))
    return [name for name, parameter in model.named_parameters() if parameter.requires_grad]
