"""The document's encoders, one a modality: thin wrappers of the library's frozen backbones."""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from anomaly_lib.backbones import FrozenBackbone, create_backbone
from anomaly_lib.errors import UserError

AGGREGATES = ("none", "mean", "max", "concat")


class _Encoder(nn.Module):
    """A backbone read from `path`; with `freeze` (the default) nothing in it learns."""

    def __init__(self, name: str, path: str | Path | None, *, freeze: bool, download: bool, output: str) -> None:
        super().__init__()
        self.backbone: FrozenBackbone = create_backbone(name, weights=path, layers=[output], download=download)
        self.output, self.freeze = output, freeze
        self.backbone.requires_grad_(not freeze)

    @property
    def width(self) -> int:
        """Channels of a token."""
        return self.backbone.width

    def _tokens(self, batch: Tensor) -> Tensor:
        if self.freeze:
            return self.backbone.encode(batch)[self.output]
        return self.backbone._encode(batch)[self.output]

    def extra_repr(self) -> str:
        return f"{self.backbone.name}, {'frozen' if self.freeze else 'learns'}"


class VideoEncoder(_Encoder):
    """Video [B, T, 1 or 3, H, W] -> tokens [B, T / 2 * patches, 1024]; with `pool` "spatial" one a time step.

    ``VideoEncoder("models/vjepa2-vitl-fpc64-256", freeze=True)``: a folder as the hub has it, or a weight file; None =
    the published weights where they lie, "random" = untrained.
    """

    def __init__(
        self,
        path: str | Path | None = None,
        freeze: bool = True,
        *,
        name: str = "vjepa2-vitl",
        pool: str = "none",
        download: bool = False,
    ) -> None:
        super().__init__(name, path, freeze=freeze, download=download, output="patch_tokens")
        if pool not in ("none", "spatial"):
            raise UserError(f"pool={pool}: choose none or spatial")
        self.pool = pool

    def forward(self, video: Tensor) -> Tensor:
        tokens = self._tokens(video)
        steps = max(1, video.shape[1] // 2)
        return tokens.unflatten(1, (steps, -1)).mean(2) if self.pool == "spatial" else tokens


class ImageEncoder(_Encoder):
    """Photos [B, N, 3, H, W] -> a vector each [B, N, 768]; `aggregate` mean or max: [B, 768], concat: [B, N * 768]."""

    def __init__(
        self,
        path: str | Path | None = None,
        freeze: bool = True,
        *,
        name: str = "dinov2-base",
        aggregate: str = "none",
        download: bool = False,
    ) -> None:
        super().__init__(name, path, freeze=freeze, download=download, output="pooled")
        if aggregate not in AGGREGATES:
            raise UserError(f"aggregate={aggregate}: choose from {', '.join(AGGREGATES)}")
        self.aggregate = aggregate

    def forward(self, images: Tensor) -> Tensor:
        if images.ndim != 5:
            raise UserError(f"images: expected [batch, views, 3, height, width], got {list(images.shape)}")
        views = self._tokens(images.flatten(0, 1)).unflatten(0, images.shape[:2])
        if self.aggregate == "concat":
            return views.flatten(1)
        return views if self.aggregate == "none" else views.mean(1) if self.aggregate == "mean" else views.amax(1)


class AudioEncoder(_Encoder):
    """Mel spectra [B, 1, mels, frames] -> one vector [B, 768], or with `tokens` all of them [B, L, 768].

    A spectrum of another size than the network's is resized to it.
    """

    def __init__(
        self,
        path: str | Path | None = None,
        freeze: bool = True,
        *,
        name: str = "ast-14-14",
        tokens: bool = False,
        download: bool = False,
    ) -> None:
        super().__init__(name, path, freeze=freeze, download=download, output="tokens" if tokens else "pooled")

    def forward(self, spectrum: Tensor) -> Tensor:
        if spectrum.ndim != 4 or spectrum.shape[1] != 1:
            raise UserError(f"audio: expected [batch, 1, mels, frames], got {list(spectrum.shape)}")
        return self._tokens(fit_spectrum(spectrum, self.backbone).squeeze(1).transpose(1, 2))


def fit_spectrum(spectrum: Tensor, backbone: FrozenBackbone) -> Tensor:
    """[B, 1, mels, frames] at the size that an AST reads."""
    net: Any = backbone.net
    size = int(net.config.num_mel_bins), int(net.config.max_length)
    if tuple(spectrum.shape[-2:]) == size:
        return spectrum
    return torch.nn.functional.interpolate(spectrum, size, mode="bilinear", align_corners=False)
