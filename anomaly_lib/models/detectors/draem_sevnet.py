"""DRAEM-SevNet: DRAEM plus a head that reads the severity of a fault off the discriminator's encoder."""

from collections.abc import Sequence
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Generator, Tensor, nn

from anomaly_lib.data.synthesis import CutPaste, Damaged
from anomaly_lib.models.detectors.configs import DraemNetConfig, DraemSevNetConfig
from anomaly_lib.models.detectors.draem import STRIDE, Draem
from anomaly_lib.models.detectors.shapes import check_images, check_shape
from anomaly_lib.ops.patches import pad_to_multiple
from anomaly_lib.types import Prediction

SCALES = ("act2", "act3", "act4", "act5", "act6")
PROCESSOR_WIDTHS = (32, 64, 128, 128, 128)


def _mlp(inputs: int, hidden: int, half: int) -> nn.Sequential:
    """Linear ReLU Dropout, twice, then one number in 0..1; layers 0, 3 and 6 carry the published names."""
    layers: list[nn.Module] = [nn.Linear(inputs, hidden), nn.ReLU(), nn.Dropout(0.1)]
    layers += [nn.Linear(hidden, half), nn.ReLU(), nn.Dropout(0.1), nn.Linear(half, 1), nn.Sigmoid()]
    for layer in layers:
        if isinstance(layer, nn.Linear):
            nn.init.xavier_uniform_(layer.weight)
            nn.init.zeros_(layer.bias)
    return nn.Sequential(*layers)


class SpatialProcessor(nn.Module):
    """Attend to places (1x1 convolution, sigmoid), narrow the channels, pool to a small grid."""

    def __init__(self, *, inputs: int, outputs: int, grid: int, attention: bool) -> None:
        super().__init__()
        self.attention = nn.Sequential(nn.Conv2d(inputs, 1, 1), nn.Sigmoid()) if attention else None
        self.reducer = nn.Sequential(
            nn.Conv2d(inputs, outputs, 3, padding=1), nn.ReLU(), nn.AdaptiveAvgPool2d((grid, grid))
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.reducer(x if self.attention is None else x * self.attention(x)).flatten(1)


class SeverityHead(nn.Module):
    """Encoder activations act1..act6 [B, C_i, h_i, w_i] -> severity [B] in 0..1.

    It reads act6 alone or act2 to act6, as their means or as a small grid of them after an attention to places.
    """

    def __init__(self, config: DraemSevNetConfig) -> None:
        super().__init__()
        self.config = config
        hidden, grid, attention = config.head_hidden, config.head_grid, config.head_attention
        sizes = [m * config.segment_width for m in (2, 4, 8, 8, 8)]
        if config.head_mode == "single_scale":
            sizes = sizes[-1:]
        if config.head_pooling == "gap":
            self.severity_mlp = _mlp(sum(sizes), hidden, hidden // 2)
        elif config.head_mode == "single_scale":
            self.processor = SpatialProcessor(inputs=sizes[0], outputs=hidden, grid=grid, attention=attention)
            self.spatial_severity_mlp = _mlp(hidden * grid**2, hidden, hidden // 2)
        else:
            self.scale_spatial_processors = nn.ModuleDict(
                {
                    name: SpatialProcessor(inputs=size, outputs=out, grid=grid, attention=attention)
                    for name, size, out in zip(SCALES, sizes, PROCESSOR_WIDTHS, strict=True)
                }
            )
            self.multi_scale_spatial_mlp = _mlp(sum(PROCESSOR_WIDTHS) * grid**2, 2 * hidden, hidden)

    def forward(self, activations: Sequence[Tensor]) -> Tensor:
        used = activations[-1:] if self.config.head_mode == "single_scale" else activations[1:]
        if self.config.head_pooling == "gap":
            return self.severity_mlp(torch.cat([x.mean((2, 3)) for x in used], dim=1)).squeeze(1)
        if self.config.head_mode == "single_scale":
            return self.spatial_severity_mlp(self.processor(used[0])).squeeze(1)
        processed = [self.scale_spatial_processors[name](x) for name, x in zip(SCALES, used, strict=True)]
        return self.multi_scale_spatial_mlp(torch.cat(processed, dim=1)).squeeze(1)


class DraemSevNet(Draem):
    """Images [B, C, H, W] in 0..1 -> scores [B] and maps [B, H, W]: DRAEM whose score also listens to a severity.

    A head reads the severity 0..1 off the segmentation's encoder; its target is the drawn severity divided by
    `severity_max`. ``severity_target="raw"`` is the published behaviour: a sigmoid asked for labels up to
    `severity_max`, which saturates above 1.
    """

    CONFIG: ClassVar[type[DraemNetConfig]] = DraemSevNetConfig
    config: DraemSevNetConfig

    def __init__(self, config: DraemSevNetConfig | None = None, **options: Any) -> None:
        super().__init__(config, **options)
        self.severity_head = SeverityHead(self.config)

    def networks_and_severity(self, images: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Repair, logits and severity [B]; the discriminator's encoder runs once for both."""
        check_images(images, (self.config.channels,))
        height, width = images.shape[-2:]
        repair, pair = self.repair_and_pair(pad_to_multiple(images, STRIDE))
        activations = self.discriminative_subnetwork.encoder_segment(pair)
        logits = self.discriminative_subnetwork.decoder_segment(activations)
        severity = self.severity_head(activations)
        return repair[..., :height, :width], logits[..., :height, :width], severity

    def damage(self, images: Tensor, generator: Generator) -> Damaged:
        """Images [B, C, H, W] with pasted faults of a known severity."""
        config = self.config
        cutpaste = CutPaste(
            width_range=(config.patch_width_range[0], config.patch_width_range[1]),
            ratio_range=(config.patch_ratio_range[0], config.patch_ratio_range[1]),
            count=config.patch_count,
            severity_max=config.severity_max,
            probability=config.anomaly_probability,
        )
        return cutpaste(images, generator=generator)

    def training_losses(self, images: Tensor, generator: Generator) -> dict[str, Tensor]:
        damaged = self.damage(images, generator)
        return self.losses(damaged.images, images, damaged.mask, damaged.severity)

    def losses(  # type: ignore[override]
        self, damaged: Tensor, clean: Tensor, mask: Tensor, severity: Tensor
    ) -> dict[str, Tensor]:
        """DRAEM's three terms and the weighted severity term; `severity` [B] is the raw value drawn (0: no fault)."""
        self.check_pairs(damaged, clean, mask)
        check_shape("severity", severity, (len(damaged),))
        repair, logits, found = self.networks_and_severity(damaged)
        target = severity / self.config.severity_max if self.config.severity_target == "normalised" else severity
        compare = F.mse_loss if self.config.severity_loss == "mse" else F.smooth_l1_loss
        terms = self.repair_and_mask_losses(repair, logits, clean, mask)
        return {**terms, "severity": self.config.severity_weight * compare(found.float(), target.float())}

    def combine(self, mask_score: Tensor, severity: Tensor) -> Tensor:
        """Image score [B] of the map's score [B] and the severity [B]."""
        if self.config.combination == "maximum":
            return torch.maximum(mask_score, severity)
        weight = 0.5 if self.config.combination == "simple_average" else self.config.combination_weight
        return (1 - weight) * mask_score + weight * severity

    def forward(self, images: Tensor) -> Prediction:
        repair, logits, severity = self.networks_and_severity(images)
        maps = logits.softmax(1)[:, 1]
        mask_score = self.map_score(maps)
        parts = {"mask_score": mask_score, "severity": severity, "repair": repair}
        return Prediction(self.combine(mask_score, severity), maps, parts)
