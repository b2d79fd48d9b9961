"""Causal-FiLM (V5): learn on normal welds how the process determines the result; a defect is a broken prediction.

sensors -> gamma, beta ;  video, audio tokens -> FiLM -> Z_process -> predicted Z_result   versus   photos -> Z_result
"""

from dataclasses import asdict, dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from anomaly_lib.fusion.modulation import film
from anomaly_lib.models.weld.causal_film_parts import (
    AntiGenDecoder,
    Branch,
    ProcessEncoder,
    RobustResultEncoder,
    SensorModulator,
    one_of,
    projector,
)

TARGET_MODES = ("joint", "stopgrad", "ema_target")

# Branches the original tried, by the name its log gives them; `best` and `doc` contradict each other there.
BRANCH_PRESETS = {
    "best": "21.mean,21.gem,32.mean",
    "doc": "10.gem,21.gem",
    "stage1": "12.mean,8.max",
    "L24+L8": "24.mean,8.max",
    "L20+L8": "20.mean,8.max",
    "L20+L28": "20.mean,28.max",
    "L21+L32": "21.max,32.mean",
    "L22+L32": "22.max,32.mean",
    "L20+L32": "20.max,32.mean",
    "L21mm+L32": "21.mean,21.max,32.mean",
}


def parse_branches(text: str) -> tuple[Branch, ...]:
    """A preset's name or a list such as ``21.mean,21.gem,32.mean``."""
    return tuple(Branch.parse(part) for part in BRANCH_PRESETS.get(text, text).replace(" ", ",").split(",") if part)


@dataclass(frozen=True, kw_only=True)
class CausalFiLMConfig:
    """Everything that decides the shape and the forward pass; stored in the checkpoint."""

    video_dim: int = 1024
    audio_dim: int = 768
    image_dim: int = 1280
    sensor_channels: int = 6
    d_model: int = 512
    sensor_hidden: int = 128
    sensor_layers: int = 2
    modulator: str = "mamba"
    split_film: bool = False
    process_layers: int = 2
    process_heads: int = 4
    process_dropout: float = 0.1
    branches: str = "best"
    reduce: int = 0
    gate: bool = True
    gate_activation: str = "silu"
    gem_p: float = 3.0
    gem_mode: str = "clamp"
    view_pool: str = "max"
    decoder: str = "mlp"
    decoder_activation: str = "relu"
    decoder_dropout: float = 0.2
    decoder_dropout_position: str = "hidden"
    projector_dropout: float = 0.0
    encoder_dropout: float = 0.0  # the original's accident: Dropout(0.2) behind frozen encoders, active in train()
    feature_mask_ratio: float = 0.2
    feature_noise: float = 0.0
    target_mode: str = "joint"
    scan_backend: str = "auto"

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


MODEL_PRESETS: dict[str, dict[str, Any]] = {
    "best": {},
    "doc": {"branches": "doc"},
    "stage1": {"branches": "stage1", "image_dim": 768, "d_model": 256, "gate_activation": "relu"},
}


def model_config(preset: str = "best", **changes: Any) -> CausalFiLMConfig:
    """The configuration of a published stage with some fields changed."""
    one_of("preset", preset, tuple(MODEL_PRESETS))
    return replace(CausalFiLMConfig(), **{**MODEL_PRESETS[preset], **changes})


@dataclass
class Encodings:
    """What one forward pass knows; the anomaly score compares the first two."""

    z_result: Tensor  # [B, d]
    z_pred: Tensor  # [B, d]
    z_process: Tensor  # [B, d]
    gamma: Tensor  # [B, 1 or 2, d]
    beta: Tensor


class CausalFiLM(nn.Module):
    """The trainable part; frozen backbones run outside, so that their features can be cached."""

    def __init__(self, config: CausalFiLMConfig) -> None:
        super().__init__()
        one_of("target_mode", config.target_mode, TARGET_MODES)
        self.config = config
        self.branches = parse_branches(config.branches)
        d = config.d_model
        self.video_projector = projector(config.video_dim, d, dropout=config.projector_dropout)
        self.audio_projector = projector(config.audio_dim, d, dropout=config.projector_dropout)
        self.modulator = SensorModulator(
            channels=config.sensor_channels,
            hidden=config.sensor_hidden,
            d_model=d,
            layers=config.sensor_layers,
            kind=config.modulator,
            pairs=2 if config.split_film else 1,
            scan_backend=config.scan_backend,
        )
        self.process = ProcessEncoder(
            d_model=d, heads=config.process_heads, layers=config.process_layers, dropout=config.process_dropout
        )
        self.result = RobustResultEncoder(
            branches=self.branches,
            image_dim=config.image_dim,
            d_model=d,
            reduce=config.reduce or None,
            gate=config.gate,
            gate_activation=config.gate_activation,
            gem_p=config.gem_p,
            gem_mode=config.gem_mode,
            view_pool=config.view_pool,
        )
        self.decoder = AntiGenDecoder(
            d_model=d,
            kind=config.decoder,
            activation=config.decoder_activation,
            dropout=config.decoder_dropout,
            dropout_position=config.decoder_dropout_position,
        )

    def forward(self, batch: dict[str, Any]) -> Encodings:
        """`batch`: video [B, Tv, Dv] and audio [B, Ta, Da] tokens, sensors [B, S, C], images: one [B, V, N, C] per
        branch; optional present [B, 4] bool (video, images, audio, sensors) and views [B, V] bool."""
        z_process, gamma, beta = self.encode_process(batch)
        return Encodings(self.encode_result(batch), self.decoder(z_process), z_process, gamma, beta)

    def encode_process(self, batch: dict[str, Any]) -> tuple[Tensor, Tensor, Tensor]:
        present = batch.get("present")
        gamma, beta = self.modulator(batch["sensors"], None if present is None else present[:, 3])
        video = film(self.video_projector(self._corrupt(batch["video"])), gamma[:, :1], beta[:, :1])
        audio = film(self.audio_projector(self._corrupt(batch["audio"])), gamma[:, -1:], beta[:, -1:])
        return self.process(video, audio, None if present is None else present[:, [0, 2]]), gamma, beta

    def encode_result(self, batch: dict[str, Any]) -> Tensor:
        images = [self._drop(tokens) for tokens in batch["images"]]
        return self.result(images, batch.get("views"))

    def _drop(self, tokens: Tensor) -> Tensor:
        return F.dropout(tokens, self.config.encoder_dropout, self.training)

    def _corrupt(self, tokens: Tensor) -> Tensor:
        """Element-wise masking (rescaled) and noise on frozen process features, in training only."""
        tokens = self._drop(tokens.float())
        if self.training and self.config.feature_noise:
            tokens = tokens + torch.randn_like(tokens) * self.config.feature_noise
        return F.dropout(tokens, self.config.feature_mask_ratio, self.training)


def parameter_report(model: nn.Module, frozen: int) -> str:
    """The line printed at the start of a run."""
    trainable = sum(p.numel() for p in model.parameters() if p.requires_grad)
    total = frozen + sum(p.numel() for p in model.parameters())
    return f"parameters: {total:,} in all, {trainable:,} trainable ({100 * trainable / max(1, total):.2f} %)"
