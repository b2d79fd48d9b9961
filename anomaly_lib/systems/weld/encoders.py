"""The three frozen encoders of the weld systems, and which of their tokens a model sees."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from anomaly_lib.backbones import FrozenBackbone
from anomaly_lib.backbones.identity import weights_of
from anomaly_lib.errors import OptionError, UserError
from anomaly_lib.models.weld.causal_film_parts import pool_tokens
from anomaly_lib.models.weld.config import Branch, parse_branches
from anomaly_lib.models.weld.encoders import fit_spectrum
from anomaly_lib.systems.weld.options import WeldSettings

AST_CLASS_TOKENS = 2


def block_of(branch: Branch, settings: WeldSettings) -> int:
    """0-based block whose output the branch reads."""
    block = branch.layer - (2 if settings.layer_index == "seed" else 1)
    if block < 0:
        raise OptionError(
            f"branches={settings.branches}: with layer_index={settings.layer_index} no block is numbered as low as "
            f"that of {branch.name}"
        )
    return block


def image_outputs(settings: WeldSettings) -> list[str | int]:
    """What to ask the image backbone for."""
    branches = parse_branches(settings.branches)
    blocks = sorted({block_of(branch, settings) for branch in branches})
    outputs: list[str | int] = list(blocks)
    if not settings.patch_only or any(branch.pool == "cls" for branch in branches):
        outputs += [f"prefix.{block}" for block in blocks]
    return outputs


@dataclass
class WeldEncoders:
    """The three frozen backbones."""

    video: FrozenBackbone
    audio: FrozenBackbone
    image: FrozenBackbone
    settings: WeldSettings

    @property
    def branches(self) -> tuple[Branch, ...]:
        """What is read of the photographs; one tensor of `encode_images` each."""
        return parse_branches(self.settings.branches)

    def to(self, device: torch.device) -> "WeldEncoders":
        for backbone in (self.video, self.audio, self.image):
            backbone.to(device)
        return self

    @property
    def weights(self) -> dict[str, str]:
        return weights_of(self.video, self.audio, self.image)

    @property
    def parameter_count(self) -> int:
        return sum(p.numel() for net in (self.video, self.audio, self.image) for p in net.parameters())

    def encode_video(self, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """[B, T, 1 or 3, S, S] -> tokens [B, T/2 * P, C], or [B, T/2, C] with spatial pooling."""
        frames = batch["video"]
        tokens = self.video.encode(frames)["patch_tokens"]
        if self.settings.video_token_pool == "spatial":
            tokens = tokens.unflatten(1, (max(1, frames.shape[1] // 2), -1)).mean(2)
        return {"video": tokens, "has_video": batch["has_video"]}

    def video_over_time(self, weights: Tensor) -> Tensor:
        """Attention to video tokens [B, N], summed over space: [B, T/2]."""
        steps = max(1, self.settings.video_frames // 2)
        return weights.unflatten(1, (steps, -1)).sum(2)

    def audio_over_time(self, weights: Tensor) -> Tensor:
        """Attention to audio tokens [B, N] without class tokens, summed over frequency: [B, time patches]."""
        net: Any = self.audio.net
        rows = (int(net.config.num_mel_bins) - int(net.config.patch_size)) // int(net.config.frequency_stride) + 1
        return weights[:, AST_CLASS_TOKENS:].unflatten(1, (rows, -1)).sum(1)

    def encode_audio(self, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """[B, 1, mels, F] -> tokens [B, N, C], class tokens included; time comes first for AST."""
        spectrum = batch["audio"]
        if spectrum.shape[-2] != self.settings.mels:  # resized, turned axes would run and mean nothing
            raise UserError(
                f"audio of shape {tuple(spectrum.shape)}: expected [B, 1, {self.settings.mels} mel bins, frames]; "
                "turn the spectrum so that frequency comes before time"
            )
        spectrum = fit_spectrum(spectrum, self.audio)
        if self.settings.legacy_audio_axes:
            # The original's slip: AST takes (mel, time) without complaint. The content is turned, not the shape.
            spectrum = F.interpolate(spectrum.transpose(2, 3), tuple(spectrum.shape[-2:]))
        spectrum = spectrum.squeeze(1)
        return {"audio": self.audio.encode(spectrum.transpose(1, 2))["tokens"], "has_audio": batch["has_audio"]}

    def encode_images(self, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """[B, V, 3, S, S] -> one tensor [B, V, N, C] per branch; pools without parameters are applied here (N = 1)."""
        images = batch["images"]
        found = self.image.encode(images.flatten(0, 1))
        answer: dict[str, Tensor] = {"views": batch["views"]}
        for i, branch in enumerate(self.branches):
            block = block_of(branch, self.settings)
            patches = found[f"layer.{block}"]
            prefix = found.get(f"prefix.{block}")
            whole = prefix is not None and (not self.settings.patch_only or branch.pool == "cls")
            tokens = torch.cat([prefix, patches], dim=1) if whole and prefix is not None else patches
            pooled = tokens if branch.pool == "gem" else pool_tokens(tokens, branch.pool).unsqueeze(1)
            answer[f"branch{i}"] = pooled.unflatten(0, images.shape[:2])
        return answer
