"""Causal-FiLM (V5): learn on normal welds how the process determines the result; a defect is a broken prediction.

sensors -> gamma, beta ;  video, audio tokens -> FiLM -> Z_process -> predicted Z_result   versus   photos -> Z_result
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from anomaly_lib.config import configure
from anomaly_lib.errors import UserError
from anomaly_lib.fusion.modulation import film
from anomaly_lib.models.weld.causal_film_parts import (
    IMAGE_DIM,
    AntiGenDecoder,
    ProcessEncoder,
    RobustResultEncoder,
    SensorModulator,
    projector,
)
from anomaly_lib.models.weld.config import ATTENTION_HEADS, SENSOR_CHANNELS, CausalFiLMConfig
from anomaly_lib.models.weld.temporal_aligner import TemporalAligners


@dataclass
class Encodings:
    """What one forward pass knows; the anomaly score compares the first two."""

    z_result: Tensor  # [B, d]
    z_pred: Tensor  # [B, d]
    z_process: Tensor  # [B, d]
    gamma: Tensor  # [B, 1 or 2, d]
    beta: Tensor


class CausalFiLM(nn.Module):
    """The trainable part; frozen backbones run outside, so that their features can be cached.

    ``CausalFiLM(config)`` or ``CausalFiLM(preset="doc", d_model=256, ...)``. `video_dim`, `audio_dim`, `image_dim`:
    widths of the frozen tokens (defaults: V-JEPA 2 ViT-L, AST, DINOv3 ViT-H/16+). For `align`: `video_steps`, how many
    times the video tokens stand for, and `audio_rows`, `audio_prefix`, frequencies and class tokens of the sound.
    """

    def __init__(
        self,
        config: CausalFiLMConfig | None = None,
        *,
        video_dim: int = 1024,
        audio_dim: int = 768,
        image_dim: int = IMAGE_DIM,
        sensor_channels: int = SENSOR_CHANNELS,
        video_steps: int = 8,
        audio_rows: int = 12,
        audio_prefix: int = 2,
        **options: Any,
    ) -> None:
        super().__init__()
        c = self.config = configure(CausalFiLMConfig, config, options)
        self.widths = {"video": video_dim, "audio": audio_dim, "sensors": sensor_channels}
        self.video_projector = projector(video_dim, c.d_model, dropout=c.projector_dropout)
        self.audio_projector = projector(audio_dim, c.d_model, dropout=c.projector_dropout)
        self.modulator = SensorModulator(c, sensor_channels=sensor_channels)
        self.process = ProcessEncoder(c)
        self.result = RobustResultEncoder(c, image_dim=image_dim)
        self.decoder = AntiGenDecoder(c)
        clocks = {"video": {"steps": video_steps}, "audio": {"rows": audio_rows, "prefix": audio_prefix}}
        self.align: TemporalAligners | None = None
        if c.align:  # made last: the other weights are drawn as without it
            self.align = TemporalAligners(
                c.sensor_hidden, dict.fromkeys(clocks, c.d_model), clocks, heads=ATTENTION_HEADS
            )

    def forward(self, batch: Mapping[str, Any]) -> Encodings:
        """`batch`: video [B, Tv, Dv] and audio [B, Ta, Da] tokens, sensors [B, S, C], images: one [B, V, N, C] per
        branch; optional present [B, 4] bool (video, images, audio, sensors) and views [B, V] bool."""
        self._check(batch)
        z_process, gamma, beta = self.encode_process(batch)
        return Encodings(self.encode_result(batch), self.decoder(z_process), z_process, gamma, beta)

    def _check(self, batch: Mapping[str, Any]) -> None:
        missing = [name for name in (*self.widths, "images") if name not in batch]
        if missing:
            raise UserError(f"the batch lacks {', '.join(missing)}; it needs video, audio, sensors and images")
        size = batch["sensors"].shape[0]  # len() would fix the size of an exported graph
        for name, width in self.widths.items():
            shape = list(batch[name].shape)
            if len(shape) != 3 or shape[0] != size or shape[2] != width:
                raise UserError(f"{name}: expected [{size}, length, {width}], got {shape}")
        if any(tokens.shape[0] != size for tokens in batch["images"]):
            raise UserError(f"images: expected {size} welds, got {[len(tokens) for tokens in batch['images']]}")

    def encode_process(self, batch: Mapping[str, Any]) -> tuple[Tensor, Tensor, Tensor]:
        """Z_process [B, d], gamma and beta [B, 1 or 2, d]."""
        video, audio, gamma, beta = self._modulated(batch)
        return self.process(video, audio, _of_process(batch)), gamma, beta

    def attention(self, batch: Mapping[str, Any]) -> dict[str, Tensor]:
        """What decides an encoding, each summing to one: `video` [B, Tv] and `audio` [B, Ta] tokens that the process
        encoder's last layer reads, `view` [B, V] the photos that the result's channels come from."""
        video, audio, _, _ = self._modulated(batch)
        seen, heard = self.process.attention(video, audio, _of_process(batch))
        return {"video": seen, "audio": heard, "view": self.result.view_shares(batch["images"], batch.get("views"))}

    def _modulated(self, batch: Mapping[str, Any]) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        present, align = batch.get("present"), self.align
        video = self.video_projector(self._corrupt(batch["video"]))
        audio = self.audio_projector(self._corrupt(batch["audio"]))

        tokens, known = {"video": video, "audio": audio}, None if present is None else present[:, 3]
        join = None if align is None else partial(align, tokens=tokens, present=present)
        gamma, beta = self.modulator(batch["sensors"], known, join)
        return film(video, gamma[:, :1], beta[:, :1]), film(audio, gamma[:, -1:], beta[:, -1:]), gamma, beta

    def encode_result(self, batch: Mapping[str, Any]) -> Tensor:
        """Z_result [B, d]."""
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


def _of_process(batch: Mapping[str, Any]) -> Tensor | None:
    """[B, 2]: is there video, is there sound?"""
    present = batch.get("present")
    return None if present is None else present[:, [0, 2]]


def parameter_report(model: nn.Module, frozen: int, *, fixed: nn.Module | None = None) -> str:
    """The line printed at the start of a run: parameters in all, and how many receive gradients.

    `frozen`: those of the encoders; `fixed`: the part of `model` that no gradient reaches.
    """

    def count(module: nn.Module | None, *, learning: bool = False) -> int:
        parameters = [] if module is None else module.parameters()
        return sum(p.numel() for p in parameters if p.requires_grad or not learning)

    total, learning = frozen + count(model), count(model, learning=True) - count(fixed)
    rest = "" if fixed is None else f"; {count(fixed):,} of the result encoder keep their random values"
    return (
        f"parameters: {total:,} in all, {learning:,} receive gradients ({100 * learning / max(1, total):.2f} %){rest}"
    )
